"""Regions of embedding space, in which data copying is looked for one by one.

A generator may copy where training images are dense and make poor images elsewhere, and the two cancel in one number.
Cells are found by k-means on the training embeddings alone, so that samples and held-out images fall into them alike.

- `cell_centers`: centres of the cells of a training set.
- `assign_cells`: the cell of each embedding.
- `nearest_distances_in_cells`: distance to the nearest training image of the same cell, for `ct_score`.
"""

import warnings

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Integer
from scipy.cluster.vq import kmeans2
from torch import Tensor

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional.memorization.embedding_sets import (
    check_embedding_sets,
    check_groups,
    nearest_neighbors,
)

# k-means stops to change long before, and SciPy's runs all of its iterations.
_ITERATIONS = 50


def cell_centers(training: Float[Tensor, "m d"], *, num_cells: int, seed: int = 0) -> Float[Tensor, "k d"]:
    """Return the centres of the cells of a training set, by k-means.

    The first centres are training images drawn far from each other (k-means++), here and not by SciPy, because SciPy
    renames the argument that seeds its own draw.

    Args:
        training: Embeddings of the training images.
        num_cells: Number of cells, at least 1. Few cells of many images serve `ct_score` best: a cell needs about 20
            samples and as many held-out images.
        seed: Seed of the first centres.

    Returns:
        Centres, float64. Each is the nearest one of at least one training image; in the rare case that a cell has
        emptied, there are fewer than `num_cells`.

    Raises:
        ConfigurationError: If `num_cells` is below 1 or above the number of different training embeddings, or if
            embeddings have a wrong shape or dtype, or values that are not finite.
        EmptyDataError: If there are no training images.

    Example:
        >>> training = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
        >>> cell_centers(training, num_cells=2).flatten().sort().values
        tensor([ 0.5000, 10.5000], dtype=torch.float64)

    References:
        Arthur, Vassilvitskii (2007), k-means++: the advantages of careful seeding, doi:10.5555/1283383.1283494.
    """
    check_embedding_sets(training, training)
    points = training.detach().cpu().double().numpy()
    different = len(np.unique(points, axis=0))
    if not 1 <= num_cells <= different:
        raise ConfigurationError(
            f"num_cells must lie between 1 and the number of different training embeddings, {different}, but is "
            f"num_cells={num_cells}. A cell needs about 20 images of every set."
        )
    with warnings.catch_warnings():
        # A cell that has emptied is left out below.
        warnings.filterwarnings("ignore", message="One of the clusters is empty")
        centers, _ = kmeans2(points, _spread_points(points, count=num_cells, seed=seed), _ITERATIONS, minit="matrix")
    centers = torch.from_numpy(centers).to(training.device)
    return centers[torch.unique(assign_cells(training, centers))]


def assign_cells(embeddings: Float[Tensor, "n d"], centers: Float[Tensor, "k d"]) -> Integer[Tensor, " n"]:
    """Return the cell of each embedding, which is the one with the nearest centre.

    Args:
        embeddings: Embeddings of samples, of held-out or of training images.
        centers: Centres of the cells, as `cell_centers` returns them.

    Returns:
        Positions of the centres, from 0; the first of those that are equally near.

    Raises:
        ConfigurationError: If embeddings or centres have a wrong shape or dtype, or values that are not finite.
        EmptyDataError: If there are no centres.

    Example:
        >>> assign_cells(torch.tensor([[1.0], [9.0], [12.0]]), torch.tensor([[0.0], [10.0]]))
        tensor([0, 1, 1])
    """
    check_embedding_sets(embeddings, centers)
    return nearest_neighbors(embeddings, centers)[1][:, 0]


def nearest_distances_in_cells(
    generated: Float[Tensor, "n d"],
    training: Float[Tensor, "m d"],
    *,
    generated_cells: Integer[Tensor, " n"],
    training_cells: Integer[Tensor, " m"],
) -> Float[Tensor, " n"]:
    """Return the distance of each sample to the nearest training image of its cell.

    Args:
        generated: Embeddings of the samples, or of held-out images.
        training: Embeddings of the training images.
        generated_cells: Cell of each sample, as `assign_cells` returns it.
        training_cells: Cell of each training image.

    Returns:
        Euclidean distances, float64, at least 0; infinity where no training image is in the cell; empty without
        samples.

    Raises:
        ConfigurationError: If embeddings or cells have a wrong shape or dtype, or values that are not finite.
        EmptyDataError: If there are no training images.

    Example:
        >>> generated, training = torch.tensor([[1.0], [4.0]]), torch.tensor([[0.0], [5.0], [8.0]])
        >>> cells = {"generated_cells": torch.tensor([0, 1]), "training_cells": torch.tensor([0, 0, 1])}
        >>> nearest_distances_in_cells(generated, training, **cells)
        tensor([1., 4.], dtype=torch.float64)

    References:
        Meehan, Chaudhuri, Dasgupta (2020), A non-parametric test to detect data-copying in generative models,
        arXiv:2004.05675.
    """
    check_embedding_sets(generated, training)
    check_groups(generated_cells, generated, name="generated_cells")
    check_groups(training_cells, training, name="training_cells")
    distances = generated.new_full((len(generated),), torch.inf, dtype=torch.float64)
    for cell in torch.unique(generated_cells):
        inside, seen = generated_cells == cell, training_cells == cell
        if seen.any():
            distances[inside] = nearest_neighbors(generated[inside], training[seen])[0][:, 0]
    return distances


def _spread_points(points: npt.NDArray[np.float64], *, count: int, seed: int) -> npt.NDArray[np.float64]:
    # The next point is drawn with a probability proportional to the squared distance to the nearest one drawn so far.
    rng = np.random.default_rng(seed)
    drawn = [int(rng.integers(len(points)))]
    squares = np.square(points - points[drawn[0]]).sum(axis=1)
    while len(drawn) < count:
        drawn.append(int(rng.choice(len(points), p=squares / squares.sum())))
        squares = np.minimum(squares, np.square(points - points[drawn[-1]]).sum(axis=1))
    return points[drawn]
