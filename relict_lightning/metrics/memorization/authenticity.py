"""Which share of the samples is authentic, with that of held-out images beside it. States are counts."""

from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from relict_lightning.functional.memorization.authenticity import authentic_share, warn_without_control
from relict_lightning.functional.statistics import estimate_rate
from relict_lightning.metrics.base import ReplicaMetric
from relict_lightning.results import AuthenticityEstimate


@final
class Authenticity(ReplicaMetric):
    """Share of the samples that lie farther from their nearest training image than that does from its own (AuthPct).

    `update(generated_distances, reference_distances)` takes what `nearest_training_distances` returns for samples, and
    `update_control` the same for held-out images. Larger is better, in [0, 1]; but what the share is without copying
    depends on the dimension and the size of the training set, so look at `estimate()`, which has the control.

    Args:
        confidence: Coverage of the intervals that `estimate` gives.
        **kwargs: Passed on to `torchmetrics.Metric`.

    Raises:
        ConfigurationError: If `confidence` lies outside (0, 1).

    Example:
        >>> metric = Authenticity()
        >>> metric.update(torch.tensor([0.0, 0.1, 3.0, 0.2]), torch.tensor([2.0, 2.0, 2.0, 1.0]))
        >>> metric.update_control(torch.tensor([2.5, 1.5, 3.0, 2.2]), torch.tensor([2.0, 2.0, 2.0, 1.0]))
        >>> metric.compute()
        tensor(0.2500)
        >>> str(metric.estimate().control)
        '3/4 = 75.0 % [19.4 %, 99.4 %]'

    References:
        Alaa, van Breugel, Saveliev, van der Schaar (2022), How faithful is your synthetic data? Sample-level metrics
        for evaluating and auditing generative models, arXiv:2102.08921.
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    authentic: Tensor
    samples: Tensor
    authentic_controls: Tensor
    controls: Tensor

    def __init__(self, *, confidence: float = 0.95, **kwargs: Any) -> None:
        super().__init__(settings={}, **kwargs)
        estimate_rate(0, 0, confidence=confidence)
        self.confidence = confidence
        for name in ("authentic", "samples", "authentic_controls", "controls"):
            self.add_state(name, default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, generated_distances: Float[Tensor, " n"], reference_distances: Float[Tensor, " n"]) -> None:
        """Add a batch of samples.

        Args:
            generated_distances: Distance of each sample to its nearest training image.
            reference_distances: Distance of that training image to its nearest one of another group.
        """
        names = ("generated_distances", "reference_distances")
        share = authentic_share(generated_distances, reference_distances, names=names)
        self.authentic += share.successes
        self.samples += share.trials

    def update_control(
        self, heldout_distances: Float[Tensor, " n"], heldout_reference_distances: Float[Tensor, " n"]
    ) -> None:
        """Add a batch of held-out images, which `compute` does not count.

        Args:
            heldout_distances: Distance of each held-out image to its nearest training image.
            heldout_reference_distances: Distance of that training image to its nearest one of another group.
        """
        names = ("heldout_distances", "heldout_reference_distances")
        share = authentic_share(heldout_distances, heldout_reference_distances, names=names)
        self.authentic_controls += share.successes
        self.controls += share.trials

    def value(self) -> Tensor:
        """Return the share of the samples, NaN without samples."""
        return self.authentic / self.samples

    def estimate(self) -> AuthenticityEstimate:
        """Return both shares with exact intervals, over all processes. Every process must call it.

        Without held-out images the control is None, and a `RelictWarning` says that the value says nothing.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self.sync_on_compute, should_unsync=True):
            value = estimate_rate(int(self.authentic), int(self.samples), confidence=self.confidence)
            controls = int(self.controls)
            control = estimate_rate(int(self.authentic_controls), controls, confidence=self.confidence)
        if controls == 0:
            warn_without_control(value)
            return AuthenticityEstimate(value=value, control=None)
        return AuthenticityEstimate(value=value, control=control)
