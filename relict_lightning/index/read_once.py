"""Keeps what a scan reads until the reference is built, so that slow data are read once.

Images are kept in memory while they are few and spill into a temporary file beyond that. The file has no name, so that
it is gone when it is closed or when the process ends in any way, and only this process can read it.
"""

import contextlib
import logging
import math
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from relict_lightning.data import ImageBatch, ImageSource

_LOGGER = logging.getLogger(__name__)
_IN_MEMORY_BYTES = 1 << 28


@dataclass(frozen=True, kw_only=True)
class _Record:
    """What is kept of a batch beside its voxels."""

    shape: tuple[int, ...]
    ids: tuple[str, ...]
    groups: tuple[str, ...]
    label_dtype: "np.dtype[Any] | None"


@final
class ReadOnce:
    """The batches of one pass over a set, to be gone through again without reading the set.

    Args:
        directory: Folder of the file that large sets spill into; created when missing. None takes the system's folder
            for temporary files.
    """

    def __init__(self, directory: Path | None) -> None:
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = None if directory is None else str(directory)
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES, dir=folder)  # noqa: SIM115 - see close
        self._records: list[_Record] = []
        # A scan that nothing is built from must not leave an open file behind.
        self._close = weakref.finalize(self, self._file.close)

    def add(self, batch: ImageBatch) -> None:
        """Keep a batch. Where the disk is full all is dropped: it can still be read again."""
        if self.is_closed:
            return
        labels = None if batch.segmentations is None else _narrow(batch.segmentations.numpy())
        try:
            for values in (batch.images.numpy(), labels):
                if values is not None:
                    self._file.write(values.reshape(-1).view(np.uint8).data)
        except OSError as error:
            _LOGGER.info("Images cannot be kept for a second use (%s); they will be read twice.", error)
            self.close()
            return
        dtype = None if labels is None else labels.dtype
        self._records.append(
            _Record(shape=tuple(batch.images.shape), ids=batch.ids, groups=batch.groups, label_dtype=dtype)
        )

    def batches(self) -> Iterator[ImageBatch]:
        """Return the batches that were kept, bit by bit as they were, in order."""
        self._file.seek(0)
        for record in self._records:
            images = torch.from_numpy(self._read(record.shape, np.dtype(np.float32)))
            labels = None
            if record.label_dtype is not None:
                maps = self._read((record.shape[0], *record.shape[2:]), record.label_dtype)
                labels = torch.from_numpy(maps.astype(np.int64))
            yield ImageBatch(images=images, segmentations=labels, ids=record.ids, groups=record.groups)

    @property
    def is_closed(self) -> bool:
        """Whether what was kept is gone."""
        return not self._close.alive

    def close(self) -> None:
        """Drop everything; the file's space is free again."""
        # Closing flushes, which fails once more on a full disk; the file is closed all the same.
        with contextlib.suppress(OSError):
            self._close()

    def _read(self, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> "np.ndarray[tuple[int, ...], np.dtype[Any]]":
        content = self._file.read(math.prod(shape) * dtype.itemsize)
        # A byte array, because torch wants memory that it may write to.
        return np.frombuffer(bytearray(content), dtype=dtype).reshape(shape)


def is_in_memory(source: ImageSource) -> bool:
    """Return whether reading the source costs no more than reading a copy of it."""
    images, label_maps = source.containers()
    return _holds_values(images) and (label_maps is None or _holds_values(label_maps))


def _holds_values(items: object) -> bool:
    if isinstance(items, Tensor | np.ndarray):
        return not isinstance(items, np.memmap)
    # Exactly these types: a class derived from them may read files in its `__getitem__`.
    if type(items) is Subset:
        return _holds_values(items.dataset)
    if isinstance(items, list | tuple) and type(items) in (list, tuple):
        return all(_is_read(item) for item in items)
    return type(items) is TensorDataset


def _is_read(item: object) -> bool:
    """Return whether an item of a list is its voxels, rather than the path of a file that holds them."""
    if isinstance(item, dict):
        parts = (item.get("image"), item.get("label"))
    else:
        parts = item if isinstance(item, tuple) else (item,)
    return not any(isinstance(part, str | Path | np.memmap) for part in parts)


def _narrow(labels: "np.ndarray[tuple[int, ...], np.dtype[Any]]") -> "np.ndarray[tuple[int, ...], np.dtype[Any]]":
    """Return labels in the narrowest integers that hold them; int64 would take twice the space of the image."""
    dtype = np.result_type(np.min_scalar_type(labels.min()), np.min_scalar_type(labels.max()))
    return np.ascontiguousarray(labels.astype(dtype if dtype.kind in "iu" else np.int64))
