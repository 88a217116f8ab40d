"""Whether a set of samples, taken together, knows the training set.

Conventions: scores are larger for samples more like copies; distances and ratios are smaller. Groups are patients.

- `replica_rate`: share of the samples at or above a threshold, with its interval; larger is worse.
- `neighbor_ratio_fraction`: f_mem, share of the samples that stand out against their second neighbour; larger is worse.
- `closer_to_training_share`: share of the samples that lie closer to training than to held-out images; 0.5 is chance.
- `ct_score`: z-score of samples against held-out images; far below 0 is data copying.
- `memorization_p_value`: exact p-value of the hypothesis that the split into training and held-out patients does not
  matter to the samples; smaller is worse. `attainable_memorization_p_value`: the smallest value it could have taken.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Integer
from scipy import stats
from torch import Tensor

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional.statistics import estimate_rate
from relict_lightning.functional.validation import check_not_nan, check_same_length
from relict_lightning.results import RateEstimate

# Weights become integers from 0 to at most 255, fewer where many samples would make the table of sums too large: its
# cost grows with the cube of the number of samples. The bound keeps 512 samples below a second.
_FINEST_RESOLUTION = 255
_TABLE_COST = 2_000_000_000


def replica_rate(scores: Float[Tensor, " n"], threshold: float, *, confidence: float = 0.95) -> RateEstimate:
    """Return the share of the samples that score at least the threshold, with its exact interval.

    Args:
        scores: Scores of the samples, larger is more like a copy.
        threshold: Smallest score of a replica.
        confidence: Coverage of the interval, between 0 and 1.

    Returns:
        The replica rate; its value is NaN and its interval [0, 1] without samples.

    Raises:
        ConfigurationError: If a score or the threshold is NaN, or `confidence` lies outside (0, 1).

    Example:
        >>> str(replica_rate(torch.tensor([0.2, 0.9, 0.95, 0.3]), 0.9))
        '2/4 = 50.0 % [6.8 %, 93.2 %]'

    References:
        Clopper, Pearson (1934), The use of confidence or fiducial limits illustrated in the case of the binomial,
        doi:10.1093/biomet/26.4.404.
    """
    if math.isnan(threshold):
        raise ConfigurationError("threshold must be a number, but is NaN. Calibrate it on held-out images.")
    check_not_nan(scores, name="scores")
    return estimate_rate(int((scores >= threshold).sum()), scores.numel(), confidence=confidence)


def neighbor_ratio_fraction(ratios: Float[Tensor, " n"], *, threshold: float = 1 / 3) -> float:
    """Return the share of the samples whose neighbour ratio lies below a threshold (f_mem).

    Args:
        ratios: Ratios of first to second distance, as `neighbor_ratio` returns them; NaN entries are left out.
        threshold: Ratio below which a sample counts as memorized; 1/3 in the literature.

    Returns:
        Share in [0, 1], larger is worse; NaN if no ratio is left.

    Raises:
        ConfigurationError: If a ratio is negative, or the threshold is not positive.

    Example:
        >>> neighbor_ratio_fraction(torch.tensor([0.1, 0.5, 0.9, float("nan"), 0.2]))
        0.5

    References:
        Yoon, Choi, Kwon, Ryu (2023), Diffusion probabilistic models generalize when they fail to memorize, ICML
        workshop on structured probabilistic inference and generative modeling.
    """
    if not threshold > 0:
        raise ConfigurationError(f"threshold must be positive, but is threshold={threshold}. The usual value is 1/3.")
    if (ratios < 0).any():
        raise ConfigurationError(
            f"ratios must not be negative, but the smallest is {ratios[ratios < 0].min():g}. Compute them with "
            f"`neighbor_ratio`."
        )
    valid = ratios[~ratios.isnan()]
    return float((valid < threshold).double().mean()) if valid.numel() else math.nan


def closer_to_training_share(training_distances: Float[Tensor, " n"], heldout_distances: Float[Tensor, " n"]) -> float:
    """Return the share of the samples that lie closer to their nearest training than to their nearest held-out image.

    Chance is 0.5 only if there are as many training as held-out images: the nearest of many lies closer than the
    nearest of few. Compare with a training subset of the size of the held-out set.

    Args:
        training_distances: Distance of each sample to its nearest training image.
        heldout_distances: Distance of each sample to its nearest held-out image.

    Returns:
        Share in [0, 1], ties counted one half; larger is worse; NaN without samples.

    Raises:
        ConfigurationError: If lengths differ or a distance is NaN.

    Example:
        >>> closer_to_training_share(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([2.0, 2.0, 2.0, 5.0]))
        0.625
    """
    check_same_length(training_distances, heldout_distances, names=("training_distances", "heldout_distances"))
    check_not_nan(training_distances, name="training_distances")
    check_not_nan(heldout_distances, name="heldout_distances")
    if training_distances.numel() == 0:
        return math.nan
    closer = (training_distances < heldout_distances).double()
    tied = (training_distances == heldout_distances).double()
    return float((closer + tied / 2).mean())


def ct_score(generated_distances: Float[Tensor, " n"], heldout_distances: Float[Tensor, " m"]) -> float:
    """Return the one-cell data-copying statistic C_T: are samples closer to training than unseen patients are?

    It is the z-score of the Mann-Whitney statistic of the distances to the nearest training image, with the variance
    corrected for ties. Negative: samples lie closer to the training images than held-out images do, which is data
    copying; below -3 it is hard to explain otherwise. Positive: farther, which is underfitting. A generator that
    copies and also makes poor images can score 0, which the multi-cell statistic of the paper is for.

    Args:
        generated_distances: Distance of each sample to its nearest training image.
        heldout_distances: Distance of each held-out image to its nearest training image.

    Returns:
        The z-score, about standard normal if samples are like held-out images; 0 if all distances are equal; NaN if
        either set is empty.

    Raises:
        ConfigurationError: If a distance is NaN.

    Example:
        >>> round(ct_score(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 3.0])), 4)
        -1.964

    References:
        Meehan, Chaudhuri, Dasgupta (2020), A non-parametric test to detect data-copying in generative models,
        arXiv:2004.05675.
    """
    check_not_nan(generated_distances, name="generated_distances")
    check_not_nan(heldout_distances, name="heldout_distances")
    generated, heldout = len(generated_distances), len(heldout_distances)
    if not generated or not heldout:
        return math.nan
    distances = torch.cat([generated_distances.double(), heldout_distances.double()]).detach().cpu().numpy()
    ranks = stats.rankdata(distances)
    total = generated + heldout
    _, ties = np.unique(distances, return_counts=True)
    tie_loss = float((ties.astype(np.float64) ** 3 - ties).sum()) / total / max(total - 1, 1)
    variance = generated * heldout / 12 * (total + 1 - tie_loss)
    if len(ties) == 1:
        return 0.0
    above = float(ranks[:generated].sum()) - generated * (generated + 1) / 2
    return (above - generated * heldout / 2) / math.sqrt(variance)


def memorization_p_value(
    weights: Float[Tensor, " n"],
    neighbor_groups: Integer[Tensor, " n"],
    *,
    training_groups: int,
    total_groups: int,
    is_training: Bool[Tensor, " n"],
) -> float:
    """Return the exact p-value of the hypothesis that the samples do not know which patients were trained on.

    The nearest neighbour of every sample is searched in training and held-out images together. If nothing is memorized,
    which of these patients were the training patients does not matter to the samples, so every choice of
    `training_groups` out of `total_groups` was equally likely. The statistic is the sum of the weights of the samples
    whose neighbour is a training image, and the p-value is the share of the choices for which it would be at least as
    large. Nothing is assumed about the generator, however blurred or collapsed. It is required that patients were
    assigned to the two sets at random, that all images of a patient are in one set, and that weights and neighbours
    were computed without the labels.

    The share is exact, by dynamic programming over the patients that were hit. Weights are first rounded to multiples
    of 1/255, or to coarser ones (1/119 for 256 samples, 1/14 for 512); that changes the statistic in a way that depends
    on the number of samples alone, and so costs a little power but no validity.

    Args:
        weights: Weight of each sample in [0, 1], for instance its squared copy-likeness.
        neighbor_groups: Group of the nearest neighbour of each sample.
        training_groups: Number of groups in the training set.
        total_groups: Number of groups in training and held-out set together.
        is_training: Whether the nearest neighbour of each sample is a training image.

    Returns:
        P-value in (0, 1], smaller is stronger evidence of memorization; 1 if all weights are zero, or without samples.

    Raises:
        ConfigurationError: If lengths differ, weights lie outside [0, 1], a group is on both sides of the split, or
            more groups were hit than the counts allow.

    Example:
        >>> groups, is_training = torch.tensor([4, 4, 7]), torch.tensor([True, True, True])
        >>> p = memorization_p_value(
        ...     torch.ones(3), groups, training_groups=5, total_groups=10, is_training=is_training
        ... )
        >>> round(p, 4)
        0.2222
    """
    sums, hit_groups, group_of_sample = _group_sums(
        weights, neighbor_groups, training_groups=training_groups, total_groups=total_groups
    )
    check_same_length(weights, is_training, names=("weights", "is_training"))
    in_training = np.zeros(len(sums), dtype=np.bool_)
    in_heldout = np.zeros(len(sums), dtype=np.bool_)
    labels = is_training.detach().cpu().numpy().astype(np.bool_)
    in_training[group_of_sample[labels]] = True
    in_heldout[group_of_sample[~labels]] = True
    if (in_training & in_heldout).any():
        raise ConfigurationError(
            f"A group must be in training or held out, but {int((in_training & in_heldout).sum())} groups are both, "
            f"such as group {int(hit_groups[in_training & in_heldout][0])}. Keep all images of a patient on one side."
        )
    for name, hits, available in (
        ("training", int(in_training.sum()), training_groups),
        ("held-out", int(in_heldout.sum()), total_groups - training_groups),
    ):
        if hits > available:
            raise ConfigurationError(
                f"There are {available} {name} groups, but the neighbours belong to {hits}. Check training_groups="
                f"{training_groups} and total_groups={total_groups}."
            )
    return _lower_tail(
        sums, limit=int(sums[in_heldout].sum()), marked=total_groups - training_groups, total=total_groups
    )


def attainable_memorization_p_value(
    weights: Float[Tensor, " n"], neighbor_groups: Integer[Tensor, " n"], *, training_groups: int, total_groups: int
) -> float:
    """Return the smallest value that `memorization_p_value` could take, whatever the labels.

    It is reached where every neighbour is a training image. With `j` groups of positive weight among the neighbours,
    `M` training groups and `N` groups in all it is the product of `(M - i) / (N - i)` over `i < j`, so a small held-out
    set bounds the evidence that few samples can give. To plan a run, pass ones and as many different groups as copied
    patients are expected.

    Args:
        weights: Weight of each sample in [0, 1].
        neighbor_groups: Group of the nearest neighbour of each sample.
        training_groups: Number of groups in the training set.
        total_groups: Number of groups in training and held-out set together.

    Returns:
        P-value in (0, 1]. If more groups were hit than there are training groups, not all of them can be training
        groups; then it is the value for the most extreme labels that are possible.

    Raises:
        ConfigurationError: If lengths differ, weights lie outside [0, 1], or more groups were hit than there are.

    Example:
        >>> round(
        ...     attainable_memorization_p_value(
        ...         torch.ones(3), torch.tensor([1, 2, 3]), training_groups=90, total_groups=100
        ...     ),
        ...     4,
        ... )
        0.7265
    """
    sums, _, _ = _group_sums(weights, neighbor_groups, training_groups=training_groups, total_groups=total_groups)
    surplus = max(len(sums) - training_groups, 0)
    limit = int(np.sort(sums)[:surplus].sum())
    return _lower_tail(sums, limit=limit, marked=total_groups - training_groups, total=total_groups)


def _group_sums(
    weights: Tensor, neighbor_groups: Tensor, *, training_groups: int, total_groups: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    check_same_length(weights, neighbor_groups, names=("weights", "neighbor_groups"))
    check_not_nan(weights, name="weights")
    if ((weights < 0) | (weights > 1)).any():
        raise ConfigurationError(
            f"weights must lie in [0, 1], but lie in [{weights.min():g}, {weights.max():g}]. Clamp them."
        )
    if not 1 <= training_groups <= total_groups:
        raise ConfigurationError(
            f"training_groups must lie between 1 and total_groups, but training_groups={training_groups} and "
            f"total_groups={total_groups}. Count training and held-out groups together in total_groups."
        )
    groups = neighbor_groups.detach().cpu().numpy()
    hit_groups, group_of_sample = np.unique(groups, return_inverse=True)
    if len(hit_groups) > total_groups:
        raise ConfigurationError(
            f"The neighbours belong to {len(hit_groups)} groups, but total_groups={total_groups}. Count training and "
            f"held-out groups together."
        )
    resolution = _resolution(len(weights))
    quantized = np.rint(weights.detach().cpu().double().numpy() * resolution).astype(np.int64)
    sums = np.zeros(len(hit_groups), dtype=np.int64)
    np.add.at(sums, group_of_sample, quantized)
    return sums, hit_groups, group_of_sample


def _resolution(num_samples: int) -> int:
    return min(_FINEST_RESOLUTION, max(1, _TABLE_COST // max(num_samples, 1) ** 3))


def _lower_tail(sums: npt.NDArray[np.int64], *, limit: int, marked: int, total: int) -> float:
    # The probability that the marked groups among those hit sum to at most `limit`, when `marked` of `total` groups are
    # drawn at random. Held-out groups are the marked ones: few training labels are missing where evidence is strong, so
    # sums stay small and so does the table. All terms are positive, so tiny p-values keep their precision.
    sizes = np.sort(sums[sums > 0])
    if int(sizes.sum()) <= limit:
        return 1.0
    # No more than this many of the groups fit under the limit, even the lightest.
    most = min(int(np.searchsorted(np.cumsum(sizes), limit, side="right")), marked)
    # table[c, s]: probability that c of the groups seen so far are marked, and that they sum to s.
    table = np.zeros((most + 2, limit + 1))
    table[0, 0] = 1.0
    reached = 0
    for position, size in enumerate(sizes.tolist()):
        rows = min(position, most) + 1
        width = min(reached, limit) + 1
        marked_left = np.clip(marked - np.arange(rows), 0, None)[:, None]
        unmarked_left = np.clip(total - marked - position + np.arange(rows), 0, None)[:, None]
        fitting = max(min(width, limit - size + 1), 0)
        block = table[:rows, :width]
        moved = block[:, :fitting] * (marked_left / (total - position))
        block *= unmarked_left / (total - position)
        table[1 : rows + 1, size : size + fitting] += moved
        reached += size
    return min(float(table.sum()), 1.0)
