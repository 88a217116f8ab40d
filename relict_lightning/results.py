"""What the package returns: frozen records, no behaviour beyond reading them.

Rates are fractions in [0, 1]. Positions count from 0 and refer to the set as it was given.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pandas as pd

Level = Literal["voxel", "feature", "segmentation"]

# Motions below these are not seen in two images side by side; alignments of copies that were not moved stay below them.
_VISIBLE_VOXELS, _VISIBLE_DEGREES, _VISIBLE_SCALE = 0.5, 1.0, 0.02

# From a tenth on a share is said in percent.
_PLURAL = 0.1
# Level p-values up to this are told apart from usual ones.
_UNUSUAL = 0.05

LEVELS: tuple[Level, ...] = ("voxel", "feature", "segmentation")


@dataclass(frozen=True, kw_only=True)
class RateEstimate:
    """A rate, and never without its interval.

    Attributes:
        value: `successes / trials`, in [0, 1]; NaN without trials.
        low: Lower bound of the exact (Clopper-Pearson) interval.
        high: Upper bound of the exact interval.
        successes: Number of successes.
        trials: Number of trials.
        confidence: Coverage of the interval, 0.95 unless said otherwise.
    """

    value: float
    low: float
    high: float
    successes: int
    trials: int
    confidence: float = 0.95

    def __str__(self) -> str:
        """Return the rate as people read it, `12/64 = 18.8 % [10.1 %, 30.5 %]`."""
        return (
            f"{self.successes}/{self.trials} = {100 * self.value:.1f} % "
            f"[{100 * self.low:.1f} %, {100 * self.high:.1f} %]"
        )


@dataclass(frozen=True, kw_only=True)
class SensitivitySpecificity:
    """How well one threshold agrees with expert ratings.

    Attributes:
        sensitivity: Share of the copies that are called replicas.
        specificity: Share of the others that are not.
        balanced_accuracy: Mean of both, in [0, 1]; NaN without copies or without others.
        threshold: The threshold; at or above it is a replica.
    """

    sensitivity: RateEstimate
    specificity: RateEstimate
    balanced_accuracy: float
    threshold: float


@dataclass(frozen=True, kw_only=True)
class RocAreaEstimate:
    """An area under the ROC curve, and never without its interval.

    Attributes:
        value: Probability that a copy scores higher than another image, ties counted one half.
        low: Lower bound of the interval.
        high: Upper bound of the interval.
        confidence: Coverage of the interval, 0.95 unless said otherwise.
    """

    value: float
    low: float
    high: float
    confidence: float = 0.95

    def __str__(self) -> str:
        """Return the area as people read it, `0.912 [0.831, 0.993]`."""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, kw_only=True)
class AuthenticityEstimate:
    """The share of authentic samples, and what it is for images that cannot be copies.

    Attributes:
        value: Share of the samples.
        control: Share of held-out images; None without any, and then the value says nothing.
    """

    value: RateEstimate
    control: RateEstimate | None


@dataclass(frozen=True, kw_only=True)
class LesionMatch:
    """A lesion of a sample, and the lesion of a patient that it copies.

    Attributes:
        generated_lesion: Number of the sample's lesion, from 1.
        training_lesion: Number of the patient's lesion, from 1.
        dice: How much they overlap, in (0, 1].
        centroid_distance_mm: How far apart their centres of mass lie.
        generated_volume_mm3: Volume of the sample's lesion; in 2-D its area, in mm^2.
        training_volume_mm3: Volume of the patient's lesion; in 2-D its area, in mm^2.
    """

    generated_lesion: int
    training_lesion: int
    dice: float
    centroid_distance_mm: float
    generated_volume_mm3: float
    training_volume_mm3: float


@dataclass(frozen=True, kw_only=True)
class LesionMatching:
    """Which lesions of a sample copy which lesions of a patient.

    Attributes:
        matches: One per matched lesion, in the order of the sample's lesions.
        generated_lesions: Number of lesions of the sample.
        training_lesions: Number of lesions of the patient.
    """

    matches: tuple[LesionMatch, ...]
    generated_lesions: int
    training_lesions: int

    @property
    def matched_share(self) -> float:
        """Share of the sample's lesions that are matched, in [0, 1]; NaN where it has none."""
        return len(self.matches) / self.generated_lesions if self.generated_lesions else math.nan


@dataclass(frozen=True, kw_only=True)
class Transform:
    """How a sample was moved onto the training image that it matches.

    The sample is mirrored along `mirrored_axes` first and then moved.

    Attributes:
        mirrored_axes: Spatial axes that were mirrored, counted from 0.
        shift_voxels: Displacement of the image's centre in voxels, one number per spatial axis.
        rotation_degrees: Angle of the rotation, at least 0.
        scale: By how much the sample was enlarged, the mean over the axes; 1 where it was not.
        map: All of the motion, as `relict_lightning.functional.warp_affine` takes it, one row per spatial axis; empty
            where nothing was moved.
    """

    mirrored_axes: tuple[int, ...] = ()
    shift_voxels: tuple[float, ...] = ()
    rotation_degrees: float = 0.0
    scale: float = 1.0
    map: tuple[tuple[float, ...], ...] = ()

    @property
    def is_identity(self) -> bool:
        """Whether nothing was mirrored, or moved by as much as people can see."""
        return not self.mirrored_axes and not self._motions()

    def __str__(self) -> str:
        """Return the transformation in words, `mirrored along axis 1, shifted by (2, 0) voxels`."""
        parts = []
        if self.mirrored_axes:
            axes = ", ".join(str(axis) for axis in self.mirrored_axes)
            parts.append(f"mirrored along axis {axes}")
        return ", ".join(parts + self._motions()) or "as it is"

    def _motions(self) -> list[str]:
        parts = []
        if self.rotation_degrees >= _VISIBLE_DEGREES:
            parts.append(f"turned by {self.rotation_degrees:.1f} degrees")
        if abs(self.scale - 1) >= _VISIBLE_SCALE:
            parts.append(f"enlarged by {self.scale:.2f}")
        if any(abs(step) >= _VISIBLE_VOXELS for step in self.shift_voxels):
            steps = ", ".join(f"{round(step, 1) + 0.0:g}" for step in self.shift_voxels)
            parts.append(f"shifted by ({steps}) voxels")
        return parts


def _one_in(p_value: float) -> str:
    """Return a share as people picture it."""
    return f"1 in {1 / p_value:.0f}" if p_value < _PLURAL else f"{100 * p_value:.0f} %"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The decision on one sample, and what it rests on.

    Attributes:
        score: Larger is more like a copy; scale-free, comparable with `DetectionResult.control_scores`.
            NaN without a control.
        p_value: p-value of the score in (0, 1], see `DetectionResult.p_value_model`; NaN without a control.
        is_replica: Whether the sample is a discovery at the false discovery rate asked for; False without a control.
        match: Position of the matched training image.
        match_id: Its id, as the data gave it.
        match_group: Its group (the patient).
        transform: How the sample was moved onto the match.
        evidence: Per level, measure name to value, for the pair (sample, match).
        level_p_values: Per level, the p-value of that level alone; empty without a control.
    """

    score: float
    p_value: float
    is_replica: bool
    match: int
    match_id: str
    match_group: str
    transform: Transform
    evidence: Mapping[Level, Mapping[str, float]]
    level_p_values: Mapping[Level, float] = field(default_factory=dict)

    @property
    def is_partial(self) -> bool:
        """Whether a replica has the structures of its match only, as a transplanted lesion does, and not the rest.

        The segmentation level comes closer than 95 % of the held-out patients do, and no other level does.
        """
        levels = dict(self.level_p_values)
        structures = levels.pop("segmentation", 1.0)
        return self.is_replica and structures <= _UNUSUAL < min(levels.values(), default=0.0)

    @property
    def explanation(self) -> str:
        """The decision and its grounds in words; it names no patient.

        Example:
            >>> verdict = Verdict(
            ...     score=8.0, p_value=0.0004, is_replica=True, match=7, match_id="scan 7", match_group="anna",
            ...     transform=Transform(), evidence={"segmentation": {"mean_dice": 0.91}},
            ... )
            >>> verdict.explanation
            'Replica of training image 7: mean dice 0.91; p = 0.0004.'
        """
        moved = "" if self.transform.is_identity else f", {self.transform}"
        named = [pair for of_level in self.evidence.values() for pair in of_level.items()]
        measures = ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in named)
        start = "No replica; most like"
        if self.is_replica:
            start = "Replica of structures of" if self.is_partial else "Replica of"
        if math.isnan(self.p_value):
            unknown = "without held-out images nothing says how unusual that is."
            return f"Most like training image {self.match}{moved}: {measures}; {unknown}"
        shares = [
            f"{_one_in(p_value)} {'comes' if p_value < _PLURAL else 'come'} this close at {level} level"
            for level, p_value in self.level_p_values.items()
        ]
        of_unseen = f" Of unseen patients, {', '.join(shares)}." if shares else ""
        return f"{start} training image {self.match}{moved}: {measures}; p = {self.p_value:.2g}.{of_unseen}"


@dataclass(frozen=True, kw_only=True)
class DetectionResult:
    """What `ReplicaDetector.detect` found in one set of samples.

    Attributes:
        verdicts: One per sample, in order.
        replica_rate: Share of the samples that are replicas; None without a control, because nothing then says how
            alike a new patient would be.
        level_rates: The same by each level alone; empty without a control.
        fdr: False discovery rate that the verdicts were made at.
        control_scores: Scores of the held-out images, one per held-out group.
        p_value_model: Where p-values come from: "conformal" where the control is too small for more, "conformal with
            tail" where samples beyond every held-out image get theirs from the control's upper tail; None without a
            control.
        leaning_rate: Share of the samples that lean towards a training patient beyond what chance accounts for, copies
            among them that are too blurred to be named; it says something only where `memorization_p_value` is small.
            None without a control.
        memorization_p_value: Exact permutation p-value that the samples know the training set; None without a control.
        attainable_p_value: The smallest value that `memorization_p_value` could have taken, were all patients that the
            samples are nearest to training patients; None without a control.
        discovery_p_value: Simes p-value of the samples' p-values: that any sample is a replica; None
            without a control.
        measures: Set-level measures by their logged name without prefix, such as `neighbor_ratio_fraction`.
    """

    verdicts: tuple[Verdict, ...]
    replica_rate: RateEstimate | None
    level_rates: Mapping[Level, RateEstimate]
    fdr: float
    control_scores: tuple[float, ...]
    p_value_model: Literal["conformal", "conformal with tail"] | None
    leaning_rate: RateEstimate | None = None
    memorization_p_value: float | None
    attainable_p_value: float | None
    discovery_p_value: float | None
    measures: Mapping[str, float]

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per sample: the verdict's fields, and a column `level_measure` for each piece of evidence."""
        import pandas as pd

        rows = []
        for position, verdict in enumerate(self.verdicts):
            row: dict[str, object] = {
                "sample": position,
                "is_replica": verdict.is_replica,
                "score": verdict.score,
                "p_value": verdict.p_value,
                "match": verdict.match,
                "match_id": verdict.match_id,
                "match_group": verdict.match_group,
                "transform": str(verdict.transform),
            }
            row |= {f"p_value_{level}": p_value for level, p_value in verdict.level_p_values.items()}
            for level, measures in verdict.evidence.items():
                row |= {f"{level}_{name}": value for name, value in measures.items()}
            rows.append(row)
        return pd.DataFrame(rows)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One look at the generator during training, as the monitor remembers it.

    Attributes:
        step: Optimizer step (`global_step`) at which the samples were drawn.
        epoch: Epoch at which they were drawn.
        replica_rate: Replica rate of the samples; None without a control.
        measures: Every logged value by its name without prefix.
        context: What else was known then: `alpha_threshold`, the level that `memorization_p_value` was tested at, and
            `train_loss`, where the model logs one.
    """

    step: int
    epoch: int
    replica_rate: RateEstimate | None
    measures: Mapping[str, float]
    context: Mapping[str, float] = field(default_factory=dict)

    def value_of(self, name: str) -> float:
        """Return a measure, or a number of the context, by its name; NaN where it is not known."""
        return float(self.measures.get(name, self.context.get(name, math.nan)))


@dataclass(frozen=True, kw_only=True)
class MatchedPair:
    """A sample beside the training image that it matches, for people to look at.

    Attributes:
        generated: The sample, `[c, *spatial]`, moved onto the training image.
        training: The training image, `[c, *spatial]`.
        verdict: The decision on the sample.
    """

    generated: "object"
    training: "object"
    verdict: Verdict
