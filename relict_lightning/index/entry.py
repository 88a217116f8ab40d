"""One folder of the cache: small named files and a manifest, written whole or not at all.

A folder is written under a temporary name beside its place, and renamed as the last step, so a build that is killed
leaves nothing that is read later. The manifest holds the checksum of every file and its own. Reading compares it
before a file is parsed. There is no pickle.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, final

from relict_lightning.errors import IndexCorruptError, RelictWarning
from relict_lightning.index.durable import (
    checksum_of,
    explained,
    make_private_folder,
    read_array,
    write_array,
    write_durably,
)
from relict_lightning.index.fingerprint import FORMAT_VERSION
from relict_lightning.index.rows import Array
from relict_lightning.whole_files import flush_folder

_MANIFEST = "manifest.json"
_FILES, _CHECKSUM, _VERSION = "files", "checksum", "format_version"


@final
class EntryWriter:
    """Collects the files of one folder; `commit` puts it into its place.

    Args:
        parent: The folder that it will lie in; created when missing.
        name: What its temporary name begins with, after `.building-`.

    Raises:
        CacheWriteError: If the disk is full or cannot be written to; so does every method.
    """

    def __init__(self, parent: Path, name: str) -> None:
        make_private_folder(parent)
        with explained(parent):
            self.folder = Path(tempfile.mkdtemp(prefix=f".building-{name}-", dir=parent))
        self._files: dict[str, str] = {}

    def array(self, name: str, values: Array) -> None:
        """Write an array as `name.npy`."""
        path, checksum = write_array(self.folder, values, name=f"{name}.npy")
        self._files[path.name] = checksum

    def table(self, name: str, content: object) -> None:
        """Write JSON content as `name.json`."""
        text = json.dumps(content).encode()
        path, checksum = write_durably(self.folder, lambda file: file.write(text), name=f"{name}.json")
        self._files[path.name] = checksum

    def file(self, name: str, write: Callable[[Path], None]) -> None:
        """Have a file written by a library that wants its path."""
        path = self.folder / name
        with explained(path):
            write(path)
            flush_folder(path)
            self._files[name] = checksum_of(path)

    def adopt(self, path: Path) -> Path:
        """Take over a file of another folder under its own name, without copying it where the disk can link."""
        mine = self.folder / path.name
        with explained(mine):
            try:
                os.link(path, mine)
            except FileExistsError:
                pass
            except FileNotFoundError:
                raise
            except OSError:
                shutil.copyfile(path, mine)
                flush_folder(mine)
        return mine

    def commit(self, directory: Path, manifest: Mapping[str, object]) -> None:
        """Write the manifest and rename the folder into its place.

        Where another process has finished the same folder first, its folder stays and this one is dropped: both
        were made from the same fingerprint.
        """
        content = {_VERSION: FORMAT_VERSION, _FILES: self._files, **manifest}
        text = json.dumps({**content, _CHECKSUM: _checksum_of_content(content)}, indent=1, sort_keys=True).encode()
        write_durably(self.folder, lambda file: file.write(text), name=_MANIFEST)
        with explained(directory):
            try:
                self.folder.rename(directory)
            except OSError:
                if not (directory / _MANIFEST).exists():
                    raise
                self.abandon()
            flush_folder(directory.parent)

    def abandon(self) -> None:
        """Remove what was written so far."""
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def writing(directory: Path, manifest: Mapping[str, object]) -> Iterator[EntryWriter]:
    """Yield an `EntryWriter` that becomes `directory` when the block ends, and leaves nothing when it fails."""
    writer = EntryWriter(directory.parent, directory.name)
    try:
        yield writer
        writer.commit(directory, manifest)
    except BaseException:
        writer.abandon()
        raise


@final
class Entry:
    """A folder of the cache, opened for reading.

    Args:
        directory: The folder.

    Raises:
        FileNotFoundError: If there is no such folder.
        IndexCorruptError: If its manifest is missing, was changed, or cannot be parsed.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        if not directory.is_dir():
            raise FileNotFoundError(directory)
        try:
            manifest = json.loads((directory / _MANIFEST).read_bytes())
            version, checksum = manifest[_VERSION], manifest.pop(_CHECKSUM)
            files = dict(manifest[_FILES])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._corrupt(f"its {_MANIFEST} cannot be read ({error})") from error
        if version != FORMAT_VERSION:
            raise self._corrupt(f"it has format version {version!r}, this package reads {FORMAT_VERSION}")
        if checksum != _checksum_of_content(manifest):
            raise self._corrupt(f"the checksum of {_MANIFEST} does not match")
        self.manifest: dict[str, Any] = manifest
        self._files = files
        self._verified: set[str] = set()

    def array(self, name: str) -> Array:
        """Return `name.npy`, memory-mapped and read-only.

        Raises:
            IndexCorruptError: If the file is missing, was changed, or is not listed; so do all methods.
        """
        return read_array(self.verified(f"{name}.npy"))

    def table(self, name: str) -> Any:
        """Return the content of `name.json`."""
        return json.loads(self.verified(f"{name}.json").read_bytes())

    def verified(self, name: str) -> Path:
        """Return the path of a file, after comparing it with its checksum."""
        path = self.directory / name
        if name not in self._files:
            raise self._corrupt(f"{name} is not listed in its {_MANIFEST}")
        if name not in self._verified:
            if not path.is_file():
                raise self._corrupt(f"{name} is missing")
            if checksum_of(path) != self._files[name]:
                raise self._corrupt(f"the checksum of {name} does not match")
            self._verified.add(name)
        return path

    def verify(self) -> "Entry":
        """Compare every listed file with its checksum; return the entry."""
        for name in self._files:
            self.verified(name)
        return self

    def _corrupt(self, why: str) -> IndexCorruptError:
        return IndexCorruptError(
            f"The cached index {self.directory} is damaged: {why}. Delete the folder; the next fit builds it again."
        )


def open_or_put_aside(directory: Path) -> Entry | None:
    """Return the folder opened and its listed files verified, or None where there is none.

    A damaged folder is renamed, so that it can be built again and nothing is lost, and a warning says so.
    """
    try:
        return Entry(directory).verify()
    except FileNotFoundError:
        return None
    except IndexCorruptError as error:
        aside = directory.with_name(f".damaged-{directory.name}-{time.time_ns()}")
        with explained(directory):
            directory.rename(aside)
        warnings.warn(f"{error} It was moved to {aside} and is built again now.", RelictWarning, stacklevel=2)
        return None


def _checksum_of_content(content: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
