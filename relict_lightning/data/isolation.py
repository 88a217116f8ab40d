"""Reads a data set so that training does not notice.

Reading an item of the data set that is being trained on moves the random state of its augmentations, and with it every
later batch. So the reference is read from a copy that shares the images themselves and owns everything else.
"""

import io
import pickle
import threading
import weakref
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, Generic, Protocol, TypeVar, final, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from relict_lightning.errors import ConfigurationError

# Larger arrays hold images and are shared; smaller ones may be counters that a read changes, and are copied.
_SHARED_ABOVE_BYTES = 1024

# Objects of these libraries stand for files or memory that is read and not changed, and many cannot be copied.
_SHARED_LIBRARIES = frozenset({"SimpleITK", "PIL", "h5py", "lmdb", "multiprocessing", "nibabel", "pyarrow", "pydicom"})

# Of these, some stand for an open file with one position, or one connection, which processes must not use at a time.
_HANDLE_LIBRARIES = frozenset({"PIL", "h5py", "lmdb"})

# What lists of items are made of, told apart first because there may be millions.
_COPIED_TYPES = frozenset({str, int, float, bool, type(None), dict, list, tuple})

_SHARED_TYPES = (
    FunctionType,
    ModuleType,
    type,
    weakref.ref,
    type(threading.Lock()),
    type(threading.RLock()),
)


Copied = TypeVar("Copied")


@runtime_checkable
class MapStyle(Protocol):
    """What is read by position: a list, a map-style data set."""

    def __len__(self) -> int:
        """Return the number of items."""

    def __getitem__(self, index: int, /) -> Any:
        """Return one item."""


@final
class Snapshot(Generic[Copied]):
    """A data set as it is now, from which any number of independent copies are made.

    The copies share what is large and does not change while it is read (tensors, arrays, memory maps, file libraries'
    objects) and own all else: transforms, their random state, caches, counters. Read-only files are opened anew.
    Functions are shared together with the variables that they close over.

    Args:
        dataset: What to copy.
        name: What a message calls it, such as `training set`.
        argument: The argument that a user passes instead, such as `training=`.

    Raises:
        ConfigurationError: If something in the data set cannot be copied.

    Example:
        >>> images = torch.zeros(4, 1, 16, 16)
        >>> dataset = torch.utils.data.TensorDataset(images)
        >>> copy = Snapshot(dataset, name="training set", argument="training=").copy()
        >>> copy is dataset, copy[0][0].data_ptr() == images.data_ptr()
        (False, True)
    """

    def __init__(self, dataset: Copied, *, name: str, argument: str) -> None:
        buffer = io.BytesIO()
        pickler = _SharingPickler(buffer)
        try:
            pickler.dump(dataset)
        # A user's own `__reduce__` or `__getstate__` may raise anything.
        except Exception as error:
            raise ConfigurationError(
                f"The {name} ({type(dataset).__qualname__}) must be copied before it is read, because reading the live "
                f"one would move the random state of its augmentations; but it cannot be copied: {error}. Pass "
                f"`{argument}` a data set without open streams, threads or connections (open them on first use in "
                f"`__getitem__` or `__iter__`), an array, or a list of dictionaries."
            ) from error
        self._state = buffer.getvalue()
        self._shared = pickler.shared

    def copy(self) -> Copied:
        """Return a copy that no other copy and no later change of the data set can influence."""
        # The bytes were made by this object and never leave the process, so unpickling them is safe.
        unpickler = _SharingUnpickler(io.BytesIO(self._state), self._shared)
        copy: Copied = unpickler.load()
        if unpickler.files:
            weakref.finalize(copy, _close_all, list(unpickler.files.values()))
        return copy

    @property
    def state(self) -> bytes:
        """Everything that a copy owns, so that two snapshots of one data set show whether reading changed it."""
        return self._state

    @property
    def shares_handles(self) -> bool:
        """Whether copies share an open file or connection, so that only one process may read them at a time."""
        return any(_library_of(leaf) in _HANDLE_LIBRARIES for leaf in self._shared)


class _SharingPickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.shared: list[object] = []
        self._tokens: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> int | None:
        if type(obj) in _COPIED_TYPES:
            return None
        leaf = _recipe_of(obj) or (obj if _is_shared(obj) else None)
        if leaf is None:
            return None
        token = self._tokens.get(id(obj))
        if token is None:
            token = self._tokens[id(obj)] = len(self.shared)
            self.shared.append(leaf)
        return token

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Tensor):
            return torch.from_numpy, (obj.numpy(),)
        if isinstance(obj, torch.Generator):
            return _generator_in_state, (str(obj.device), obj.get_state().numpy().tobytes().hex())
        return NotImplemented


class _SharingUnpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, shared: list[object]) -> None:
        super().__init__(file)
        self._shared = shared
        self.files: dict[int, io.IOBase] = {}

    def persistent_load(self, pid: Any) -> object:
        leaf = self._shared[pid]
        if not isinstance(leaf, _OpenFile):
            return leaf
        if pid not in self.files:
            self.files[pid] = leaf.opened_anew()
        return self.files[pid]


@final
@dataclass(frozen=True, kw_only=True)
class _OpenFile:
    path: str
    mode: str
    position: int
    encoding: str | None

    def opened_anew(self) -> Any:
        file = open(self.path, self.mode, encoding=self.encoding)  # noqa: SIM115, PTH123 - closed with the copy
        file.seek(self.position)
        return file


def _recipe_of(obj: object) -> _OpenFile | None:
    if not isinstance(obj, io.FileIO | io.BufferedReader | io.TextIOWrapper):
        return None
    if not isinstance(obj.name, str) or obj.closed or not obj.readable() or obj.writable():
        return None
    encoding = obj.encoding if isinstance(obj, io.TextIOWrapper) else None
    return _OpenFile(path=obj.name, mode=obj.mode, position=obj.tell(), encoding=encoding)


def _close_all(files: list[io.IOBase]) -> None:
    for file in files:
        file.close()


def _is_shared(obj: object) -> bool:
    if type(obj) is Tensor:
        # Only what numpy can hold is copied; a tensor in a graph, on a device or in bfloat16 is no counter.
        is_plain = obj.device.type == "cpu" and not obj.requires_grad and obj.layout == torch.strided
        return not is_plain or obj.dtype == torch.bfloat16 or obj.nbytes > _SHARED_ABOVE_BYTES
    if type(obj) is np.ndarray:
        return obj.dtype.hasobject or obj.nbytes > _SHARED_ABOVE_BYTES
    if isinstance(obj, bytes | bytearray):
        return len(obj) > _SHARED_ABOVE_BYTES
    if isinstance(obj, BuiltinFunctionType):
        # A method of a C object (`random.Random().random`) belongs to its object and is copied with it.
        return obj.__self__ is None or isinstance(obj.__self__, ModuleType | type)
    if isinstance(obj, (Tensor, np.ndarray, *_SHARED_TYPES)):
        return True
    return _library_of(obj) in _SHARED_LIBRARIES


def _library_of(obj: object) -> str:
    return type(obj).__module__.partition(".")[0]


def _generator_in_state(device: str, state: str) -> torch.Generator:
    generator = torch.Generator(device)
    generator.set_state(torch.frombuffer(bytearray.fromhex(state), dtype=torch.uint8))
    return generator
