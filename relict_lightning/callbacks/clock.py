"""How long a run has taken, and how much of that was spent on looking at it: the same numbers on every process."""

import time
from collections.abc import Mapping
from typing import Any, final

from lightning.pytorch import Trainer

_RAREST = 10_000


@final
class RunClock:
    """The seconds of a run, over all of its resumptions.

    Processes have clocks of their own, and what hangs on them must not differ, or one would evaluate while the others
    train. So the first one's clock is asked for. That makes every process wait, and is therefore done the more rarely
    the longer it is until anything can be due.
    """

    def __init__(self) -> None:
        self.spent = 0.0
        self._last = 0.0
        self._before = 0.0
        self.begin()

    def begin(self) -> None:
        """Go on from here; what lay between a run and its resumption does not count."""
        self._started = time.perf_counter()
        self._known = self._before
        self._calls = 0
        self._next_call = 1

    def elapsed(self, trainer: Trainer, *, until: int | float) -> float:
        """Return the seconds of the run, evaluations included, or what they were when it last mattered.

        Args:
            trainer: The trainer, whose processes all call this alike.
            until: The number of seconds that is waited for.
        """
        if trainer.world_size == 1:
            return self._now()
        self._calls += 1
        if self._calls >= self._next_call:
            self._known = trainer.strategy.broadcast(self._now())
            seconds_per_call = max(self._known - self._before, 1e-9) / self._calls
            # Half of the way only, because calls may become faster.
            wait = min((until - self._known) / seconds_per_call / 2, _RAREST)
            self._next_call = self._calls + max(1, int(wait))
        return self._known

    def spend(self, trainer: Trainer, seconds: float) -> None:
        """Count the seconds of an evaluation as spent; those of the first process, on all."""
        self._last = seconds if trainer.world_size == 1 else trainer.strategy.broadcast(seconds)
        self.spent += self._last

    def extend(self, seconds: float) -> None:
        """Count more seconds of the last evaluation as spent; of one process, where nothing has to be agreed on."""
        self._last += seconds
        self.spent += seconds

    def affordable_at(self, share: int | float) -> float:
        """Return from when on one more evaluation, if as long as the last, leaves a share of training time unexceeded.

        Args:
            share: Seconds spent on evaluations per second of training, above 0.

        Returns:
            A number of elapsed seconds.
        """
        return self.spent + (self.spent + self._last) / share

    def spent_share(self) -> float:
        """Return the seconds spent on evaluations per second of training."""
        return self.spent / max(self._now() - self.spent, 1e-9)

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds so far as primitives."""
        return {"elapsed": self._now(), "spent": self.spent, "last": self._last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the seconds of the run that is resumed."""
        self.spent, self._last, self._before = state["spent"], state["last"], state["elapsed"]
        self.begin()

    def _now(self) -> float:
        return self._before + time.perf_counter() - self._started
