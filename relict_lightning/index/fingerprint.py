"""Fingerprints: the hash that ties an index to its data, its preprocessing and its encoder."""

import hashlib
import json
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

FORMAT_VERSION = 1
"""Version of the files on disk; part of every fingerprint."""


def digest_array(array: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]") -> str:
    """Return the hash of an array's dtype, shape and values."""
    state = hashlib.blake2b(digest_size=16)
    state.update(f"{array.dtype.str}{array.shape}".encode())
    state.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return state.hexdigest()


def digest_module(module: nn.Module) -> str:
    """Return the hash of a module: its class, its configuration, and every parameter and buffer.

    Configuration is what `repr` shows, and each submodule's attributes that are plain values. The code of `forward` is
    not hashed: after changing it, give the class another name or the cache another folder.
    """
    state = hashlib.blake2b(digest_size=16)
    state.update(f"{type(module).__module__}.{type(module).__qualname__}\n{module!r}".encode())
    for name, submodule in module.named_modules():
        plain = sorted((key, value) for key, value in vars(submodule).items() if key != "training" and _is_plain(value))
        state.update(f"{name}: {plain}".encode())
    for name, tensor in sorted(module.state_dict().items()):
        state.update(name.encode())
        if isinstance(tensor, torch.Tensor):
            # Reinterpreted as bytes, because NumPy has no bfloat16.
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            state.update(str(tensor.dtype).encode() + str(tuple(tensor.shape)).encode())
            state.update(flat.view(torch.uint8).numpy().data)
        else:
            state.update(repr(tensor).encode())
    return state.hexdigest()


def _is_plain(value: object) -> bool:
    """Return whether a value's `repr` is the same in every process."""
    if isinstance(value, tuple):
        return all(_is_plain(part) for part in value)
    return isinstance(value, (bool, int, float, str))


def combine(parts: Mapping[str, object]) -> str:
    """Return the fingerprint of named parts, each of which JSON can write.

    Example:
        >>> combine({"a": 1, "b": 2}) == combine({"b": 2, "a": 1})
        True
    """
    text = json.dumps({"format_version": FORMAT_VERSION, **parts}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
