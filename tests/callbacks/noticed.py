"""What training would notice of somebody who looks at it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.utils.data import Dataset


class Recorded(Dataset):
    """Remembers the order in which it is read."""

    def __init__(self, images: Tensor, read: list[int]) -> None:
        self.images, self.read = images, read

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> Tensor:
        self.read.append(position)
        return self.images[position]


class Noticed(Callback):
    """Takes down all that a look at the model could move, before each training and validation batch."""

    def __init__(self, random_states: Callable[[], tuple[bytes, ...]]) -> None:
        self.random_states = random_states
        self.seen: list[Any] = []

    def _take_down(self, pl_module: Any) -> None:
        modes = [module.training for module in pl_module.modules()]
        self.seen.append((modes, torch.is_grad_enabled(), self.random_states()))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._take_down(pl_module)

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self._take_down(pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._take_down(pl_module)


def differences(watched: Mapping[str, Any], alone: Mapping[str, Any]) -> list[str]:
    """Return the names under which two runs differ by a bit; values are trees of tensors and primitives."""
    return [name for name in watched.keys() | alone.keys() if not _same(watched.get(name), alone.get(name))]


def _same(first: Any, second: Any) -> bool:
    leaves, others = (torch.utils._pytree.tree_leaves(tree) for tree in (first, second))
    return len(leaves) == len(others) and all(
        torch.equal(one, other) if isinstance(one, Tensor) else one == other
        for one, other in zip(leaves, others, strict=True)
    )
