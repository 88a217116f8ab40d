"""Stopping at memorization onset."""

import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, tensor

from relict_lightning.callbacks.attached import attached_monitor
from relict_lightning.errors import ConfigurationError
from relict_lightning.tracking import prefix_of


class MemorizationStopping(EarlyStopping):
    """Stops training once `ReplicaMonitor` has established memorization onset.

    It never stops for any other reason: a replica rate that stays at zero does not wear out its patience. It looks
    after every point at which the monitor may have evaluated, and stops all processes together. Of several monitors it
    follows the one without a name, or else the first. Each `fit` starts afresh, and a run that is resumed from after
    its onset stops again at its next look. Whoever wants to be told only leaves this callback out: the monitor says
    what it finds all the same.

    Args:
        verbose: Whether to print the reason.
    """

    def __init__(self, *, verbose: bool = True) -> None:
        super().__init__(
            monitor=_value_of(""),
            mode="max",
            stopping_threshold=0.5,
            # Only onset stops: there is no waiting for an improvement.
            patience=sys.maxsize,
            strict=False,
            verbose=verbose,
        )
        self._has_stopped = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the monitor to follow, and start afresh.

        Raises:
            ConfigurationError: If there is no `ReplicaMonitor`.
        """
        super().setup(trainer, pl_module, stage)
        if stage != TrainerFn.FITTING:
            return
        self.monitor = _value_of(attached_monitor(trainer, type(self).__name__).name)
        self._has_stopped = False
        self.wait_count = self.stopped_epoch = 0
        self.best_score = tensor(-float("inf"))
        self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
        self.stopping_reason_message = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there is a monitor that can establish onset.

        Raises:
            ConfigurationError: If the `ReplicaMonitor` comes after this callback, or has no held-out images.
        """
        monitor = attached_monitor(trainer, type(self).__name__)
        if monitor.detector is None or not monitor.detector.is_fitted:
            raise ConfigurationError(
                f"{type(self).__name__} must come after ReplicaMonitor in the trainer's callbacks. Swap them."
            )
        if not monitor.detector.has_control:
            raise ConfigurationError(
                f"{type(self).__name__} cannot act: without held-out images ReplicaMonitor establishes no onset. "
                f"Pass `ReplicaMonitor(heldout=...)`, or a validation dataloader of patients that are not trained on."
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look after a step at which the monitor evaluated."""
        if attached_monitor(trainer, type(self).__name__).evaluated_now:
            self._run_early_stopping_check(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the end of an epoch, also where validation runs at other times."""
        self._run_early_stopping_check(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look after each validation during training."""
        if not self._should_skip_check(trainer):
            self._run_early_stopping_check(trainer)

    def _run_early_stopping_check(self, trainer: Trainer) -> None:
        # Several hooks look, and an epoch may go on for a while: say it once in each run, also in one that is resumed.
        # Before the monitor's first evaluation there is nothing to look at, and nothing to warn of.
        if not self._has_stopped and self.monitor in trainer.callback_metrics:
            super()._run_early_stopping_check(trainer)

    def _evaluate_stopping_criteria(self, current: Tensor) -> tuple[bool, str | None]:
        should_stop, _ = super()._evaluate_stopping_criteria(current)
        self._has_stopped = should_stop
        return should_stop, "Stopping: memorization onset was established." if should_stop else None


def _value_of(monitor: str) -> str:
    """Return the name under which a monitor shows whether memorization is established."""
    return f"{prefix_of(monitor)}onset"
