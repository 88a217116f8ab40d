"""Tells, without reading an image, whether a set of image files is the one that it was.

A stamp covers the path, size and modification time of every file, and every id and group. It does not see a file that
is rewritten in place with equal size and a forged modification time, a mapped file that is replaced after it was
mapped, nor changes of the code that reads.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
from torch import Tensor
from torch.utils.data import Subset

from relict_lightning.data.items import Role, text_of

# Changes when the same files become other images or other stamps.
_VERSION = 1


@final
@dataclass(frozen=True, kw_only=True)
class ItemFiles:
    """Where one item comes from.

    Attributes:
        image: File of the image, or folder of its DICOM series.
        label: File or folder of its segmentation; None if it has none.
        id: The item's own id; None if it has none.
        group: The item's own group; None if it has none.
    """

    image: Path
    label: Path | None = None
    id: str | None = None
    group: str | None = None


@runtime_checkable
class KnowsItsFiles(Protocol):
    """A data set whose items are files, as they are and nothing else."""

    def item_files(self) -> Sequence[ItemFiles]:
        """Return the files of every item, in order."""


def stamp_of(
    images: object, *, role: Role, segmentations: object = None, groups: Sequence[str] | None = None
) -> str | None:
    """Return a hash of all files, ids and groups of a set.

    Args:
        images: What holds the items: a data set that knows its files, such as `ImageFolder`; a subset of one; a list
            of paths, or of dictionaries whose `image` and `label` are paths; or a memory map, opened read-only.
        role: Which set it is; it is part of the ids of items that have none.
        segmentations: What holds the label maps that were passed beside them: a list of paths, or a memory map.
        groups: The patients that were passed beside them.

    Returns:
        The hash, in hexadecimal; None where items are anything else than files, or where a file is missing.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "image.npy")
        ...     np.save(path, np.zeros((1, 8, 8)))
        ...     stamp = stamp_of([path], role="training")
        ...     np.save(path, np.zeros((1, 9, 9)))
        ...     stamp == stamp_of([path], role="training")
        False
    """
    parts = [container for container in (images, segmentations) if container is not None]
    digest = hashlib.sha256()
    try:
        _add(digest, ["version", _VERSION, role, None if groups is None else list(groups)])
        for part in parts:
            lines = _lines_of(part)
            if lines is None:
                return None
            # So that a file cannot move from one part to the other unseen.
            _add(digest, ["part"])
            for line in lines:
                _add(digest, line)
    except OSError:
        # Reading the set says which file is missing.
        return None
    return digest.hexdigest()


def _add(digest: Any, line: Sequence[object]) -> None:
    # JSON escapes the line break that separates, and names that are no valid text.
    digest.update(json.dumps(line).encode() + b"\n")


def _lines_of(container: object) -> Iterator[Sequence[object]] | None:
    if isinstance(container, np.memmap):
        return _lines_of_map(container)
    files = _files_of(container)
    return None if files is None else map(_line_of, files)


def _files_of(container: object) -> Sequence[ItemFiles] | None:
    if isinstance(container, KnowsItsFiles):
        return container.item_files()
    # Exactly these types: a class derived from them may read anything in its `__getitem__`.
    if type(container) is Subset:
        files = _files_of(container.dataset)
        return None if files is None else [files[index] for index in container.indices]
    if not isinstance(container, list | tuple) or type(container) not in (list, tuple):
        return None
    found: list[ItemFiles] = []
    for item in container:
        files_of_item = _files_of_item(item)
        if files_of_item is None:
            return None
        found.append(files_of_item)
    return found


def _files_of_item(item: object) -> ItemFiles | None:
    if isinstance(item, str | Path):
        return ItemFiles(image=Path(item))
    if not isinstance(item, Mapping) or type(item) is not dict:
        return None
    image, label = item.get("image"), item.get("label")
    if not isinstance(image, str | Path):
        return None
    if isinstance(label, Tensor | np.ndarray) and label.ndim > 1:
        return None
    return ItemFiles(
        image=Path(image),
        # Anything else is a class of the image, which is not read.
        label=Path(label) if isinstance(label, str | Path) else None,
        id=None if item.get("id") is None else text_of(item["id"]),
        group=None if item.get("group") is None else text_of(item["group"]),
    )


def _line_of(item: ItemFiles) -> list[object]:
    label = None if item.label is None else list(_states(item.label))
    return [list(_states(item.image)), label, item.id, item.group]


def _states(path: Path) -> Iterator[tuple[str, int, int]]:
    """Return path, size and modification time of a file, or of every file of a series."""
    if path.is_dir():
        yield os.path.abspath(path), -1, 0  # noqa: PTH100 - pathlib would follow links
        visible = (file for file in path.iterdir() if not file.name.startswith("."))
        files: Iterable[Path] = sorted(file for file in visible if file.is_file())
    else:
        files = [path]
    for file in files:
        status = file.stat()
        yield os.path.abspath(file), status.st_size, status.st_mtime_ns  # noqa: PTH100


def _lines_of_map(array: "np.memmap[Any, Any]") -> Iterator[Sequence[object]] | None:
    # Only where nothing but the file says the values: other modes write, to memory or to the file.
    mapped = getattr(array, "_mmap", None)
    if mapped is None or array.filename is None or array.mode != "r":
        return None
    # A slice has the offset of its whole, so where it starts is taken from the addresses.
    start = array.ctypes.data - np.frombuffer(mapped, dtype=np.uint8).ctypes.data
    layout = [array.offset, start, array.dtype.str, list(array.shape), list(array.strides)]
    return iter([[list(_states(Path(array.filename))), layout]])
