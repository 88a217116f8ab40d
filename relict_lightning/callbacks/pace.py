"""When a run has an evaluation made: where the schedule has it due, and as soon as there is time for it."""

from collections.abc import Mapping
from typing import Any, final

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info

from relict_lightning.callbacks.clock import RunClock
from relict_lightning.callbacks.schedule import Schedule


@final
class Pace:
    """Holds evaluations that are due back until there is time for them, and says that it did.

    Args:
        schedule: When evaluations are due.
        max_overhead: Seconds to spend on evaluations per second of training at most; None sets no bound.
    """

    def __init__(self, schedule: Schedule, *, max_overhead: int | float | None) -> None:
        self.schedule = schedule
        self._max_overhead = max_overhead
        self._clock = RunClock()
        self._has_held_back = False
        self._schedule_before = schedule.state_dict()

    def begin(self) -> None:
        """Go on from here; what lay between a run and its resumption does not count."""
        self._clock.begin()

    def completed(self, trainer: Trainer) -> int | float:
        """Return how many epochs, steps or minutes are completed, as the schedule counts, between two epochs' ends."""
        if self.schedule.unit == "minutes":
            return self._clock.elapsed(trainer, until=max(60 * self.schedule.next_due, self._affordable_at)) / 60
        return trainer.global_step if self.schedule.unit == "steps" else trainer.current_epoch

    def is_due(self, trainer: Trainer, completed: int | float) -> bool:
        """Return whether an evaluation is due after so many epochs, steps or minutes, and there is time for it."""
        if not self.schedule.is_due(completed):
            return False
        affordable_at = self._affordable_at
        if self._max_overhead is None or self._clock.elapsed(trainer, until=affordable_at) >= affordable_at:
            return True
        if not self._has_held_back:
            self._has_held_back = True
            rank_zero_info(
                f"An evaluation that is due at step {trainer.global_step} waits, so that monitoring takes at most "
                f"{self._max_overhead:.3g} seconds per second of training. Later ones may wait as well."
            )
        return False

    def take(self, trainer: Trainer, completed: int | float, *, seconds: float) -> None:
        """Count an evaluation as made.

        Args:
            trainer: The trainer.
            completed: Epochs, steps or minutes up to which it accounts for what was due.
            seconds: How long training waited for it.
        """
        self._schedule_before = self.schedule.state_dict()
        self.schedule.take(completed)
        self._clock.spend(trainer, seconds)

    def follow(self, *, signs: bool) -> None:
        """Leave out due points, where the schedule is adaptive, or no longer.

        Args:
            signs: Whether the newest evaluation gave any sign of memorization.
        """
        self.schedule.follow(signs=signs)

    def extend(self, seconds: float) -> None:
        """Count more seconds as spent on the last evaluation; of one process, where nothing has to be agreed on."""
        self._clock.extend(seconds)

    def say_what_it_cost(self) -> None:
        """Say what the bound on the time did, where it held evaluations back."""
        if self._has_held_back:
            rank_zero_info(
                f"Evaluations waited to keep monitoring below {self._max_overhead:.3g} seconds per second of training; "
                f"it took {self._clock.spent_share():.3g}, those at the start and at the end included."
            )

    def state_dict(self, *, before_last: bool) -> dict[str, Any]:
        """Return schedule and clock as primitives.

        Args:
            before_last: Whether the last evaluation is still due, because what it finds is not known yet.
        """
        schedule = self._schedule_before if before_last else self.schedule.state_dict()
        return {"schedule": schedule, "clock": self._clock.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the schedule and the clock of the run that is resumed; one of an older version has no clock."""
        self.schedule.load_state_dict(state["schedule"])
        if "clock" in state:
            self._clock.load_state_dict(state["clock"])
        self._schedule_before = self.schedule.state_dict()

    @property
    def _affordable_at(self) -> float:
        """From when on there is time for an evaluation, in elapsed seconds."""
        return 0.0 if self._max_overhead is None else self._clock.affordable_at(self._max_overhead)
