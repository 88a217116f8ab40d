"""The mean of a measure over every pair seen, by sum and count alone."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from relict_lightning.metrics.base import ReplicaMetric


class MeanOverPairs(ReplicaMetric, ABC):
    """Averages a measure of `(generated, training)` pairs over all updates and processes.

    Subclasses say how a batch of pairs is measured, one value per pair or, with `columns`, one per pair and label. A
    value of NaN, which means that the measure is not defined for a pair, is left out. The mean is NaN as long as there
    is nothing to average.

    Args:
        settings: What tells this metric from others of its class, by name.
        columns: Number of values per pair; None for one value, and a mean without axes.
        **kwargs: Passed on to `torchmetrics.Metric`.
    """

    total: Tensor
    pairs: Tensor

    def __init__(self, *, settings: Mapping[str, object], columns: int | None = None, **kwargs: Any) -> None:
        super().__init__(settings=settings, **kwargs)
        shape = () if columns is None else (columns,)
        self.add_state("total", default=torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("pairs", default=torch.zeros(shape, dtype=torch.long), dist_reduce_fx="sum")

    @abstractmethod
    def measure(self, *args: Any, **kwargs: Any) -> Float[Tensor, "n *columns"]:
        """Return one value per pair, or one per pair and column; takes what `update` takes."""

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Add a batch of pairs.

        Args:
            *args: What the functional twin takes: of samples first, then of training images.
            **kwargs: The same, by keyword.
        """
        values = self.measure(*args, **kwargs).double()
        defined = ~values.isnan()
        self.total += values.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf).sum(dim=0)
        self.pairs += defined.sum(dim=0)

    def value(self) -> Tensor:
        """Return the mean over all pairs, NaN without pairs."""
        return (self.total / self.pairs).float()
