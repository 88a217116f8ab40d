"""How alike the local structure of two images is.

Conventions: pairs are `(generated, training)`, `[n, c, *spatial]` with two or three spatial axes, any floating dtype,
computed in float32. One value per pair comes back; the value of an empty batch is an empty vector.

- `structural_similarity`: mean local SSIM, at most 1; larger is more alike.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional.validation import check_pairs
from relict_lightning.functional.voxel.windows import gaussian_band

# The constants of Wang et al. 2004, as fractions of the data range.
_LUMINANCE_CONSTANT = 0.01


_CONTRAST_CONSTANT = 0.03


# SSIM filters five maps per image; this bounds their memory to 64 MiB at a time.
_FILTERED_ELEMENTS = 2**24


def structural_similarity(
    generated: Float[Tensor, "n c *spatial"],
    training: Float[Tensor, "n c *spatial"],
    *,
    data_range: float,
    window: int = 11,
    sigma: float = 1.5,
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

    Returns:
        SSIM, at most 1, larger is more alike; 1 for identical images only.

    Raises:
        InvalidImageError: If images are not floating point, not finite, or of different shapes.
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
    filters = [gaussian_band(side, window=window, sigma=sigma).to(generated) for side in generated.shape[2:]]
    chunk = max(1, _FILTERED_ELEMENTS // (5 * math.prod(generated.shape[1:])))
    chunks = zip(torch.split(generated, chunk), torch.split(training, chunk), strict=True)
    values = [_mean_similarity(*pair, filters=filters, data_range=data_range) for pair in chunks]
    return torch.cat(values)


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
    if not (math.isfinite(data_range) and data_range > 0):
        raise ConfigurationError(
            f"data_range must be positive and finite, but is data_range={data_range}. Give the width of the interval "
            f"that intensities lie in."
        )
    if not (math.isfinite(sigma) and sigma > 0):
        raise ConfigurationError(f"sigma must be positive and finite, but is sigma={sigma}. The usual value is 1.5.")
    if window < 1 or window % 2 == 0:
        raise ConfigurationError(f"window must be odd and at least 1, but is window={window}. The usual value is 11.")


def _mean_similarity(
    generated: Tensor, training: Tensor, *, filters: list[Tensor], data_range: float
) -> Float[Tensor, " n"]:
    luminance = (_LUMINANCE_CONSTANT * data_range) ** 2
    contrast = (_CONTRAST_CONSTANT * data_range) ** 2
    # Variances do not change with the offset, but float32 loses them under a large one.
    spatial = tuple(range(2, generated.ndim))
    offset_generated = generated.mean(dim=spatial, keepdim=True)
    offset_training = training.mean(dim=spatial, keepdim=True)
    generated, training = generated - offset_generated, training - offset_training
    maps = torch.stack([generated, training, generated * generated, training * training, generated * training])
    for band in filters:
        # The filtered axis goes last, so after one turn per spatial axis the order is the old one.
        maps = torch.tensordot(maps, band, dims=([3], [0]))
    mean_generated, mean_training, square_generated, square_training, product = maps
    variance_generated = square_generated - mean_generated**2
    variance_training = square_training - mean_training**2
    covariance = product - mean_generated * mean_training
    mean_generated, mean_training = mean_generated + offset_generated, mean_training + offset_training
    similarity: Tensor = (
        (2 * mean_generated * mean_training + luminance)
        * (2 * covariance + contrast)
        / ((mean_generated**2 + mean_training**2 + luminance) * (variance_generated + variance_training + contrast))
    )
    return similarity.flatten(1).mean(dim=1)
