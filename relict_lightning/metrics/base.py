"""What every metric of this package shares: metrics that differ are never taken for one, and each can be plotted."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchmetrics import Metric

from relict_lightning.errors import ConfigurationError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DIGEST_BYTES = 16


class ReplicaMetric(Metric, ABC):
    """Base of the metrics of this package.

    A `torchmetrics.MetricCollection` merges metrics whose states are equal after the first update, for good; both then
    report the value of one of them. Two thresholds of one rate often tie on a first batch, and so do two similarities
    of exact copies. Here the settings are part of the state, so only metrics that compute the same are merged.

    Args:
        settings: What tells this metric from others of its class, by name.
        **kwargs: Passed on to `torchmetrics.Metric`.

    References:
        https://github.com/Lightning-AI/torchmetrics/issues/2916
    """

    is_differentiable = False
    # Larger values mean more copying, unless a subclass says otherwise.
    higher_is_better = False
    full_state_update = False
    # Subclasses set the bounds of the plot where a value has two. At a single one torchmetrics cuts points in half.

    # What the entries of a value that has several stand for; empty for a value of one number.
    value_names: Sequence[str] = ()

    settings_digest: Tensor

    def __init__(self, *, settings: Mapping[str, object], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        digest = hashlib.sha256(repr((type(self).__qualname__, sorted(settings.items()))).encode()).digest()
        self._own_digest = list(digest[:_DIGEST_BYTES])
        self.add_state("settings_digest", default=torch.tensor(self._own_digest), dist_reduce_fx="max")

    @abstractmethod
    def value(self) -> Tensor:
        """Return what all samples so far amount to; NaN without samples."""

    def compute(self) -> Tensor:
        """Return the value over all updates and processes; NaN without samples.

        Raises:
            ConfigurationError: If the state came from a metric with other settings, by `load_state_dict`.
        """
        if self.settings_digest.tolist() != self._own_digest:
            raise ConfigurationError(
                f"The state of this {type(self).__name__} was accumulated under other settings than it now has. Load "
                f"it into a metric with the settings that it was saved with."
            )
        return self.value()

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: "Axes | None" = None) -> Any:
        """Plot one value, or a series of values.

        Args:
            val: What `compute` or `forward` returned, or a sequence of that; by default what `compute` returns now.
            ax: The matplotlib axes to draw into; by default new ones.

        Returns:
            Figure and axes; the figure is None where `ax` was given.
        """
        val = self.compute() if val is None else val
        if len(self.value_names) < 2:
            return self._plot(val, ax)
        named = [
            dict(zip(self.value_names, value, strict=True)) for value in ([val] if isinstance(val, Tensor) else val)
        ]
        return self._plot(named[0] if isinstance(val, Tensor) else named, ax)


def plain(values: Tensor) -> Tensor:
    """Return the numbers alone: without their graph, and without what a `MetaTensor` says of the patient's file.

    Args:
        values: Numbers that go into a state, and with it into checkpoints.

    Example:
        >>> from monai.data import MetaTensor
        >>> type(plain(MetaTensor(torch.zeros(2))))
        <class 'torch.Tensor'>
    """
    return values.detach().as_subclass(Tensor)
