"""The report of a run, from what its callbacks know."""

from pathlib import Path

from lightning.pytorch import Trainer

from relict_lightning.callbacks.checkpoint import KeptCheckpoint, MemorizationCheckpoint
from relict_lightning.callbacks.monitor import ReplicaMonitor
from relict_lightning.onset import Onset
from relict_lightning.report import OnsetSummary, write_report


def write_run_report(path: str | Path, *, monitor: ReplicaMonitor, trainer: Trainer) -> Path:
    """Write the HTML report of the run so far and return its path. The file shows patients.

    Args:
        path: Where to write it.
        monitor: The run's monitor, after at least one evaluation.
        trainer: The run's trainer, whose `MemorizationCheckpoint`, if any, names the checkpoint to go back to.
    """
    callbacks: list[object] = trainer.callbacks  # type: ignore[attr-defined] # set by the trainer's connector
    best = next((callback.best for callback in callbacks if isinstance(callback, MemorizationCheckpoint)), None)
    return write_report(
        path,
        title=f"Replicas of training patients in {type(trainer.lightning_module).__name__}",
        evaluations=monitor.history,
        onset=onset_summary(monitor.onset, best),
        pairs=monitor.last_pairs,
        settings=monitor.settings(),
    )


def onset_summary(onset: Onset | None, best: KeptCheckpoint | None) -> OnsetSummary | None:
    """Return what a report says about an onset and the checkpoint to go back to; None without an onset."""
    if onset is None:
        return None
    return OnsetSummary(
        step=onset.step,
        epoch=onset.epoch,
        reason=onset.grounds,
        replica_rate=onset.replica_rate,
        p_value=onset.p_value,
        alpha_spent=onset.level,
        checkpoint_path=None if best is None else best.path,
        checkpoint_step=None if best is None else best.step,
        checkpoint_rate=None if best is None else best.replica_rate,
    )
