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
        leans: Whether the permutation test found, at its level then, that samples lean towards training patients.
    """

    path: str
    step: int
    replica_rate: RateEstimate
    leans: bool = False

    def is_outdone_by(self, newer: "KeptCheckpoint") -> bool:
        """Whether a newer checkpoint makes this one pointless: as well bounded a rate, and no new leaning."""
        return newer.replica_rate.high <= self.replica_rate.high and (self.leans or not newer.leans)


def choose(kept: Sequence[KeptCheckpoint], onset_rate: RateEstimate) -> KeptCheckpoint | None:
    """Return the checkpoint to go back to.

    It is the newest whose whole interval lies below the rate at onset, in which no replica was found, and whose samples
    do not lean towards training patients. Where there is none of that kind, the last wish is dropped, then the one
    before it. Where no interval lies below, it is the newest of the best bounded ones.

    Args:
        kept: Checkpoints from before onset, oldest first.
        onset_rate: The replica rate at onset.
    """
    below = [checkpoint for checkpoint in kept if checkpoint.replica_rate.high < onset_rate.low]
    clean = [checkpoint for checkpoint in below if not checkpoint.replica_rate.successes] or below
    upright = [checkpoint for checkpoint in clean if not checkpoint.leans] or clean
    if upright:
        return upright[-1]
    return min(reversed(kept), key=lambda checkpoint: checkpoint.replica_rate.high, default=None)


def to_primitives(checkpoint: KeptCheckpoint) -> dict[str, Any]:
    """Return a checkpoint as primitives, which checkpoints themselves can hold."""
    rate = rate_to_primitives(checkpoint.replica_rate)
    return {"path": checkpoint.path, "step": checkpoint.step, "replica_rate": rate, "leans": checkpoint.leans}


def from_primitives(state: Mapping[str, Any]) -> KeptCheckpoint:
    """Return the checkpoint that `to_primitives` wrote down."""
    return KeptCheckpoint(**{**state, "replica_rate": RateEstimate(**state["replica_rate"])})
