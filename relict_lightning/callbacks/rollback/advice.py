"""What `MemorizationCheckpoint` says: which checkpoint to go back to, and how sure that is."""

from collections.abc import Sequence

from relict_lightning.callbacks.rollback.kept import KeptCheckpoint
from relict_lightning.callbacks.rollback.verification import Finding
from relict_lightning.results import RateEstimate


def advice(best: KeptCheckpoint | None, tried: Sequence[KeptCheckpoint], onset_rate: RateEstimate) -> str:
    """Return the advice at onset.

    Args:
        best: The checkpoint to go back to, if there is one.
        tried: The checkpoints of which fresh samples were drawn, in that order; none where that was not asked for.
        onset_rate: The rate that onset was shown by.
    """
    if best is None:
        if tried:
            return (
                f"No checkpoint is safe to go back to: fresh samples of {'; '.join(map(_describe, tried))}. "
                f"Evaluate more often, or train on more patients."
            )
        return "No checkpoint was saved before memorization onset. Evaluate more often, or train on more patients."
    said = f"Go back to {best.path}: step {best.step}, before memorization onset, replica rate {best.replica_rate}."
    if best.leans:
        said += " The permutation test found its samples leaning towards training patients already."
    if best.verification is None:
        if best.replica_rate.high >= onset_rate.low:
            said += " This interval overlaps the one at onset: draw more samples per evaluation to tell them apart."
        return said
    said += _verified(best)
    others = [checkpoint for checkpoint in tried if checkpoint.path != best.path]
    if others:
        said += f" Also tried: {'; '.join(map(_describe, others))}."
    return said


def _verified(best: KeptCheckpoint) -> str:
    """Return what fresh samples said of the checkpoint to go back to."""
    verification = best.verification
    if verification is None or verification.finding is Finding.FAILED:
        return f" It could not be verified: {verification.failure if verification else 'nothing was drawn'}."
    if verification.finding is Finding.CLEAN:
        return f" Verified: fresh samples {verification.rates}."
    return (
        f" Not verified: fresh samples {verification.rates}; this is not clearly better than at onset, or the samples "
        f"lean towards training patients. Draw more samples per evaluation to be sure."
    )


def _describe(checkpoint: KeptCheckpoint) -> str:
    return f"step {checkpoint.step}, {checkpoint.verification or 'not verified (not drawn)'}"
