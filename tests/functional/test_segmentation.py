import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import DiceMetric

from relict_lightning.errors import ConfigurationError, InvalidImageError
from relict_lightning.functional import dice, mean_dice


def random_label_maps(
    seed: int, shape: tuple[int, ...] = (4, 6, 5), labels: int = 5
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, labels, shape, generator=generator), torch.randint(0, labels, shape, generator=generator)


def test_dice_of_a_worked_pair():
    generated, training = torch.tensor([[[1, 1, 0, 2]]]), torch.tensor([[[1, 0, 0, 0]]])

    value = dice(generated, training, num_labels=4, include_background=True)

    torch.testing.assert_close(value, torch.tensor([[0.5, 2 / 3, 0.0, torch.nan]]), equal_nan=True)


@pytest.mark.parametrize("shape", [(4, 6, 5), (3, 4, 5, 6)])
def test_dice_agrees_with_monai(shape):
    generated, training = random_label_maps(0, shape)
    one_hot = [torch.nn.functional.one_hot(labels, 5).movedim(-1, 1).float() for labels in (generated, training)]

    expected = DiceMetric(include_background=False, reduction="none")(*one_hot)

    torch.testing.assert_close(dice(generated, training, num_labels=5), expected)
    torch.testing.assert_close(mean_dice(generated, training, num_labels=5), expected.mean(dim=1))


@given(seed=st.integers(0, 1000), labels=st.integers(2, 6))
@settings(max_examples=30, deadline=None)
def test_dice_agrees_with_sets_of_voxels(seed, labels):
    generated, training = random_label_maps(seed, (3, 2, 2), labels)

    for row, (a, b) in zip(
        dice(generated, training, num_labels=labels).numpy(),
        zip(generated.numpy(), training.numpy(), strict=True),
        strict=True,
    ):
        for label in range(1, labels):
            in_a, in_b = set(np.flatnonzero(a == label)), set(np.flatnonzero(b == label))
            expected = 2 * len(in_a & in_b) / (len(in_a) + len(in_b)) if in_a | in_b else np.nan
            np.testing.assert_allclose(row[label - 1], expected, rtol=1e-6)


@given(seed=st.integers(0, 1000), relabelling=st.permutations(range(1, 5)))
@settings(max_examples=25, deadline=None)
def test_mean_dice_does_not_depend_on_order_of_labels_voxels_or_pair(seed, relabelling):
    generated, training = random_label_maps(seed)
    names = torch.tensor([0, *relabelling])
    value = mean_dice(generated, training, num_labels=5)

    torch.testing.assert_close(mean_dice(names[generated], names[training], num_labels=5), value)
    torch.testing.assert_close(mean_dice(generated.flip(1), training.flip(1), num_labels=5), value)
    torch.testing.assert_close(mean_dice(training, generated, num_labels=5), value)
    torch.testing.assert_close(mean_dice(generated, generated, num_labels=5), torch.ones(4))


def test_mean_dice_leaves_out_absent_labels_and_counts_missed_ones():
    generated, training = torch.tensor([[[1, 1, 0, 2]]]), torch.tensor([[[1, 0, 0, 0]]])

    assert mean_dice(generated, training, num_labels=10).item() == pytest.approx((2 / 3 + 0) / 2)


def test_label_maps_without_structure_are_no_evidence():
    empty = torch.zeros(2, 4, 4, dtype=torch.long)

    assert dice(empty, empty, num_labels=3).isnan().all()
    assert mean_dice(empty, empty, num_labels=3).tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_every_integer_dtype_is_accepted(dtype):
    generated, training = random_label_maps(1)

    torch.testing.assert_close(
        dice(generated.to(dtype), training.to(dtype), num_labels=5), dice(generated, training, num_labels=5)
    )


def test_no_pairs_give_no_values():
    empty = torch.zeros(0, 4, 4, dtype=torch.long)

    assert dice(empty, empty, num_labels=3).shape == (0, 2)
    assert mean_dice(empty, empty, num_labels=3).shape == (0,)


@pytest.mark.parametrize(
    ("generated", "training", "message"),
    [
        (torch.full((1, 2, 2), 3), torch.zeros(1, 2, 2).long(), "generated .* 0 to 2, but hold 3 to 3"),
        (torch.zeros(1, 2, 2).long(), torch.full((1, 2, 2), -1), "training .* hold -1 to -1"),
        (torch.zeros(1, 2, 2).long(), torch.zeros(1, 2, 3).long(), r"\(1, 2, 2\) and \(1, 2, 3\)"),
        (torch.zeros(1, 2, 2), torch.zeros(1, 2, 2).long(), "torch.float32"),
    ],
)
def test_invalid_label_maps_are_refused(generated, training, message):
    with pytest.raises(InvalidImageError, match=message):
        inspect.unwrap(dice)(generated, training, num_labels=3)


def test_dice_without_a_label_to_compare_is_refused():
    with pytest.raises(ConfigurationError, match="num_labels=1"):
        dice(torch.zeros(1, 2, 2).long(), torch.zeros(1, 2, 2).long(), num_labels=1)
