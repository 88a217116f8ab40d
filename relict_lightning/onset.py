"""When memorization began: evaluations in, onset and its reason out. Pure: no trainer, no files, no clock.

The promise: over a whole run, however long, a model whose samples do not depend on which patients it was trained on is
declared to memorize with probability at most `alpha`. A model that overfits leans towards its training patients before
it copies any, and the test sees that too; so onset needs replicas besides, in more than `tolerance` of the samples.
Evaluation number t is tested at level 6 alpha / (pi^2 t^2), and these levels sum to `alpha` (alpha spending; a union
bound, so it holds whatever the dependence between evaluations).

Two kinds of evidence are tested at each evaluation, each at half of its level:

- The exact permutation test of `memorization_p_value` assumes nothing about the generator, only a random split. Its
  power is bounded by that split: if M of N patients are training patients, j copied patients cannot give a smaller
  p-value than about (M / N)^j. So it is blind to a model that copies few patients often.
- The Simes test of the samples' p-values against the held-out control sees those. It assumes that samples of a model
  that does not memorize are no more like training patients than held-out patients are, and, beyond the largest control
  score, that the control's upper tail is no heavier than the fitted one; the bound `alpha` is then approximate.

Which of the two established an onset is part of its reason. Before the first step there is nothing to establish: an
evaluation of untrained weights spends nothing.
"""

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from relict_lightning.errors import ConfigurationError
from relict_lightning.results import DetectionResult, RateEstimate


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
        level: The level that it was tested at, half of the evaluation's.
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
        """The level at which each of the two tests is made at the next evaluation."""
        return spending_level(self.evaluations + 1, alpha=self.alpha) / 2

    def update(self, result: DetectionResult, *, step: int, epoch: int) -> Onset | None:
        """Take one evaluation in and return the onset if it is declared now.

        A result without a control, and one from before the first step, count as no evaluation.

        Args:
            result: What the detector found.
            step: Optimizer step of the evaluation.
            epoch: Its epoch.
        """
        if result.replica_rate is None or step == 0:
            return None
        level = self.next_level
        self.evaluations += 1
        tests = (
            (EvidenceKind.PERMUTATION, result.memorization_p_value),
            (EvidenceKind.CONFORMAL, result.discovery_p_value),
        )
        passed = [(kind, p_value) for kind, p_value in tests if p_value is not None and p_value <= level]
        if self.onset is not None or not passed or result.replica_rate.low <= self.tolerance:
            return None
        evidence, p_value = passed[0]
        self.onset = Onset(
            step=step,
            epoch=epoch,
            evaluation=self.evaluations,
            evidence=evidence,
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
