"""When the monitor is due."""

from typing import Any, final

from relict_lightning.errors import ConfigurationError


@final
class Schedule:
    """Counts due points rather than testing for divisibility.

    A hook may not be called at the very epoch or step that is due: validation may run every second epoch, or twice in
    one, and with two optimizers a step counter grows by two a batch. So an evaluation is due at the first call at or
    after each multiple of the period, once.

    Args:
        every_n_epochs: Epochs between evaluations, at least 1.
        every_n_steps: Optimizer steps between evaluations, at least 1; when given, epochs do not count.

    Raises:
        ConfigurationError: If a period is below 1.

    Example:
        >>> schedule = Schedule(every_n_epochs=3)
        >>> [epoch for epoch in (2, 4, 6, 8, 10) if schedule.due(epoch)]
        [4, 6, 10]
    """

    def __init__(self, *, every_n_epochs: int = 1, every_n_steps: int | None = None) -> None:
        for name, period in (("every_n_epochs", every_n_epochs), ("every_n_steps", every_n_steps)):
            if period is not None and period < 1:
                raise ConfigurationError(f"{name} must be at least 1, got {period}.")
        self.counts_steps = every_n_steps is not None
        self._period = every_n_epochs if every_n_steps is None else every_n_steps
        self._reached = 0

    def due(self, completed: int) -> bool:
        """Return whether an evaluation is due after so many completed epochs or steps; counts it as made."""
        reached = completed // self._period
        if reached <= self._reached:
            return False
        self._reached = reached
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return the completed epochs or steps that were accounted for."""
        return {"accounted_for": self._reached * self._period, "counts_steps": self.counts_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after what was accounted for, also with another period; epochs and steps do not convert."""
        if state["counts_steps"] == self.counts_steps:
            self._reached = int(state["accounted_for"]) // self._period

    def __str__(self) -> str:
        """Return the period in words."""
        return f"every {self._period} {'steps' if self.counts_steps else 'epochs'}"
