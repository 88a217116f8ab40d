"""What the numbers promise: the metrics of `relict_lightning.functional.statistics`.

States are counts where counts will do. Where an order of all numbers is asked for, the numbers themselves are kept: one
p-value, or one score and rating, per sample.
"""

import math
from abc import ABC
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional.statistics import (
    area_under_roc,
    balanced_accuracy_at_optimal_threshold,
    benjamini_hochberg,
    conformal_p_value,
    estimate_rate,
)
from relict_lightning.functional.statistics.p_values import check_p_values
from relict_lightning.functional.statistics.ratings import check_ratings
from relict_lightning.metrics.base import ReplicaMetric
from relict_lightning.metrics.pooled import PooledNumbers
from relict_lightning.results import RateEstimate, RocAreaEstimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@final
class ClopperPearsonInterval(ReplicaMetric):
    """Exact (Clopper-Pearson) confidence interval of the share of samples that are called replicas.

    `update(called)` takes one decision per sample. `compute()` returns `[low, high]`, each in [0, 1]; larger is worse.

    Args:
        confidence: Coverage, between 0 and 1.
        **kwargs: Passed on to `torchmetrics.Metric`.

    Raises:
        ConfigurationError: If `confidence` lies outside (0, 1).

    Example:
        >>> metric = ClopperPearsonInterval()
        >>> metric.update(torch.zeros(50, dtype=torch.bool))
        >>> metric.compute()
        tensor([0.0000, 0.0711])
        >>> str(metric.estimate())
        '0/50 = 0.0 % [0.0 %, 7.1 %]'

    References:
        Clopper, Pearson (1934), The use of confidence or fiducial limits illustrated in the case of the binomial,
        doi:10.1093/biomet/26.4.404.
    """

    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    value_names = ("low", "high")

    replicas: Tensor
    samples: Tensor

    def __init__(self, *, confidence: float = 0.95, **kwargs: Any) -> None:
        super().__init__(settings={"confidence": confidence}, **kwargs)
        estimate_rate(0, 0, confidence=confidence)
        self.confidence = confidence
        self.add_state("replicas", default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("samples", default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, called: Bool[Tensor, " n"]) -> None:
        """Add a batch of samples.

        Args:
            called: Whether each sample is called a replica.
        """
        if called.dtype != torch.bool:
            raise ConfigurationError(
                f"called must be boolean, but has dtype {called.dtype}. Compare scores with a threshold, as in "
                f"`scores >= threshold`."
            )
        self.replicas += called.sum()
        self.samples += called.numel()

    def value(self) -> Tensor:
        """Return lower and upper bound, NaN without samples."""
        rate = self._rate()
        bounds = (rate.low, rate.high) if rate.trials else (math.nan, math.nan)
        return torch.tensor(bounds, device=self.device)

    def estimate(self) -> RateEstimate:
        """Return the rate with its interval, over all processes. Every process must call it."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self.sync_on_compute, should_unsync=True):
            return self._rate()

    def _rate(self) -> RateEstimate:
        return estimate_rate(int(self.replicas), int(self.samples), confidence=self.confidence)


@final
class ConformalPValue(ReplicaMetric):
    """Conformal p-values of all samples against a control of held-out images, the smallest first.

    `update(scores)` takes one score per sample, larger for samples more like copies. `compute()` returns one p-value
    per sample in (0, 1], float64, in ascending order; smaller is more unusual. A p-value says only how many of the
    control score at least as high, so the state is one count for each such number, however many samples there are.
    torchmetrics gives the p-value of a single sample without an axis.

    Args:
        control_scores: Scores of held-out images, one per group; at least one.
        **kwargs: Passed on to `torchmetrics.Metric`.

    Raises:
        MissingControlError: If there are no control scores.
        ConfigurationError: If a control score is NaN.

    Example:
        >>> metric = ConformalPValue(control_scores=[0.1, 0.5, 0.6])
        >>> metric.update(torch.tensor([0.5, 0.9]))
        >>> metric.compute()
        tensor([0.2500, 0.7500], dtype=torch.float64)

    References:
        Bates, Candès, Lei, Romano, Sesia (2023), Testing for outliers with conformal p-values,
        doi:10.1214/22-AOS2244.
    """

    # Smaller p-values mean more copying.
    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    control_scores: Tensor
    samples_by_rank: Tensor

    def __init__(self, *, control_scores: Float[Tensor, " m"] | Sequence[float], **kwargs: Any) -> None:
        control = torch.as_tensor(control_scores, dtype=torch.float64).detach()
        conformal_p_value(control[:0], control)
        control = control.sort().values
        super().__init__(settings={"control_scores": control.tolist()}, **kwargs)
        self.register_buffer("control_scores", control, persistent=False)
        # Entry k counts the samples that k of the control reach or exceed.
        self.add_state("samples_by_rank", default=torch.zeros(len(control) + 1, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, scores: Float[Tensor, " n"]) -> None:
        """Add a batch of samples.

        Args:
            scores: Score of each sample.
        """
        ranks = (conformal_p_value(scores, self.control_scores) * len(self.samples_by_rank)).round().long() - 1
        self.samples_by_rank += torch.bincount(ranks, minlength=len(self.samples_by_rank))

    def value(self) -> Tensor:
        """Return the p-values in ascending order; a single NaN without samples."""
        if not self.samples_by_rank.any():
            return torch.full((1,), torch.nan, dtype=torch.float64, device=self.device)
        ranks = torch.arange(1, len(self.samples_by_rank) + 1, dtype=torch.float64, device=self.device)
        return (ranks / len(self.samples_by_rank)).repeat_interleave(self.samples_by_rank)

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: "Axes | None" = None) -> Any:
        """Plot the p-values, without a legend: they are in order, and as many as samples."""
        figure, axes = super().plot(val, ax)
        if axes.get_legend() is not None:
            axes.get_legend().remove()
        return figure, axes


@final
class BenjaminiHochberg(PooledNumbers):
    """Share of the samples that are discoveries at a false discovery rate, in [0, 1].

    `update(p_values)` takes one p-value per sample. Which of them are discoveries depends on all of them, so all are
    kept, and the share of a batch says little of the share of the whole. Larger is worse.

    Args:
        fdr: False discovery rate, between 0 and 1.
        confidence: Coverage of the interval that `estimate` gives.
        **kwargs: Passed on to `torchmetrics.Metric`.

    Raises:
        ConfigurationError: If `fdr` or `confidence` lies outside (0, 1).

    Example:
        >>> metric = BenjaminiHochberg(fdr=0.1)
        >>> metric.update(torch.tensor([0.01, 0.5, 0.03, 0.9]))
        >>> metric.compute()
        tensor(0.5000)
        >>> metric.discoveries()
        tensor([ True, False,  True, False])
        >>> str(metric.estimate())
        '2/4 = 50.0 % [6.8 %, 93.2 %]'

    References:
        Benjamini, Hochberg (1995), Controlling the false discovery rate,
        doi:10.1111/j.2517-6161.1995.tb02031.x.
    """

    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(self, *, fdr: float = 0.05, confidence: float = 0.95, **kwargs: Any) -> None:
        super().__init__(names=["p_values"], settings={"fdr": fdr}, **kwargs)
        benjamini_hochberg(torch.zeros(0), fdr=fdr)
        estimate_rate(0, 0, confidence=confidence)
        self.fdr = fdr
        self.confidence = confidence

    def update(self, p_values: Float[Tensor, " n"]) -> None:
        """Add a batch of samples.

        Args:
            p_values: P-value of each sample, in [0, 1].
        """
        check_p_values(p_values)
        self.append(p_values=p_values)

    def value(self) -> Tensor:
        """Return the share, NaN without samples."""
        return self._called().float().mean()

    def discoveries(self) -> Bool[Tensor, " n"]:
        """Return which samples are discoveries, over all processes. Every process must call it.

        Samples are in the order of the updates, those of the first process first; none before any update.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self.sync_on_compute, should_unsync=True):
            return self._called()

    def estimate(self) -> RateEstimate:
        """Return the share with its exact interval, over all processes. Every process must call it."""
        called = self.discoveries()
        return estimate_rate(int(called.sum()), len(called), confidence=self.confidence)

    def _called(self) -> Bool[Tensor, " n"]:
        return benjamini_hochberg(self.pooled("p_values"), fdr=self.fdr)


class _RatedScores(PooledNumbers, ABC):
    """Keeps scores and expert ratings.

    Args:
        **kwargs: Passed on to `torchmetrics.Metric`.
    """

    higher_is_better = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(names=["scores", "labels"], settings={}, **kwargs)

    def update(self, scores: Float[Tensor, " n"], labels: Bool[Tensor, " n"]) -> None:
        """Add a batch of images.

        Args:
            scores: Score of each image, larger is more like a copy.
            labels: Its rating, True for a copy.
        """
        check_ratings(scores, labels, minimum=0)
        self.append(scores=scores, labels=labels)

    def ratings(self) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]] | None:
        """Return all scores and ratings; None without ratings of both kinds."""
        scores, labels = self.pooled("scores"), self.pooled("labels") > 0
        return (scores, labels) if labels.any() and not labels.all() else None


@final
class BalancedAccuracyAtOptimalThreshold(_RatedScores):
    """Balanced accuracy of scores on expert ratings, at the threshold that is best on them, in [0.5, 1].

    `update(scores, labels)` takes the score of each image and whether it is rated a copy. Larger is better. As long as
    only one kind of rating has come, no accuracy is defined and the value is NaN. The value flatters; see
    `out_of_sample_balanced_accuracy`.

    Args:
        **kwargs: Passed on to `torchmetrics.Metric`.

    Example:
        >>> metric = BalancedAccuracyAtOptimalThreshold()
        >>> metric.update(torch.tensor([0.25, 0.5, 0.75, 1.0]), torch.tensor([False, False, True, True]))
        >>> metric.compute(), metric.threshold()
        (tensor(1.), 0.625)

    References:
        RELICT (2025), arXiv:2502.17360.
    """

    plot_lower_bound = 0.5
    plot_upper_bound = 1.0

    def value(self) -> Tensor:
        """Return the balanced accuracy, NaN without ratings of both kinds."""
        return torch.tensor(self._optimum()[0], device=self.device)

    def threshold(self) -> float:
        """Return the threshold, over all processes; NaN without ratings of both kinds. Every process must call it.

        Scores are kept in float64: compare them with it in that precision.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self.sync_on_compute, should_unsync=True):
            return self._optimum()[1]

    def _optimum(self) -> tuple[float, float]:
        ratings = self.ratings()
        return (math.nan, math.nan) if ratings is None else balanced_accuracy_at_optimal_threshold(*ratings)


@final
class AreaUnderRoc(_RatedScores):
    """Area under the ROC curve of scores on expert ratings, in [0, 1].

    `update(scores, labels)` takes the score of each image and whether it is rated a copy. Larger is better, 0.5 is
    chance. As long as only one kind of rating has come, no area is defined and the value is NaN.
    `torchmetrics.classification.BinaryAUROC` has no interval; `estimate` gives DeLong's.

    Args:
        confidence: Coverage of the interval that `estimate` gives.
        **kwargs: Passed on to `torchmetrics.Metric`.

    Raises:
        ConfigurationError: If `confidence` lies outside (0, 1).

    Example:
        >>> metric = AreaUnderRoc()
        >>> metric.update(torch.tensor([0.1, 0.4, 0.35]), torch.tensor([False, False, True]))
        >>> metric.update(torch.tensor([0.8, 0.3, 0.7]), torch.tensor([True, False, True]))
        >>> metric.compute()
        tensor(0.8889)
        >>> str(metric.estimate())
        '0.889 [0.581, 1.000]'

    References:
        DeLong, DeLong, Clarke-Pearson (1988), Comparing the areas under two or more correlated receiver operating
        characteristic curves, doi:10.2307/2531595.
    """

    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(self, *, confidence: float = 0.95, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        estimate_rate(0, 0, confidence=confidence)
        self.confidence = confidence

    def value(self) -> Tensor:
        """Return the area, NaN without ratings of both kinds."""
        return torch.tensor(self._area().value, device=self.device)

    def estimate(self) -> RocAreaEstimate:
        """Return the area with its interval, over all processes. Every process must call it.

        Without ratings of both kinds the area is NaN and the interval [0, 1].
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self.sync_on_compute, should_unsync=True):
            return self._area()

    def _area(self) -> RocAreaEstimate:
        ratings = self.ratings()
        if ratings is None:
            return RocAreaEstimate(value=math.nan, low=0.0, high=1.0, confidence=self.confidence)
        return area_under_roc(*ratings, confidence=self.confidence)
