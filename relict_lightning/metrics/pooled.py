"""Metrics of a whole set of numbers, such as ranks and p-values, which no sum can stand for."""

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from relict_lightning.metrics.base import ReplicaMetric, plain


class PooledNumbers(ReplicaMetric, ABC):
    """Keeps a few numbers per sample, and computes from all of them, over all updates and processes.

    Only numbers are kept: scores, distances, codes of groups; never an image or an embedding. They are float64, which
    holds codes of groups exactly, because torchmetrics fills in for a process without samples with the metric's own
    dtype, and processes can only exchange numbers of one dtype.

    Args:
        names: Names of the numbers.
        settings: What tells this metric from others of its class, by name.
        **kwargs: Passed on to `torchmetrics.Metric`.
    """

    def __init__(self, *, names: Sequence[str], settings: Mapping[str, object], **kwargs: Any) -> None:
        super().__init__(settings=settings, **kwargs)
        for name in names:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the numbers, whatever `half` or `float` is called on the metric or on a module that holds it."""
        return torch.float64

    def append(self, **numbers: Tensor) -> None:
        """Add numbers of a batch, each under its name, `[n]`."""
        for name, values in numbers.items():
            getattr(self, name).append(plain(values).double())

    def pooled(self, name: str) -> Tensor:
        """Return all numbers of one name, float64, `[n]`; empty before any update."""
        # After a synchronisation the state is one tensor, before it a list.
        state = getattr(self, name)
        if isinstance(state, Tensor):
            return state
        return torch.cat(state) if state else torch.zeros(0, dtype=torch.float64, device=self.device)
