"""Fingerprints: the hash that ties an index to its data, its preprocessing and its encoder."""

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from enum import Enum
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FORMAT_VERSION = 2
"""Version of the files on disk; part of every fingerprint."""

_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]+")

# What torch keeps in every module: `training`, hooks, and the registries that are gone through by name.
_BOOKKEEPING = frozenset(vars(nn.Module()))

# Values whose `repr` is the same in every process and tells different ones apart.
_BY_REPR = (bool, int, float, complex, str, bytes, range, np.generic, torch.dtype, torch.device)


def digest_array(array: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]") -> str:
    """Return the hash of an array's dtype, shape and values."""
    return _hash_of_array(array).hex()


def digest_rows(
    rows: "Sequence[np.ndarray[tuple[int, ...], np.dtype[Any]]] | np.ndarray[tuple[int, ...], np.dtype[Any]]",
) -> "np.ndarray[tuple[int, ...], np.dtype[Any]]":
    """Return the hash of each row's dtype, shape and values, `[m, 16]` bytes."""
    return np.frombuffer(b"".join(map(_hash_of_array, rows)), dtype=np.uint8).reshape(len(rows), 16)


def _hash_of_array(array: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]") -> bytes:
    # Processors have instructions for SHA-256, and whole data sets are hashed.
    state = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    state.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return state.digest()[:16]


def digest_module(module: nn.Module) -> str:
    """Return the hash of a module: its class, its configuration, and every parameter and buffer.

    Configuration is what `repr` shows, and every attribute of every submodule but `training` and torch's own: numbers,
    text, tensors, arrays, data types, devices, modules, and lists, tuples, sets and dictionaries of them by value,
    functions and classes by their name, everything else by the name of its type. Buffers that are not saved with the
    weights are covered too; mean and standard deviation often are such.

    An attribute that changes with use, such as a counter of calls, changes the hash, and what was cached is built
    again: slower, and never wrong. Keep such an attribute in an object of its own. The code of `forward` is not
    hashed: after changing it, give the class another name or the cache another folder.
    """
    state = hashlib.blake2b(digest_size=16)
    _update_by_module(state, module, ())
    return state.hexdigest()


def _update_by_module(state: "hashlib.blake2b", module: nn.Module, inside: tuple[int, ...]) -> None:
    # Some modules show functions in their `repr`, by their address, which is another one in every process.
    shown = _ADDRESS.sub("", repr(module))
    state.update(f"{_type_name(module)}\n{shown}".encode())
    for name, submodule in module.named_modules():
        attributes = {key: value for key, value in vars(submodule).items() if key not in _BOOKKEEPING}
        state.update(f"{name}: {_type_name(submodule)}".encode())
        _update(state, attributes, (*inside, id(module)))
    tensors = {**module.state_dict(), **dict(module.named_buffers())}
    _update(state, tensors, (*inside, id(module)))


def _update(state: "hashlib.blake2b", value: object, inside: tuple[int, ...]) -> None:
    """Add a value to a hash, after a tag that keeps values of different kinds apart.

    Args:
        state: The hash.
        value: The value.
        inside: Identities of the containers that it lies in; what contains itself would have no end.
    """
    if id(value) in inside:
        _tag(state, "cycle", inside.index(id(value)))
    elif isinstance(value, Enum):
        _tag(state, _type_name(value), value.name)
    elif value is None or isinstance(value, _BY_REPR):
        _tag(state, type(value).__name__, value)
    elif isinstance(value, Tensor):
        _update_by_tensor(state, value)
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        _tag(state, "array", digest_array(value))
    elif isinstance(value, nn.Module):
        _update_by_module(state, value, inside)
    elif isinstance(value, (Mapping, list, tuple, set, frozenset)):
        _update_by_parts(state, value, (*inside, id(value)))
    elif isinstance(value, (type, FunctionType, BuiltinFunctionType)):
        _tag(state, "named", f"{value.__module__}.{value.__qualname__}")
    else:
        _tag(state, "object", _type_name(value))


def _update_by_parts(state: "hashlib.blake2b", value: Collection[object], inside: tuple[int, ...]) -> None:
    """Add a container; dictionaries and sets in the order of their keys' hashes, because theirs may differ."""
    if isinstance(value, Mapping):
        parts = sorted(_digest(key, inside) + _digest(part, inside) for key, part in value.items())
    elif isinstance(value, (set, frozenset)):
        parts = sorted(_digest(part, inside) for part in value)
    else:
        parts = [_digest(part, inside) for part in value]
    _tag(state, type(value).__name__, len(parts))
    state.update("".join(parts).encode())


def _digest(value: object, inside: tuple[int, ...]) -> str:
    state = hashlib.blake2b(digest_size=16)
    _update(state, value, inside)
    return state.hexdigest()


def _update_by_tensor(state: "hashlib.blake2b", tensor: Tensor) -> None:
    _tag(state, "tensor", f"{tensor.dtype}{tuple(tensor.shape)}")
    if tensor.is_meta:
        return
    values = tensor.detach().cpu()
    if values.is_quantized:
        values = values.dequantize()
    elif values.layout is not torch.strided:
        values = values.to_dense()
    # Reinterpreted as bytes, because NumPy has no bfloat16.
    flat = values.resolve_conj().resolve_neg().contiguous().reshape(-1)
    state.update(flat.view(torch.uint8).numpy().data)


def _tag(state: "hashlib.blake2b", kind: str, value: object) -> None:
    text = repr(value).encode()
    # The length first: two values in a row must not read as two others.
    state.update(f"{kind}:{len(text)}:".encode() + text)


def _type_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def combine(parts: Mapping[str, object]) -> str:
    """Return the fingerprint of named parts, each of which JSON can write.

    Example:
        >>> combine({"a": 1, "b": 2}) == combine({"b": 2, "a": 1})
        True
    """
    text = json.dumps({"format_version": FORMAT_VERSION, **parts}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
