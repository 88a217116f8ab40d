"""Checkpoints with the replica rate of the model in them, and which of them to go back to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from relict_lightning.onset import rate_to_primitives
from relict_lightning.results import RateEstimate


@dataclass(frozen=True, kw_only=True)
class KeptCheckpoint:
    """A checkpoint and the replica rate of the model in it.

    Attributes:
        path: Where it lies.
        step: Its optimizer step.
        replica_rate: The rate measured at that step.
    """

    path: str
    step: int
    replica_rate: RateEstimate


def choose(kept: Sequence[KeptCheckpoint], onset_rate: RateEstimate) -> KeptCheckpoint | None:
    """Return the newest checkpoint whose interval lies below the rate at onset, else the newest best bounded one.

    Args:
        kept: Checkpoints from before onset, oldest first.
        onset_rate: The replica rate at onset.
    """
    below = [checkpoint for checkpoint in kept if checkpoint.replica_rate.high < onset_rate.low]
    if below:
        return below[-1]
    return min(reversed(kept), key=lambda checkpoint: checkpoint.replica_rate.high, default=None)


def to_primitives(checkpoint: KeptCheckpoint) -> dict[str, Any]:
    """Return a checkpoint as primitives, which checkpoints themselves can hold."""
    rate = rate_to_primitives(checkpoint.replica_rate)
    return {"path": checkpoint.path, "step": checkpoint.step, "replica_rate": rate}


def from_primitives(state: Mapping[str, Any]) -> KeptCheckpoint:
    """Return the checkpoint that `to_primitives` wrote down."""
    return KeptCheckpoint(**{**state, "replica_rate": RateEstimate(**state["replica_rate"])})
