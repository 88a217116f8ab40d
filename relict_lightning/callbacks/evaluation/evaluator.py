"""Making the evaluations of a run: samples are drawn, and checked while training waits or in the background."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, final

from lightning.pytorch import Callback, LightningModule, Trainer

from relict_lightning.callbacks.agreement import together
from relict_lightning.callbacks.evaluation.averaging import Moment, weights_to_be_saved
from relict_lightning.callbacks.evaluation.background import BackgroundChecker
from relict_lightning.callbacks.evaluation.checking import Checked, check, costs_of, reading
from relict_lightning.callbacks.evaluation.drawing import DrawnSamples, SampleDrawer
from relict_lightning.callbacks.evaluation.occasion import Occasion, is_dry_run
from relict_lightning.data import random_state_kept
from relict_lightning.detector import ReplicaDetector
from relict_lightning.errors import ConfigurationError

_TINY = 4
# Evaluations count from 0, and none comes near this many.
_FRESH = 2**32


@final
@dataclass(frozen=True, kw_only=True)
class Found:
    """What an evaluation found.

    Attributes:
        checked: What was found of its samples.
        occasion: When they were drawn.
        costs: Seconds and MiB that it took, by logged names.
    """

    checked: Checked
    occasion: Occasion
    costs: Mapping[str, float]


@final
@dataclass(frozen=True, kw_only=True)
class _Awaited:
    """An evaluation whose samples are drawn, and which is being checked while training goes on.

    Attributes:
        occasion: When the samples were drawn.
        costs: What drawing them took, by logged names.
    """

    occasion: Occasion
    costs: Mapping[str, float]


@final
class Evaluator:
    """Draws the samples of evaluations and has them checked, in the background one set at a time.

    Args:
        drawer: Draws the samples.
        num_samples: Samples per evaluation.
        watcher: The callback that looks.
    """

    def __init__(self, drawer: SampleDrawer, *, num_samples: int, watcher: Callback) -> None:
        self._drawer = drawer
        self._num_samples = num_samples
        self._watcher = watcher
        self._detector: ReplicaDetector | None = None
        self._shows_progress = False
        self._checker: BackgroundChecker | None = None
        self._awaited: _Awaited | None = None
        self._left: Occasion | None = None
        self._measured_again = 0

    def begin(self, detector: ReplicaDetector, *, background: bool, progress: bool) -> None:
        """Use a detector from here on.

        Args:
            detector: The fitted detector.
            background: Whether samples are checked in the background.
            progress: Whether to show a progress bar while samples are drawn.

        Raises:
            ConfigurationError: If encoder or segmenter cannot be sent to another process, where they have to be.
        """
        self._detector, self._shows_progress = detector, progress
        self._checker = BackgroundChecker(detector) if background else None

    @property
    def awaited(self) -> Occasion | None:
        """When the samples were drawn that are being checked in the background; None while none are."""
        return None if self._awaited is None else self._awaited.occasion

    @property
    def has_left_one(self) -> bool:
        """Whether the run that is resumed was saved while an evaluation was being checked, which is to be made."""
        return self._left is not None

    def occasion(self, trainer: Trainer, *, completed: int | float) -> Occasion:
        """Return when an evaluation is made that is made now, or what the one that was left is made for."""
        left, self._left = self._left, None
        now = Occasion.now(trainer, completed=completed)
        return now if left is None else left.made_up_for(now)

    def evaluate(
        self, trainer: Trainer, module: LightningModule, occasion: Occasion, *, number: int, moment: Moment
    ) -> Found | None:
        """Evaluate the weights that a checkpoint saved now would hold; all processes call this together.

        Args:
            trainer: The trainer, while it fits.
            module: The model under training, which is left as it was.
            occasion: When that is.
            number: Number of the evaluation; each has seeds of its own.
            moment: In which hook it is.

        Returns:
            What was found; None where it is being checked, and will be `awaited`.

        Raises:
            DrawingInterrupted: If the trainer has received SIGTERM on any process.
            Exception: Whatever drawing or checking fails by.
        """
        # Nothing goes on at the end that a check could run beside.
        checker = None if moment == "end" else self._checker
        if checker is not None:
            checker.start()
        with weights_to_be_saved(trainer, module, watcher=self._watcher, moment=moment):
            samples, costs = self._draw(trainer, module, evaluation=number)
            if checker is None:
                checked = self._check_here(trainer, samples)
                return Found(checked=checked, occasion=occasion, costs={**costs, **checked.costs})
        checker.submit(samples)
        self._awaited = _Awaited(occasion=occasion, costs=costs)
        return None

    def receive(self, trainer: Trainer, *, waits: bool) -> Found | None:
        """Return what was found in the background of what is awaited; None where it is not known, or nothing is.

        Args:
            trainer: The trainer.
            waits: Whether to wait until it is known, unless the run is told to end.

        Raises:
            Exception: Whatever checking failed by; it is awaited on, until it is given up.
        """
        if self._awaited is None or self._checker is None:
            return None
        awaited, started = self._awaited, time.perf_counter()
        is_told_to_end = partial(getattr, trainer, "received_sigterm")
        if not (self._checker.wait(unless=is_told_to_end) if waits else self._checker.has_arrived()):
            return None
        costs = {**awaited.costs, "seconds_waiting": time.perf_counter() - started}
        checked = self._checker.receive()
        self._awaited = None
        return Found(checked=checked, occasion=awaited.occasion, costs={**costs, **checked.costs})

    def give_up(self) -> None:
        """Await no longer what failed."""
        self._awaited = None

    def measure_again(self, trainer: Trainer, module: LightningModule) -> Checked:
        """Return what is found of newly drawn samples, which no evaluation has seen; all processes call this together.

        Args:
            trainer: The trainer, while it fits.
            module: The model to sample from, which is left as it was.

        Raises:
            SamplerError: If the samples are not what was asked for.
            OtherProcessError: If it failed on another process.
            DrawingInterrupted: If the trainer has received SIGTERM on any process.
        """
        self._measured_again += 1
        samples, _ = self._draw(trainer, module, evaluation=_FRESH + self._measured_again)
        return self._check_here(trainer, samples)

    def close(self) -> None:
        """End the process that checks in the background; what is awaited stays in the state, to be made again."""
        if self._checker is not None:
            self._checker.close()
            self._checker = None

    def state_dict(self) -> dict[str, Any] | None:
        """Return as primitives what is awaited, None where nothing is: it is made again where the run is resumed."""
        return None if self._awaited is None else asdict(self._awaited.occasion)

    def load_state_dict(self, state: Mapping[str, Any] | None, *, counts_alike: bool) -> None:
        """Take over what the run that is resumed had not found yet.

        Args:
            state: What `state_dict` returned.
            counts_alike: Whether its schedule counted as the one of this run does, in epochs, steps or minutes.
        """
        if state is not None:
            self._left = Occasion(**{**state, "completed": state["completed"] if counts_alike else 0})

    def _draw(
        self, trainer: Trainer, module: LightningModule, *, evaluation: int
    ) -> tuple[DrawnSamples, Mapping[str, float]]:
        """Return the samples of one evaluation, and what drawing them took, by logged names."""
        before = reading(module.device)
        samples = self._drawer.draw(
            trainer,
            module,
            num_samples=min(self._num_samples, _TINY) if is_dry_run(trainer) else self._num_samples,
            evaluation=evaluation,
            image_shape=self._reference.image_shape,
            progress=self._shows_progress and trainer.is_global_zero,
        )
        return samples, costs_of("sampling", before, reading(module.device))

    def _check_here(self, trainer: Trainer, samples: DrawnSamples) -> Checked:
        """Check samples while training waits, and leave the random state as it was."""
        detector = self._reference

        def act() -> Checked:
            with random_state_kept():
                return check(detector, samples.images, samples.label_maps)

        checking = "Checking the samples"
        # Processes that share the reference wait for each other while they check.
        share = partial(detector.processes.together, act, doing=checking)
        return together(trainer, share, doing=checking)

    @property
    def _reference(self) -> ReplicaDetector:
        if self._detector is None:
            raise ConfigurationError("ReplicaMonitor is used outside `Trainer.fit`; it has no reference yet.")
        return self._detector
