"""What an onset is: the evaluation, the evidence, and the sentence that says both. Primitives in and out.

- `EvidenceKind`: what an onset rests on.
- `Onset`: the record.
- `onset_to_primitives`, `onset_from_primitives`, `rate_to_primitives`, `evaluation_to_primitives`,
  `evaluation_from_primitives`: what checkpoints keep.
"""

import enum
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from relict_lightning.results import Evaluation, RateEstimate


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
        level: The level that it was tested at, out of the half of `alpha` that this kind of evidence has.
        replica_rate: The replica rate then.
        leaning_rate: The share of samples that leant towards a training patient beyond chance, where that share
            established the onset and the replica rate did not; None otherwise.
        pooled: Of how many evaluations in a row, this one the last, the samples of both rates are.
        confirmed_step: Step of the evaluation that confirmed it; that of the onset where one evaluation was enough.
    """

    step: int
    epoch: int
    evaluation: int
    evidence: EvidenceKind
    p_value: float
    level: float
    replica_rate: RateEstimate
    confirmed_step: int
    leaning_rate: RateEstimate | None = None
    pooled: int = 1

    @property
    def shown_rate(self) -> RateEstimate:
        """The rate that exceeded the tolerance: that of replicas, or else of samples that lean."""
        return self.leaning_rate or self.replica_rate

    @property
    def grounds(self) -> str:
        """What was tested, and what has to hold for the error rate to hold."""
        return f"{self.evidence.value} test, {self.evidence.assumption}"

    @property
    def reason(self) -> str:
        """The whole reason in one sentence."""
        leaning = ""
        if self.leaning_rate is not None:
            leaning = f", but {self.leaning_rate} of the samples lean towards a training patient, too blurred to name"
        together = "" if self.pooled == 1 else f" over {self.pooled} evaluations in a row"
        confirmed = "" if self.confirmed_step == self.step else f", confirmed at step {self.confirmed_step}"
        return (
            f"Memorization onset at step {self.step} (epoch {self.epoch}){confirmed}: replica rate "
            f"{self.replica_rate}{leaning}{together}; {self.evidence.value} p-value {self.p_value:.2g} at evaluation "
            f"{self.evaluation}, where {self.level:.2g} was allowed, {self.evidence.assumption}."
        )


def onset_to_primitives(onset: Onset) -> dict[str, Any]:
    """Return an onset as a dictionary of primitives."""
    return {**asdict(onset), "evidence": onset.evidence.value}


def onset_from_primitives(state: Mapping[str, Any]) -> Onset:
    """Return the onset that `onset_to_primitives` made a dictionary of, or an earlier version of it."""
    known = {
        # Earlier versions declared onset at once.
        "confirmed_step": state["step"],
        **state,
        "evidence": EvidenceKind(state["evidence"]),
        "replica_rate": RateEstimate(**state["replica_rate"]),
        "leaning_rate": rate_from_primitives(state.get("leaning_rate")),
    }
    return Onset(**known)


def rate_to_primitives(rate: RateEstimate) -> dict[str, float | int]:
    """Return a rate as a dictionary of primitives, from which `RateEstimate(**...)` makes it again."""
    return asdict(rate)


def rate_from_primitives(state: Mapping[str, Any] | None) -> RateEstimate | None:
    """Return the rate that `rate_to_primitives` made a dictionary of; None for None."""
    return None if state is None else RateEstimate(**state)


def evaluation_to_primitives(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation as a dictionary of primitives."""
    rate = evaluation.replica_rate
    return {
        "step": evaluation.step,
        "epoch": evaluation.epoch,
        "replica_rate": None if rate is None else rate_to_primitives(rate),
        "measures": dict(evaluation.measures),
        "context": dict(evaluation.context),
    }


def evaluation_from_primitives(state: Mapping[str, Any]) -> Evaluation:
    """Return the evaluation that `evaluation_to_primitives` made a dictionary of."""
    return Evaluation(
        step=state["step"],
        epoch=state["epoch"],
        replica_rate=rate_from_primitives(state["replica_rate"]),
        measures=state["measures"],
        context=state["context"],
    )
