"""How well scores agree with expert ratings.

Scores are larger for images that are more like copies, and an image is called a replica where its score is *at least* a
threshold.

- `balanced_accuracy_at_optimal_threshold`: the protocol of RELICT, which flatters.
- `out_of_sample_balanced_accuracy`: the same, honestly.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from relict_lightning.errors import ConfigurationError, EmptyDataError
from relict_lightning.functional.validation import check_not_nan, check_same_length


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
        Mean of sensitivity and specificity, in [0.5, 1], and the threshold, which calls scores at or above it replicas.
        It lies midway between two neighbouring scores. Of several that do equally well it is the highest, which calls
        the fewest replicas; infinity if calling none does as well as any.

    Raises:
        EmptyDataError: If either rating does not occur.
        ConfigurationError: If lengths differ or a score is NaN.

    Example:
        >>> scores, labels = torch.tensor([0.25, 0.5, 0.75, 1.0]), torch.tensor([False, False, True, True])
        >>> balanced_accuracy_at_optimal_threshold(scores, labels)
        (1.0, 0.625)

    References:
        RELICT (2025), arXiv:2502.17360.
    """
    _check_ratings(scores, labels, minimum=1)
    levels, level_of_score = torch.unique(scores.double(), return_inverse=True)
    copies = torch.bincount(level_of_score[labels], minlength=len(levels)).flip(0).cumsum(0)
    others = torch.bincount(level_of_score[~labels], minlength=len(levels)).flip(0).cumsum(0)
    # Entry i belongs to calling the i + 1 highest levels replicas: sensitivity plus specificity minus 1, times the
    # product of both counts, so that it is an integer and ties are ties.
    gain = copies * others[-1] - others * copies[-1]
    best = int(gain.argmax())
    if gain[best] <= 0:
        return 0.5, math.inf
    upper = float(levels[-1 - best])
    # Calling every level gains nothing, so there is a level below.
    lower = float(levels[-2 - best])
    midway = lower + (upper - lower) / 2
    return 0.5 + int(gain[best]) / (2 * int(copies[-1] * others[-1])), midway if midway > lower else upper


def out_of_sample_balanced_accuracy(scores: Float[Tensor, " n"], labels: Bool[Tensor, " n"]) -> float:
    """Return the balanced accuracy of thresholds that were chosen without the image they decide on.

    Every image is left out in turn, the threshold is chosen on the others as in
    `balanced_accuracy_at_optimal_threshold`, and the image is called by it.

    Args:
        scores: Scores, larger is more like a copy.
        labels: Expert ratings, True for a copy; at least two of each.

    Returns:
        Mean of sensitivity and specificity, in [0, 1]. Scores that know nothing of the ratings often give less than
        0.5, because leaving an image out tilts the choice against it.

    Raises:
        EmptyDataError: If either rating occurs less than twice.
        ConfigurationError: If lengths differ or a score is NaN.

    Example:
        >>> scores, labels = torch.tensor([0.1, 0.2, 0.8, 0.9]), torch.tensor([False, False, True, True])
        >>> out_of_sample_balanced_accuracy(scores, labels)
        1.0
    """
    _check_ratings(scores, labels, minimum=2)
    kept = torch.ones_like(labels)
    called = torch.zeros_like(labels)
    for position in range(len(scores)):
        kept[position] = False
        _, threshold = balanced_accuracy_at_optimal_threshold(scores[kept], labels[kept])
        called[position] = bool(scores[position].double() >= threshold)
        kept[position] = True
    sensitivity = called[labels].double().mean()
    specificity = (~called[~labels]).double().mean()
    return float((sensitivity + specificity) / 2)


def _check_ratings(scores: Tensor, labels: Tensor, *, minimum: int) -> None:
    check_same_length(scores, labels, names=("scores", "labels"))
    check_not_nan(scores, name="scores")
    if labels.dtype != torch.bool:
        raise ConfigurationError(f"labels must be boolean, but have dtype {labels.dtype}. True stands for a copy.")
    copies = int(labels.sum())
    if min(copies, len(labels) - copies) < minimum:
        raise EmptyDataError(
            f"Balanced accuracy needs at least {minimum} images of each rating, but {copies} are rated copies and "
            f"{len(labels) - copies} are not. Rate more images."
        )
