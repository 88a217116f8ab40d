"""How much of the training set the samples span, and how much they repeat themselves.

Copies are worst where they are few patients over and over, and these measures tell that from a generator that hands out
everybody once.

- `unique_training_images`: how many training images were replicated.
- `unique_training_groups`: of how many patients.
- `coverage`: share of the training images that have a sample nearby; larger is more diverse.
- `self_similarity`: how alike samples are to each other; larger is more collapsed.
"""

import math

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from relict_lightning.errors import ConfigurationError, EmptyDataError
from relict_lightning.functional.memorization.embedding_sets import (
    check_embedding_sets,
    check_groups,
    largest_cosines,
    nearest_neighbors,
)
from relict_lightning.functional.validation import check_embeddings, check_same_length


def unique_training_images(matches: Integer[Tensor, " n"], is_replica: Bool[Tensor, " n"]) -> int:
    """Return the number of different training images that samples replicate.

    Args:
        matches: Position of the training image that each sample matches, in the training set.
        is_replica: Whether the sample is a replica of it; other samples do not count.

    Returns:
        Number of images, at least 0, larger is worse; 0 without replicas.

    Raises:
        ConfigurationError: If lengths differ, or a dtype is wrong.

    Example:
        >>> unique_training_images(torch.tensor([4, 4, 7, 9]), torch.tensor([True, True, True, False]))
        2
    """
    return _count_replicated(matches, is_replica, name="matches")


def unique_training_groups(match_groups: Integer[Tensor, " n"], is_replica: Bool[Tensor, " n"]) -> int:
    """Return the number of different groups (patients) that samples replicate images of.

    Args:
        match_groups: Group of the training image that each sample matches.
        is_replica: Whether the sample is a replica of it; other samples do not count.

    Returns:
        Number of groups, at least 0, larger is worse; 0 without replicas. At most `unique_training_images`.

    Raises:
        ConfigurationError: If lengths differ, or a dtype is wrong.

    Example:
        >>> unique_training_groups(torch.tensor([1, 1, 1, 2]), torch.tensor([True, True, True, False]))
        1
    """
    return _count_replicated(match_groups, is_replica, name="match_groups")


def coverage(
    generated: Float[Tensor, "n d"],
    training: Float[Tensor, "m d"],
    *,
    num_neighbors: int = 5,
    training_groups: Integer[Tensor, " m"] | None = None,
) -> float:
    """Return the share of the training images in whose neighbourhood a sample lies.

    The neighbourhood of a training image reaches up to, and not including, its k-th nearest other training image. It
    says nothing of copying by itself: copies of everybody cover everything. Read it beside the replica rate. Many
    replicas and low coverage are few patients copied often; many replicas and high coverage are many patients copied;
    few replicas and low coverage are mode collapse onto images of nobody.

    Args:
        generated: Embeddings of the samples.
        training: Embeddings of the training images, more than `num_neighbors`.
        num_neighbors: Which neighbour bounds the neighbourhood, k, at least 1; 5 in the paper.
        training_groups: Group (patient) of each training image; neighbours are images of other groups. None: every
            image is a group.

    Returns:
        Share in [0, 1], larger is more diverse; NaN without samples. For n samples that are fresh draws it is about
        `1 - (m / (m + n))^k`, which is 0.97 where there are as many samples as training images and k is 5. A sample on
        a training image always counts.

    Raises:
        ConfigurationError: If `num_neighbors` is below 1, or embeddings or groups have a wrong shape or dtype, or
            values that are not finite.
        EmptyDataError: If a training image has fewer than `num_neighbors` neighbours of other groups.

    Example:
        >>> training = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
        >>> coverage(torch.tensor([[0.5], [0.6]]), training, num_neighbors=1)
        0.5

    References:
        Naeem, Oh, Uh, Choi, Yoo (2020), Reliable fidelity and diversity metrics for generative models,
        arXiv:2002.09797.
    """
    if num_neighbors < 1:
        raise ConfigurationError(f"num_neighbors must be at least 1, but is num_neighbors={num_neighbors}.")
    check_embedding_sets(generated, training)
    if training_groups is None:
        training_groups = torch.arange(len(training), device=training.device)
    check_groups(training_groups, training, name="training_groups")
    fewest = len(training) - int(torch.unique(training_groups, return_counts=True)[1].max())
    if fewest < num_neighbors:
        raise EmptyDataError(
            f"training must hold at least num_neighbors={num_neighbors} images of other groups for each image, but for "
            f"some holds {fewest}. Choose fewer neighbours."
        )
    if len(generated) == 0:
        return math.nan
    neighbors, _ = nearest_neighbors(
        training, training, count=num_neighbors, query_groups=training_groups, reference_groups=training_groups
    )
    nearest, _ = nearest_neighbors(training, generated)
    covered = (nearest[:, 0] < neighbors[:, -1]) | (nearest[:, 0] == 0)
    return float(covered.double().mean())


def self_similarity(generated: Float[Tensor, "n d"]) -> float:
    """Return the mean over samples of the largest cosine similarity to another sample.

    High values are spurious copies: samples that repeat each other, whether or not they copy a patient. Compare with
    the value of as many held-out images; it grows with the number of samples.

    Args:
        generated: Embeddings of the samples.

    Returns:
        Similarity in [-1, 1], larger is more collapsed: 1 if every sample has a duplicate. An embedding of zeros has
        similarity 0 to all. NaN for fewer than two samples.

    Raises:
        ConfigurationError: If embeddings have a wrong shape or dtype, or values that are not finite.

    Example:
        >>> round(self_similarity(torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 1.0]])), 4)
        0.7333
    """
    check_embeddings(generated, name="generated")
    if len(generated) < 2:
        return math.nan
    sample = torch.arange(len(generated), device=generated.device)
    return float(largest_cosines(generated, generated, query_groups=sample, reference_groups=sample).mean())


def _count_replicated(matches: Tensor, is_replica: Tensor, *, name: str) -> int:
    check_same_length(matches, is_replica, names=(name, "is_replica"))
    if matches.is_floating_point() or matches.dtype == torch.bool:
        raise ConfigurationError(f"{name} must be integers, but has dtype {matches.dtype}. Number them from 0.")
    if is_replica.dtype != torch.bool:
        raise ConfigurationError(f"is_replica must be boolean, but has dtype {is_replica.dtype}. Compare it first.")
    return len(torch.unique(matches[is_replica]))
