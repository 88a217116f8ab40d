import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from label_map_pairs import SHAPES, one_hot, random_label_maps, structured_label_maps
from monai.metrics import DiceMetric

from relict_lightning.errors import ConfigurationError, InvalidImageError
from relict_lightning.functional import dice, mean_dice, volumetric_similarity


def test_dice_of_a_worked_pair():
    generated, training = torch.tensor([[[1, 1, 0, 2]]]), torch.tensor([[[1, 0, 0, 0]]])

    value = dice(generated, training, num_labels=4, include_background=True)

    torch.testing.assert_close(value, torch.tensor([[0.5, 2 / 3, 0.0, torch.nan]]), equal_nan=True)


@pytest.mark.parametrize("shape", [*SHAPES, (4, 6, 5), (3, 4, 5, 6)])
@pytest.mark.parametrize("pair", [random_label_maps, structured_label_maps])
def test_dice_agrees_with_monai(pair, shape):
    generated, training = pair(0, shape, 5)

    expected = DiceMetric(include_background=False, reduction="none")(one_hot(generated, 5), one_hot(training, 5))

    torch.testing.assert_close(dice(generated, training, num_labels=5), expected)
    torch.testing.assert_close(mean_dice(generated, training, num_labels=5), expected.mean(dim=1))


@given(seed=st.integers(0, 1000), labels=st.integers(2, 6))
@settings(max_examples=30)
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
@settings(max_examples=25)
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


@pytest.mark.parametrize("measure", [dice, mean_dice, volumetric_similarity])
def test_each_measure_can_count_the_background(measure):
    generated, training = torch.tensor([[[1, 1, 0, 0]]]), torch.tensor([[[1, 0, 0, 0]]])

    value = measure(generated, training, num_labels=2, include_background=True)

    without = measure(generated, training, num_labels=2)
    swapped = measure(1 - generated, 1 - training, num_labels=2)
    torch.testing.assert_close(value.reshape(-1).sum(), (without + swapped).reshape(-1).sum() / (3 - value.ndim))


def test_dice_falls_with_every_voxel_erased_from_a_copy():
    patient = structured_label_maps(0)[1][:1]
    order = torch.randperm(patient.numel(), generator=torch.Generator().manual_seed(0))
    values = []
    for erased in range(0, patient.numel(), 100):
        copy = patient.clone()
        copy.view(-1)[order[:erased]] = 0
        values.append(mean_dice(copy, patient, num_labels=4).item())

    assert values[0] == 1
    assert (np.diff(values) < 0).all()


def test_volumetric_similarity_of_a_worked_pair():
    generated, training = torch.tensor([[[1, 1, 0, 2]]]), torch.tensor([[[0, 0, 1, 0]]])

    value = volumetric_similarity(generated, training, num_labels=4, include_background=True)

    torch.testing.assert_close(value, torch.tensor([[0.5, 2 / 3, 0.0, torch.nan]]), equal_nan=True)


@given(seed=st.integers(0, 1000), labels=st.integers(2, 6))
@settings(max_examples=30)
def test_volumetric_similarity_is_one_minus_the_difference_of_volumes_over_their_sum(seed, labels):
    generated, training = random_label_maps(seed, (3, 2, 2), labels)

    values = volumetric_similarity(generated, training, num_labels=labels).numpy()

    for row, a, b in zip(values, generated.numpy(), training.numpy(), strict=True):
        for label in range(1, labels):
            in_a, in_b = len(np.flatnonzero(a == label)), len(np.flatnonzero(b == label))
            expected = 1 - abs(in_a - in_b) / (in_a + in_b) if in_a + in_b else np.nan
            np.testing.assert_allclose(row[label - 1], expected, rtol=1e-6)


@given(seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_volumetric_similarity_does_not_depend_on_where_voxels_lie_nor_on_the_order_of_the_pair(seed):
    generated, training = random_label_maps(seed, (2, 5, 6, 4))
    order = torch.randperm(120, generator=torch.Generator().manual_seed(seed))
    scattered = generated.flatten(1)[:, order].reshape(generated.shape)
    value = volumetric_similarity(generated, training, num_labels=5)

    torch.testing.assert_close(volumetric_similarity(scattered, training, num_labels=5), value)
    torch.testing.assert_close(volumetric_similarity(training, generated, num_labels=5), value)
    torch.testing.assert_close(volumetric_similarity(scattered, generated, num_labels=5), torch.ones(2, 4))
    assert ((value >= 0) & (value <= 1)).all()
