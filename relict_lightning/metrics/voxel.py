"""How alike pairs of images are voxel by voxel, on average: the metrics of `relict_lightning.functional.voxel`.

Each averages its functional twin over pairs. `update` and `forward` take the mask by keyword, if there is
one. Measures of errors average to infinity where a mask was empty, so leave such pairs out beforehand.
"""

from collections.abc import Sequence
from typing import Any, final

from relict_lightning.functional.validation import check_data_range
from relict_lightning.functional.voxel import (
    local_normalized_cross_correlation,
    mean_absolute_error,
    multiscale_structural_similarity,
    normalized_cross_correlation,
    normalized_mutual_information,
    peak_signal_noise_ratio,
    root_mean_squared_error,
    structural_similarity,
)
from relict_lightning.functional.voxel.information import Normalization, check_information_settings
from relict_lightning.functional.voxel.structure import (
    check_multiscale_settings,
    check_structural_similarity_settings,
)
from relict_lightning.functional.voxel.windows import check_window
from relict_lightning.metrics.mean import MeanOverPairs


@final
class MeanAbsoluteError(MeanOverPairs):
    """Mean absolute difference of `(generated, training)` pairs, in units of intensity.

    `update(generated, training)` takes images `[n, c, *spatial]`. Smaller is more alike.

    Args:
        **kwargs: Passed on to `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = MeanAbsoluteError()
        >>> metric.update(torch.tensor([[[[3.0, -4.0]]]]), torch.zeros(1, 1, 1, 2))
        >>> metric.compute()
        tensor(3.5000)
    """

    higher_is_better = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(mean_absolute_error, {}, **kwargs)


@final
class RootMeanSquaredError(MeanOverPairs):
    """Mean, over pairs, of the root of the mean squared difference, in units of intensity.

    `update(generated, training)` takes images `[n, c, *spatial]`. Smaller is more alike. The root is taken of
    each pair, not of all of them together.

    Args:
        **kwargs: Passed on to `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = RootMeanSquaredError()
        >>> metric.update(torch.tensor([[[[3.0, 4.0]]], [[[0.0, 0.0]]]]), torch.zeros(2, 1, 1, 2))
        >>> metric.compute()
        tensor(1.7678)
    """

    higher_is_better = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(root_mean_squared_error, {}, **kwargs)


@final
class PeakSignalNoiseRatio(MeanOverPairs):
    """Mean peak signal-to-noise ratio of `(generated, training)` pairs, in decibels.

    `update(generated, training)` takes images `[n, c, *spatial]`. Larger is more alike. One identical pair
    makes the mean infinite.

    Args:
        data_range: Largest minus smallest value that an image can take.
        **kwargs: Passed on to `torchmetrics.Metric`.

    Raises:
        ConfigurationError: If `data_range` is not positive and finite.

    Example:
        >>> import torch
        >>> metric = PeakSignalNoiseRatio(data_range=2.5)
        >>> metric.update(torch.full((1, 1, 2, 2), 0.25), torch.zeros(1, 1, 2, 2))
        >>> metric.compute()
        tensor(20.)
    """

    def __init__(self, *, data_range: float, **kwargs: Any) -> None:
        check_data_range(data_range)
        super().__init__(peak_signal_noise_ratio, {"data_range": data_range}, **kwargs)


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
        super().__init__(normalized_cross_correlation, {}, **kwargs)


@final
class LocalNormalizedCrossCorrelation(MeanOverPairs):
    """Mean local correlation of `(generated, training)` pairs, in [-1, 1].

    `update(generated, training)` takes images `[n, c, *spatial]`. Larger is more alike. A constant image counts as 0.

    Args:
        window: Side of the window in voxels, odd; shrinks along shorter axes.
        squared: Whether to average squared correlations.
        **kwargs: Passed on to `torchmetrics.Metric`.

    Raises:
        ConfigurationError: If `window` is not odd and positive.

    Example:
        >>> import torch
        >>> metric = LocalNormalizedCrossCorrelation(window=5)
        >>> image = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> metric.update(image + 2, image)
        >>> metric.compute().round(decimals=4)
        tensor(1.)

    References:
        Avants, Epstein, Grossman, Gee (2008), Symmetric diffeomorphic image registration with cross-correlation,
        doi:10.1016/j.media.2007.06.004.
    """

    plot_lower_bound = -1.0
    plot_upper_bound = 1.0

    def __init__(self, *, window: int = 9, squared: bool = False, **kwargs: Any) -> None:
        check_window(window)
        super().__init__(local_normalized_cross_correlation, {"window": window, "squared": squared}, **kwargs)


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

    plot_lower_bound = -1.0
    plot_upper_bound = 1.0

    def __init__(self, *, data_range: float, window: int = 11, sigma: float = 1.5, **kwargs: Any) -> None:
        check_structural_similarity_settings(data_range=data_range, window=window, sigma=sigma)
        super().__init__(structural_similarity, {"data_range": data_range, "window": window, "sigma": sigma}, **kwargs)


@final
class MultiscaleStructuralSimilarity(MeanOverPairs):
    """Mean structural similarity over several resolutions (MS-SSIM) of `(generated, training)` pairs, in [0, 1].

    `update(generated, training)` takes images `[n, c, *spatial]`. Larger is more alike. Images of different
    sizes have different scales, unless `weights` say how many.

    Args:
        data_range: Largest minus smallest value that an image can take.
        window: Side of the Gaussian window in voxels, odd; shrinks along shorter axes.
        sigma: Standard deviation of the Gaussian in voxels.
        weights: One weight per scale, finest first; by default as many scales as fit, at most five.
        **kwargs: Passed on to `torchmetrics.Metric`.

    Raises:
        ConfigurationError: If `data_range`, `sigma` or a weight is not positive, or `window` is not odd and positive.

    Example:
        >>> import torch
        >>> metric = MultiscaleStructuralSimilarity(data_range=1.0)
        >>> image = torch.linspace(0, 1, 1024).reshape(1, 1, 32, 32)
        >>> metric.update(image, image)
        >>> metric.compute()
        tensor(1.)

    References:
        Wang, Simoncelli, Bovik (2003), Multiscale structural similarity for image quality assessment,
        doi:10.1109/ACSSC.2003.1292216.
    """

    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(
        self,
        *,
        data_range: float,
        window: int = 11,
        sigma: float = 1.5,
        weights: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        check_multiscale_settings(data_range=data_range, window=window, sigma=sigma, weights=weights)
        super().__init__(
            multiscale_structural_similarity,
            {
                "data_range": data_range,
                "window": window,
                "sigma": sigma,
                "weights": None if weights is None else tuple(weights),
            },
            **kwargs,
        )


@final
class NormalizedMutualInformation(MeanOverPairs):
    """Mean normalized mutual information of `(generated, training)` pairs, in [1, 2] or in [0, 1].

    `update(generated, training)` takes images `[n, c, *spatial]`. Larger is more alike. A constant image has
    the smallest value.

    Args:
        bins: Number of equal bins of each histogram.
        normalization: "studholme", in [1, 2], or "arithmetic", in [0, 1].
        **kwargs: Passed on to `torchmetrics.Metric`.

    Raises:
        ConfigurationError: If `bins` is less than 2 or `normalization` is unknown.

    Example:
        >>> import torch
        >>> metric = NormalizedMutualInformation(bins=4)
        >>> image = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
        >>> metric.update(1 - image, image)
        >>> metric.compute()
        tensor(2.)

    References:
        Studholme, Hill, Hawkes (1999), An overlap invariant entropy measure of 3D medical image alignment,
        doi:10.1016/S0031-3203(98)00091-0.
    """

    def __init__(self, *, bins: int = 100, normalization: Normalization = "studholme", **kwargs: Any) -> None:
        check_information_settings(bins=bins, normalization=normalization)
        super().__init__(normalized_mutual_information, {"bins": bins, "normalization": normalization}, **kwargs)
