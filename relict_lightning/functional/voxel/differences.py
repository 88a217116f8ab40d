"""How far apart the intensities of two images are.

Conventions: pairs are `(generated, training)`, `[n, c, *spatial]` with two or three spatial axes, any floating dtype,
computed in float32. One value per pair comes back; the value of an empty batch is an empty vector.

- `mean_absolute_error`, `root_mean_squared_error`: in units of intensity; smaller is more alike.
"""

from jaxtyping import Float
from torch import Tensor

from relict_lightning.functional.validation import check_pairs


def root_mean_squared_error(
    generated: Float[Tensor, "n c *spatial"], training: Float[Tensor, "n c *spatial"]
) -> Float[Tensor, " n"]:
    """Return the root of the mean squared difference of each pair, over all channels and voxels.

    Args:
        generated: Generated images.
        training: Training images, one for each generated image.

    Returns:
        Error in units of intensity, at least 0; smaller is more alike, 0 for identical images only.

    Raises:
        InvalidImageError: If images are not floating point, not finite, or of different shapes.

    Example:
        >>> import torch
        >>> root_mean_squared_error(torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[[0.0, 0.0]]]]))
        tensor([3.5355])
    """
    generated, training = check_pairs(generated, training)
    return (generated - training).flatten(1).square().mean(dim=1).sqrt()


def mean_absolute_error(
    generated: Float[Tensor, "n c *spatial"], training: Float[Tensor, "n c *spatial"]
) -> Float[Tensor, " n"]:
    """Return the mean absolute difference of each pair, over all channels and voxels.

    Args:
        generated: Generated images.
        training: Training images, one for each generated image.

    Returns:
        Error in units of intensity, at least 0; smaller is more alike, 0 for identical images only.

    Raises:
        InvalidImageError: If images are not floating point, not finite, or of different shapes.

    Example:
        >>> import torch
        >>> mean_absolute_error(torch.tensor([[[[3.0, -4.0]]]]), torch.tensor([[[[0.0, 0.0]]]]))
        tensor([3.5000])
    """
    generated, training = check_pairs(generated, training)
    return (generated - training).flatten(1).abs().mean(dim=1)
