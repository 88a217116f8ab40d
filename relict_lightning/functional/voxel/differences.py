"""How far apart the intensities of two images are.

Conventions: pairs are `(generated, training)`, `[n, c, *spatial]` with two or three spatial axes, any floating dtype,
computed in float32. One value per pair comes back; the value of an empty batch is an empty vector. A pair of which no
voxel is compared, because the mask is empty, gets the value of the least alike: nothing was seen to agree.

- `mean_absolute_error`, `root_mean_squared_error`: in units of intensity; smaller is more alike.
- `peak_signal_noise_ratio`: the squared error against the data range, in decibels; larger is more alike.

torchmetrics has all three as one value for a whole batch, and MONAI per pair; neither takes a mask.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from relict_lightning.functional.validation import check_data_range, check_mask, check_pairs
from relict_lightning.functional.voxel.masked import masked_mean


def mean_absolute_error(
    generated: Float[Tensor, "n c *spatial"],
    training: Float[Tensor, "n c *spatial"],
    *,
    mask: Bool[Tensor, "#n #c *spatial"] | None = None,
) -> Float[Tensor, " n"]:
    """Return the mean absolute difference of each pair, over all channels and voxels.

    Args:
        generated: Generated images.
        training: Training images, one for each generated image.
        mask: Voxels to compare; one mask for all pairs or channels where the axis has length 1.

    Returns:
        Error in units of intensity, at least 0; smaller is more alike, 0 for identical images only. Infinity where the
        mask is empty.

    Raises:
        InvalidImageError: If images are not floating point, not finite, or of different shapes, or if the mask is not
            boolean or does not fit the images.

    Example:
        >>> import torch
        >>> mean_absolute_error(torch.tensor([[[[3.0, -4.0]]]]), torch.tensor([[[[0.0, 0.0]]]]))
        tensor([3.5000])
    """
    generated, training = check_pairs(generated, training)
    return masked_mean((generated - training).abs(), _fitted(mask, generated), empty=torch.inf)


def root_mean_squared_error(
    generated: Float[Tensor, "n c *spatial"],
    training: Float[Tensor, "n c *spatial"],
    *,
    mask: Bool[Tensor, "#n #c *spatial"] | None = None,
) -> Float[Tensor, " n"]:
    """Return the root of the mean squared difference of each pair, over all channels and voxels.

    Args:
        generated: Generated images.
        training: Training images, one for each generated image.
        mask: Voxels to compare; one mask for all pairs or channels where the axis has length 1.

    Returns:
        Error in units of intensity, at least 0; smaller is more alike, 0 for identical images only. Infinity where the
        mask is empty.

    Raises:
        InvalidImageError: If images are not floating point, not finite, or of different shapes, or if the mask is not
            boolean or does not fit the images.

    Example:
        >>> import torch
        >>> root_mean_squared_error(torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[[0.0, 0.0]]]]))
        tensor([3.5355])
    """
    generated, training = check_pairs(generated, training)
    return _root_mean_square(generated - training, mask)


def peak_signal_noise_ratio(
    generated: Float[Tensor, "n c *spatial"],
    training: Float[Tensor, "n c *spatial"],
    *,
    data_range: float,
    mask: Bool[Tensor, "#n #c *spatial"] | None = None,
) -> Float[Tensor, " n"]:
    """Return the peak signal-to-noise ratio of each pair.

    It is `20 * log10(data_range / root_mean_squared_error)`.

    Args:
        generated: Generated images.
        training: Training images, one for each generated image.
        data_range: Largest minus smallest value that an image can take, for instance 1 for images in [0, 1].
        mask: Voxels to compare; one mask for all pairs or channels where the axis has length 1.

    Returns:
        Ratio in decibels, larger is more alike; infinity for identical images, minus infinity where the mask is empty.

    Raises:
        InvalidImageError: If images are not floating point, not finite, or of different shapes, or if the mask is not
            boolean or does not fit the images.
        ConfigurationError: If `data_range` is not positive and finite.

    Example:
        >>> import torch
        >>> peak_signal_noise_ratio(torch.full((1, 1, 2, 2), 0.25), torch.zeros(1, 1, 2, 2), data_range=2.5)
        tensor([20.])
    """
    check_data_range(data_range)
    generated, training = check_pairs(generated, training)
    return 20 * torch.log10(data_range / _root_mean_square(generated - training, mask))


def _root_mean_square(difference: Tensor, mask: Tensor | None) -> Float[Tensor, " n"]:
    # Squares of differences beyond 1e19, or below 1e-19, leave float32; those of their share of the largest do not.
    largest = difference.flatten(1).abs().amax(dim=1)
    divisor = torch.where(largest > 0, largest, torch.ones_like(largest)).reshape(-1, *[1] * (difference.ndim - 1))
    return masked_mean((difference / divisor).square(), _fitted(mask, difference), empty=torch.inf).sqrt() * largest


def _fitted(mask: Tensor | None, images: Tensor) -> Tensor | None:
    return None if mask is None else check_mask(mask, images)
