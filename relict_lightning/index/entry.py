"""One folder of the cache: named arrays, FAISS indexes and a manifest, written whole or not at all.

A folder is written under a temporary name beside its place, every file is flushed to the disk, and the folder is
renamed as the last step, so a build that is killed leaves nothing that is read later. Reading verifies the checksum
of every file before any of them is parsed. There is no pickle, and folders are readable by their owner only, because
embeddings and volumes are patient data.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

import faiss
import numpy as np

from relict_lightning.errors import IndexCorruptError, RelictWarning
from relict_lightning.index.fingerprint import FORMAT_VERSION

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

_MANIFEST = "manifest.json"
_CHUNK = 1 << 22


@final
class EntryWriter:
    """Collects the files of one folder; `commit` puts it into its place.

    Args:
        directory: Where the folder will be. Its parent is created when missing.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))

    def array(self, name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> Array:
        """Return a writable memory-mapped array that becomes `name.npy`."""
        return np.lib.format.open_memmap(self._staging / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)

    def index(self, name: str, index: "faiss.Index") -> None:
        """Write a FAISS index as `name.faiss`."""
        faiss.write_index(index, str(self._staging / f"{name}.faiss"))

    def table(self, name: str, content: object) -> None:
        """Write JSON content as `name.json`."""
        (self._staging / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")

    def commit(self, manifest: Mapping[str, object]) -> None:
        """Write the manifest with all checksums, flush everything, and rename the folder into its place.

        Where another process has finished the same folder first, its folder stays and this one is dropped: both
        were made from the same fingerprint.
        """
        files = sorted(self._staging.iterdir())
        checksums = {path.name: _checksum(path) for path in files}
        content = {"format_version": FORMAT_VERSION, "checksums": checksums, **manifest}
        (self._staging / _MANIFEST).write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")
        for path in [*files, self._staging / _MANIFEST, self._staging]:
            _flush(path)
        try:
            self._staging.rename(self.directory)
        except OSError:
            if not (self.directory / _MANIFEST).exists():
                raise
            self.abandon()
        _flush(self.directory.parent)

    def abandon(self) -> None:
        """Remove what was written so far."""
        shutil.rmtree(self._staging, ignore_errors=True)


@contextlib.contextmanager
def writing(directory: Path) -> Iterator[EntryWriter]:
    """Yield an `EntryWriter` that leaves nothing behind when the block fails."""
    writer = EntryWriter(directory)
    try:
        yield writer
    except BaseException:
        writer.abandon()
        raise


@final
class Entry:
    """A folder of the cache, opened for reading after its checksums were verified.

    Args:
        directory: The folder.

    Raises:
        FileNotFoundError: If there is no such folder.
        IndexCorruptError: If a file is missing, was changed, or cannot be parsed.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        if not directory.is_dir():
            raise FileNotFoundError(directory)
        try:
            self.manifest: dict[str, Any] = json.loads((directory / _MANIFEST).read_text(encoding="utf-8"))
            checksums = dict(self.manifest["checksums"])
            version = self.manifest["format_version"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._corrupt(f"its {_MANIFEST} cannot be read ({error})") from error
        if version != FORMAT_VERSION:
            raise self._corrupt(f"it has format version {version!r}, this package reads {FORMAT_VERSION}")
        for name, expected in checksums.items():
            path = directory / name
            if not path.is_file():
                raise self._corrupt(f"{name} is missing")
            if _checksum(path) != expected:
                raise self._corrupt(f"the checksum of {name} does not match")

    def array(self, name: str) -> Array:
        """Return `name.npy`, memory-mapped and read-only."""
        array: Array = np.load(self._listed(f"{name}.npy"), mmap_mode="r", allow_pickle=False)
        return array

    def index(self, name: str) -> "faiss.Index":
        """Return the FAISS index of `name.faiss`."""
        return faiss.read_index(str(self._listed(f"{name}.faiss")))

    def table(self, name: str) -> Any:
        """Return the content of `name.json`."""
        return json.loads(self._listed(f"{name}.json").read_text(encoding="utf-8"))

    def _listed(self, name: str) -> Path:
        """Return the path of a file, after making sure that its checksum was among the verified ones."""
        if name not in self.manifest["checksums"]:
            raise self._corrupt(f"{name} is not listed in its {_MANIFEST}")
        return self.directory / name

    def _corrupt(self, why: str) -> IndexCorruptError:
        return IndexCorruptError(
            f"The cached index {self.directory} is damaged: {why}. Delete the folder; the next fit builds it again."
        )


def open_or_put_aside(directory: Path) -> Entry | None:
    """Return the folder opened, or None where there is none.

    A damaged folder is renamed, so that it can be built again and nothing is lost, and a warning says so.
    """
    try:
        return Entry(directory)
    except FileNotFoundError:
        return None
    except IndexCorruptError as error:
        aside = directory.with_name(f".damaged-{directory.name}-{time.time_ns()}")
        directory.rename(aside)
        warnings.warn(f"{error} It was moved to {aside} and is built again now.", RelictWarning, stacklevel=2)
        return None


def _checksum(path: Path) -> str:
    state = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            state.update(chunk)
    return state.hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
