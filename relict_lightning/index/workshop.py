"""Building in a cache: finding what is there already, one builder at a time, going on where a killed one stopped.

What is finished lies in folders with a manifest, what is being built in hidden ones. A builder takes chunks from all of
them by their keys, so a build that was interrupted goes on where it stopped, a new encoder does not touch the volumes,
and patients that are added are all that is read into the index. Nothing is locked before something must be written.
"""

import contextlib
import logging
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import final

import filelock

from relict_lightning.errors import IndexCorruptError
from relict_lightning.index.chunks import Chunk, chunk_name, chunks_in
from relict_lightning.index.durable import explained, make_private_folder, write_array
from relict_lightning.index.entry import Entry, EntryWriter
from relict_lightning.index.rows import Array

_LOGGER = logging.getLogger(__name__)
_LOOK_SECONDS = 1.0


class Workshop(ABC):
    """Where chunks are made and kept."""

    @abstractmethod
    def chunk(self, column: str, key: str, rows: int, make: Callable[[], Array]) -> Chunk:
        """Return the chunk of a column with a key; where there is none, of `rows` rows that `make` returns."""


@final
class MemoryWorkshop(Workshop):
    """Keeps chunks in memory."""

    def chunk(self, column: str, key: str, rows: int, make: Callable[[], Array]) -> Chunk:
        """Return what `make` returns as a chunk."""
        del column, key
        return Chunk(make(), rows)


@final
class CacheWorkshop(Workshop):
    """Keeps chunks in a folder of a cache.

    Args:
        cache_dir: The cache; created when something must be written.
        plan: What is built, as far as it is known before reading. Of two builders with one plan the second waits for
            the first.

    Raises:
        CacheWriteError: If the disk is full or cannot be written to; so does every method.
    """

    def __init__(self, cache_dir: Path, *, plan: str) -> None:
        self.cache_dir = cache_dir
        self._plan = plan
        self._lock: filelock.BaseFileLock | None = None
        self._writer: EntryWriter | None = None
        self._orphans: list[Path] = []
        self._known: dict[tuple[str, str], Path] = {}
        self._look()

    def entries(self) -> list[Entry]:
        """Return the finished folders of the cache whose manifests are intact, the newest first."""
        entries = []
        for folder in self._finished():
            with contextlib.suppress(FileNotFoundError, IndexCorruptError):
                entries.append(Entry(folder))
        return sorted(entries, key=lambda entry: entry.directory.stat().st_mtime, reverse=True)

    def chunk(self, column: str, key: str, rows: int, make: Callable[[], Array]) -> Chunk:
        """Return the chunk of a column with a key, from wherever it lies in the cache, or made and written now."""
        if (column, key) not in self._known:
            self._begin()
        path = self._known.get((column, key))
        if self._writer is None:
            assert path is not None  # noqa: S101 - else writing would have begun
            return Chunk(path, rows)
        if path is not None:
            with contextlib.suppress(FileNotFoundError):
                return Chunk(self._writer.adopt(path), rows)
        path, _ = write_array(self._writer.folder, make(), name=lambda checksum: chunk_name(column, key, checksum))
        self._known[column, key] = path
        return Chunk(path, rows)

    def finish(
        self, fingerprint: str, chunks: Mapping[str, list[Chunk]], write: Callable[[EntryWriter], Mapping[str, object]]
    ) -> tuple[Path, bool]:
        """Return the finished folder with all chunks, and whether it was there already.

        Args:
            fingerprint: Its name.
            chunks: The chunks, by column.
            write: Writes the other files, and returns what else the manifest holds.
        """
        directory = self.cache_dir / fingerprint
        if self._is_complete(directory, chunks):
            return directory, True
        self._begin()
        if self._is_complete(directory, chunks):
            return directory, True
        assert self._writer is not None  # noqa: S101 - made by `_begin`
        for chunk in (chunk for column in chunks.values() for chunk in column):
            assert isinstance(chunk.source, Path)  # noqa: S101 - a cache has files
            try:
                self._writer.adopt(chunk.source)
            except FileNotFoundError as error:
                raise IndexCorruptError(
                    f"{chunk.source} was removed while the index was built. Fit again; what is missing is built again."
                ) from error
        manifest = write(self._writer)
        if directory.exists():
            # It lacks something, or its manifest is damaged; whatever is good in it was taken over.
            with explained(directory):
                directory.rename(directory.with_name(f".damaged-{self._writer.folder.name.lstrip('.')}"))
        self._writer.commit(directory, manifest)
        return directory, False

    def close(self, *, finished: bool) -> None:
        """Let the next builder in.

        Args:
            finished: Whether what was built lies in its place. Otherwise the chunks made so far are kept for the next
                builder of the same plan.
        """
        if self._writer is not None and (finished or not any(self._writer.folder.iterdir())):
            self._writer.abandon()
        if finished:
            for orphan in self._orphans:
                shutil.rmtree(orphan, ignore_errors=True)
        if self._lock is not None:
            self._lock.release()

    def _begin(self) -> None:
        """Become the builder, and look again: another one may have built what is missing."""
        if self._writer is not None:
            return
        make_private_folder(self.cache_dir)
        self._lock = self._acquired()
        # Whoever worked by this plan is done or dead.
        self._orphans = [path for path in self.cache_dir.glob(f".building-{self._plan}-*") if path.is_dir()]
        self._look()
        self._writer = EntryWriter(self.cache_dir, self._plan)

    def _acquired(self) -> filelock.BaseFileLock:
        lock = filelock.FileLock(self.cache_dir / f".lock-{self._plan}", mode=0o600)
        with explained(self.cache_dir):
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                _LOGGER.warning("Another process builds the same index in %s; waiting for it.", self.cache_dir)
                lock.acquire(timeout=-1, poll_interval=_LOOK_SECONDS)
        return lock

    def _finished(self) -> list[Path]:
        return [path for path in self.cache_dir.glob("[!.]*") if path.is_dir()]

    def _look(self) -> None:
        """Learn which chunks there are."""
        for folder in (*self._orphans, *self._finished()):
            self._known.update({(column, key): path for column, key, path in chunks_in(folder)})

    @staticmethod
    def _is_complete(directory: Path, chunks: Mapping[str, list[Chunk]]) -> bool:
        """Return whether a finished folder is there with an intact manifest and every chunk."""
        try:
            Entry(directory).verify()
        except (FileNotFoundError, IndexCorruptError):
            return False
        names = {path.name for path in directory.iterdir()}
        return all(
            isinstance(chunk.source, Path) and chunk.source.name in names
            for column in chunks.values()
            for chunk in column
        )
