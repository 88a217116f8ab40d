"""The mean of a measure over every pair seen, by sum and count alone."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from relict_lightning.metrics.base import ReplicaMetric, plain


class MeanOverPairs(ReplicaMetric):
    """Averages a measure of `(generated, training)` pairs over all updates and processes.

    A pair has one value or, with `columns`, one per label. A value of NaN, which means that the measure is not defined
    for a pair, is left out. The mean is NaN as long as there is nothing to average.

    Args:
        measure: The functional twin.
        settings: What it takes beside the pairs, by name.
        columns: What the values of a pair stand for, such as labels; empty for one value, and a mean without axes.
        **kwargs: Passed on to `torchmetrics.Metric`.
    """

    total: Tensor
    pairs: Tensor

    def __init__(
        self,
        measure: Callable[..., Tensor],
        settings: Mapping[str, object],
        *,
        columns: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(settings=settings, **kwargs)
        self.measure = measure
        self.measured_with = dict(settings)
        self.value_names = tuple(columns)
        shape = (len(columns),) if columns else ()
        self.add_state("total", default=torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("pairs", default=torch.zeros(shape, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, *pairs: Tensor, **more: Any) -> None:
        """Add a batch of pairs.

        Args:
            *pairs: What the functional twin takes first: of the samples, then of the training images.
            **more: What else it takes of a batch, such as a mask.
        """
        values = plain(self.measure(*pairs, **more, **self.measured_with)).double()
        defined = ~values.isnan()
        self.total += values.masked_fill(~defined, 0.0).sum(dim=0)
        self.pairs += defined.sum(dim=0)

    def value(self) -> Tensor:
        """Return the mean over all pairs, NaN without pairs."""
        return (self.total / self.pairs).float()
