"""From likeness to error rates: the held-out control, conformal p-values, fusion of levels, and RELICT's protocol.

The control is the same measurement made on held-out patients, one image of each. A p-value is the share of the
control that is at least as much like a copy as the sample is, counting the sample itself. That is exact for any score,
if samples of a model that does not memorize and held-out images are exchangeable, as long as the score treats all of
them alike, and under any dependence between levels: levels are put together first, and the fused score has the p-value.
The fusion keeps to this: likeness is put on one scale by the median and the median absolute deviation of control and
sample *together*, so that no member of the bag is special.

How levels are put together (`Rule`) is settled before any sample is seen, on copies of training images that are planted
on purpose. A copy copies the structures of a patient, its vessels or lesions, whatever is around them. So structures
should lead: what is around them may look like a patient's, or lie between two patients, and copy nobody. But where
structures show too little, as in blurred or coarse images, copies would be missed. So they lead where nine in ten of
the planted copies are found by that, and of no kind more than half are lost, and all levels count alike elsewhere.

Such a p-value cannot be smaller than one over the size of the control plus one, and with a few hundred held-out
patients that hides rates below a tenth. So a sample that is more like a copy than every held-out patient gets a p-value
from the control's upper tail (`relict_lightning.functional.tail_p_value`), where the control has at least 20 patients.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import stats

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional import (
    area_under_roc,
    balanced_accuracy_at_optimal_threshold,
    out_of_sample_balanced_accuracy,
    sensitivity_specificity,
    tail_p_value,
)
from relict_lightning.functional.statistics import TAIL_CONTROLS
from relict_lightning.results import RateEstimate, RocAreaEstimate

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

# Differences in copy-likeness below this are no evidence, however little the control varies.
_SMALLEST_SPREAD = 0.01
# Planted copies count as found at this p-value, which a false discovery rate of 5 % asks for where one sample in five
# is a copy. Where structures lead, so many of all copies must be found, and of each kind so many of those that are
# found where all levels count alike.
_FOUND, _FOUND_SHARE, _KEPT_OF_KIND = 0.01, 0.9, 0.5


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How several measures of likeness are put together.

    Attributes:
        columns: The level of each measure; the last level is that of structures.
        led: Whether the last level leads the others.
        weights: Weight of the logarithm of each level's excess, where these were learned from ratings
            (`relict_lightning.rule_learning`); they then decide alone.
    """

    columns: tuple[str, ...]
    led: bool = False
    weights: tuple[float, ...] = ()

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels in order."""
        return tuple(dict.fromkeys(self.columns))


def choose_rule(planted: Array, control: Array, columns: Sequence[str], *, kinds: Sequence[str]) -> Rule:
    """Return the rule for a training set: structures lead where that finds planted copies.

    Args:
        planted: Copy-likeness of copies of training images, `[n, c]`.
        control: Copy-likeness of held-out images, `[h, c]`.
        columns: The level of each measure.
        kinds: How each of the copies was altered, `[n]`.
    """
    led, open_ = (Rule(columns=tuple(columns), led=which) for which in (True, False))
    # Small controls cannot give smaller ones.
    smallest = 1 / (1 + len(control))
    found = {rule: calibrate(planted, control, rule).p_values <= max(_FOUND, smallest) for rule in (led, open_)}
    of_kinds = [np.array(kinds) == kind for kind in dict.fromkeys(kinds)]
    keeps = all(found[led][which].sum() >= _KEPT_OF_KIND * found[open_][which].sum() for which in of_kinds)
    return led if keeps and found[led].mean() >= _FOUND_SHARE else open_


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """Scores and p-values of samples against a control.

    Attributes:
        scores: Fused score per sample, `[n]`, in control standard deviations, or by a learned rule's weights.
        control_scores: The same of each held-out image, `[h]`.
        p_values: p-value of the fused score, `[n]`, in (0, 1]: conformal within the control, extrapolated beyond it.
        level_p_values: The same for each level alone, `[n, l]`.
        extrapolates: Whether the control is large enough for p-values beyond its largest score.
    """

    scores: Array
    control_scores: Array
    p_values: Array
    level_p_values: Array
    extrapolates: bool


def calibrate(likeness: Array, control: Array, rule: Rule) -> Calibrated:
    """Return scores and p-values of samples against the held-out control.

    Args:
        likeness: Copy-likeness of the samples by each measure, `[n, c]`.
        control: Copy-likeness of held-out images, one per group, `[h, c]`, `h >= 1`.
        rule: How the measures are put together.

    Raises:
        ConfigurationError: If a likeness is not finite.
    """
    if not (np.isfinite(likeness).all() and np.isfinite(control).all()):
        raise ConfigurationError("copy-likeness must be finite, got NaN or infinite values.")
    bags = np.concatenate([likeness[:, None], np.broadcast_to(control, (len(likeness), *control.shape))], axis=1)
    fused = _fuse(_by_level(bags, *_location_and_spread(bags), rule), rule)
    at_least = (fused[:, 1:] >= fused[:, :1]).sum(axis=1)
    of_samples, of_control = (_against(control, one, rule) for one in (likeness, control))
    scores, control_scores = _fuse(of_samples, rule), _fuse(of_control, rule)
    conformal = (1 + at_least) / (1 + len(control))
    p_values = np.where(at_least == 0, np.minimum(conformal, _tail(scores, control_scores)), conformal)
    levels = [_tail(of_samples[:, level], of_control[:, level]) for level in range(len(rule.levels))]
    return Calibrated(
        scores=scores,
        control_scores=control_scores,
        p_values=p_values,
        level_p_values=np.stack(levels, axis=1),
        extrapolates=len(control) >= TAIL_CONTROLS,
    )


def stricter(one: Calibrated, other: Calibrated) -> Calibrated:
    """Return what of two calibrations of the same samples, by one rule, is less of an accusation, sample by sample.

    A p-value that is the larger of two is valid where either is. Control scores, and whether p-values extrapolate, are
    those of `one`.
    """
    return replace(
        one,
        scores=np.minimum(one.scores, other.scores),
        p_values=np.maximum(one.p_values, other.p_values),
        level_p_values=np.maximum(one.level_p_values, other.level_p_values),
    )


def level_excess(likeness: Array, control: Array, rule: Rule) -> Array:
    """Return by how much each level of samples exceeds the control's median, in its standard deviations, `[n, l]`.

    Args:
        likeness: Copy-likeness of the samples by each measure, `[n, c]`.
        control: Copy-likeness of held-out images, `[h, c]`.
        rule: Which measures are of which level.
    """
    excess: Array = np.maximum(_against(control, likeness, rule), 0.0)
    return excess


def _against(control: Array, likeness: Array, rule: Rule) -> Array:
    """Return each level's largest deviation from what is usual in the control, `[n, l]`."""
    by_level: Array = _by_level(likeness[None], *_location_and_spread(control[None]), rule)[0]
    return by_level


def _tail(scores: Array, control_scores: Array) -> Array:
    """Return p-values that are conformal within the control, and extrapolated beyond its largest score."""
    p_values: Array = tail_p_value(torch.from_numpy(scores.copy()), torch.from_numpy(control_scores.copy())).numpy()
    return p_values


def _location_and_spread(bags: Array) -> tuple[Array, Array]:
    """Return median and robust standard deviation per bag and measure, `[b, 1, c]`."""
    location = np.median(bags, axis=1, keepdims=True)
    spread = stats.median_abs_deviation(bags, axis=1, scale="normal")[:, None]
    return location, np.maximum(spread, _SMALLEST_SPREAD)


def _by_level(bags: Array, location: Array, spread: Array, rule: Rule) -> Array:
    """Return each level's largest deviation from the usual, in standard deviations, `[b, s, l]`.

    The largest, because copies that were moved and copies that were not show in different measures of a level.
    """
    deviation = (bags - location) / spread
    columns = np.array(rule.columns)
    return np.stack([deviation[..., columns == level].max(axis=-1) for level in rule.levels], axis=-1)


def _fuse(by_level: Array, rule: Rule) -> Array:
    """Return one score from the levels of each sample, `[..., l]` to `[...]`."""
    excess = np.maximum(by_level, 0.0)
    if rule.weights:
        weighed: Array = np.log1p(excess) @ np.array(rule.weights)
        return weighed
    if not rule.led:
        # Between the mean, which a copy at one level only would not move, and the maximum, which the noisiest level
        # would decide.
        together: Array = np.sqrt(np.square(excess).mean(axis=-1))
        return together
    lead = excess[..., -1]
    borne_out = np.minimum(excess[..., :-1], lead[..., None])
    led: Array = np.sqrt(np.square(lead) + np.square(borne_out).sum(axis=-1) / max(1, borne_out.shape[-1]))
    return led


@dataclass(frozen=True, kw_only=True)
class LabelledCalibration:
    """How well a score separates rated replicas from the rest (RELICT's protocol).

    Attributes:
        balanced_accuracy: At the threshold that is best on these very ratings, in [0, 1]; it flatters.
        threshold: That threshold: at or above it is a replica.
        sensitivity: Share of the rated replicas that it calls one; it flatters.
        specificity: Share of the others that it does not call one; it flatters.
        out_of_sample_balanced_accuracy: The same with each rating left out when its threshold is chosen.
        area_under_roc: Probability that a rated replica scores higher than another sample; without any threshold.
        rated: Number of ratings.
        replicas: How many of them say replica.
    """

    balanced_accuracy: float
    threshold: float
    sensitivity: RateEstimate
    specificity: RateEstimate
    out_of_sample_balanced_accuracy: float
    area_under_roc: RocAreaEstimate
    rated: int
    replicas: int


def calibrate_on_ratings(scores: Array, is_replica: Array) -> LabelledCalibration:
    """Return the balanced accuracy of a score on expert ratings, in and out of sample, and the area under its ROC.

    Args:
        scores: One score per rated sample, larger for more like a copy, `[n]`.
        is_replica: The ratings, `[n]`.

    Raises:
        ConfigurationError: If the ratings do not hold at least two replicas and two others, or a score is NaN.

    References:
        RELICT, arXiv:2502.17360.
    """
    replicas = int(np.asarray(is_replica).sum())
    if min(replicas, len(is_replica) - replicas) < 2:
        raise ConfigurationError(
            f"Calibration needs at least 2 samples rated as replicas and 2 rated as not; "
            f"got {replicas} and {len(is_replica) - replicas}. Rate more pairs."
        )
    # Copies, because torch cannot hold read-only memory.
    values = torch.from_numpy(np.array(scores, dtype=np.float64))
    labels = torch.from_numpy(np.array(is_replica, dtype=bool))
    accuracy, threshold = balanced_accuracy_at_optimal_threshold(values, labels)
    at_threshold = sensitivity_specificity(values, labels, threshold)
    return LabelledCalibration(
        balanced_accuracy=accuracy,
        threshold=threshold,
        sensitivity=at_threshold.sensitivity,
        specificity=at_threshold.specificity,
        out_of_sample_balanced_accuracy=out_of_sample_balanced_accuracy(values, labels),
        area_under_roc=area_under_roc(values, labels),
        rated=len(labels),
        replicas=replicas,
    )
