"""Acting on memorization in one's own way, and a ready action."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, final

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from relict_lightning.callbacks.attached import attached_monitor
from relict_lightning.errors import ConfigurationError
from relict_lightning.onset import Onset

# What optimizers and schedulers hold of a learning rate: `OneCycleLR` keeps its bounds beside the rate.
_RATES_OF_GROUPS = ("lr", "initial_lr", "max_lr", "min_lr")
_RATES_OF_SCHEDULERS = ("base_lrs", "max_lrs", "eta_min", "min_lrs", "_last_lr")


class MemorizationAction(Callback, ABC):
    """Does something once when `ReplicaMonitor` has established memorization onset: derive from it, and say what.

    `on_onset` is called at the first training hook after the evaluation that established onset, on all processes, once
    in a run and not again where the run is resumed. What it changes of the module, the optimizer or the data is meant
    to change training. Of several monitors it follows the one without a name, or else the first. Each `fit` starts
    afresh.

    A derived class that has `setup`, `on_train_batch_start`, `on_train_batch_end`, `on_train_epoch_end`,
    `on_train_end`, `state_dict` or `load_state_dict` of its own calls that of this class in it.

    Example:
        >>> class AugmentFromOnset(MemorizationAction):
        ...     def on_onset(self, trainer, pl_module, onset):
        ...         pl_module.augment = True
    """

    _has_warned = False
    _has_acted = False

    @abstractmethod
    def on_onset(self, trainer: Trainer, pl_module: LightningModule, onset: Onset) -> None:
        """Act on memorization onset.

        Args:
            trainer: The trainer.
            pl_module: The model under training.
            onset: When it was established, and on what grounds.
        """

    def on_watch(self, trainer: Trainer, pl_module: LightningModule, reason: str) -> None:
        """Act on a suspicion that is not yet an onset; does nothing unless a derived class says what.

        Args:
            trainer: The trainer.
            pl_module: The model under training.
            reason: What the monitor found.
        """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start afresh; the state of a run that is resumed is loaded after this.

        Raises:
            ConfigurationError: If there is no `ReplicaMonitor`.
        """
        if stage == TrainerFn.FITTING:
            attached_monitor(trainer, type(self).__name__)
            self._has_warned = self._has_acted = False

    # A callback that comes before the monitor sees its evaluation at the next hook, whichever it is. None of these runs
    # inside validation, where gradients are off.

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Look whether onset was established."""
        self._look(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look whether onset was established."""
        self._look(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look whether onset was established."""
        self._look(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look whether onset was established by the evaluation of the final weights."""
        self._look(trainer, pl_module)

    def _look(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._has_acted:
            return
        monitor = attached_monitor(trainer, type(self).__name__)
        if monitor.onset is not None:
            # Before it acts, so that a checkpoint saved meanwhile does not make it act twice.
            self._has_acted = True
            self.on_onset(trainer, pl_module, monitor.onset)
        elif not self._has_warned and monitor.watch_reason is not None:
            self._has_warned = True
            self.on_watch(trainer, pl_module, monitor.watch_reason)

    def state_dict(self) -> dict[str, Any]:
        """Return whether it has acted."""
        return {"has_warned": self._has_warned, "has_acted": self._has_acted}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue a run: what was done is not done again."""
        self._has_warned = state_dict["has_warned"]
        self._has_acted = state_dict["has_acted"]


@final
class ReduceLearningRate(MemorizationAction):
    """Multiplies the learning rate of every optimizer once memorization onset is established.

    The rates that torch's schedulers go by are multiplied as well, so that they go on from there. Schedulers of other
    packages may put back what they remember.

    Args:
        factor: What to multiply with, in (0, 1).

    Raises:
        ConfigurationError: If `factor` lies outside (0, 1).
    """

    def __init__(self, factor: float = 0.1) -> None:
        if not 0 < factor < 1:
            raise ConfigurationError(f"factor must lie in (0, 1), got {factor}.")
        self.factor = factor

    def on_onset(self, trainer: Trainer, pl_module: LightningModule, onset: Onset) -> None:
        """Multiply the learning rates."""
        reduced: set[int] = set()
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                for name in _RATES_OF_GROUPS:
                    rate = group.get(name)
                    # In place where it is a tensor, which captured graphs go on reading; groups may share one.
                    if isinstance(rate, Tensor) and id(rate) not in reduced:
                        reduced.add(id(rate.mul_(self.factor)))
                    elif isinstance(rate, float | int):
                        group[name] = rate * self.factor
        for scheduler in _all_schedulers(config.scheduler for config in trainer.lr_scheduler_configs):
            for name in _RATES_OF_SCHEDULERS:
                rates = getattr(scheduler, name, None)
                if isinstance(rates, list):
                    setattr(scheduler, name, [rate * self.factor for rate in rates])
                elif isinstance(rates, float | int):
                    setattr(scheduler, name, rates * self.factor)
        rank_zero_info(f"Learning rates times {self.factor:g} from step {trainer.global_step} on, after onset.")


def _all_schedulers(schedulers: Iterator[object]) -> list[object]:
    """Return schedulers and those that they put together, each once."""
    found: list[object] = []
    waiting = list(schedulers)
    while waiting:
        scheduler = waiting.pop()
        if not any(scheduler is known for known in found):
            found.append(scheduler)
            # `SequentialLR` and `ChainedScheduler`.
            waiting += getattr(scheduler, "_schedulers", [])
    return found
