"""Writing files that are there whole or not at all, even if the machine fails, and readable by their owner only."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO


def write_whole(folder: Path, write: Callable[[IO[bytes]], object], *, name: Callable[[], str]) -> Path:
    """Write a file under a temporary name, flush it to the disk, rename it as the last step, and return its path.

    A reader finds the old file or the new one, never a part; whatever goes wrong, nothing is left behind.

    Args:
        folder: A folder that exists.
        write: Gets the file to write to.
        name: Gives the file's name once all is written, which may depend on what was.

    Raises:
        OSError: If the disk is full or cannot be written to.
    """
    # mkstemp creates with mode 0600, so that there is no moment at which others can read the file.
    descriptor, temporary = tempfile.mkstemp(prefix=".writing-", dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        path = folder / name()
        Path(temporary).replace(path)
        flush_folder(folder)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def flush_folder(path: Path) -> None:
    """Flush the names in a folder to the disk, so that a rename in it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
