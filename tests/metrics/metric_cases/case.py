from collections.abc import Callable
from dataclasses import dataclass

import torch
from torchmetrics import Metric


@dataclass(frozen=True, kw_only=True)
class Case:
    """A metric, samples that it takes, and what its functional twin says of them.

    Attributes:
        metric: Makes the metric.
        samples: Makes what `update` takes, from a seed and a number of samples; the first axis counts samples.
        twin: The value of all samples together.
        other: Makes a metric of the class with other settings; None where there are no settings.
    """

    metric: Callable[[], Metric]
    samples: Callable[[int, int], tuple[torch.Tensor, ...]]
    twin: Callable[..., float | torch.Tensor]
    other: Callable[[], Metric] | None = None


def vectors(seed: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two vectors of numbers in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, generator=generator), torch.rand(n, generator=generator)


def embeddings(seed: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return embeddings of samples and of training images."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 12, generator=generator), torch.randn(n, 12, generator=generator)


def images(seed: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pairs of images."""
    generator = torch.Generator().manual_seed(seed)
    training = torch.rand(n, 1, 12, 12, generator=generator)
    return 0.5 * training + 0.5 * torch.rand(n, 1, 12, 12, generator=generator), training


def label_maps(seed: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pairs of label maps."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 4, (n, 6, 6), generator=generator), torch.randint(0, 4, (n, 6, 6), generator=generator)
