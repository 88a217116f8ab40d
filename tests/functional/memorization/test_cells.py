import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.metrics import pairwise_distances, pairwise_distances_argmin
from sklearn.metrics.cluster import adjusted_rand_score
from sklearn.neighbors import NearestNeighbors

from relict_lightning.errors import ConfigurationError, EmptyDataError
from relict_lightning.functional import assign_cells, cell_centers, nearest_distances_in_cells
from relict_lightning.functional.memorization import cells


def normal_set(seed: int, *, n: int = 30, d: int = 3) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_the_centers_of_two_pairs_lie_between_them():
    centers = cell_centers(torch.tensor([[0.0], [1.0], [10.0], [11.0]]), num_cells=2)

    assert sorted(centers.flatten().tolist()) == [0.5, 10.5]


def test_well_separated_clusters_are_the_cells_that_scikit_learn_finds():
    rng = np.random.default_rng(0)
    training = torch.from_numpy(rng.normal(size=(90, 5)) + 20 * np.repeat(rng.normal(size=(3, 5)), 30, axis=0))

    found = assign_cells(training, cell_centers(training, num_cells=3))

    expected = KMeans(3, n_init=10, random_state=0).fit(training.numpy()).labels_
    assert adjusted_rand_score(expected, found) == 1


@given(seed=st.integers(0, 1000), num_cells=st.integers(1, 6))
@settings(max_examples=25)
def test_every_center_is_the_mean_of_its_cell_and_none_is_empty(seed, num_cells):
    training = normal_set(seed).double()

    centers = cell_centers(training, num_cells=num_cells, seed=seed)

    cell_of = assign_cells(training, centers)
    assert len(centers) <= num_cells
    for cell, center in enumerate(centers):
        torch.testing.assert_close(training[cell_of == cell].mean(dim=0), center)


def test_a_cell_that_empties_is_left_out(monkeypatch):
    # Drawn from the training images, no first centre is empty, and hardly any empties later. This one is.
    monkeypatch.setattr(cells, "_spread_points", lambda *_, **__: np.array([[0.0], [100.0], [10.0]]))

    centers = cell_centers(torch.tensor([[0.0], [1.0], [10.0], [11.0]]), num_cells=3)

    assert centers.tolist() == [[0.5], [10.5]]


def test_the_seed_alone_decides_the_centers():
    training = normal_set(0)

    torch.manual_seed(1)
    first = cell_centers(training, num_cells=5, seed=3)
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002 -- the global state is what must not matter

    assert torch.equal(cell_centers(training, num_cells=5, seed=3), first)
    assert not torch.equal(cell_centers(training, num_cells=5, seed=4), first)


def test_the_spread_within_cells_is_near_the_smallest_that_scikit_learn_finds():
    training = normal_set(0, n=200, d=4).double()

    centers = cell_centers(training, num_cells=6)

    spread = float((training - centers[assign_cells(training, centers)]).square().sum())
    assert spread <= 1.1 * KMeans(6, n_init=20, random_state=0).fit(training.numpy()).inertia_


@pytest.mark.parametrize("seed", range(5))
def test_small_clusters_far_away_get_cells_of_their_own(seed):
    crowd = normal_set(0, n=500)
    training = torch.cat([crowd, normal_set(1, n=5) + 1e3, normal_set(2, n=5) + 1.5e3])

    found = assign_cells(training, cell_centers(training, num_cells=3, seed=seed))

    # First centres drawn evenly would all be of the crowd.
    assert sorted(torch.bincount(found).tolist()) == [5, 5, 500]


@given(seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_an_embedding_belongs_to_the_nearest_center(seed):
    embeddings, centers = normal_set(seed), normal_set(seed + 1, n=4)

    expected = pairwise_distances_argmin(embeddings.numpy(), centers.numpy())

    assert assign_cells(embeddings, centers).tolist() == expected.tolist()


@pytest.mark.parametrize("structured", [False, True], ids=["random", "grid"])
def test_distances_in_cells_are_those_of_a_search_in_each_cell(structured):
    generated, training = normal_set(0), normal_set(1, n=50)
    if structured:
        generated, training = generated.round(), training.round()
    centers = cell_centers(training, num_cells=4)
    generated_cells, training_cells = assign_cells(generated, centers), assign_cells(training, centers)

    distances = nearest_distances_in_cells(
        generated, training, generated_cells=generated_cells, training_cells=training_cells
    )

    for cell in range(len(centers)):
        search = NearestNeighbors(n_neighbors=1).fit(training[training_cells == cell].numpy())
        expected = search.kneighbors(generated[generated_cells == cell].numpy())[0][:, 0]
        np.testing.assert_allclose(distances[generated_cells == cell], expected, atol=1e-6)


@given(seed=st.integers(0, 1000), names=st.permutations(range(3)))
@settings(max_examples=20)
def test_distances_in_cells_are_no_shorter_than_without_and_ignore_the_names_of_cells(seed, names):
    generated, training = normal_set(seed), normal_set(seed + 1)
    generator, names = torch.Generator().manual_seed(seed), torch.tensor(names)
    generated_cells, training_cells = (torch.randint(0, 3, (30,), generator=generator) for _ in range(2))

    distances = nearest_distances_in_cells(
        generated, training, generated_cells=generated_cells, training_cells=training_cells
    )

    renamed = nearest_distances_in_cells(
        generated, training, generated_cells=names[generated_cells], training_cells=names[training_cells]
    )
    assert torch.equal(renamed, distances)
    shortest = torch.from_numpy(pairwise_distances(generated.double(), training.double()).min(axis=1))
    assert (distances >= shortest - 1e-6).all()


def test_a_cell_without_training_images_is_infinitely_far_away():
    distances = nearest_distances_in_cells(
        torch.zeros(2, 1), torch.ones(1, 1), generated_cells=torch.tensor([0, 1]), training_cells=torch.tensor([0])
    )

    assert distances.tolist() == [1.0, math.inf]


def test_samples_and_training_images_in_cells_cannot_be_swapped():
    generated, training = torch.tensor([[0.0], [9.0]]), torch.tensor([[1.0], [2.0]])
    one_cell = {"generated_cells": torch.zeros(2).long(), "training_cells": torch.zeros(2).long()}

    assert nearest_distances_in_cells(generated, training, **one_cell).tolist() == [1, 7]
    assert nearest_distances_in_cells(training, generated, **one_cell).tolist() == [1, 2]


def test_without_samples_there_are_neither_cells_nor_distances():
    none = torch.zeros(0, 2)

    assert assign_cells(none, torch.ones(3, 2)).shape == (0,)
    assert nearest_distances_in_cells(
        none, torch.ones(3, 2), generated_cells=torch.zeros(0).long(), training_cells=torch.zeros(3).long()
    ).shape == (0,)


def test_equal_training_images_are_one_cell():
    assert cell_centers(torch.full((5, 2), 3.0), num_cells=1).tolist() == [[3.0, 3.0]]
    with pytest.raises(ConfigurationError, match="different training embeddings, 1, but is num_cells=2"):
        cell_centers(torch.full((5, 2), 3.0), num_cells=2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: cell_centers(torch.eye(3), num_cells=0), ConfigurationError, "num_cells=0"),
        (lambda: cell_centers(torch.eye(3), num_cells=4), ConfigurationError, "num_cells=4"),
        (lambda: cell_centers(torch.zeros(0, 3), num_cells=1), EmptyDataError, "training must hold at least 1"),
        (lambda: cell_centers(torch.full((3, 3), math.nan), num_cells=1), ConfigurationError, "finite"),
        (lambda: assign_cells(torch.eye(3), torch.zeros(0, 3)), EmptyDataError, "at least 1"),
        (lambda: assign_cells(torch.eye(3), torch.full((2, 3), math.inf)), ConfigurationError, "finite"),
        (lambda: inspect.unwrap(assign_cells)(torch.eye(3), torch.eye(2)), ConfigurationError, "have 3 and 2"),
        (
            lambda: inspect.unwrap(nearest_distances_in_cells)(
                torch.eye(3), torch.eye(3), generated_cells=torch.zeros(2).long(), training_cells=torch.zeros(3).long()
            ),
            ConfigurationError,
            "generated_cells must have one entry for each of the 3",
        ),
        (
            lambda: inspect.unwrap(nearest_distances_in_cells)(
                torch.eye(3), torch.eye(3), generated_cells=torch.zeros(3).long(), training_cells=torch.zeros(3)
            ),
            ConfigurationError,
            "training_cells must be integers",
        ),
    ],
)
def test_what_cannot_be_put_into_cells_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
