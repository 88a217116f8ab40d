import inspect
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors

from relict_lightning.errors import ConfigurationError, EmptyDataError
from relict_lightning.functional import (
    coverage,
    self_similarity,
    unique_training_groups,
    unique_training_images,
)

COUNTS = {"matches": unique_training_images, "match_groups": unique_training_groups}


def normal_sets(seed: int, *, n: int = 12, m: int = 15, d: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator), torch.randn(m, d, generator=generator)


def test_replicated_images_and_patients_of_worked_matches_are_counted_once():
    is_replica = torch.tensor([True, True, True, False])

    assert unique_training_images(torch.tensor([4, 4, 7, 9]), is_replica) == 2
    assert unique_training_groups(torch.tensor([1, 1, 1, 2]), is_replica) == 1


@pytest.mark.parametrize("count", COUNTS.values(), ids=COUNTS.keys())
@given(pairs=st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=20), data=st.data())
@settings(max_examples=30)
def test_the_count_is_that_of_a_set_in_any_order(count, pairs, data):
    pairs = data.draw(st.permutations(pairs))
    matches = torch.tensor([match for match, _ in pairs], dtype=torch.long)
    is_replica = torch.tensor([replica for _, replica in pairs], dtype=torch.bool)

    assert count(matches, is_replica) == len({match for match, replica in pairs if replica})


def test_no_patient_is_counted_twice_for_two_images():
    matches, groups = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 0, 1, 1])

    assert unique_training_images(matches, torch.ones(4) > 0) == 4
    assert unique_training_groups(groups, torch.ones(4) > 0) == 2


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_matches_that_cannot_be_counted_are_refused(name, count):
    is_replica = torch.tensor([True, False])

    with pytest.raises(ConfigurationError, match=f"{name} and is_replica must have one shape"):
        inspect.unwrap(count)(torch.zeros(3).long(), is_replica)
    with pytest.raises(ConfigurationError, match=f"{name} must be integers, but has dtype torch.float32"):
        inspect.unwrap(count)(torch.zeros(2), is_replica)
    with pytest.raises(ConfigurationError, match=r"is_replica must be boolean, but has dtype torch\.int64"):
        inspect.unwrap(count)(torch.zeros(2).long(), torch.zeros(2).long())


def test_codes_near_the_end_of_their_range_are_told_apart():
    largest = torch.iinfo(torch.int64).max

    assert unique_training_groups(torch.tensor([largest, largest - 1]), torch.ones(2) > 0) == 2
    assert unique_training_images(torch.tensor([255, 0], dtype=torch.uint8), torch.ones(2) > 0) == 2


def test_the_coverage_of_worked_embeddings():
    training = torch.tensor([[0.0], [1.0], [2.0], [10.0]])

    # The radii are 1, 1, 1 and 8 to the first neighbours, and 2, 1, 2 and 9 to the second.
    assert coverage(torch.tensor([[0.5], [0.6]]), training, num_neighbors=1) == 0.5
    assert coverage(torch.tensor([[0.5], [0.6]]), training, num_neighbors=2) == 0.75


@pytest.mark.parametrize("structured", [False, True], ids=["random", "clustered"])
@pytest.mark.parametrize("k", [1, 5])
def test_the_coverage_agrees_with_scikit_learn(structured, k):
    generated, training = normal_sets(0, n=40, m=60)
    if structured:
        generated[:, 0], training[:30] = 3.0, training[:30] + 3

    radii = NearestNeighbors(n_neighbors=k + 1).fit(training.numpy()).kneighbors(training.numpy())[0][:, -1]
    nearest = NearestNeighbors(n_neighbors=1).fit(generated.numpy()).kneighbors(training.numpy())[0][:, 0]

    assert coverage(generated, training, num_neighbors=k) == pytest.approx((nearest < radii).mean())


def test_the_mean_coverage_over_every_split_of_a_set_is_that_of_the_paper():
    points, m, n, k = torch.randn(8, 2, generator=torch.Generator().manual_seed(0)), 5, 3, 2

    values = []
    for chosen in itertools.combinations(range(m + n), m):
        others = [position for position in range(m + n) if position not in chosen]
        values.append(coverage(points[others], points[list(chosen)], num_neighbors=k))

    # Lemma 2: uncovered is whose k nearest of the m - 1 + n others are training images.
    expected = 1 - (m - 1) * (m - 2) / ((m + n - 1) * (m + n - 2))
    assert np.mean(values) == pytest.approx(expected)


@given(seed=st.integers(0, 1000))
@settings(max_examples=25)
def test_more_samples_and_wider_neighborhoods_do_not_lower_the_coverage(seed):
    generated, training = normal_sets(seed)

    wider = [coverage(generated, training, num_neighbors=k) for k in (1, 3, 5)]
    more = [coverage(generated[:n], training, num_neighbors=2) for n in (1, 6, 12)]

    for values in (wider, more):
        assert values == sorted(values)
        assert all(0 <= value <= 1 for value in values)


@given(seed=st.integers(0, 1000), offset=st.floats(-10, 10), scale=st.floats(0.1, 10), data=st.data())
@settings(max_examples=25)
def test_the_coverage_ignores_order_origin_and_scale(seed, offset, scale, data):
    generated, training = (each.double() for each in normal_sets(seed))
    order = torch.tensor(data.draw(st.permutations(range(len(training)))))

    moved = coverage(scale * generated + offset, scale * training[order] + offset, num_neighbors=2)

    assert moved == coverage(generated, training, num_neighbors=2)


def test_copies_of_everybody_cover_everything_and_copies_of_one_patient_little():
    _, training = normal_sets(0, m=50)

    assert coverage(training, training) == 1
    assert 0 < coverage(training[:1].repeat(50, 1), training) < 0.3


def test_a_copy_covers_its_training_image_even_where_that_has_duplicates():
    training = torch.tensor([[0.0], [0.0], [5.0]])

    assert coverage(torch.tensor([[0.0]]), training, num_neighbors=1) == pytest.approx(2 / 3)


def test_a_copy_of_the_neighbor_at_the_edge_of_the_neighborhood_does_not_count():
    training = torch.tensor([[0.0], [1.0], [3.0]])

    # The copy of 1 lies at the edge of 0, and at the edge of 3.
    assert coverage(torch.tensor([[1.0]]), training, num_neighbors=1) == pytest.approx(1 / 3)


def test_with_groups_the_neighborhood_reaches_to_another_patient():
    training, groups = torch.tensor([[0.0], [0.1], [5.0], [5.1]]), torch.tensor([0, 0, 1, 1])
    generated = torch.tensor([[1.0]])

    assert coverage(generated, training, num_neighbors=1) == 0
    assert coverage(generated, training, num_neighbors=1, training_groups=groups) == 1


def test_samples_and_training_images_of_the_coverage_cannot_be_swapped():
    generated, training = torch.tensor([[0.0], [0.1], [0.2]]), torch.tensor([[0.05], [5.0], [9.0]])

    assert coverage(generated, training, num_neighbors=1) != coverage(training, generated, num_neighbors=1)


def test_the_coverage_without_samples_is_nan():
    assert math.isnan(coverage(torch.zeros(0, 3), torch.eye(3), num_neighbors=2))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_neighbors": 0}, ConfigurationError, "num_neighbors=0"),
        ({"num_neighbors": 4}, EmptyDataError, "num_neighbors=4 images of other groups .* holds 3"),
        ({"training_groups": torch.tensor([0, 0, 0, 1])}, EmptyDataError, "num_neighbors=2 .* holds 1"),
        ({"training": torch.zeros(0, 3)}, EmptyDataError, "training must hold at least 1"),
        ({"training_groups": torch.zeros(3).long()}, ConfigurationError, "training_groups must have one entry"),
        ({"generated": torch.full((2, 3), math.nan)}, ConfigurationError, "generated must be finite"),
        ({"training": torch.zeros(4, 2)}, ConfigurationError, "have 3 and 2"),
    ],
)
def test_neighborhoods_that_are_not_defined_are_refused(changes, error, message):
    arguments = {"generated": torch.zeros(2, 3), "training": torch.zeros(4, 3), "num_neighbors": 2}

    with pytest.raises(error, match=message):
        inspect.unwrap(coverage)(**(arguments | changes))


def test_the_self_similarity_of_worked_embeddings():
    # The cosines are 0.6, 0.8 and 0.
    assert self_similarity(torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 1.0]])) == pytest.approx((0.6 + 0.8 + 0.8) / 3)


@pytest.mark.parametrize("structured", [False, True], ids=["random", "with duplicates"])
def test_the_self_similarity_agrees_with_scikit_learn(structured):
    generated, _ = normal_sets(0, n=30)
    if structured:
        generated[10:20] = 2 * generated[:10]

    cosines = cosine_similarity(generated.double().numpy())
    np.fill_diagonal(cosines, -1)

    assert self_similarity(generated) == pytest.approx(cosines.max(axis=1).mean())


@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 10), data=st.data())
@settings(max_examples=25)
def test_the_self_similarity_ignores_order_and_length_and_does_not_fall_with_more_neighbors(seed, scale, data):
    generated, _ = normal_sets(seed)
    order = torch.tensor(data.draw(st.permutations(range(len(generated)))))

    value = self_similarity(generated)

    assert -1 <= value <= 1
    assert self_similarity(scale * generated[order]) == pytest.approx(value, abs=1e-6)
    assert self_similarity(generated.repeat(2, 1)) == pytest.approx(1)


def test_collapsed_samples_are_more_alike_the_less_noise_they_carry():
    generator = torch.Generator().manual_seed(0)
    mode, noise = torch.randn(1, 32, generator=generator), torch.randn(20, 32, generator=generator)

    values = [self_similarity(mode + level * noise) for level in (0.0, 0.1, 0.5, 2.0)]

    assert values[0] == pytest.approx(1)
    assert values == sorted(values, reverse=True)


def test_opposite_samples_are_at_minus_1_and_zeros_at_0():
    assert self_similarity(torch.tensor([[1.0, 0.0], [-2.0, 0.0]])) == -1
    assert self_similarity(torch.zeros(3, 2)) == 0


@pytest.mark.parametrize("n", [0, 1])
def test_the_self_similarity_of_fewer_than_two_samples_is_nan(n):
    assert math.isnan(self_similarity(torch.ones(n, 3)))


def test_samples_without_a_direction_are_refused():
    with pytest.raises(ConfigurationError, match="generated must be finite in float32, but 1 of 2"):
        self_similarity(torch.tensor([[math.inf, 0.0], [1.0, 0.0]]))
    with pytest.raises(ConfigurationError, match="generated must be floating point"):
        inspect.unwrap(self_similarity)(torch.ones(2, 2).long())
