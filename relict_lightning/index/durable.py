"""Writing files that are there whole or not at all, and noticing when they have changed.

A file is written under a temporary name, flushed to the disk, and renamed as the last step. Its checksum is taken
from the bytes on their way to the disk. Folders are readable by their owner only, because they hold patient data.
"""

import errno
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, final

import numpy as np

from relict_lightning.errors import CacheWriteError
from relict_lightning.whole_files import write_whole

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

_CHUNK = 1 << 22


@final
class HashedFile:
    """Passes bytes on to a file and hashes them."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.state = hashlib.sha256()

    def write(self, data: Any) -> int:
        """Write bytes; return how many."""
        self.state.update(data)
        self._file.write(data)
        return len(data)


def make_private_folder(path: Path) -> None:
    """Create a folder and its parents, readable by their owner only; a folder that is there stays as it is.

    Raises:
        CacheWriteError: If it cannot be created.
    """
    with explained(path):
        path.mkdir(parents=True, exist_ok=True, mode=0o700)


def write_durably(
    folder: Path, write: Callable[[HashedFile], object], *, name: str | Callable[[str], str]
) -> tuple[Path, str]:
    """Write a file so that it is there whole or not at all, even if the machine fails; return its path and checksum.

    Args:
        folder: A folder that exists.
        write: Gets the file to write to.
        name: Name of the file, or what gives it from the checksum.

    Raises:
        CacheWriteError: If the disk is full or cannot be written to. Nothing is left behind.
    """
    hashed: list[HashedFile] = []

    def write_hashed(file: IO[bytes]) -> None:
        hashed.append(HashedFile(file))
        write(hashed[0])

    def checksum() -> str:
        return hashed[0].state.hexdigest()[:32]

    with explained(folder):
        path = write_whole(folder, write_hashed, name=lambda: name if isinstance(name, str) else name(checksum()))
    return path, checksum()


def write_array(folder: Path, values: Array, *, name: str | Callable[[str], str]) -> tuple[Path, str]:
    """Write an array as `.npy`, without pickle; return the file's path and checksum."""
    ordered = np.ascontiguousarray(values)
    return write_durably(folder, lambda file: _write_npy(file, ordered), name=name)


def _write_npy(file: HashedFile, values: Array) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(values.dtype), "fortran_order": False, "shape": values.shape}
    np.lib.format.write_array_header_1_0(file, header)
    flat = values.reshape(-1).view(np.uint8)
    for start in range(0, len(flat), _CHUNK):
        file.write(flat[start : start + _CHUNK].data)


def read_array(path: Path) -> Array:
    """Return an array memory-mapped and read-only. Its checksum must have been verified."""
    array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def checksum_of(path: Path) -> str:
    """Return the checksum of a file's bytes: the first 128 bits of SHA-256."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            state.update(chunk)
    return state.hexdigest()[:32]


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Return a context in which an error of the operating system says what can be done about it.

    Raises:
        CacheWriteError: In place of an `OSError`.
    """
    try:
        yield
    except CacheWriteError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            remedy = (
                "Free some space, choose a folder on another disk, or store less: 'uint8' takes half of the space, "
                "'reference' stores no images."
            )
        else:
            remedy = "Choose a folder that this user may write to."
        raise CacheWriteError(
            error.errno,
            f"{path} cannot be written ({error.strerror or error}). {remedy} What was there before is kept.",
        ) from error
