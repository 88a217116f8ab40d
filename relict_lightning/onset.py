"""When memorization began: evaluations in, onset and its reason out. Pure: no trainer, no files, no clock.

The promise: over a whole run, however long, a model whose samples do not depend on which patients it was trained on is
declared to memorize with probability at most `alpha`. A model that overfits leans towards its training patients before
it copies any, and the test sees that too; so onset needs replicas besides, in more than `tolerance` of the samples.
Evaluation number t is tested at level 6 alpha / (pi^2 t^2), and these levels sum to `alpha` (alpha spending; a union
bound, so it holds whatever the dependence between evaluations).

Two kinds of evidence can be tested. The exact permutation test of `memorization_p_value` assumes nothing about the
generator, and its power is bounded by the split: if M of N patients are training patients, j copied patients cannot
give a smaller p-value than about (M / N)^j. Where that bound cannot reach the level with a quarter of the samples
copied, the conformal evidence is tested instead, which assumes that samples of a model that does not memorize are no
more like training patients than held-out patients are.
"""

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from relict_lightning.errors import ConfigurationError
from relict_lightning.results import DetectionResult, RateEstimate

# The share of copied samples at which the permutation test must be able to decide to be relied on.
_DECIDABLE_SHARE = 0.25


class EvidenceKind(str, enum.Enum):
    """What an onset rests on."""

    PERMUTATION = "permutation"
    CONFORMAL = "conformal"

    @property
    def assumption(self) -> str:
        """What has to hold for the error rate to hold, in words."""
        if self is EvidenceKind.PERMUTATION:
            return "assuming only that training and held-out patients were split at random"
        return (
            "assuming that samples of a model that does not memorize are no more alike to training patients than "
            "held-out patients are"
        )


@dataclass(frozen=True, kw_only=True)
class Onset:
    """The first evaluation at which memorization is established.

    Attributes:
        step: Optimizer step of that evaluation.
        epoch: Its epoch.
        evaluation: Its number, counted from 1.
        evidence: What was tested.
        p_value: The p-value.
        level: The level that it was tested at.
        replica_rate: The replica rate then.
    """

    step: int
    epoch: int
    evaluation: int
    evidence: EvidenceKind
    p_value: float
    level: float
    replica_rate: RateEstimate

    @property
    def grounds(self) -> str:
        """What was tested, and what has to hold for the error rate to hold."""
        return f"{self.evidence.value} test, {self.evidence.assumption}"

    @property
    def reason(self) -> str:
        """The whole reason in one sentence."""
        return (
            f"Memorization onset at step {self.step} (epoch {self.epoch}): replica rate {self.replica_rate}; "
            f"{self.evidence.value} p-value {self.p_value:.2g} at evaluation {self.evaluation}, "
            f"where {self.level:.2g} was allowed, {self.evidence.assumption}."
        )


def spending_level(evaluation: int, *, alpha: float) -> float:
    """Return the level at which evaluation number `evaluation` is tested, so that all levels sum to `alpha`.

    Args:
        evaluation: Number of the evaluation, counted from 1.
        alpha: Bound on the probability of a false alarm over the whole run.

    Example:
        >>> round(spending_level(1, alpha=0.05), 4), round(spending_level(10, alpha=0.05), 6)
        (0.0304, 0.000304)
    """
    return 6 * alpha / (math.pi * evaluation) ** 2


def copies_to_decide(level: float, *, training_groups: int, heldout_groups: int) -> int | None:
    """Return how many distinct copied patients let the permutation test reach `level`.

    With M training patients among N in all, j samples that copy j distinct training patients have a p-value of
    prod over i < j of (M - i) / (N - i), and not below.

    Returns:
        The number of patients, or None where even copying all of them does not reach the level.

    Example:
        >>> copies_to_decide(0.001, training_groups=100, heldout_groups=100)
        10
    """
    total = training_groups + heldout_groups
    p_value = 1.0
    for copied in range(training_groups):
        p_value *= (training_groups - copied) / (total - copied)
        if p_value <= level:
            return copied + 1
    return None


@final
class OnsetDetector:
    """Watches evaluations and declares onset once.

    Args:
        alpha: Bound on the probability of a false alarm over the whole run.
        tolerance: Replica rate that is put up with; the lower bound of the rate must exceed it at onset.

    Raises:
        ConfigurationError: If `alpha` lies outside (0, 1) or `tolerance` outside [0, 1).
    """

    def __init__(self, *, alpha: float = 0.05, tolerance: float = 0.01) -> None:
        if not 0 < alpha < 1:
            raise ConfigurationError(f"alpha must lie in (0, 1), got {alpha}.")
        if not 0 <= tolerance < 1:
            raise ConfigurationError(f"tolerance must lie in [0, 1), got {tolerance}.")
        self.alpha = alpha
        self.tolerance = tolerance
        self.evaluations = 0
        self.onset: Onset | None = None

    @property
    def next_level(self) -> float:
        """The level at which the next evaluation is tested."""
        return spending_level(self.evaluations + 1, alpha=self.alpha)

    def evidence_kind(self, *, num_samples: int, training_groups: int, heldout_groups: int) -> EvidenceKind:
        """Return what the next evaluation is to be tested by; decided before its samples are seen."""
        needed = copies_to_decide(self.next_level, training_groups=training_groups, heldout_groups=heldout_groups)
        if needed is not None and needed <= _DECIDABLE_SHARE * num_samples:
            return EvidenceKind.PERMUTATION
        return EvidenceKind.CONFORMAL

    def update(
        self, result: DetectionResult, *, step: int, epoch: int, training_groups: int, heldout_groups: int
    ) -> Onset | None:
        """Take one evaluation in and return the onset if it is declared now.

        A result without a control counts as no evaluation: there is nothing to test.
        """
        if result.replica_rate is None:
            return None
        level = self.next_level
        kind = self.evidence_kind(
            num_samples=len(result.verdicts), training_groups=training_groups, heldout_groups=heldout_groups
        )
        p_value = result.memorization_p_value if kind is EvidenceKind.PERMUTATION else result.discovery_p_value
        self.evaluations += 1
        if self.onset is not None or p_value is None or p_value > level or result.replica_rate.low <= self.tolerance:
            return None
        self.onset = Onset(
            step=step,
            epoch=epoch,
            evaluation=self.evaluations,
            evidence=kind,
            p_value=p_value,
            level=level,
            replica_rate=result.replica_rate,
        )
        return self.onset

    def state_dict(self) -> dict[str, Any]:
        """Return the state as primitives, which checkpoints keep under `weights_only` loading."""
        onset = self.onset
        return {
            "alpha": self.alpha,
            "tolerance": self.tolerance,
            "evaluations": self.evaluations,
            "onset": None
            if onset is None
            else {
                "step": onset.step,
                "epoch": onset.epoch,
                "evaluation": onset.evaluation,
                "evidence": onset.evidence.value,
                "p_value": onset.p_value,
                "level": onset.level,
                "replica_rate": rate_to_primitives(onset.replica_rate),
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state; `alpha` and `tolerance` stay as constructed, what was spent stays spent."""
        self.evaluations = int(state["evaluations"])
        onset = state["onset"]
        self.onset = onset and Onset(
            **{
                **onset,
                "evidence": EvidenceKind(onset["evidence"]),
                "replica_rate": RateEstimate(**onset["replica_rate"]),
            }
        )


def rate_to_primitives(rate: RateEstimate) -> dict[str, float | int]:
    """Return a rate as a dictionary of primitives, from which `RateEstimate(**...)` makes it again."""
    return {
        "value": rate.value,
        "low": rate.low,
        "high": rate.high,
        "successes": rate.successes,
        "trials": rate.trials,
        "confidence": rate.confidence,
    }
