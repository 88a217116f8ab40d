"""Checkpoints with the replica rate of the model in them, and which of them to keep and to go back to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relict_lightning.callbacks.rollback.verification import (
    Finding,
    Verification,
    verification_from_primitives,
    verification_to_primitives,
)
from relict_lightning.onset import rate_to_primitives
from relict_lightning.results import RateEstimate


@dataclass(frozen=True, kw_only=True)
class KeptCheckpoint:
    """A checkpoint and the replica rate of the model in it.

    Attributes:
        path: Where it lies.
        step: Its optimizer step.
        replica_rate: The rate measured at that step.
        leans: Whether the permutation test had found by then, at its levels, that samples lean towards training
            patients, and more than the tolerated share did.
        verification: What fresh samples said of it; None where none were drawn.
    """

    path: str
    step: int
    replica_rate: RateEstimate
    leans: bool = False
    verification: Verification | None = None

    @property
    def is_verified(self) -> bool:
        """Whether fresh samples found it clean."""
        return self.verification is not None and self.verification.finding is Finding.CLEAN

    def is_outdone_by(self, newer: "KeptCheckpoint", *, strictly: bool = False) -> bool:
        """Whether a newer checkpoint makes this one pointless: as well bounded a rate, and no new leaning.

        Args:
            newer: The newer checkpoint.
            strictly: Whether being as good is not enough: it must be better bounded, or not lean where this one does.
        """
        bound, newer_bound = self.replica_rate.high, newer.replica_rate.high
        if newer_bound > bound or (newer.leans and not self.leans):
            return False
        return not strictly or newer_bound < bound or self.leans


@dataclass(frozen=True, kw_only=True)
class UncheckedCheckpoint:
    """A checkpoint whose samples are being checked while training goes on.

    Attributes:
        path: Where it lies.
        step: Its optimizer step.
    """

    path: str
    step: int

    def renamed(self, path: Path) -> Path:
        """Give it its final name, and return where it lies now: where it did, if that cannot be done."""
        try:
            Path(self.path).replace(path)
        except OSError:
            # A run that is resumed from this very checkpoint knows it by its first name. And a checkpoint that is
            # written in the background, by `AsyncCheckpointIO`, may not be there yet.
            return path if path.exists() else Path(self.path)
        return path


def rated_name(step: int, rate: RateEstimate) -> str:
    """Return the file name of a checkpoint whose replica rate is known; a slash in it would make a folder."""
    return f"step={step}-replicas={rate.successes}-of-{rate.trials}.ckpt"


def thin_out(kept: Sequence[KeptCheckpoint], *, keep: int) -> list[KeptCheckpoint]:
    """Return at most `keep` of the checkpoints: the oldest, the newest, and some others, further and further back.

    Each is at most as well bounded as the one before it, so the oldest is the cleanest and never goes. One that lies
    right before the newest is likely to share its fate, so gaps widen towards the past: of the others the one goes
    whose neighbours lie closest together for its age.

    Args:
        kept: Checkpoints, oldest first.
        keep: How many, at least 1. With 1 the oldest is left.
    """
    remaining = list(kept)
    while len(remaining) > max(keep, 2):
        newest = remaining[-1].step

        def gap(position: int, newest: int = newest) -> float:
            before, at, after = (remaining[position + offset].step for offset in (-1, 0, 1))
            # Two of one step can follow each other in a run that goes on from an earlier one.
            return (after - before) / max(newest - at, 1)

        remaining.pop(min(range(1, len(remaining) - 1), key=gap))
    return remaining[:keep]


def choose(kept: Sequence[KeptCheckpoint], onset_rate: RateEstimate) -> KeptCheckpoint | None:
    """Return the checkpoint to go back to, by the rates measured in training.

    It is the newest whose whole interval lies below the rate that onset was shown by, in which no replica was found,
    and whose samples do not lean towards training patients. Where there is none of that kind, the last wish is dropped,
    then the one before it. Where no interval lies below, it is of the best bounded ones the newest that does
    not lean, else the newest.

    Args:
        kept: Checkpoints from before onset, oldest first.
        onset_rate: The rate that onset was shown by.
    """
    below = [checkpoint for checkpoint in kept if checkpoint.replica_rate.high < onset_rate.low]
    clean = [checkpoint for checkpoint in below if not checkpoint.replica_rate.successes] or below
    upright = [checkpoint for checkpoint in clean if not checkpoint.leans] or clean
    if upright:
        return upright[-1]
    return min(reversed(kept), key=lambda checkpoint: (checkpoint.replica_rate.high, checkpoint.leans), default=None)


def choose_of_tried(tried: Sequence[KeptCheckpoint]) -> KeptCheckpoint | None:
    """Return the checkpoint to go back to after fresh samples of all of these were drawn.

    It is the clean one. Without one it is, of those that do not make copies for certain, the best bounded with the
    fresh samples counted in, of several the one that was tried first; and None where all make copies.

    Args:
        tried: Verified checkpoints in the order in which they were tried.
    """
    clean = [checkpoint for checkpoint in tried if checkpoint.is_verified]
    if clean:
        return clean[0]
    possible = [
        checkpoint
        for checkpoint in tried
        if checkpoint.verification is not None and checkpoint.verification.finding is not Finding.COPIES
    ]
    return min(possible, key=_bound_by_now, default=None)


def _bound_by_now(checkpoint: KeptCheckpoint) -> float:
    pooled = checkpoint.verification and checkpoint.verification.pooled
    return (pooled or checkpoint.replica_rate).high


def to_primitives(checkpoint: KeptCheckpoint) -> dict[str, Any]:
    """Return a checkpoint as primitives, which checkpoints themselves can hold."""
    return {
        "path": checkpoint.path,
        "step": checkpoint.step,
        "replica_rate": rate_to_primitives(checkpoint.replica_rate),
        "leans": checkpoint.leans,
        "verification": checkpoint.verification and verification_to_primitives(checkpoint.verification),
    }


def from_primitives(state: Mapping[str, Any]) -> KeptCheckpoint:
    """Return the checkpoint that `to_primitives` wrote down; a state from before there were verifications has none."""
    verification = state.get("verification")
    return KeptCheckpoint(
        **{
            **state,
            "replica_rate": RateEstimate(**state["replica_rate"]),
            "verification": verification and verification_from_primitives(verification),
        }
    )
