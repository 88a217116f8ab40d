"""Rows on disk, in files of some dozens to thousands of rows each, verified when they are first read.

A chunk's name is `<column>-<key>-<checksum>.npy`. The key is a hash of all that its rows were made from, so whoever
needs rows of the same making finds them by name, in whatever folder of the cache they lie: in that of another encoder,
of a set with fewer patients, or of a build that was interrupted. The checksum is that of the file's bytes.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import final

import numpy as np

from relict_lightning.errors import IndexCorruptError
from relict_lightning.index.durable import checksum_of, read_array
from relict_lightning.index.rows import Array, MemoryRows, Rows

_SUFFIX = ".npy"


def chunk_name(column: str, key: str, checksum: str) -> str:
    """Return the name of a chunk's file."""
    return f"{column}-{key}-{checksum}{_SUFFIX}"


def chunks_in(folder: Path) -> Iterator[tuple[str, str, Path]]:
    """Return column, key and path of every chunk in a folder."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as files:
        for file in files:
            parts = file.name.removesuffix(_SUFFIX).split("-")
            if file.name.endswith(_SUFFIX) and len(parts) == 3 and parts[0]:
                yield parts[0], parts[1], Path(file.path)


@final
class Chunk:
    """Some rows of a column: a file, or an array in memory.

    Args:
        source: The file, whose name holds its checksum, or the rows themselves.
        rows: Number of rows.
    """

    def __init__(self, source: Path | Array, rows: int) -> None:
        self.source = source
        self.rows = rows
        self._is_verified = isinstance(source, np.ndarray)

    @cached_property
    def is_there(self) -> bool:
        """Whether the rows can be read, as far as one can tell without reading them."""
        return isinstance(self.source, np.ndarray) or self.source.exists()

    def read(self) -> Array:
        """Return the rows, memory-mapped and read-only where they are a file.

        Raises:
            IndexCorruptError: If the file is missing or was changed. It is renamed, so that the next build makes it
                anew, and only it.
        """
        if isinstance(self.source, np.ndarray):
            return self.source
        self.verify()
        try:
            values = read_array(self.source)
        except (OSError, ValueError) as error:
            raise self._set_aside(f"it cannot be read ({error})") from error
        if len(values) != self.rows:
            raise self._set_aside(f"it has {len(values)} rows, expected {self.rows}")
        return values

    def verify(self) -> None:
        """Compare the file with its checksum, once.

        Raises:
            IndexCorruptError: As `read` does.
        """
        if self._is_verified or isinstance(self.source, np.ndarray):
            return
        try:
            found = checksum_of(self.source)
        except OSError as error:
            raise self._set_aside(f"it cannot be read ({error.strerror or error})") from error
        if found != self.source.stem.rpartition("-")[2]:
            raise self._set_aside("its checksum does not match")
        self._is_verified = True

    def _set_aside(self, why: str) -> IndexCorruptError:
        path = self.source
        assert isinstance(path, Path)  # noqa: S101 - arrays in memory are not verified
        with contextlib.suppress(OSError):
            path.rename(path.with_name(f".damaged-{path.name}"))
        return IndexCorruptError(
            f"Part of the index is damaged, {path}: {why}. It is not used any more. Fit again, which builds this part "
            f"anew and keeps the rest of a cache; a saved detector must be saved again. Check the disk."
        )


def verify_all(chunks: Iterable[Chunk]) -> None:
    """Verify chunks on all cores.

    Raises:
        IndexCorruptError: For the first one that is damaged.
    """
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for _ in pool.map(Chunk.verify, chunks):
            pass


@final
class ChunkedRows(Rows):
    """A column of rows in chunks.

    Args:
        chunks: The chunks, in order.
        row_shape: Shape of a row.
        resident_bytes: A column of up to this size is read into memory when it is first gone through; larger ones stay
            memory-mapped, a chunk at a time.
    """

    def __init__(self, chunks: Sequence[Chunk], row_shape: tuple[int, ...], *, resident_bytes: int = 0) -> None:
        self.chunks = tuple(chunks)
        self._row_shape = row_shape
        self._starts = np.array([0, *accumulate(chunk.rows for chunk in self.chunks)], dtype=np.int64)
        self._resident_bytes = resident_bytes
        self._resident: MemoryRows | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape `(m, *row)`."""
        return (int(self._starts[-1]), *self._row_shape)

    def __getitem__(self, positions: Array) -> Array:
        """Return copies of the rows at some positions, `[p, *row]`."""
        if self._resident is not None:
            return self._resident[positions]
        positions = np.asarray(positions, dtype=np.int64)
        of_chunk = np.searchsorted(self._starts, positions, side="right") - 1
        places = [(number, np.flatnonzero(of_chunk == number)) for number in np.unique(of_chunk)]
        parts = [self.chunks[number].read()[positions[here] - self._starts[number]] for number, here in places]
        # Chunks of labels are as narrow as their labels allow.
        dtype = np.result_type(*(part.dtype for part in parts)) if parts else np.dtype(np.float32)
        taken = np.empty((len(positions), *self._row_shape), dtype=dtype)
        for (_, here), part in zip(places, parts, strict=True):
            taken[here] = part
        return taken

    def blocks(self) -> Iterator[tuple[int, Array]]:
        """Return all rows in order: as one piece if they are few, else chunk by chunk."""
        if self._resident is None and self._fits():
            self._resident = MemoryRows(self._all())
        if self._resident is not None:
            yield from self._resident.blocks()
            return
        for start, chunk in zip(self._starts[:-1], self.chunks, strict=True):
            yield int(start), chunk.read()

    def _fits(self) -> bool:
        return bool(self.chunks) and int(np.prod(self.shape)) * self.chunks[0].read().itemsize <= self._resident_bytes

    def _all(self) -> Array:
        values = np.empty(self.shape, dtype=self.chunks[0].read().dtype)

        def fill(number: int) -> None:
            values[self._starts[number] : self._starts[number + 1]] = self.chunks[number].read()

        # Most of the time goes into checksums, which are taken outside of Python's lock.
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            for _ in pool.map(fill, range(len(self.chunks))):
                pass
        return values
