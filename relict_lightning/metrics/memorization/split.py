"""Whether the split into training and held-out patients matters to the samples, and to how many.

The p-value keeps three numbers of each sample, the rate keeps counts.
"""

import math
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from relict_lightning.functional.memorization import leaning_rate, memorization_p_value
from relict_lightning.functional.memorization.split import check_counts, check_split
from relict_lightning.functional.validation import check_same_length
from relict_lightning.metrics.base import ReplicaMetric
from relict_lightning.metrics.pooled import PooledNumbers
from relict_lightning.results import RateEstimate


@final
class MemorizationPValue(PooledNumbers):
    """Exact p-value of the hypothesis that the samples do not know which patients were trained on, in (0, 1].

    `update(weights, neighbor_groups, is_training)` takes what `memorization_p_value` takes. Smaller is stronger
    evidence of memorization.

    Args:
        training_groups: Number of groups in the training set.
        total_groups: Number of groups in training and held-out set together.
        **kwargs: Passed on to `torchmetrics.Metric`.

    Raises:
        ConfigurationError: If `training_groups` does not lie between 1 and `total_groups`.

    Example:
        >>> metric = MemorizationPValue(training_groups=5, total_groups=10)
        >>> metric.update(torch.ones(2), torch.tensor([4, 4]), torch.tensor([True, True]))
        >>> metric.update(torch.ones(1), torch.tensor([7]), torch.tensor([True]))
        >>> metric.compute()
        tensor(0.2222, dtype=torch.float64)
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(self, *, training_groups: int, total_groups: int, **kwargs: Any) -> None:
        super().__init__(
            names=["weights", "neighbor_groups", "is_training"],
            settings={"training_groups": training_groups, "total_groups": total_groups},
            **kwargs,
        )
        self.counts = {"training_groups": training_groups, "total_groups": total_groups}
        check_split(torch.zeros(0), torch.zeros(0), **self.counts)

    def update(
        self, weights: Float[Tensor, " n"], neighbor_groups: Integer[Tensor, " n"], is_training: Bool[Tensor, " n"]
    ) -> None:
        """Add a batch of samples.

        Args:
            weights: Weight of each sample in [0, 1].
            neighbor_groups: Group of the nearest neighbour of each sample.
            is_training: Whether that neighbour is a training image.
        """
        check_split(weights, neighbor_groups, **self.counts)
        check_same_length(weights, is_training, names=("weights", "is_training"))
        self.append(weights=weights, neighbor_groups=neighbor_groups, is_training=is_training)

    def value(self) -> Tensor:
        """Return the p-value, float64; NaN without samples."""
        weights = self.pooled("weights")
        p_value = math.nan
        if len(weights):
            p_value = memorization_p_value(
                weights,
                self.pooled("neighbor_groups").long(),
                is_training=self.pooled("is_training").bool(),
                **self.counts,
            )
        return torch.tensor(p_value, dtype=torch.float64, device=weights.device)


@final
class LeaningRate(ReplicaMetric):
    """Share of the samples that lean towards a training patient, beyond what chance accounts for, in [0, 1].

    `update(is_copylike, is_training)` takes what `leaning_rate` takes. Larger is worse.

    Args:
        training_groups: Number of groups in the training set.
        total_groups: Number of groups in training and held-out set together.
        **kwargs: Passed on to `torchmetrics.Metric`.

    Raises:
        ConfigurationError: If `training_groups` does not lie between 1 and `total_groups`.

    Example:
        >>> metric = LeaningRate(training_groups=5, total_groups=10)
        >>> metric.update(torch.tensor([True, True]), torch.tensor([True, True]))
        >>> metric.update(torch.tensor([True, False]), torch.tensor([False, True]))
        >>> metric.compute()
        tensor(0.2500)
    """

    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    copylike: Tensor
    towards_training: Tensor
    samples: Tensor

    def __init__(self, *, training_groups: int, total_groups: int, **kwargs: Any) -> None:
        super().__init__(settings={"training_groups": training_groups, "total_groups": total_groups}, **kwargs)
        check_counts(training_groups=training_groups, total_groups=total_groups)
        self.counts = {"training_groups": training_groups, "total_groups": total_groups}
        for name in ("copylike", "towards_training", "samples"):
            self.add_state(name, default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, is_copylike: Bool[Tensor, " n"], is_training: Bool[Tensor, " n"]) -> None:
        """Add a batch of samples.

        Args:
            is_copylike: Whether each sample is nearer to one patient than new patients are.
            is_training: Whether the nearest neighbour of each sample is a training image.
        """
        check_same_length(is_copylike, is_training, names=("is_copylike", "is_training"))
        self.copylike += is_copylike.sum()
        self.towards_training += (is_copylike & is_training).sum()
        self.samples += len(is_copylike)

    def value(self) -> Tensor:
        """Return the rate, NaN without samples."""
        return torch.tensor(self._rate().value, device=self.samples.device)

    def estimate(self) -> RateEstimate:
        """Return the rate with its exact interval, over all processes. Every process must call it."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self.sync_on_compute, should_unsync=True):
            return self._rate()

    def _rate(self) -> RateEstimate:
        position = torch.arange(int(self.samples))
        return leaning_rate(position < self.copylike.cpu(), position < self.towards_training.cpu(), **self.counts)
