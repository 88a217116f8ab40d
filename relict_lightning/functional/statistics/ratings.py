"""How well a threshold on scores agrees with expert ratings.

Scores are larger for images that are more like copies, and an image is called a replica where its score is *at least* a
threshold. Ratings are True for a copy.

- `sensitivity_specificity`: at a threshold that was chosen elsewhere, with intervals.
- `balanced_accuracy_at_optimal_threshold`: the protocol of RELICT, which flatters.
- `out_of_sample_balanced_accuracy`: the same, honestly.
"""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from relict_lightning.errors import ConfigurationError, EmptyDataError
from relict_lightning.functional.statistics.intervals import estimate_rate
from relict_lightning.functional.statistics.p_values import check_vector
from relict_lightning.functional.validation import check_not_nan, check_same_length
from relict_lightning.results import SensitivitySpecificity

_Array = np.ndarray[tuple[int, ...], np.dtype[Any]]


def sensitivity_specificity(
    scores: Float[Tensor, " n"], labels: Bool[Tensor, " n"], threshold: float, *, confidence: float = 0.95
) -> SensitivitySpecificity:
    """Return how many of the copies, and how many of the others, a threshold calls rightly, with exact intervals.

    The intervals hold for a threshold that was chosen on other images. At the threshold that is best on these very
    images, both rates flatter and the intervals cover too seldom.

    Args:
        scores: Scores, larger is more like a copy.
        labels: Expert ratings, True for a copy.
        threshold: Smallest score of a replica, compared in the precision of the scores.
        confidence: Coverage of each interval, between 0 and 1.

    Returns:
        Sensitivity and specificity, each with its interval, and their mean, the balanced accuracy; all in [0, 1],
        larger is better. Without copies the sensitivity is NaN with interval [0, 1], without others the specificity,
        and without either the balanced accuracy.

    Raises:
        ConfigurationError: If lengths differ, a score or the threshold is NaN, labels are not boolean, or `confidence`
            lies outside (0, 1).

    Example:
        >>> scores, labels = torch.tensor([0.1, 0.6, 0.7, 0.9]), torch.tensor([False, False, True, True])
        >>> found = sensitivity_specificity(scores, labels, 0.5)
        >>> str(found.sensitivity), str(found.specificity)
        ('2/2 = 100.0 % [15.8 %, 100.0 %]', '1/2 = 50.0 % [1.3 %, 98.7 %]')
        >>> found.balanced_accuracy
        0.75

    References:
        Clopper, Pearson (1934), The use of confidence or fiducial limits illustrated in the case of the binomial,
        doi:10.1093/biomet/26.4.404.
    """
    check_ratings(scores, labels, minimum=0)
    if math.isnan(threshold):
        raise ConfigurationError("threshold must be a number, but is NaN. Choose it on other rated images.")
    called, copies = scores >= threshold, int(labels.sum())
    sensitivity = estimate_rate(int((called & labels).sum()), copies, confidence=confidence)
    specificity = estimate_rate(int((~called & ~labels).sum()), len(labels) - copies, confidence=confidence)
    return SensitivitySpecificity(
        sensitivity=sensitivity,
        specificity=specificity,
        balanced_accuracy=(sensitivity.value + specificity.value) / 2,
        threshold=threshold,
    )


def balanced_accuracy_at_optimal_threshold(
    scores: Float[Tensor, " n"], labels: Bool[Tensor, " n"]
) -> tuple[float, float]:
    """Return the largest balanced accuracy that any threshold reaches, and that threshold.

    This is the protocol of RELICT. The threshold is chosen on the very images that are scored, so the value is never
    below 0.5 and flatters; `out_of_sample_balanced_accuracy` does not.

    Args:
        scores: Scores, larger is more like a copy.
        labels: Expert ratings, True for a copy; at least one of each.

    Returns:
        Mean of sensitivity and specificity, in [0.5, 1], larger is better, and the threshold, which calls scores at or
        above it replicas. It lies midway between two neighbouring scores, rounded to their precision. Of several that
        do equally well it is the highest, which calls the fewest replicas; infinity if calling none does as well as
        any.

    Raises:
        EmptyDataError: If either rating does not occur.
        ConfigurationError: If lengths differ, a score is NaN, or labels are not boolean.

    Example:
        >>> scores, labels = torch.tensor([0.25, 0.5, 0.75, 1.0]), torch.tensor([False, False, True, True])
        >>> balanced_accuracy_at_optimal_threshold(scores, labels)
        (1.0, 0.625)

    References:
        RELICT (2025), arXiv:2502.17360.
    """
    check_ratings(scores, labels, minimum=1)
    values, rated = _as_arrays(scores, labels)
    levels, level_of_image = _levels(values)
    copies = np.bincount(level_of_image[rated], minlength=len(levels))
    others = np.bincount(level_of_image[~rated], minlength=len(levels))
    return _best_threshold(levels, copies, others, precision=scores.dtype)


def out_of_sample_balanced_accuracy(
    scores: Float[Tensor, " n"], labels: Bool[Tensor, " n"], *, groups: Integer[Tensor, " n"] | None = None
) -> float:
    """Return the balanced accuracy of images whose threshold was chosen without them.

    Each image in turn is left out, the threshold is chosen on the others as in
    `balanced_accuracy_at_optimal_threshold`, and the image left out is called a replica or not. With `groups`, a whole
    group is left out at a time: where several images match one patient, the others of that patient would give the
    threshold away. Numbers of folds serve as well, for a nested cross-validation.

    Args:
        scores: Scores, larger is more like a copy.
        labels: Expert ratings, True for a copy; at least two of each.
        groups: What is left out together, such as a number for the matched patient; None leaves out single images.
            Copies must come from at least two groups, and so must the others.

    Returns:
        Mean of sensitivity and specificity, in [0, 1], larger is better. Scores that know nothing of the ratings often
        give less than 0.5, because leaving an image out tilts the choice against it.

    Raises:
        EmptyDataError: If either rating occurs less than twice, or in one group only.
        ConfigurationError: If lengths differ, a score is NaN, labels are not boolean, or groups are not integers.

    Example:
        >>> scores, labels = torch.tensor([0.1, 0.2, 0.8, 0.9]), torch.tensor([False, False, True, True])
        >>> out_of_sample_balanced_accuracy(scores, labels)
        1.0
    """
    check_ratings(scores, labels, minimum=2)
    values, rated = _as_arrays(scores, labels)
    folds = np.arange(len(values)) if groups is None else _folds(groups, labels)
    levels, level_of_image = _levels(values)
    copies = np.bincount(level_of_image[rated], minlength=len(levels))
    others = np.bincount(level_of_image[~rated], minlength=len(levels))
    called = np.zeros_like(rated)
    order = np.argsort(folds, kind="stable")
    for left_out in np.split(order, np.flatnonzero(np.diff(folds[order])) + 1):
        left_out_levels, is_copy = level_of_image[left_out], rated[left_out]
        kept_copies, kept_others = copies.copy(), others.copy()
        np.subtract.at(kept_copies, left_out_levels[is_copy], 1)
        np.subtract.at(kept_others, left_out_levels[~is_copy], 1)
        _, threshold = _best_threshold(levels, kept_copies, kept_others, precision=scores.dtype)
        called[left_out] = values[left_out] >= threshold
    return float((called[rated].mean() + (~called[~rated]).mean()) / 2)


def check_ratings(scores: Tensor, labels: Tensor, *, minimum: int) -> None:
    """Accept scores with ratings, of which there are enough.

    Args:
        scores: Scores of the images.
        labels: Their ratings, True for a copy.
        minimum: Fewest images of each rating.

    Raises:
        EmptyDataError: If either rating occurs less often.
        ConfigurationError: If lengths differ, they are no vectors, a score is NaN, or labels are not boolean.
    """
    check_same_length(scores, labels, names=("scores", "labels"))
    check_vector(scores, name="scores")
    check_not_nan(scores, name="scores")
    if labels.dtype != torch.bool:
        raise ConfigurationError(f"labels must be boolean, but have dtype {labels.dtype}. True stands for a copy.")
    copies = int(labels.sum())
    if min(copies, len(labels) - copies) < minimum:
        raise EmptyDataError(
            f"This needs at least {minimum} images of each rating, but {copies} are rated copies and "
            f"{len(labels) - copies} are not. Rate more images."
        )


def _as_arrays(scores: Tensor, labels: Tensor) -> tuple[_Array, _Array]:
    return scores.detach().double().cpu().numpy(), labels.cpu().numpy()


def _levels(values: _Array) -> tuple[_Array, _Array]:
    """Return the distinct scores, the highest first, and the position among them of each image's score."""
    ascending, positions = np.unique(values, return_inverse=True)
    return ascending[::-1], len(ascending) - 1 - positions


def _folds(groups: Tensor, labels: Tensor) -> _Array:
    """Return which fold each image belongs to, counted from 0."""
    check_same_length(groups, labels, names=("groups", "labels"))
    if groups.is_floating_point() or groups.is_complex():
        raise ConfigurationError(f"groups must be integers, but have dtype {groups.dtype}. Number the patients.")
    folds, rated = np.unique(groups.cpu().numpy(), return_inverse=True)[1], labels.cpu().numpy()
    copies, others = len(np.unique(folds[rated])), len(np.unique(folds[~rated]))
    if min(copies, others) < 2:
        raise EmptyDataError(
            f"Leaving out a group at a time needs images of each rating in at least 2 groups, but copies come from "
            f"{copies} and others from {others}. Rate images of more patients."
        )
    return folds


def _best_threshold(levels: _Array, copies: _Array, others: _Array, *, precision: torch.dtype) -> tuple[float, float]:
    """Return the best balanced accuracy and its threshold, from the number of copies and others at each level."""
    called_copies, called_others = copies.cumsum(), others.cumsum()
    # Entry i belongs to calling the i + 1 highest levels replicas: sensitivity plus specificity minus 1, times the
    # product of both counts, so that it is an integer and ties are ties.
    gain = called_copies * called_others[-1] - called_others * called_copies[-1]
    best = int(gain.argmax())
    if gain[best] <= 0:
        return 0.5, math.inf
    # Calling every level gains nothing, so there is a level below. A level may have lost its images to those left out.
    below = best + 1 + int((copies[best + 1 :] + others[best + 1 :] > 0).argmax())
    upper, lower = float(levels[best]), float(levels[below])
    # Halves first, because the sum of both can overflow. In the precision of the scores, so that comparing them with
    # the threshold gives the same answer in every precision.
    midway = float(torch.tensor(lower / 2 + upper / 2, dtype=precision))
    accuracy = 0.5 + int(gain[best]) / (2 * int(called_copies[-1]) * int(called_others[-1]))
    return accuracy, midway if midway > lower else upper
