"""How well each neighbourhood of one image predicts the other's, up to local brightness and contrast.

Conventions: pairs are `(generated, training)`, `[n, c, *spatial]` with two or three spatial axes, any floating dtype,
computed in float32. One value per pair comes back; the value of an empty batch is an empty vector.

- `local_normalized_cross_correlation`: mean Pearson correlation under a sliding window; larger is more alike.

MONAI has the squared form as a loss, with windows that reach over the border and a constant in the denominator that
flat windows are pulled to.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from relict_lightning.functional.validation import check_mask, check_pairs
from relict_lightning.functional.voxel.masked import masked_mean
from relict_lightning.functional.voxel.windows import (
    box_band,
    check_window,
    images_per_chunk,
    local_means,
    mask_of_positions,
)

# A window whose variance is below this share of its mean square (about the mean of the image) is flat: float32 keeps
# seven digits of the mean square, and the variance is what is left when the squared mean is taken off it.
_FLAT = 1e-5


def local_normalized_cross_correlation(
    generated: Float[Tensor, "n c *spatial"],
    training: Float[Tensor, "n c *spatial"],
    *,
    window: int = 9,
    squared: bool = False,
    mask: Bool[Tensor, "#n #c *spatial"] | None = None,
) -> Float[Tensor, " n"]:
    """Return the mean, over positions of a window, of the Pearson correlation inside it.

    Unlike the correlation of whole images it does not care for shading, nor for the large structures that all patients
    share. All voxels of the window weigh the same, channels are correlated one by one, and the window moves over all
    positions at which it lies inside the image.

    A window that is flat in one image, so that its standard deviation is lost in rounding (below 0.3 % of its distance
    to the mean of the image), has correlation 0. One that is flat in both, such as air, is left out, because it would
    say nothing about copying either way.

    Args:
        generated: Generated images.
        training: Training images, one for each generated image.
        window: Side of the window in voxels, odd; 9 as in ANTs (radius 4). Along an axis that is shorter, it shrinks to
            the largest odd number of voxels that fits.
        squared: Whether to average squared correlations, as registration does. An inverted contrast then counts as
            alike.
        mask: Positions to average over: those at which the centre of the window lies inside the mask. The window may
            reach out of it. One mask for all pairs or channels where the axis has length 1.

    Returns:
        Mean correlation in [-1, 1], or in [0, 1] if `squared`; larger is more alike. 0 where no window is left.

    Raises:
        InvalidImageError: If images are not floating point, not finite, or of different shapes, or if the mask is not
            boolean or does not fit the images.
        ConfigurationError: If `window` is not odd and positive.

    Example:
        >>> image = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> local_normalized_cross_correlation(5 - image, image).round(decimals=4)
        tensor([-1.])

    References:
        Avants, Epstein, Grossman, Gee (2008), Symmetric diffeomorphic image registration with cross-correlation,
        doi:10.1016/j.media.2007.06.004.
    """
    check_window(window)
    generated, training = check_pairs(generated, training)
    bands = [box_band(side, window=window).to(generated) for side in generated.shape[2:]]
    positions = None if mask is None else mask_of_positions(check_mask(mask, generated), window=window)
    chunk = images_per_chunk(generated.shape[1:])
    values = [generated.new_zeros(0)]
    for start in range(0, len(generated), chunk):
        part = slice(start, start + chunk)
        first, second = _scaled(generated[part]), _scaled(training[part])
        means = local_means(torch.stack([first, second, first * first, second * second, first * second]), bands)
        mean_first, mean_second, square_first, square_second, product = means
        variance_first, flat_first = _variance(square_first, mean_first)
        variance_second, flat_second = _variance(square_second, mean_second)
        correlation = (product - mean_first * mean_second) / (variance_first * variance_second).sqrt()
        correlation = correlation.clamp(-1.0, 1.0).masked_fill(flat_first | flat_second, 0.0)
        counted = ~(flat_first & flat_second)
        if positions is not None:
            counted &= positions[part]
        values.append(masked_mean(correlation.square() if squared else correlation, counted, empty=0.0))
    return torch.cat(values)


def _scaled(images: Tensor) -> Tensor:
    """Return the images about their mean, and within [-1, 1], so that squares neither overflow nor vanish."""
    spatial = tuple(range(2, images.ndim))
    centred = images - images.mean(dim=spatial, keepdim=True)
    largest = centred.abs().amax(dim=spatial, keepdim=True)
    return centred / torch.where(largest > 0, largest, torch.ones_like(largest))


def _variance(square: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    variance = square - mean**2
    flat = variance <= _FLAT * square
    return variance.masked_fill(flat, 1.0), flat
