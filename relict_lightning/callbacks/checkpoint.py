"""Keeping the checkpoint to go back to, verifying it, and going back."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from relict_lightning.callbacks.attached import attached_monitor
from relict_lightning.callbacks.evaluation.occasion import is_dry_run
from relict_lightning.callbacks.monitor import ReplicaMonitor
from relict_lightning.callbacks.rollback.advice import advice
from relict_lightning.callbacks.rollback.checkpoint_files import CheckpointFiles
from relict_lightning.callbacks.rollback.kept import (
    KeptCheckpoint,
    UncheckedCheckpoint,
    choose,
    choose_of_tried,
    from_primitives,
    thin_out,
    to_primitives,
)
from relict_lightning.callbacks.rollback.verifier import Verifier
from relict_lightning.callbacks.rollback.weights import (
    load_averages,
    load_weights,
    loads_weights_alone,
    read_checkpoint,
)
from relict_lightning.errors import ConfigurationError, DrawingInterrupted, RelictWarning
from relict_lightning.onset import Onset, WatchReason
from relict_lightning.results import Evaluation, RateEstimate


class MemorizationCheckpoint(Checkpoint):
    """Keeps the checkpoint to go back to when memorization is found.

    After each evaluation of `ReplicaMonitor` before onset it saves a checkpoint, and drops those that a newer one makes
    pointless: the newer one's replica rate is better bounded, and the permutation test finds no new leaning towards
    training patients. So the oldest that is kept is the cleanest. Where more than `keep` remain, the oldest and the
    newest stay, and of the others some that lie further and further back; with `keep=1`, a newer one replaces the older
    unless it is worse. A checkpoint is written before an older one is removed. One that cannot be written is warned of,
    and training goes on with those that were kept before.

    At onset it names the newest checkpoint whose whole interval lies below the rate that onset was shown by, one
    without any replica before one with some, and one without leaning before one with it. That choice flatters the
    checkpoint, so it is verified right then: its weights are loaded, samples that no evaluation has seen are drawn and
    checked, and the training's own weights are put back bit by bit. Samples are drawn up to four times, as long as they
    are too few to tell the checkpoint from the onset. Where they do not find it clean, the next older one is tried.
    This costs one to four evaluations for each one that is tried, and training goes on as if nothing had looked.

    Where the monitor checks samples in the background, the weights are saved when the samples are drawn, in a file
    whose name ends in `unchecked`. It gets its rate and its final name, or is removed, once that is known.

    Of several monitors it follows the one without a name, or else the first. Each `fit` starts afresh, and one with
    `ckpt_path` goes on with the checkpoints of the run that it resumes.

    It is one of Lightning's checkpoint callbacks: with it, the trainer adds no `ModelCheckpoint` of its own, so add one
    where the best or the last weights are wanted as well. With Lightning's `WeightAveraging`, averaged weights are what
    is verified and restored. Strategies that shard a model (FSDP, DeepSpeed) load weights and optimizer in one stroke;
    with these a checkpoint is named, and neither verified nor restored.

    Args:
        dirpath: Folder of the checkpoints; None takes `relict_checkpoints` in the trainer's `default_root_dir`.
        keep: How many checkpoints to keep at most, at least 1.
        verify: Whether to verify the checkpoint to go back to with fresh samples. Without, a checkpoint as clean as all
            before it replaces them, which takes less disk.
        restore: Whether the module gets the weights of the checkpoint to go back to at the end of `fit`, so that what
            the script does next has them. Everything that reads the final weights before gets the final ones: the
            report, other checkpoint callbacks, and every `on_train_end`.

    Raises:
        ConfigurationError: If `keep` is below 1.

    Attributes:
        kept: The checkpoints kept, oldest first; those that were tried at onset have a `verification`.
        best: The checkpoint to go back to; None before onset, where nothing was saved before it, or where fresh samples
            found copies in all that were kept.
        restored: Whether the module was given the weights of `best`.
    """

    def __init__(
        self, dirpath: str | Path | None = None, *, keep: int = 3, verify: bool = True, restore: bool = False
    ) -> None:
        if keep < 1:
            raise ConfigurationError(f"keep must be at least 1, got {keep}.")
        self.dirpath = None if dirpath is None else Path(dirpath)
        self.keep = keep
        self.verify = verify
        self.restore = restore
        self._start_afresh()

    def _start_afresh(self) -> None:
        self.kept: list[KeptCheckpoint] = []
        self.best: KeptCheckpoint | None = None
        self.restored = False
        self._advised = False
        self._seen: int | None = None
        self._unchecked: UncheckedCheckpoint | None = None
        self._followed = ""
        self._tried: int | None = None
        self._files = CheckpointFiles(self.dirpath)
        self._verifier = Verifier(self._files.has_written)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start afresh; the state of a run that is resumed is loaded after this.

        Raises:
            ConfigurationError: If there is no `ReplicaMonitor`.
        """
        if stage == TrainerFn.FITTING:
            self._start_afresh()
            self._followed = attached_monitor(trainer, type(self).__name__).name

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take in what was evaluated and not yet seen when the run was saved; nothing is saved of one that starts."""
        monitor = attached_monitor(trainer, type(self).__name__)
        there = self._files.existing(trainer, [checkpoint.path for checkpoint in self.kept])
        self.kept = [checkpoint for checkpoint in self.kept if checkpoint.path in there]
        if self._seen is None:
            # One that was being checked when the run was saved is made again, of the weights that the module has now.
            self._seen = len(monitor.history) - int(monitor.evaluated_now)
        monitor.rollback = self.best
        if self.restore and not loads_weights_alone(trainer.strategy):
            rank_zero_warn(
                f"{type(self).__name__}(restore=True) cannot put weights back under {type(trainer.strategy).__name__}, "
                f"which loads them together with the optimizer. Load the checkpoint that is named at onset yourself.",
                category=RelictWarning,
            )
        is_made_again = trainer.global_step > 0 and (monitor.evaluated_now or monitor.awaited_step is not None)
        if is_made_again and self._unchecked is None and not is_dry_run(trainer):
            # Saved by the run that is resumed, in the same hook as the checkpoint that it is resumed from.
            self._files.remove(trainer, str(self._files.unchecked_path(trainer)))
        if self._seen < len(monitor.history) or monitor.awaited_step is not None:
            # Another checkpoint callback may have saved the run between the evaluation and this one's turn.
            self._follow(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save after a step at which the monitor evaluated."""
        self._follow(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after an epoch at whose end the monitor evaluated."""
        self._follow(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after a validation at which the monitor evaluated."""
        if not trainer.sanity_checking:
            self._follow(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after an evaluation of the final weights."""
        self._follow(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights of the checkpoint to go back to into the module; every `on_train_end` saw the final ones."""
        if not self.restore or self.best is None or not loads_weights_alone(trainer.strategy):
            return
        try:
            content = read_checkpoint(trainer, self.best.path, trusted=self._files.has_written(self.best.path))
            load_weights(trainer, pl_module, content)
            load_averages(trainer, content)
        except Exception as error:  # noqa: BLE001 - training is over, and its result must not be lost to this
            rank_zero_warn(
                f"{self.best.path} could not be restored ({type(error).__name__}: {error}); the model has the final "
                f"weights, from after memorization onset. Load the checkpoint yourself.",
                category=RelictWarning,
            )
            return
        self.restored = True
        rank_zero_info(f"Restored the weights of step {self.best.step} from {self.best.path}.")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the training's own weights where somebody saves in mid-verification, as at the end of a job's time."""
        if self._verifier.own_weights is not None:
            # `WeightAveraging` has moved the module's weights by now.
            name = "current_model_state" if "current_model_state" in checkpoint else "state_dict"
            checkpoint[name] = dict(self._verifier.own_weights)

    # Keeping ----------------------------------------------------------------------------------------------------

    def _follow(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Act on the monitor's newest evaluation, once, and on its onset, once."""
        if trainer.state.fn != TrainerFn.FITTING or is_dry_run(trainer):
            return
        monitor = attached_monitor(trainer, type(self).__name__)
        for position in range(self._seen or 0, len(monitor.history)):
            evaluation = monitor.history[position]
            # The checkpoint that is saved has seen it.
            self._seen = position + 1
            if evaluation.replica_rate is None or not _may_be_clean(evaluation, monitor):
                continue
            # A leaning that was found once is not over because fewer samples show it later.
            leans = any(_leans(earlier, monitor.tolerance) for earlier in monitor.history[: position + 1])
            self._take_in(trainer, evaluation.step, evaluation.replica_rate, leans=leans)
        self._drop_unchecked(trainer, unless=monitor.awaited_step)
        if monitor.onset is not None:
            self._advise(trainer, pl_module, monitor, monitor.onset)
        elif monitor.awaited_step == trainer.global_step:
            self._save_unchecked(trainer, monitor)

    def _take_in(self, trainer: Trainer, step: int, rate: RateEstimate, *, leans: bool) -> None:
        """Save a checkpoint if it is to be kept, and drop those that are not to be kept any longer."""
        unchecked = self._unchecked
        if unchecked is None or unchecked.step != step:
            unchecked = None
            if step == 0 or step != trainer.global_step:
                # Drawn before the first step, and checked while training went on: those weights are gone.
                return
        path = self._files.rated_path(trainer, step=step, rate=rate)
        newest = KeptCheckpoint(path=str(path), step=step, replica_rate=rate, leans=leans)
        # Those that are as good are what to fall back on where verification finds copies in the newest.
        strictly = self.verify and self.keep > 1
        # A run that goes on from an earlier step can come by the same step with the same rate again.
        others = [
            older
            for older in self.kept
            if older.path != newest.path and not older.is_outdone_by(newest, strictly=strictly)
        ]
        before, remaining = self.kept, thin_out([*others, newest], keep=self.keep)
        if newest in remaining and unchecked is not None:
            self._unchecked = None
            remaining[remaining.index(newest)] = replace(newest, path=self._files.rename(unchecked, path))
        # The checkpoint that is saved knows of itself.
        self.kept = remaining
        if newest in remaining and unchecked is None and not self._files.save(trainer, path):
            self.kept = before
            return
        for outdone in sorted({older.path for older in before} - {checkpoint.path for checkpoint in remaining}):
            self._files.remove(trainer, outdone)

    def _save_unchecked(self, trainer: Trainer, monitor: ReplicaMonitor) -> None:
        """Save the weights whose samples are being checked, once."""
        step = trainer.global_step
        is_saved = self._unchecked is not None and self._unchecked.step == step
        has_rates = monitor.detector is not None and monitor.detector.has_control
        if is_saved or step == self._tried or step == 0 or not has_rates:
            return
        self._tried = step
        path = self._files.unchecked_path(trainer)
        # The checkpoint that is saved knows of itself.
        self._unchecked = UncheckedCheckpoint(path=str(path), step=step)
        if not self._files.save(trainer, path):
            self._unchecked = None

    def _drop_unchecked(self, trainer: Trainer, *, unless: int | None) -> None:
        """Remove weights that turned out not to be kept, unless their step's samples are being checked."""
        if self._unchecked is not None and self._unchecked.step != unless:
            self._files.remove(trainer, self._unchecked.path)
            self._unchecked = None

    # Going back -------------------------------------------------------------------------------------------------

    def _advise(self, trainer: Trainer, pl_module: LightningModule, monitor: ReplicaMonitor, onset: Onset) -> None:
        """Name the checkpoint to go back to, once."""
        if self._advised:
            return
        try:
            tried = self._try_out(trainer, pl_module, monitor, onset) if self.verify else []
        except DrawingInterrupted as interrupted:
            # The run is about to be saved and to end. It is verified when the run is resumed.
            rank_zero_info(str(interrupted))
            return
        self.best = choose_of_tried(tried) if tried else choose(self.kept, onset.shown_rate)
        self._advised = True
        monitor.rollback = self.best
        rank_zero_info(advice(self.best, tried, onset.shown_rate))

    def _try_out(
        self, trainer: Trainer, pl_module: LightningModule, monitor: ReplicaMonitor, onset: Onset
    ) -> list[KeptCheckpoint]:
        """Verify the checkpoint to go back to, then older ones until one is clean; return those that were tried."""
        tried: list[KeptCheckpoint] = []
        candidate = choose(self.kept, onset.shown_rate)
        while candidate is not None:
            position = self.kept.index(candidate)
            verification = self._verifier.verify(
                trainer,
                pl_module,
                candidate,
                measure=monitor.measure_again,
                onset=onset,
                tolerance=monitor.tolerance,
                alpha=monitor.alpha,
            )
            self.kept[position] = replace(candidate, verification=verification)
            tried.append(self.kept[position])
            if tried[-1].is_verified:
                break
            candidate = choose(self.kept[:position], onset.shown_rate)
        return tried

    # State ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the kept checkpoints as primitives, and the name of the monitor that they were kept for.

        Lightning files this under the name of the class alone, so that a run can be resumed with another `keep`.
        """
        return {
            "monitor": self._followed,
            "seen": self._seen,
            "advised": self._advised,
            "kept": [to_primitives(checkpoint) for checkpoint in self.kept],
            "best": None if self.best is None else to_primitives(self.best),
            "unchecked": None if self._unchecked is None else asdict(self._unchecked),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the checkpoints of the run that is resumed; those that exist no longer are left at its start."""
        self.kept = [from_primitives(checkpoint) for checkpoint in state_dict["kept"]]
        self._seen = state_dict.get("seen")
        self.best = state_dict["best"] and from_primitives(state_dict["best"])
        self._advised = state_dict["advised"]
        if (unchecked := state_dict.get("unchecked")) is not None:
            self._unchecked = UncheckedCheckpoint(**unchecked)


def _may_be_clean(evaluation: Evaluation, monitor: ReplicaMonitor) -> bool:
    """Return whether an evaluation's weights can be something to go back to."""
    if monitor.onset is not None:
        return evaluation.step < monitor.onset.step
    # What may turn out to be the onset, once it is confirmed, is nothing to go back to.
    return evaluation is not monitor.history[-1] or monitor.watch is not WatchReason.UNCONFIRMED


def _leans(evaluation: Evaluation, tolerance: float) -> bool:
    """Return whether samples of trained weights leant in more than the tolerated share, as the permutation test found.

    With few training patients the test finds at its levels that samples know these long before any is like one of them:
    already their mean image is that of the training patients. To go back that far would be to lose a sound model.
    """
    names = ("memorization_p_value", "alpha_threshold", "leaning_rate")
    p_value, level, share = (evaluation.value_of(name) for name in names)
    # What was evaluated before there was such a share has none, and counts.
    return evaluation.step > 0 and p_value <= level and not share <= tolerance
