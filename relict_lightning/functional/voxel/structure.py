"""How alike the local structure of two images is.

Conventions: pairs are `(generated, training)`, `[n, c, *spatial]` with two or three spatial axes, any floating dtype,
computed in float32. One value per pair comes back; the value of an empty batch is an empty vector. The window and the
data range are stated, never guessed from the images.

- `structural_similarity`: mean local SSIM, at most 1; larger is more alike.
- `multiscale_structural_similarity`: the same over several resolutions, in [0, 1]; larger is more alike.

MONAI's are the same numbers by a dense window, which costs 11 * 11 * 11 products per voxel of a volume where three
times 11 do, and which is off by some 1e-5 because its float32 weights do not quite sum to one; it refuses images that
are smaller than its window at any of five scales. torchmetrics' average over a mirrored border as well.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as nnf

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional.validation import check_data_range, check_mask, check_pairs
from relict_lightning.functional.voxel.masked import masked_mean
from relict_lightning.functional.voxel.windows import (
    check_window,
    gaussian_band,
    images_per_chunk,
    local_means,
    mask_of_positions,
)

# The constants of Wang et al. 2004, as fractions of the data range.
_LUMINANCE_CONSTANT = 0.01
_CONTRAST_CONSTANT = 0.03
# The weights of Wang et al. 2003, from the finest scale to the coarsest.
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def structural_similarity(
    generated: Float[Tensor, "n c *spatial"],
    training: Float[Tensor, "n c *spatial"],
    *,
    data_range: float,
    window: int = 11,
    sigma: float = 1.5,
    mask: Bool[Tensor, "#n #c *spatial"] | None = None,
) -> Float[Tensor, " n"]:
    """Return the mean structural similarity (SSIM) of each pair.

    Local means, variances and the covariance are taken under a Gaussian window, with the population form of the
    covariance, at every position at which the window lies inside the image, and SSIM is averaged over positions and
    channels. Two blank images of one value are identical, and the formula gives them 1: that is no evidence of copying,
    so a decision must look at `normalized_cross_correlation` beside it.

    Args:
        generated: Generated images.
        training: Training images, one for each generated image.
        data_range: Largest minus smallest value that an image can take, for instance 1 for images in [0, 1]. It is
            asked for because a guess from the batch would make the value of a pair depend on its neighbours.
        window: Side of the window in voxels, odd. Along an axis that is shorter, the window shrinks to the largest odd
            number of voxels that fits, so thin stacks have a value.
        sigma: Standard deviation of the Gaussian in voxels.
        mask: Positions to average over: those at which the centre of the window lies inside the mask. The window may
            reach out of it. One mask for all pairs or channels where the axis has length 1.

    Returns:
        SSIM, at most 1, larger is more alike; 1 for identical images only. 0 where the mask holds no position.

    Raises:
        InvalidImageError: If images are not floating point, not finite, or of different shapes, or if the mask is not
            boolean or does not fit the images.
        ConfigurationError: If `data_range` or `sigma` is not positive, or `window` is not odd and positive.

    Example:
        >>> image = torch.linspace(0, 1, 256).reshape(1, 1, 16, 16)
        >>> structural_similarity(image, image, data_range=1.0)
        tensor([1.])
        >>> bool(structural_similarity(1 - image, image, data_range=1.0) < 0)
        True

    References:
        Wang, Bovik, Sheikh, Simoncelli (2004), Image quality assessment: from error visibility to structural
        similarity, doi:10.1109/TIP.2003.819861.
    """
    check_structural_similarity_settings(data_range=data_range, window=window, sigma=sigma)
    generated, training = check_pairs(generated, training)
    similarity, _ = _means_of_terms(
        generated,
        training,
        mask=None if mask is None else check_mask(mask, generated),
        data_range=data_range,
        window=window,
        sigma=sigma,
    )
    return similarity


def multiscale_structural_similarity(
    generated: Float[Tensor, "n c *spatial"],
    training: Float[Tensor, "n c *spatial"],
    *,
    data_range: float,
    window: int = 11,
    sigma: float = 1.5,
    weights: Sequence[float] | None = None,
    mask: Bool[Tensor, "#n #c *spatial"] | None = None,
) -> Float[Tensor, " n"]:
    """Return the structural similarity of each pair over several resolutions (MS-SSIM).

    The images are halved by averaging, again and again. The value is the product of the mean contrast-structure terms
    of all scales and of the mean SSIM of the coarsest, each to the power of its weight; a negative mean counts as 0, as
    in MONAI and torchmetrics, because it has no real power.

    Args:
        generated: Generated images.
        training: Training images, one for each generated image.
        data_range: Largest minus smallest value that an image can take, for instance 1 for images in [0, 1].
        window: Side of the window in voxels, odd.
        sigma: Standard deviation of the Gaussian in voxels.
        weights: One weight per scale, from the finest to the coarsest. By default as many scales as fit, at most five:
            the window fits into the shortest side at each of them. They have the weights of Wang et al. 2003, divided
            by their sum where there are fewer than five. An image that fits at no scale has one, with a smaller
            window, as in `structural_similarity`.
        mask: Positions to average over, as in `structural_similarity`. A voxel of a coarser scale is inside where any
            of its voxels is.

    Returns:
        MS-SSIM in [0, 1], larger is more alike; 1 for identical images only. 0 where the mask holds no position at one
        of the scales.

    Raises:
        InvalidImageError: If images are not floating point, not finite, or of different shapes, or if the mask is not
            boolean or does not fit the images.
        ConfigurationError: If `data_range` or `sigma` is not positive, `window` is not odd and positive, a weight is
            not positive, or there are more weights than scales that fit.

    Example:
        >>> image = torch.linspace(0, 1, 32 * 32).reshape(1, 1, 32, 32)
        >>> multiscale_structural_similarity(image, image, data_range=1.0)
        tensor([1.])

    References:
        Wang, Simoncelli, Bovik (2003), Multiscale structural similarity for image quality assessment,
        doi:10.1109/ACSSC.2003.1292216.
    """
    check_multiscale_settings(data_range=data_range, window=window, sigma=sigma, weights=weights)
    generated, training = check_pairs(generated, training)
    mask = None if mask is None else check_mask(mask, generated)
    weights = _weights_that_fit(generated.shape[2:], window=window, weights=weights)
    value = torch.ones(len(generated), device=generated.device)
    for scale, weight in enumerate(weights):
        similarity, contrast = _means_of_terms(
            generated, training, mask=mask, data_range=data_range, window=window, sigma=sigma
        )
        last = scale == len(weights) - 1
        value = value * (similarity if last else contrast).clamp(min=0.0) ** weight
        if not last:
            generated, training = _halve(generated), _halve(training)
            mask = None if mask is None else _halve_mask(mask)
    return value


def check_structural_similarity_settings(*, data_range: float, window: int, sigma: float) -> None:
    """Accept settings that `structural_similarity` can work with.

    Args:
        data_range: Largest minus smallest value that an image can take.
        window: Side of the window in voxels.
        sigma: Standard deviation of the Gaussian in voxels.

    Raises:
        ConfigurationError: If `data_range` or `sigma` is not positive, or `window` is not odd and positive.

    Example:
        >>> check_structural_similarity_settings(data_range=1.0, window=11, sigma=1.5)
    """
    check_data_range(data_range)
    if not (math.isfinite(sigma) and sigma > 0):
        raise ConfigurationError(f"sigma must be positive and finite, but is sigma={sigma}. The usual value is 1.5.")
    check_window(window)


def check_multiscale_settings(*, data_range: float, window: int, sigma: float, weights: Sequence[float] | None) -> None:
    """Accept settings that `multiscale_structural_similarity` can work with, if the images are large enough.

    Args:
        data_range: Largest minus smallest value that an image can take.
        window: Side of the window in voxels.
        sigma: Standard deviation of the Gaussian in voxels.
        weights: One weight per scale.

    Raises:
        ConfigurationError: If `data_range` or `sigma` is not positive, `window` is not odd and positive, or a weight is
            not positive.

    Example:
        >>> check_multiscale_settings(data_range=1.0, window=11, sigma=1.5, weights=(0.5, 0.5))
    """
    check_structural_similarity_settings(data_range=data_range, window=window, sigma=sigma)
    if weights is not None and not (len(weights) and all(math.isfinite(weight) and weight > 0 for weight in weights)):
        raise ConfigurationError(
            f"weights must be positive, one per scale, but are weights={tuple(weights)}. Leave them out for the usual "
            f"ones."
        )


def _weights_that_fit(sides: Sequence[int], *, window: int, weights: Sequence[float] | None) -> Sequence[float]:
    fitting = 1
    while min(sides) >> fitting >= window:
        fitting += 1
    if weights is None:
        kept = _SCALE_WEIGHTS[:fitting]
        # All five sum to 1.0001 as they were published, and are used so by everybody.
        return kept if kept == _SCALE_WEIGHTS else [weight / sum(kept) for weight in kept]
    if len(weights) > fitting:
        raise ConfigurationError(
            f"weights ask for {len(weights)} scales, but a window of {window} voxels fits images of {tuple(sides)} "
            f"voxels at {fitting}. Give fewer weights, or a smaller window."
        )
    return weights


def _halve(images: Tensor) -> Tensor:
    return (nnf.avg_pool2d if images.ndim == 4 else nnf.avg_pool3d)(images, kernel_size=2)


def _halve_mask(mask: Tensor) -> Tensor:
    return (nnf.max_pool2d if mask.ndim == 4 else nnf.max_pool3d)(mask.float(), kernel_size=2) > 0


def _means_of_terms(
    generated: Tensor, training: Tensor, *, mask: Tensor | None, data_range: float, window: int, sigma: float
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Return the means of SSIM and of its contrast-structure term over the positions of each pair."""
    bands = [gaussian_band(side, window=window, sigma=sigma).to(generated) for side in generated.shape[2:]]
    positions = None if mask is None else mask_of_positions(mask, window=window)
    chunk = images_per_chunk(generated.shape[1:])
    similarities, contrasts = [generated.new_zeros(0)], [generated.new_zeros(0)]
    for start in range(0, len(generated), chunk):
        part = slice(start, start + chunk)
        luminance, contrast = _terms(generated[part], training[part], bands=bands, data_range=data_range)
        inside = None if positions is None else positions[part]
        similarities.append(masked_mean(luminance * contrast, inside, empty=0.0))
        contrasts.append(masked_mean(contrast, inside, empty=0.0))
    return torch.cat(similarities), torch.cat(contrasts)


def _terms(
    generated: Tensor, training: Tensor, *, bands: Sequence[Tensor], data_range: float
) -> tuple[Float[Tensor, "n c *positions"], Float[Tensor, "n c *positions"]]:
    luminance = (_LUMINANCE_CONSTANT * data_range) ** 2
    contrast = (_CONTRAST_CONSTANT * data_range) ** 2
    # Variances do not change with the offset, but float32 loses them under a large one.
    spatial = tuple(range(2, generated.ndim))
    offset_generated = generated.mean(dim=spatial, keepdim=True)
    offset_training = training.mean(dim=spatial, keepdim=True)
    generated, training = generated - offset_generated, training - offset_training
    maps = torch.stack([generated, training, generated * generated, training * training, generated * training])
    mean_generated, mean_training, square_generated, square_training, product = local_means(maps, bands)
    variance_generated = square_generated - mean_generated**2
    variance_training = square_training - mean_training**2
    covariance = product - mean_generated * mean_training
    mean_generated, mean_training = mean_generated + offset_generated, mean_training + offset_training
    return (
        (2 * mean_generated * mean_training + luminance) / (mean_generated**2 + mean_training**2 + luminance),
        (2 * covariance + contrast) / (variance_generated + variance_training + contrast),
    )
