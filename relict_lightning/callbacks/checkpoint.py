"""Keeping the checkpoint to go back to."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from relict_lightning.callbacks.attached import attached_monitor
from relict_lightning.callbacks.kept import KeptCheckpoint, choose, from_primitives, to_primitives
from relict_lightning.errors import ConfigurationError
from relict_lightning.results import Evaluation, RateEstimate


class MemorizationCheckpoint(Checkpoint):
    """Keeps the checkpoint to go back to when memorization is found.

    After each evaluation of `ReplicaMonitor` before onset it saves a checkpoint, and drops those that a newer one makes
    pointless: an older checkpoint is kept only where its replica rate is better bounded than that of every newer one,
    or where the permutation test did not yet find that samples lean towards training patients. So the oldest that is
    kept is the cleanest. Where more than `keep` remain, the second oldest goes, never the oldest; with `keep=1` a worse
    newer one is not saved at all. At onset it names the newest checkpoint whose whole interval lies below the rate at
    onset, one without any replica before one with some, and one without leaning before one with it. Of several monitors
    it follows the one without a name, or else the first. Each `fit` starts afresh, and one with `ckpt_path` goes on
    with the checkpoints of the run that it resumes.

    It is one of Lightning's checkpoint callbacks: with it, the trainer adds no `ModelCheckpoint` of its own, so add one
    where the best or the last weights are wanted as well.

    Args:
        dirpath: Folder of the checkpoints; None takes `relict_checkpoints` in the trainer's `default_root_dir`.
        keep: How many checkpoints to keep at most, at least 1.

    Raises:
        ConfigurationError: If `keep` is below 1.

    Attributes:
        kept: The checkpoints kept, oldest first.
        best: The checkpoint to go back to; None before onset, or where nothing was saved before it.
    """

    def __init__(self, dirpath: str | Path | None = None, *, keep: int = 3) -> None:
        if keep < 1:
            raise ConfigurationError(f"keep must be at least 1, got {keep}.")
        self.dirpath = None if dirpath is None else Path(dirpath)
        self.keep = keep
        self._start_afresh()

    def _start_afresh(self) -> None:
        self.kept: list[KeptCheckpoint] = []
        self.best: KeptCheckpoint | None = None
        self._advised = False
        self._seen = 0
        self._followed = ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start afresh; the state of a run that is resumed is loaded after this.

        Raises:
            ConfigurationError: If there is no `ReplicaMonitor`.
        """
        if stage == TrainerFn.FITTING:
            self._start_afresh()
            self._followed = attached_monitor(trainer, type(self).__name__).name

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pass over evaluations that were made before; there is nothing to save before the first step."""
        monitor = attached_monitor(trainer, type(self).__name__)
        self._seen = len(monitor.history)
        monitor.rollback = self.best

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save after a step at which the monitor evaluated."""
        self._follow(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after an epoch at whose end the monitor evaluated."""
        self._follow(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after a validation at which the monitor evaluated."""
        if not trainer.sanity_checking:
            self._follow(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after an evaluation of the final weights."""
        self._follow(trainer)

    def _follow(self, trainer: Trainer) -> None:
        """Act on the monitor's newest evaluation, once."""
        monitor = attached_monitor(trainer, type(self).__name__)
        if len(monitor.history) <= self._seen or getattr(trainer, "fast_dev_run", False):
            return
        self._seen = len(monitor.history)
        newest = monitor.history[-1]
        if newest.replica_rate is None:
            return
        if monitor.onset is None:
            self._take_in(trainer, newest, newest.replica_rate)
        elif not self._advised:
            self._advised = True
            self.best = choose(self.kept, monitor.onset.replica_rate)
            monitor.rollback = self.best
            rank_zero_info(_advice(self.best, monitor.onset.replica_rate))

    def _take_in(self, trainer: Trainer, evaluation: Evaluation, rate: RateEstimate) -> None:
        """Save a checkpoint if it is to be kept, and drop those that are not to be kept any longer."""
        folder = self.dirpath or Path(trainer.default_root_dir) / "relict_checkpoints"
        # No slash in the name: it would make a folder.
        path = folder / f"step={evaluation.step}-replicas={rate.successes}-of-{rate.trials}.ckpt"
        p_value, level = (evaluation.value_of(name) for name in ("memorization_p_value", "alpha_threshold"))
        newest = KeptCheckpoint(path=str(path), step=evaluation.step, replica_rate=rate, leans=p_value <= level)
        # A run that goes on from an earlier step can come by the same step with the same rate again.
        others = [older for older in self.kept if older.path != newest.path and not older.is_outdone_by(newest)]
        remaining = [*others, newest]
        while len(remaining) > self.keep:
            # Of those that are left, each is worse bounded than the one before it: the oldest is the cleanest.
            remaining.pop(1)
        dropped = {older.path for older in self.kept} - {checkpoint.path for checkpoint in remaining}
        self.kept = remaining
        if newest in remaining:
            trainer.save_checkpoint(path, weights_only=False)
        for outdone in sorted(dropped):
            trainer.strategy.remove_checkpoint(outdone)

    def state_dict(self) -> dict[str, Any]:
        """Return the kept checkpoints as primitives, and the name of the monitor that they were kept for.

        Lightning files this under the name of the class alone, so that a run can be resumed with another `keep`.
        """
        return {
            "monitor": self._followed,
            "advised": self._advised,
            "kept": [to_primitives(checkpoint) for checkpoint in self.kept],
            "best": None if self.best is None else to_primitives(self.best),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the checkpoints of the run that is resumed, as far as they still exist."""
        restored = [from_primitives(checkpoint) for checkpoint in state_dict["kept"]]
        self.kept = [checkpoint for checkpoint in restored if Path(checkpoint.path).exists()]
        self.best = state_dict["best"] and from_primitives(state_dict["best"])
        self._advised = state_dict["advised"]


def _advice(best: KeptCheckpoint | None, onset_rate: RateEstimate) -> str:
    if best is None:
        return "No checkpoint was saved before memorization onset. Evaluate more often, or train on more patients."
    advice = f"Go back to {best.path}: step {best.step}, before memorization onset, replica rate {best.replica_rate}."
    if best.leans:
        advice += " The permutation test found its samples leaning towards training patients already."
    if best.replica_rate.high >= onset_rate.low:
        advice += " This interval overlaps the one at onset: draw more samples per evaluation to tell them apart."
    return advice
