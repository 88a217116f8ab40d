"""When an evaluation is made: at which step of which run, and what it accounts for."""

from dataclasses import dataclass, replace
from typing import final

from lightning.pytorch import Trainer


@final
@dataclass(frozen=True, kw_only=True)
class Occasion:
    """When the samples of an evaluation are drawn: what is found of them belongs there, however late it is known.

    Attributes:
        step: Optimizer step.
        epoch: Epoch.
        completed: Epochs, steps or minutes that are accounted for by this evaluation, as the schedule counts.
        train_loss: What the model had logged under that name; None where it logs none.
    """

    step: int
    epoch: int
    completed: int | float
    train_loss: float | None

    @classmethod
    def now(cls, trainer: Trainer, *, completed: int | float) -> "Occasion":
        """Return the occasion that this moment of a run is."""
        loss = trainer.callback_metrics.get("train_loss")
        return cls(
            step=trainer.global_step,
            epoch=trainer.current_epoch,
            completed=completed,
            train_loss=None if loss is None else float(loss),
        )

    def made_up_for(self, now: "Occasion") -> "Occasion":
        """Return the occasion on which an evaluation that was left is made: this one, while no step lies between.

        Args:
            now: The occasion that this moment of the run that was resumed is.
        """
        return self if self.step == now.step else replace(now, completed=max(self.completed, now.completed))


def is_dry_run(trainer: Trainer) -> bool:
    """Return whether this is a `fast_dev_run`."""
    return bool(getattr(trainer, "fast_dev_run", False))
