"""How well one image predicts another up to brightness and contrast.

Conventions: pairs are `(generated, training)`, `[n, c, *spatial]` with two or three spatial axes, any floating dtype,
computed in float32. One value per pair comes back; the value of an empty batch is an empty vector.

- `normalized_cross_correlation`: Pearson correlation, in [-1, 1]; larger is more alike.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from relict_lightning.functional.validation import check_mask, check_pairs


def normalized_cross_correlation(
    generated: Float[Tensor, "n c *spatial"],
    training: Float[Tensor, "n c *spatial"],
    *,
    mask: Bool[Tensor, "#n #c *spatial"] | None = None,
) -> Float[Tensor, " n"]:
    """Return the Pearson correlation of each pair, over all channels and voxels together.

    A constant image correlates with nothing: the value is 0, also where both images are constant. So blank images
    are never evidence of copying.

    Args:
        generated: Generated images.
        training: Training images, one for each generated image.
        mask: Voxels to compare; one mask for all pairs or channels where the axis has length 1. An image that is
            constant inside the mask, and an empty mask, give 0.

    Returns:
        Correlation in [-1, 1], larger is more alike; 1 where one image is the other times a positive number plus a
        constant.

    Raises:
        InvalidImageError: If images are not floating point, not finite, or of different shapes, or if the mask is not
            boolean or does not fit the images.

    Example:
        >>> image = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
        >>> normalized_cross_correlation(2 * image + 5, image)
        tensor([1.])
        >>> normalized_cross_correlation(-image, image)
        tensor([-1.])
    """
    generated, training = check_pairs(generated, training)
    if mask is not None:
        mask = check_mask(mask, generated).flatten(1)
    centred_generated = _centre(generated.flatten(1), mask)
    centred_training = _centre(training.flatten(1), mask)
    covariance = (centred_generated * centred_training).sum(dim=1)
    scale = torch.linalg.vector_norm(centred_generated, dim=1) * torch.linalg.vector_norm(centred_training, dim=1)
    correlation = covariance / torch.where(scale > 0, scale, torch.ones_like(scale))
    return correlation.clamp(-1.0, 1.0)


def _centre(voxels: Tensor, mask: Tensor | None) -> Tensor:
    # Subtracting the minimum first makes a constant image exactly 0, which a rounded mean would not, and dividing by
    # the largest magnitude last keeps the squares of very small and very large intensities inside float32.
    if mask is None:
        centred = voxels - voxels.amin(dim=1, keepdim=True)
        centred = centred - centred.mean(dim=1, keepdim=True)
    else:
        lowest = voxels.masked_fill(~mask, torch.inf).amin(dim=1, keepdim=True)
        centred = (voxels - lowest).masked_fill(~mask, 0.0)
        mean = centred.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)
        centred = (centred - mean).masked_fill(~mask, 0.0)
    largest = centred.abs().amax(dim=1, keepdim=True)
    return centred / torch.where(largest > 0, largest, torch.ones_like(largest))
