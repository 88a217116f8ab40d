"""Whether the split into training and held-out patients matters to the samples.

- `memorization_p_value`: exact p-value of the hypothesis that it does not; smaller is worse.
- `attainable_memorization_p_value`: the smallest value it could have taken.
- `leaning_rate`: to how many of the samples it matters; larger is worse.
"""

import math

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional.statistics import estimate_rate
from relict_lightning.functional.validation import check_not_nan, check_same_length
from relict_lightning.results import RateEstimate

# Weights become integers from 0 to at most 255, fewer where the table of sums would become too large: its cost grows
# with the square of the number of patients that were hit and with the sum of all weights. The bound keeps 512 samples
# of as many patients, all with the full weight, below a second.
_FINEST_RESOLUTION = 255
_TABLE_COST = 2_000_000_000


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
    of 1/255 of the largest, or to coarser ones where many samples hit many patients with large weights (1/119 for 256
    samples of 256 patients with full weights, 1/14 for 512); that changes the statistic in a way that does not depend
    on who was trained on, and so costs a little power but no validity.

    A sample may be passed several times, with its nearest neighbour in each of several views: the sum then counts the
    views in which it leans, and is as exact.

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
        >>> import torch
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
        >>> import torch
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


def leaning_rate(
    is_copylike: Bool[Tensor, " n"], is_training: Bool[Tensor, " n"], *, training_groups: int, total_groups: int
) -> RateEstimate:
    """Return the share of the samples that lean towards a training patient, beyond what chance accounts for.

    The nearest neighbour of every sample is searched in training and held-out images together. Of the samples that are
    much nearer to one patient than to the next, some are so by chance. Were nothing memorized, chance would not prefer
    training patients; so for every one that leans towards a held-out patient, as many are taken off those that lean
    towards a training patient as there are training patients per held-out patient. The rest is rounded, a half down.

    It counts copies that are too blurred to be named one by one. The interval is that of the count, as if the samples
    leant independently; whether they lean at all is what `memorization_p_value` tests.

    Args:
        is_copylike: Whether each sample is nearer to one patient than new patients are.
        is_training: Whether the nearest neighbour of each sample is a training image.
        training_groups: Number of groups in the training set.
        total_groups: Number of groups in training and held-out set together.

    Returns:
        The rate with its exact interval; zero where there are no held-out groups, because nothing then tells chance.

    Raises:
        ConfigurationError: If lengths differ, or there are no training groups or more than groups.

    Example:
        >>> import torch
        >>> is_copylike, is_training = torch.tensor([True, True, True, False]), torch.tensor([True, True, False, True])
        >>> leaning_rate(is_copylike, is_training, training_groups=5, total_groups=10).successes
        1
    """
    check_same_length(is_copylike, is_training, names=("is_copylike", "is_training"))
    check_counts(training_groups=training_groups, total_groups=total_groups)
    heldout_groups = total_groups - training_groups
    towards_training = int((is_copylike & is_training).sum())
    towards_heldout = int((is_copylike & ~is_training).sum())
    by_chance = towards_heldout * training_groups / heldout_groups if heldout_groups else towards_training
    return estimate_rate(max(math.ceil(towards_training - by_chance - 0.5), 0), len(is_copylike))


def check_split(weights: Tensor, neighbor_groups: Tensor, *, training_groups: int, total_groups: int) -> None:
    """Accept weights and groups of samples, and a split of the groups.

    Args:
        weights: Weight of each sample in [0, 1].
        neighbor_groups: Group of the nearest neighbour of each sample.
        training_groups: Number of groups in the training set.
        total_groups: Number of groups in training and held-out set together.

    Raises:
        ConfigurationError: If lengths differ, weights lie outside [0, 1], or there are no training groups or more than
            groups.

    Example:
        >>> import torch
        >>> check_split(torch.ones(1), torch.tensor([3]), training_groups=5, total_groups=10)
    """
    check_same_length(weights, neighbor_groups, names=("weights", "neighbor_groups"))
    check_not_nan(weights, name="weights")
    if ((weights < 0) | (weights > 1)).any():
        raise ConfigurationError(
            f"weights must lie in [0, 1], but lie in [{weights.min():g}, {weights.max():g}]. Clamp them."
        )
    check_counts(training_groups=training_groups, total_groups=total_groups)


def check_counts(*, training_groups: int, total_groups: int) -> None:
    """Accept numbers of groups.

    Raises:
        ConfigurationError: If there are no training groups or more than groups.

    Example:
        >>> check_counts(training_groups=5, total_groups=10)
    """
    if not 1 <= training_groups <= total_groups:
        raise ConfigurationError(
            f"training_groups must lie between 1 and total_groups, but training_groups={training_groups} and "
            f"total_groups={total_groups}. Count training and held-out groups together in total_groups."
        )


def _group_sums(
    weights: Tensor, neighbor_groups: Tensor, *, training_groups: int, total_groups: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    check_split(weights, neighbor_groups, training_groups=training_groups, total_groups=total_groups)
    groups = neighbor_groups.detach().cpu().numpy()
    hit_groups, group_of_sample = np.unique(groups, return_inverse=True)
    if len(hit_groups) > total_groups:
        raise ConfigurationError(
            f"The neighbours belong to {len(hit_groups)} groups, but total_groups={total_groups}. Count training and "
            f"held-out groups together."
        )
    values = weights.detach().cpu().double().numpy()
    # As shares of the largest: where many samples leave few steps, small weights would all be rounded to nothing.
    shares = values / (values.max(initial=0.0) or 1.0)
    quantized = np.rint(shares * _resolution(len(hit_groups), total=float(shares.sum()))).astype(np.int64)
    sums = np.zeros(len(hit_groups), dtype=np.int64)
    np.add.at(sums, group_of_sample, quantized)
    return sums, hit_groups, group_of_sample


def _resolution(num_groups: int, *, total: float) -> int:
    # Blind to who was trained on, as the rounding has to be.
    return int(np.clip(_TABLE_COST / max(num_groups**2 * total, 1.0), 1, _FINEST_RESOLUTION))


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
