"""How many training images and patients were replicated. The state is which: codes of those that samples match."""

from abc import ABC, abstractmethod
from typing import Any, final

import torch
from jaxtyping import Bool, Integer
from torch import Tensor

from relict_lightning.functional.memorization import unique_training_groups, unique_training_images
from relict_lightning.metrics.pooled import PooledNumbers


class _UniqueMatches(PooledNumbers, ABC):
    """Counts the different matches of replicas.

    Args:
        **kwargs: Passed on to `torchmetrics.Metric`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(names=["matches", "is_replica"], settings={}, **kwargs)

    @staticmethod
    @abstractmethod
    def count(matches: Integer[Tensor, " n"], is_replica: Bool[Tensor, " n"], /) -> int:
        """Return the number of different matches of replicas."""

    def value(self) -> Tensor:
        """Return the number; NaN without samples."""
        matches = self.pooled("matches")
        count = self.count(matches.long(), self.pooled("is_replica").bool()) if len(matches) else torch.nan
        return torch.tensor(count, dtype=torch.float32, device=matches.device)


@final
class UniqueTrainingImages(_UniqueMatches):
    """Number of different training images that samples replicate, at least 0. Larger is worse.

    `update(matches, is_replica)` takes the position of the training image that each sample matches, and whether it is a
    replica of it.

    Args:
        **kwargs: Passed on to `torchmetrics.Metric`.

    Example:
        >>> metric = UniqueTrainingImages()
        >>> metric.update(torch.tensor([4, 4]), torch.tensor([True, True]))
        >>> metric.update(torch.tensor([7, 9]), torch.tensor([True, False]))
        >>> metric.compute()
        tensor(2.)
    """

    count = staticmethod(unique_training_images)

    def update(self, matches: Integer[Tensor, " n"], is_replica: Bool[Tensor, " n"]) -> None:
        """Add a batch of samples.

        Args:
            matches: Position of the training image that each sample matches.
            is_replica: Whether the sample is a replica of it.
        """
        unique_training_images(matches, is_replica)
        self.append(matches=matches, is_replica=is_replica)


@final
class UniqueTrainingGroups(_UniqueMatches):
    """Number of different groups (patients) that samples replicate images of, at least 0. Larger is worse.

    `update(match_groups, is_replica)` takes the group of the training image that each sample matches, and whether it
    is a replica of it.

    Args:
        **kwargs: Passed on to `torchmetrics.Metric`.

    Example:
        >>> metric = UniqueTrainingGroups()
        >>> metric.update(torch.tensor([1, 1]), torch.tensor([True, True]))
        >>> metric.update(torch.tensor([1, 2]), torch.tensor([True, False]))
        >>> metric.compute()
        tensor(1.)
    """

    count = staticmethod(unique_training_groups)

    def update(self, match_groups: Integer[Tensor, " n"], is_replica: Bool[Tensor, " n"]) -> None:
        """Add a batch of samples.

        Args:
            match_groups: Group of the training image that each sample matches.
            is_replica: Whether the sample is a replica of it.
        """
        unique_training_groups(match_groups, is_replica)
        self.append(matches=match_groups, is_replica=is_replica)
