"""What went wrong while looking at a run: told once, and training goes on."""

import warnings
from typing import final

from relict_lightning.errors import RelictWarning


@final
class Failures:
    """Counts failures and tells each reason once, however often it comes again.

    Attributes:
        count: How many there were.
    """

    def __init__(self) -> None:
        self.count = 0
        self._told: set[str] = set()

    def report(self, error: Exception, *, doing: str, step: int) -> None:
        """Take a failure in, and warn of it if its reason is a new one.

        Args:
            error: What was raised.
            doing: What failed.
            step: The optimizer step.
        """
        self.count += 1
        reason = f"{type(error).__name__}: {error}"
        if reason in self._told:
            return
        self._told.add(reason)
        warnings.warn(
            f"{doing} failed at step {step} ({reason}). Training goes on, the last numbers stand and are marked as "
            f"stale, and this is said once. Pass `ReplicaMonitor(on_error='raise')` to stop training instead.",
            RelictWarning,
            stacklevel=2,
        )
