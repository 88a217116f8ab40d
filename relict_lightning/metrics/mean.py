"""The mean of a measure over every pair seen, by sum and count alone."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric


class MeanOverPairs(Metric, ABC):
    """Averages a measure of `(generated, training)` pairs over all updates and processes.

    Subclasses say how a batch of pairs is measured. The mean is NaN before any pair was seen.
    """

    is_differentiable = False
    # The pairs are samples and training images: the more alike they are, the more a generator copies.
    higher_is_better = False
    full_state_update = False

    total: Tensor
    pairs: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("pairs", default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    @abstractmethod
    def measure(self, generated: Tensor, training: Tensor) -> Float[Tensor, " n"]:
        """Return one value per pair.

        Args:
            generated: What was made of the samples: images, or label maps.
            training: The same of the training images, one for each sample.
        """

    def update(self, generated: Tensor, training: Tensor) -> None:
        """Add a batch of pairs.

        Args:
            generated: What was made of the samples: images, or label maps.
            training: The same of the training images, one for each sample.
        """
        values = self.measure(generated, training)
        self.total += values.double().sum()
        self.pairs += len(values)

    def compute(self) -> Tensor:
        """Return the mean over all pairs, NaN without pairs."""
        return (self.total / self.pairs).float()
