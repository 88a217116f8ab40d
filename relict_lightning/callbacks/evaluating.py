"""One evaluation: when it is made, its samples drawn, checked against the reference, and what that took."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

from lightning.pytorch import LightningModule, Trainer

from relict_lightning.callbacks.agreement import together
from relict_lightning.callbacks.checking import Checked, check, costs_of, reading
from relict_lightning.callbacks.drawing import DrawnSamples, SampleDrawer
from relict_lightning.data import random_state_kept
from relict_lightning.detector import ReplicaDetector

_TINY = 4


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


@final
@dataclass(frozen=True, kw_only=True)
class Awaited:
    """An evaluation whose samples are drawn, and which is being checked while training goes on.

    Attributes:
        occasion: When the samples were drawn.
        costs: What drawing them took, by logged names.
        schedule_before: The state of the schedule while it was still due.
    """

    occasion: Occasion
    costs: Mapping[str, float]
    schedule_before: Mapping[str, Any]


@final
@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The samples of one evaluation.

    Attributes:
        samples: The samples.
        costs: Seconds that drawing took, and MiB by which it raised the peak of the process's memory, on the GPU where
            there is one, by their logged names.
    """

    samples: DrawnSamples
    costs: Mapping[str, float]


def draw(
    trainer: Trainer,
    module: LightningModule,
    *,
    drawer: SampleDrawer,
    image_shape: tuple[int, ...],
    num_samples: int,
    evaluation: int,
    progress: bool,
) -> Drawn:
    """Draw samples; all processes call this together.

    Args:
        trainer: The trainer, while it fits.
        module: The model under training, which is left as it was.
        drawer: Draws the samples.
        image_shape: `[c, *spatial]` that samples must have.
        num_samples: How many samples.
        evaluation: Number of the evaluation; each has seeds of its own.
        progress: Whether to show a progress bar, on the first process.

    Raises:
        SamplerError: If the samples are not what was asked for.
        OtherProcessError: If it failed on another process.
        DrawingInterrupted: If the trainer has received SIGTERM on any process.
    """
    before = reading(module.device)
    samples = drawer.draw(
        trainer,
        module,
        num_samples=min(num_samples, _TINY) if is_dry_run(trainer) else num_samples,
        evaluation=evaluation,
        image_shape=image_shape,
        progress=progress and trainer.is_global_zero,
    )
    return Drawn(samples=samples, costs=costs_of("sampling", before, reading(module.device)))


def check_here(trainer: Trainer, detector: ReplicaDetector, samples: DrawnSamples) -> Checked:
    """Check samples while training waits, and leave the random state as it was; all processes call this together.

    Raises:
        OtherProcessError: If it failed on another process.
    """

    def act() -> Checked:
        with random_state_kept():
            return check(detector, samples.images, samples.label_maps)

    checking = "Checking the samples"
    # Processes that share the reference wait for each other while they check.
    share = partial(detector.processes.together, act, doing=checking)
    return together(trainer, share, doing=checking)


def is_dry_run(trainer: Trainer) -> bool:
    """Return whether this is a `fast_dev_run`."""
    return bool(getattr(trainer, "fast_dev_run", False))
