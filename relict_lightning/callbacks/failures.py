"""What went wrong while looking at a run: told once, and training goes on."""

import os
import traceback
import warnings
from pathlib import Path
from typing import final

from relict_lightning.errors import (
    EmptyDataError,
    InvalidImageError,
    NondeterministicDataError,
    RelictError,
    RelictWarning,
    UnreadableDataError,
)

_NAME = "relict_failures.txt"
# These name files and images, and so does whatever others raise: warnings reach loggers that record the console.
_MAY_NAME_PATIENTS = (EmptyDataError, InvalidImageError, NondeterministicDataError, UnreadableDataError)


@final
class Failures:
    """Counts failures and tells each reason once, however often it comes again.

    What an error says is told where this package knows that it names no patient. The rest of it goes to a local file
    that its owner alone can read.

    Attributes:
        count: How many there were.
    """

    def __init__(self) -> None:
        self.count = 0
        self._told: set[str] = set()

    def report(self, error: Exception, *, doing: str, step: int, folder: str | Path) -> None:
        """Take a failure in, and warn of it if its reason is a new one.

        Args:
            error: What was raised.
            doing: What failed.
            step: The optimizer step.
            folder: Where the file goes that tells all of it.
        """
        self.count += 1
        reason = f"{type(error).__name__}: {error}"
        if reason in self._told:
            return
        self._told.add(reason)
        tells_all = _write_down(error, f"{doing} failed at step {step}.", Path(folder) / _NAME)
        is_safe = isinstance(error, RelictError) and not isinstance(error, _MAY_NAME_PATIENTS)
        warnings.warn(
            f"{doing} failed at step {step} ({reason if is_safe else type(error).__name__}). {tells_all} Training goes "
            f"on, the last numbers stand and are marked as stale, and this is said once. Pass "
            f"`ReplicaMonitor(on_error='raise')` to stop training instead.",
            RelictWarning,
            stacklevel=2,
        )


def _write_down(error: Exception, what: str, path: Path) -> str:
    """Add an error to a file that its owner alone can read, and say where it is."""
    lines = traceback.format_exception(error)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(f"{what}\n{''.join(lines)}\n")
    except OSError:
        return f"What it said could not be written to {path}."
    return f"What it said is in {path}, a local file, because it may name a patient."
