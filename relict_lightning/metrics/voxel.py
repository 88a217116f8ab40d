"""How alike pairs of images are voxel by voxel, on average: the metrics of `relict_lightning.functional.voxel`."""

from typing import Any, final

from jaxtyping import Float
from torch import Tensor

from relict_lightning.functional.voxel import normalized_cross_correlation, structural_similarity
from relict_lightning.functional.voxel.structure import check_structural_similarity_settings
from relict_lightning.metrics.mean import MeanOverPairs


@final
class NormalizedCrossCorrelation(MeanOverPairs):
    """Mean Pearson correlation of `(generated, training)` pairs, in [-1, 1].

    `update(generated, training)` takes images `[n, c, *spatial]`. Larger is more alike. A constant image counts as 0.

    Args:
        **kwargs: Passed on to `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = NormalizedCrossCorrelation()
        >>> image = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
        >>> metric.update(torch.cat([image, -image]), torch.cat([image, image]))
        >>> metric.compute()
        tensor(0.)
    """

    plot_lower_bound = -1.0
    plot_upper_bound = 1.0

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(settings={}, **kwargs)

    def measure(
        self, generated: Float[Tensor, "n c *spatial"], training: Float[Tensor, "n c *spatial"]
    ) -> Float[Tensor, " n"]:
        """Return `normalized_cross_correlation` of each pair."""
        return normalized_cross_correlation(generated, training)


@final
class StructuralSimilarity(MeanOverPairs):
    """Mean structural similarity (SSIM) of `(generated, training)` pairs, at most 1.

    `update(generated, training)` takes images `[n, c, *spatial]`. Larger is more alike. Pairs of blank images count
    as 1.

    Args:
        data_range: Largest minus smallest value that an image can take.
        window: Side of the Gaussian window in voxels, odd; shrinks along shorter axes.
        sigma: Standard deviation of the Gaussian in voxels.
        **kwargs: Passed on to `torchmetrics.Metric`.

    Raises:
        ConfigurationError: If `data_range` or `sigma` is not positive, or `window` is not odd and positive.

    Example:
        >>> import torch
        >>> metric = StructuralSimilarity(data_range=1.0)
        >>> image = torch.linspace(0, 1, 256).reshape(1, 1, 16, 16)
        >>> metric.update(image, image)
        >>> metric.compute()
        tensor(1.)

    References:
        Wang, Bovik, Sheikh, Simoncelli (2004), Image quality assessment: from error visibility to structural
        similarity, doi:10.1109/TIP.2003.819861.
    """

    def __init__(self, *, data_range: float, window: int = 11, sigma: float = 1.5, **kwargs: Any) -> None:
        super().__init__(settings={"data_range": data_range, "window": window, "sigma": sigma}, **kwargs)
        check_structural_similarity_settings(data_range=data_range, window=window, sigma=sigma)
        self.data_range = data_range
        self.window = window
        self.sigma = sigma

    def measure(
        self, generated: Float[Tensor, "n c *spatial"], training: Float[Tensor, "n c *spatial"]
    ) -> Float[Tensor, " n"]:
        """Return `structural_similarity` of each pair."""
        return structural_similarity(
            generated, training, data_range=self.data_range, window=self.window, sigma=self.sigma
        )
