"""How well scores agree with expert ratings, whatever the threshold.

Scores are larger for images that are more like copies. Ratings are True for a copy.

- `area_under_roc`: the area under the ROC curve, with its interval.
"""

import math

import numpy as np
from jaxtyping import Bool, Float
from scipy import optimize, stats
from torch import Tensor

from relict_lightning.functional.statistics.intervals import check_confidence
from relict_lightning.functional.statistics.ratings import check_ratings
from relict_lightning.results import RocAreaEstimate


def area_under_roc(
    scores: Float[Tensor, " n"], labels: Bool[Tensor, " n"], *, confidence: float = 0.95
) -> RocAreaEstimate:
    """Return the area under the ROC curve, with its interval.

    The area is the probability that a copy scores higher than another image, ties counted one half. The interval is
    DeLong's, clipped to [0, 1]. Where no score of a copy lies among those of the others, or all scores are equal,
    DeLong's variance is 0 and would claim certainty, and with a single image of either rating there is none. There the
    interval is Newcombe's (method 5), which solves |A - area| = z * sqrt(variance at A), with the variance of Hanley
    and McNeil. Both take images as independent: several that match one patient make the interval too narrow.

    With few ratings and an area near 1, DeLong's interval covers too seldom. In simulation with normal scores, 95 %
    intervals covered an area of 0.9 with 10 images of each rating in 86 % of sets, 0.97 with 20 of each in 84 %, and
    0.99 with 10 copies and 50 others in 90 %; without Newcombe's interval it would have been 80, 77 and 64 %.

    Neither `torchmetrics.classification.BinaryAUROC` nor `sklearn.metrics.roc_auc_score` has an interval.

    Args:
        scores: Scores, larger is more like a copy.
        labels: Expert ratings, True for a copy; at least one of each.
        confidence: Coverage of the interval, between 0 and 1.

    Returns:
        The area, in [0, 1], larger is better, and 0.5 for scores that know nothing of the ratings; with its interval.

    Raises:
        EmptyDataError: If either rating does not occur.
        ConfigurationError: If lengths differ, a score is NaN, labels are not boolean, or `confidence` lies outside
            (0, 1).

    Example:
        >>> import torch
        >>> scores = torch.tensor([0.1, 0.4, 0.35, 0.8, 0.3, 0.7])
        >>> labels = torch.tensor([False, False, True, True, False, True])
        >>> str(area_under_roc(scores, labels))
        '0.889 [0.581, 1.000]'

    References:
        DeLong, DeLong, Clarke-Pearson (1988), Comparing the areas under two or more correlated receiver operating
        characteristic curves, doi:10.2307/2531595; Sun, Xu (2014), Fast implementation of DeLong's algorithm,
        doi:10.1109/LSP.2014.2337313; Newcombe (2006), Confidence intervals for an effect size measure based on the
        Mann-Whitney statistic, part 2, doi:10.1002/sim.2324.
    """
    check_ratings(scores, labels, minimum=1)
    check_confidence(confidence)
    values, rated = scores.detach().double().cpu().numpy(), labels.cpu().numpy()
    levels, level_of_image = np.unique(values, return_inverse=True)
    copies = np.bincount(level_of_image[rated], minlength=len(levels))
    others = np.bincount(level_of_image[~rated], minlength=len(levels))
    copy_count, other_count = int(copies.sum()), int(others.sum())
    # Twice the number of images of the other rating below each level, ties counted once: integers, so that the area of
    # separated or equal scores is exact, and DeLong's variance is 0 there and nowhere else.
    others_below, copies_below = 2 * others.cumsum() - others, 2 * copies.cumsum() - copies
    area = int((copies * others_below).sum()) / (2 * copy_count * other_count)
    z = float(stats.norm.isf((1 - confidence) / 2))
    spread_of_copies = copies * (others_below / (2 * other_count) - area) ** 2
    spread_of_others = others * (1 - copies_below / (2 * copy_count) - area) ** 2
    if min(copy_count, other_count) > 1 and spread_of_copies.any():
        deviation = math.sqrt(
            spread_of_copies.sum() / (copy_count - 1) / copy_count
            + spread_of_others.sum() / (other_count - 1) / other_count
        )
        low, high = area - z * deviation, area + z * deviation
    else:
        low = _newcombe_lower_bound(area, copy_count, other_count, z=z)
        # The variance is the same at A and at 1 - A.
        high = 1 - _newcombe_lower_bound(1 - area, copy_count, other_count, z=z)
    return RocAreaEstimate(value=area, low=max(low, 0.0), high=min(high, 1.0), confidence=confidence)


def _newcombe_lower_bound(area: float, copies: int, others: int, *, z: float) -> float:
    if area == 0:
        return 0.0
    # Newcombe takes the mean number of images of either rating, less one, for both numbers of Hanley and McNeil.
    pairs, images = copies * others, (copies + others) / 2 - 1

    def excess(candidate: float) -> float:
        factor = 1 + images * ((1 - candidate) / (2 - candidate) + candidate / (1 + candidate))
        return area - candidate - z * math.sqrt(candidate * (1 - candidate) * factor / pairs)

    # An area of 1 solves the equation too, but is not the bound that is looked for, which lies well below.
    return float(optimize.brentq(excess, 0.0, area * (1 - 1e-12), xtol=1e-15))
