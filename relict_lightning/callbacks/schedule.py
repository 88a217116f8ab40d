"""When the monitor is due."""

import bisect
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, final

from relict_lightning.errors import ConfigurationError

Unit = Literal["epochs", "steps", "minutes"]

# While nothing happens, an adaptive schedule comes down to one due point in eight: monitoring then costs an eighth, and
# an onset is overlooked for no longer than eight periods.
_SPARSEST = 8


@final
class Schedule:
    """Counts due points rather than testing for divisibility.

    A hook may not be called at the very epoch or step that is due: validation may run every second epoch, or twice in
    one, and with two optimizers a step counter grows by two a batch. So an evaluation is due at the first call at or
    after each due point, once. At most one argument beside `every_n_epochs` and `adaptive` may be given.

    Args:
        every_n_epochs: Epochs between evaluations, at least 1.
        every_n_steps: Optimizer steps between evaluations, at least 1; when given, epochs do not count.
        every_n_minutes: Minutes between evaluations, above 0; when given, epochs do not count.
        at_steps: Optimizer steps to evaluate at, each at least 1; when given, epochs do not count.
        adaptive: Whether to leave out due points while nothing happens: each quiet evaluation doubles the number of
            periods to the next, up to eight, and the first sign of memorization brings it back to one.

    Raises:
        ConfigurationError: If a period is below its least, or arguments exclude each other.

    Example:
        >>> schedule = Schedule(every_n_epochs=3)
        >>> [schedule.is_due(epoch) for epoch in (2, 4)]
        [False, True]
        >>> schedule.take(4)
        >>> schedule.next_due
        6
    """

    def __init__(
        self,
        *,
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
        every_n_minutes: int | float | None = None,
        at_steps: Iterable[int] | None = None,
        adaptive: bool = False,
    ) -> None:
        for name, period in (("every_n_epochs", every_n_epochs), ("every_n_steps", every_n_steps)):
            if period is not None and period < 1:
                raise ConfigurationError(f"{name} must be at least 1, got {period}.")
        if every_n_minutes is not None and not (math.isfinite(every_n_minutes) and every_n_minutes > 0):
            raise ConfigurationError(f"every_n_minutes must be finite and above 0, got {every_n_minutes}.")
        self._listed = None if at_steps is None else _listed(at_steps)
        given = {"every_n_steps": every_n_steps, "every_n_minutes": every_n_minutes, "at_steps": self._listed}
        chosen = [name for name, value in given.items() if value is not None]
        if len(chosen) > 1:
            raise ConfigurationError(
                f"At most one of every_n_steps, every_n_minutes and at_steps may be given, got {' and '.join(chosen)}."
            )
        if adaptive and self._listed is not None:
            raise ConfigurationError("adaptive=True leaves out some of a period's due points; at_steps has no period.")
        self.unit: Unit = "epochs"
        self._period: int | float = every_n_epochs
        if every_n_minutes is not None:
            self.unit, self._period = "minutes", every_n_minutes
        elif chosen:
            self.unit, self._period = "steps", every_n_steps or 1
        self.adaptive = adaptive
        self._stride = 1
        self._accounted_for: int | float = 0

    def is_due(self, completed: int | float) -> bool:
        """Return whether an evaluation is due after so many completed epochs, steps or minutes."""
        return self._passed(completed) >= self._passed(self._accounted_for) + self._stride

    def take(self, completed: int | float) -> None:
        """Count all due points up to here as evaluated."""
        self._accounted_for = max(self._accounted_for, completed)

    @property
    def next_due(self) -> int | float:
        """The number of epochs, steps or minutes at which the next evaluation is due; infinite where none is left."""
        number = self._passed(self._accounted_for) + self._stride
        if self._listed is None:
            return number * self._period
        return self._listed[number - 1] if number <= len(self._listed) else math.inf

    def follow(self, *, signs: bool) -> None:
        """Leave out due points, where the schedule is adaptive, or no longer.

        Args:
            signs: Whether the newest evaluation gave any sign of memorization.
        """
        if self.adaptive:
            self._stride = 1 if signs else min(2 * self._stride, _SPARSEST)

    def state_dict(self) -> dict[str, Any]:
        """Return up to where due points were accounted for, and how many are left out, as primitives."""
        return {"unit": self.unit, "accounted_for": self._accounted_for, "stride": self._stride}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after what was accounted for, also with another period; epochs, steps and minutes do not convert."""
        # Runs of older versions counted epochs or steps only.
        unit = state.get("unit", "steps" if state.get("counts_steps") else "epochs")
        if unit == self.unit:
            self._accounted_for = state["accounted_for"]
        if self.adaptive:
            self._stride = int(state.get("stride", 1))

    def _passed(self, completed: int | float) -> int:
        """Return how many due points lie at or before a number of epochs, steps or minutes."""
        if self._listed is not None:
            return bisect.bisect_right(self._listed, completed)
        return int(completed // self._period)

    def __str__(self) -> str:
        """Return when evaluations are due in words."""
        if self._listed is not None:
            return f"at steps {', '.join(map(str, self._listed))}"
        text = f"every {self._period:g} {self.unit}"
        return f"{text}, up to {_SPARSEST} times as rarely while nothing happens" if self.adaptive else text


def _listed(at_steps: Iterable[int]) -> list[int]:
    """Return the listed steps in order, each once."""
    steps = sorted({int(step) for step in at_steps})
    if not steps or steps[0] < 1:
        raise ConfigurationError(f"at_steps must hold steps of at least 1, got {steps}.")
    return steps
