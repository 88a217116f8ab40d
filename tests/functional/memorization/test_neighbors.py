import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from relict_lightning.errors import ConfigurationError, EmptyDataError
from relict_lightning.functional import nearest_training_distances
from relict_lightning.functional.memorization import embedding_sets
from relict_lightning.functional.memorization.embedding_sets import (
    check_embedding_sets,
    largest_cosines,
    nearest_neighbors,
    unit_vectors,
)


def normal_sets(seed: int, *, n: int = 7, m: int = 9, d: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator), torch.randn(m, d, generator=generator)


def test_the_distances_of_worked_embeddings():
    generated = torch.tensor([[3.0, 4.0], [10.0, 0.0]])
    training = torch.tensor([[0.0, 0.0], [10.0, 1.0], [10.0, 4.0]])

    distances, reference_distances = nearest_training_distances(generated, training)

    assert distances.tolist() == [5.0, 1.0]
    assert reference_distances.tolist() == [pytest.approx(101**0.5), 3.0]


def test_the_second_distance_is_to_another_patient():
    generated, training = torch.tensor([[0.1]]), torch.tensor([[0.0], [0.01], [5.0]])

    _, reference_distances = nearest_training_distances(generated, training, training_groups=torch.tensor([4, 4, 2]))

    assert reference_distances.item() == pytest.approx(4.99)


@pytest.mark.parametrize("structured", [False, True], ids=["random", "grid"])
def test_the_distances_agree_with_scikit_learn(structured):
    generated, training = normal_sets(0, n=40, m=60, d=5)
    if structured:
        # On a grid many are equally near, and many lie on each other.
        generated, training = generated.round(), training.round()

    distances, reference_distances = nearest_training_distances(generated, training)

    search = NearestNeighbors(n_neighbors=2).fit(training.numpy())
    expected, positions = search.kneighbors(generated.numpy(), n_neighbors=1)
    np.testing.assert_allclose(distances, expected[:, 0], atol=1e-6)
    if not structured:
        np.testing.assert_allclose(reference_distances, search.kneighbors(training)[0][positions[:, 0], 1], atol=1e-6)


@given(seed=st.integers(0, 1000), groups=st.integers(2, 5))
@settings(max_examples=25)
def test_the_distances_with_groups_are_those_of_every_pair_compared(seed, groups):
    generated, training = normal_sets(seed)
    training_groups = torch.arange(len(training)) % groups

    distances, reference_distances = nearest_training_distances(generated, training, training_groups=training_groups)

    for sample, first, second in zip(generated.double(), distances, reference_distances, strict=True):
        to_training = (training.double() - sample).norm(dim=1)
        match = int(to_training.argmin())
        others = training[training_groups != training_groups[match]].double()
        assert first == pytest.approx(float(to_training.min()))
        assert second == pytest.approx(float((others - training[match].double()).norm(dim=1).min()))


@given(seed=st.integers(0, 1000), rows=st.integers(1, 4), columns=st.integers(1, 4), count=st.integers(1, 3))
@settings(max_examples=40)
def test_the_size_of_the_blocks_changes_nothing(seed, rows, columns, count):
    generated, training = normal_sets(seed)
    groups = {"query_groups": torch.arange(7) % 3, "reference_groups": torch.arange(9) % 3}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding_sets, "_ROWS", rows)
        patch.setattr(embedding_sets, "_COLUMNS", columns)
        blocked = nearest_neighbors(generated, training, count=count, **groups)
        blocked_cosines = largest_cosines(generated, training, **groups)

    whole = nearest_neighbors(generated, training, count=count, **groups)
    assert torch.equal(blocked[0], whole[0])
    assert torch.equal(blocked[1], whole[1])
    torch.testing.assert_close(blocked_cosines, largest_cosines(generated, training, **groups))


@given(seed=st.integers(0, 1000), offset=st.floats(-1000, 1000), scale=st.floats(0.1, 10))
@settings(max_examples=25)
def test_the_distances_do_not_change_with_the_origin_and_grow_with_the_scale(seed, offset, scale):
    generated, training = (each.double() for each in normal_sets(seed))

    moved = nearest_training_distances(generated * scale + offset, training * scale + offset)

    for found, expected in zip(moved, nearest_training_distances(generated, training), strict=True):
        torch.testing.assert_close(found, expected * scale, atol=1e-9, rtol=1e-9)


@given(seed=st.integers(0, 1000), cut=st.integers(0, 7), data=st.data())
@settings(max_examples=25)
def test_the_distances_ignore_the_batches_of_samples_and_the_order_of_training_images(seed, cut, data):
    generated, training = normal_sets(seed)
    order = torch.tensor(data.draw(st.permutations(range(len(training)))))

    parts = [nearest_training_distances(part, training[order]) for part in (generated[:cut], generated[cut:])]

    for found, expected in zip(zip(*parts, strict=True), nearest_training_distances(generated, training), strict=True):
        assert torch.equal(torch.cat(found), expected)


def test_samples_and_training_images_cannot_be_swapped():
    generated, training = normal_sets(0, n=5, m=5)

    assert not torch.equal(
        nearest_training_distances(generated, training)[0], nearest_training_distances(training, generated)[0]
    )


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_a_copy_lies_at_distance_0_however_long_its_embedding(offset):
    training = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)) + offset

    distances, reference_distances = nearest_training_distances(training[:20].clone(), training)

    assert (distances == 0).all()
    assert (reference_distances > 0).all()
    # What a product in float32 makes of them.
    assert (torch.cdist(training[:20], training, compute_mode="use_mm_for_euclid_dist").amin(dim=1) > 0).any()


def test_images_that_lie_on_each_other_are_at_distance_0():
    training = torch.tensor([[1.0, 2.0], [1.0, 2.0], [5.0, 5.0]])

    distances, reference_distances = nearest_training_distances(training[:1], training)

    assert (distances.item(), reference_distances.item()) == (0, 0)


def test_without_samples_there_are_no_distances():
    distances, reference_distances = nearest_training_distances(torch.zeros(0, 3), torch.eye(3))

    assert distances.shape == reference_distances.shape == (0,)
    assert distances.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_floating_dtype_is_measured_in_float64(dtype):
    distances, _ = nearest_training_distances(
        torch.tensor([[1.0]], dtype=dtype), torch.tensor([[0.0], [5.0]], dtype=dtype)
    )

    assert distances.dtype == torch.float64
    assert distances.tolist() == [1.0]


def test_largest_half_precision_values_do_not_overflow():
    distances, _ = nearest_training_distances(torch.full((1, 4), -65504.0).half(), torch.full((2, 4), 65504.0).half())

    assert distances.item() == 4 * 65504.0


def test_missing_neighbors_are_infinitely_far():
    distances, positions = nearest_neighbors(torch.zeros(1, 1), torch.tensor([[2.0]]), count=3)

    assert distances.tolist() == [[2.0, math.inf, math.inf]]
    assert positions.tolist() == [[0, -1, -1]]


def test_images_of_the_own_group_do_not_stand_in_for_missing_neighbors():
    groups = {"query_groups": torch.tensor([1]), "reference_groups": torch.tensor([1, 2, 1])}

    distances, positions = nearest_neighbors(torch.zeros(1, 1), torch.tensor([[0.0], [5.0], [1.0]]), count=2, **groups)

    assert distances.tolist() == [[5.0, math.inf]]
    assert positions.tolist() == [[1, -1]]


@given(seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_the_largest_cosine_is_that_of_numpy(seed):
    generated, training = (each.double().numpy() for each in normal_sets(seed))
    lengths = np.outer(np.linalg.norm(generated, axis=1), np.linalg.norm(training, axis=1))

    found = largest_cosines(torch.from_numpy(generated), torch.from_numpy(training))

    np.testing.assert_allclose(found, (generated @ training.T / lengths).max(axis=1), atol=1e-12)


def test_embeddings_however_short_or_long_have_a_direction_and_zeros_have_none():
    embeddings = torch.tensor([[3e-30, 4e-30], [3e30, 4e30], [0.0, 0.0]])

    torch.testing.assert_close(
        unit_vectors(embeddings), torch.tensor([[0.6, 0.8], [0.6, 0.8], [0.0, 0.0]], dtype=torch.float64)
    )


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"training": torch.zeros(1, 3)}, EmptyDataError, "at least 2 embeddings, but holds 1"),
        ({"training": torch.zeros(0, 3)}, EmptyDataError, "at least 2 embeddings, but holds 0"),
        ({"training_groups": torch.full((4,), 7)}, EmptyDataError, "all 4 training images are of group 7"),
        ({"training": torch.zeros(4, 2)}, ConfigurationError, "one dimension, but have 3 and 2"),
        ({"generated": torch.full((2, 3), math.nan)}, ConfigurationError, "generated must be finite"),
        ({"training": torch.full((4, 3), math.inf)}, ConfigurationError, "4 of 4 embeddings"),
        (
            {"training": torch.full((4, 3), 1e200, dtype=torch.float64)},
            ConfigurationError,
            "training must be finite in float32",
        ),
        ({"generated": torch.zeros(2, 3).long()}, ConfigurationError, "generated must be floating point"),
        ({"generated": torch.zeros(3)}, ConfigurationError, r"generated must have shape \[n, d\]"),
        ({"training": torch.zeros(4, 0)}, ConfigurationError, r"shape \(4, 0\)"),
        ({"training_groups": torch.zeros(3).long()}, ConfigurationError, "training_groups must have one entry"),
        ({"training_groups": torch.zeros(4)}, ConfigurationError, "training_groups must be integers"),
    ],
)
def test_embeddings_that_cannot_be_compared_are_refused(changes, error, message):
    arguments = {"generated": torch.zeros(2, 3), "training": torch.zeros(4, 3), "training_groups": torch.arange(4)}

    with pytest.raises(error, match=message):
        inspect.unwrap(nearest_training_distances)(**(arguments | changes))


def test_a_set_that_may_be_empty_is_accepted():
    check_embedding_sets(torch.zeros(0, 3), torch.zeros(1, 3))
