"""From likeness to error rates: the held-out control, conformal p-values, fusion of levels, and RELICT's protocol.

The control is the same measurement made on held-out patients, one image of each. A p-value is the share of the
control that is at least as much like a copy as the sample is, counting the sample itself. That is exact for any score,
if samples of a model that does not memorize and held-out images are exchangeable, as long as the score treats all of
them alike. The fusion of levels keeps to this: levels are put on one scale by the median and the median absolute
deviation of control and sample *together*, so that no member of the bag is special.

Such a p-value cannot be smaller than one over the size of the control plus one, and with a few hundred held-out
patients that hides rates below a tenth. So a sample that is more like a copy than every held-out patient gets a p-value
from the control's upper tail (`relict_lightning.functional.tail_p_value`), where the control has at least 20 patients.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

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
# Makes the median absolute deviation of a normal variable its standard deviation.
_NORMAL_CONSISTENCY = 1.4826


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """Scores and p-values of samples against a control.

    Attributes:
        scores: Fused score per sample, `[n]`, in control standard deviations.
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


def calibrate(likeness: Array, control: Array) -> Calibrated:
    """Return scores and p-values of samples against the held-out control.

    Args:
        likeness: Copy-likeness of the samples per level, `[n, l]`.
        control: Copy-likeness of held-out images, one per group, `[h, l]`, `h >= 1`.

    Raises:
        ConfigurationError: If a likeness is not finite.
    """
    if not (np.isfinite(likeness).all() and np.isfinite(control).all()):
        raise ConfigurationError("copy-likeness must be finite, got NaN or infinite values.")
    bags = np.concatenate([likeness[:, None], np.broadcast_to(control, (len(likeness), *control.shape))], axis=1)
    fused = _fuse(bags, *_location_and_spread(bags))
    at_least = (fused[:, 1:] >= fused[:, :1]).sum(axis=1)
    location, spread = _location_and_spread(control[None])
    scores, control_scores = _fuse(likeness[None], location, spread)[0], _fuse(control[None], location, spread)[0]
    conformal = (1 + at_least) / (1 + len(control))
    p_values = np.where(at_least == 0, np.minimum(conformal, _tail(scores, control_scores)), conformal)
    levels = [_tail(likeness[:, level], control[:, level]) for level in range(control.shape[1])]
    return Calibrated(
        scores=scores,
        control_scores=control_scores,
        p_values=p_values,
        level_p_values=np.stack(levels, axis=1),
        extrapolates=len(control) >= TAIL_CONTROLS,
    )


def _tail(scores: Array, control_scores: Array) -> Array:
    """Return p-values that are conformal within the control, and extrapolated beyond its largest score."""
    p_values: Array = tail_p_value(torch.from_numpy(scores.copy()), torch.from_numpy(control_scores.copy())).numpy()
    return p_values


def _location_and_spread(bags: Array) -> tuple[Array, Array]:
    """Return median and robust standard deviation per bag and level, `[b, 1, l]`."""
    location = np.median(bags, axis=1, keepdims=True)
    deviation = np.median(np.abs(bags - location), axis=1, keepdims=True)
    return location, np.maximum(_NORMAL_CONSISTENCY * deviation, _SMALLEST_SPREAD)


def _fuse(bags: Array, location: Array, spread: Array) -> Array:
    """Return the root of the mean squared excess over the levels, `[b, s]`.

    It lies between the mean, which a copy at one level only would not move, and the maximum, which the noisiest level
    would decide.
    """
    excess = np.maximum((bags - location) / spread, 0.0)
    fused: Array = np.sqrt(np.square(excess).mean(axis=2))
    return fused


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
