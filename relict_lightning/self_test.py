"""The detector's self-test: what it finds of copies that were planted on purpose, on the user's own images.

"No replicas found" says something only where replicas would have been found. So training images are put through every
alteration that a replica may have gone through (`relict_lightning.planting`), and measured as samples are.

- *Recall* is the share of the planted copies whose p-value is at most 0.05, by all levels together and by each alone. A
  detector that guesses has a recall of 5 %.
- *Retrieval* is the share of the planted copies for which an image of the patient that was copied was compared at all.
- *Attribution* is the share of the planted copies whose match is the patient that was copied, found or not.
- The *false-positive rate* is the share of held-out patients called replicas when one half of them is judged against
  the other.

| function | what it does |
| --- | --- |
| `evaluate_self_test` | counts what of the planted copies was found |
| `split_false_positive_rate` | judges held-out patients against each other |
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch

from relict_lightning.calibration import Rule, calibrate
from relict_lightning.errors import ConfigurationError
from relict_lightning.functional import benjamini_hochberg, estimate_rate
from relict_lightning.planting import PlantedCopies
from relict_lightning.results import RateEstimate

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

# More copies of a kind must be missed than found for the detector to be called blind to it.
_BLIND_BELOW = 0.5

_ALTERED: Mapping[str, str] = {
    "plain": "left as they were",
    "intensity": "recoloured",
    "shift": "shifted",
    "rotation": "turned",
    "mirror": "mirrored",
    "elastic": "warped",
    "crop": "cropped",
    "transplant": "transplanted",
}


@final
@dataclass(frozen=True, kw_only=True)
class AlterationRecall:
    """What was found of the planted copies of one kind.

    Attributes:
        alteration: One of `ALTERATION_NAMES`, or "all".
        recall: Share of them that all levels together find.
        level_recalls: The same by each level alone.
        retrieval: Share of them with the patient that was copied among their hits.
        attribution: Share of them whose match is the patient that was copied, found or not.
    """

    alteration: str
    recall: RateEstimate
    level_recalls: Mapping[str, RateEstimate]
    retrieval: RateEstimate
    attribution: RateEstimate

    @property
    def planted(self) -> int:
        """Number of copies that were planted."""
        return self.recall.trials


@final
@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """What a detector finds of planted copies, and how often it calls held-out patients replicas.

    Attributes:
        alterations: One entry per alteration.
        alpha: Copies count as found at a p-value of at most this.
        fdr: False discovery rate of the detector.
        heldout_false_positive_rate: Share of held-out patients called replicas at `fdr`, one half judged against the
            other. Its interval takes them for independent, and they are not quite: they share their controls.

    Example:
        >>> counts = {"planted": 4, "found": 1, "found_by_level": {"voxel": 1}, "retrieved": 3, "attributed": 2}
        >>> settings = {"alpha": 0.05, "fdr": 0.05, "heldout": {"called": 0, "patients": 40}}
        >>> test = SelfTest.from_dict({**settings, "alterations": [{"alteration": "plain", **counts}]})
        >>> test.blind_to
        ('plain',)
    """

    alterations: tuple[AlterationRecall, ...]
    alpha: float
    fdr: float
    heldout_false_positive_rate: RateEstimate

    @property
    def levels(self) -> tuple[str, ...]:
        """What the copies were judged by."""
        return tuple(self.alterations[0].level_recalls)

    @property
    def overall(self) -> AlterationRecall:
        """All planted copies as one kind, "all"."""
        return AlterationRecall(
            alteration="all",
            recall=_pooled([one.recall for one in self.alterations]),
            level_recalls={
                level: _pooled([one.level_recalls[level] for one in self.alterations]) for level in self.levels
            },
            retrieval=_pooled([one.retrieval for one in self.alterations]),
            attribution=_pooled([one.attribution for one in self.alterations]),
        )

    @property
    def overall_recall(self) -> RateEstimate:
        """Share of all planted copies that were found; its interval takes them for independent."""
        return self.overall.recall

    @property
    def blind_to(self) -> tuple[str, ...]:
        """The alterations of which fewer than half of the planted copies were found."""
        return tuple(one.alteration for one in self.alterations if one.recall.value < _BLIND_BELOW)

    def warning(self) -> str | None:
        """Return what the user must know before trusting that there are no replicas; None where there is nothing."""
        patients = self.heldout_false_positive_rate.trials
        if self.alpha * (patients + 1) < 1:
            needed = int(np.ceil(1 / self.alpha)) - 1
            return (
                f"With {patients} held-out patients no p-value can be as small as {self.alpha:g}, so this detector "
                f"cannot find copies one by one: `no replicas found` says nothing. Add held-out patients (at least "
                f"{needed})."
            )
        blind = [one for one in self.alterations if one.alteration in self.blind_to]
        if not blind:
            return None
        first, *rest = (f"{one.recall.successes} of {one.planted}" for one in blind)
        named = [f"{first} planted copies that were {_ALTERED[blind[0].alteration]}"]
        named += [f"{count} that were {_ALTERED[one.alteration]}" for count, one in zip(rest, blind[1:], strict=True)]
        listed = " and ".join(part for part in (", ".join(named[:-1]), named[-1]) if part)
        return f"This detector found {listed}: `no replicas found` says nothing about such copies."

    def to_table(self) -> list[dict[str, Any]]:
        """Return one row per alteration, and a last one for all of them; rates are fractions."""
        return [
            {
                "alteration": one.alteration,
                "planted": one.planted,
                "recall": one.recall.value,
                "recall_low": one.recall.low,
                "recall_high": one.recall.high,
                **{f"recall_{level}": rate.value for level, rate in one.level_recalls.items()},
                "retrieval": one.retrieval.value,
                "attribution": one.attribution.value,
            }
            for one in (*self.alterations, self.overall)
        ]

    def __str__(self) -> str:
        """Return a table of how many copies were found, for people to read."""
        rows = [("alteration", "planted", "found", *self.levels, "among hits", "right patient")]
        for one in (*self.alterations, self.overall):
            rates = (one.recall, *(one.level_recalls[level] for level in self.levels), one.retrieval, one.attribution)
            rows.append((one.alteration, str(one.planted), *(str(rate.successes) for rate in rates)))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
        return "\n".join([*lines, f"held-out patients called replicas: {self.heldout_false_positive_rate}"])

    def to_dict(self) -> dict[str, Any]:
        """Return the counts, as JSON can hold them."""
        return {
            "alpha": self.alpha,
            "fdr": self.fdr,
            "heldout": {
                "called": self.heldout_false_positive_rate.successes,
                "patients": self.heldout_false_positive_rate.trials,
            },
            "alterations": [
                {
                    "alteration": one.alteration,
                    "planted": one.planted,
                    "found": one.recall.successes,
                    "found_by_level": {level: rate.successes for level, rate in one.level_recalls.items()},
                    "retrieved": one.retrieval.successes,
                    "attributed": one.attribution.successes,
                }
                for one in self.alterations
            ],
        }

    @classmethod
    def from_dict(cls, counts: Mapping[str, Any]) -> "SelfTest":
        """Return the self-test that `to_dict` was called on."""
        return cls(
            alterations=tuple(_recall(**one) for one in counts["alterations"]),
            alpha=float(counts["alpha"]),
            fdr=float(counts["fdr"]),
            heldout_false_positive_rate=estimate_rate(counts["heldout"]["called"], counts["heldout"]["patients"]),
        )


def evaluate_self_test(
    planted: PlantedCopies,
    *,
    likeness: Array,
    is_retrieved: Array,
    matched_groups: Array,
    source_groups: Array,
    control_likeness: Array,
    rule: Rule,
    fdr: float,
    alpha: float = 0.05,
) -> SelfTest:
    """Return how many of the planted copies a detector finds.

    Args:
        planted: The copies.
        likeness: Their copy-likeness by each measure, `[n, c]`, measured as that of samples is.
        is_retrieved: Whether the patient that was copied is among the hits of each, `[n]`.
        matched_groups: Patient that each was matched with, by code or name, `[n]`.
        source_groups: Patient that each is a copy of, in the same terms, `[n]`.
        control_likeness: Copy-likeness of held-out patients, `[h, c]`.
        rule: How the measures are put together.
        fdr: False discovery rate of the detector, in (0, 1), for the false-positive rate.
        alpha: A copy counts as found at a p-value of at most this, in (0, 1).

    Raises:
        ConfigurationError: If numbers of rows or columns differ, or `alpha` or `fdr` lies outside (0, 1).
    """
    per_copy = {"is_retrieved": is_retrieved, "matched_groups": matched_groups, "source_groups": source_groups}
    rows = {name: len(values) for name, values in {"likeness": likeness, **per_copy}.items()}
    if set(rows.values()) != {len(planted)}:
        raise ConfigurationError(f"There must be one row per planted copy, {len(planted)}; got {rows}.")
    if likeness.shape[1:] != (len(rule.columns),):
        raise ConfigurationError(f"likeness must have one column for each of {rule.columns}, got {likeness.shape}.")
    if not 0 < alpha < 1:
        raise ConfigurationError(f"alpha must lie in (0, 1), got {alpha}.")
    calibrated = calibrate(likeness, control_likeness, rule)
    found = calibrated.p_values <= alpha
    found_by_level = dict(zip(rule.levels, (calibrated.level_p_values <= alpha).T, strict=True))
    attributed, kinds = matched_groups == source_groups, np.array(planted.alteration)
    return SelfTest(
        alterations=tuple(
            _recall(
                alteration=name,
                planted=int((kinds == name).sum()),
                found=int(found[kinds == name].sum()),
                found_by_level={level: int(these[kinds == name].sum()) for level, these in found_by_level.items()},
                retrieved=int(is_retrieved[kinds == name].sum()),
                attributed=int(attributed[kinds == name].sum()),
            )
            for name in dict.fromkeys(planted.alteration)
        ),
        alpha=alpha,
        fdr=fdr,
        heldout_false_positive_rate=split_false_positive_rate(control_likeness, rule, fdr=fdr),
    )


def split_false_positive_rate(control_likeness: Array, rule: Rule, *, fdr: float) -> RateEstimate:
    """Return the share of held-out patients that are called replicas against the other half of them.

    Every patient is tested once, and by construction none is a copy.

    Args:
        control_likeness: Copy-likeness of held-out patients, `[h, c]`; every other one makes a half.
        rule: How the measures are put together.
        fdr: False discovery rate of the verdicts, in (0, 1).
    """
    halves = (control_likeness[::2], control_likeness[1::2])
    called = 0
    for tested, control in (halves, halves[::-1]):
        if len(tested) and len(control):
            p_values = torch.from_numpy(calibrate(tested, control, rule).p_values)
            called += int(benjamini_hochberg(p_values, fdr=fdr).sum())
    return estimate_rate(called, len(control_likeness))


def _recall(
    *, alteration: str, planted: int, found: int, found_by_level: Mapping[str, int], retrieved: int, attributed: int
) -> AlterationRecall:
    return AlterationRecall(
        alteration=alteration,
        recall=estimate_rate(found, planted),
        level_recalls={level: estimate_rate(count, planted) for level, count in found_by_level.items()},
        retrieval=estimate_rate(retrieved, planted),
        attribution=estimate_rate(attributed, planted),
    )


def _pooled(rates: Sequence[RateEstimate]) -> RateEstimate:
    return estimate_rate(sum(rate.successes for rate in rates), sum(rate.trials for rate in rates))
