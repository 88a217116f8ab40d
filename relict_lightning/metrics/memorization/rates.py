"""Which share of the samples copies, by one criterion or another. States are counts."""

from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from relict_lightning.functional.memorization import (
    closer_to_training_share,
    neighbor_ratio_fraction,
    replica_rate,
)
from relict_lightning.functional.statistics import estimate_rate
from relict_lightning.metrics.base import ReplicaMetric
from relict_lightning.results import RateEstimate


@final
class ReplicaRate(ReplicaMetric):
    """Share of the samples that score at least a threshold, in [0, 1].

    `update(scores)` takes one score per sample, larger for samples more like copies. Larger rates are worse.

    Args:
        threshold: Smallest score of a replica.
        confidence: Coverage of the interval that `estimate` gives.
        **kwargs: Passed on to `torchmetrics.Metric`.

    Raises:
        ConfigurationError: If `threshold` is NaN or `confidence` lies outside (0, 1).

    Example:
        >>> metric = ReplicaRate(threshold=0.9)
        >>> metric.update(torch.tensor([0.2, 0.9, 0.95, 0.3]))
        >>> metric.compute()
        tensor(0.5000)
        >>> str(metric.estimate())
        '2/4 = 50.0 % [6.8 %, 93.2 %]'
    """

    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    replicas: Tensor
    samples: Tensor

    def __init__(self, *, threshold: float, confidence: float = 0.95, **kwargs: Any) -> None:
        super().__init__(settings={"threshold": threshold}, **kwargs)
        replica_rate(torch.zeros(0), threshold, confidence=confidence)
        self.threshold = threshold
        self.confidence = confidence
        self.add_state("replicas", default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("samples", default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, scores: Float[Tensor, " n"]) -> None:
        """Add a batch of samples.

        Args:
            scores: Score of each sample.
        """
        rate = replica_rate(scores, self.threshold)
        self.replicas += rate.successes
        self.samples += rate.trials

    def value(self) -> Tensor:
        """Return the rate, NaN without samples."""
        return self.replicas / self.samples

    def estimate(self) -> RateEstimate:
        """Return the rate with its exact interval, over all processes. Every process must call it."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self.sync_on_compute, should_unsync=True):
            return estimate_rate(int(self.replicas), int(self.samples), confidence=self.confidence)


@final
class NeighborRatioFraction(ReplicaMetric):
    """Share of the samples whose neighbour ratio lies below a threshold (f_mem), in [0, 1].

    `update(ratios)` takes what `neighbor_ratio` returns; NaN entries are left out. Larger is worse.

    Args:
        threshold: Ratio below which a sample counts as memorized; 1/3 in the literature.
        **kwargs: Passed on to `torchmetrics.Metric`.

    Raises:
        ConfigurationError: If `threshold` is not positive.

    Example:
        >>> metric = NeighborRatioFraction()
        >>> metric.update(torch.tensor([0.1, 0.5, 0.9, float("nan"), 0.2]))
        >>> metric.compute()
        tensor(0.5000)

    References:
        Yoon, Choi, Kwon, Ryu (2023), Diffusion probabilistic models generalize when they fail to memorize, ICML
        workshop on structured probabilistic inference and generative modeling.
    """

    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    memorized: Tensor
    samples: Tensor

    def __init__(self, *, threshold: float = 1 / 3, **kwargs: Any) -> None:
        super().__init__(settings={"threshold": threshold}, **kwargs)
        neighbor_ratio_fraction(torch.zeros(0), threshold=threshold)
        self.threshold = threshold
        self.add_state("memorized", default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("samples", default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, ratios: Float[Tensor, " n"]) -> None:
        """Add a batch of samples.

        Args:
            ratios: Ratio of first to second distance of each sample.
        """
        fraction = neighbor_ratio_fraction(ratios, threshold=self.threshold)
        valid = int((~ratios.isnan()).sum())
        self.memorized += round(fraction * valid) if valid else 0
        self.samples += valid

    def value(self) -> Tensor:
        """Return the share, NaN without samples."""
        return self.memorized / self.samples


@final
class CloserToTrainingShare(ReplicaMetric):
    """Share of the samples that lie closer to training than to held-out images, ties counted one half, in [0, 1].

    `update(training_distances, heldout_distances)` takes the distances of each sample to its nearest image of either
    set. 0.5 is chance, if both sets are equally large; larger is worse.

    Args:
        **kwargs: Passed on to `torchmetrics.Metric`.

    Example:
        >>> metric = CloserToTrainingShare()
        >>> metric.update(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([2.0, 2.0, 2.0, 5.0]))
        >>> metric.compute()
        tensor(0.6250)
    """

    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    half_points: Tensor
    samples: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(settings={}, **kwargs)
        self.add_state("half_points", default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("samples", default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, training_distances: Float[Tensor, " n"], heldout_distances: Float[Tensor, " n"]) -> None:
        """Add a batch of samples.

        Args:
            training_distances: Distance of each sample to its nearest training image.
            heldout_distances: Distance of each sample to its nearest held-out image.
        """
        share = closer_to_training_share(training_distances, heldout_distances)
        count = training_distances.numel()
        self.half_points += round(2 * share * count) if count else 0
        self.samples += count

    def value(self) -> Tensor:
        """Return the share, NaN without samples."""
        return self.half_points / (2 * self.samples)
