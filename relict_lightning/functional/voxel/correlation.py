"""How well one image predicts another up to brightness and contrast.

Conventions: images are `[n, c, *spatial]` with two or three spatial axes, any floating dtype, computed in float32.

- `normalized_cross_correlation`: Pearson correlation of each `(generated, training)` pair, in [-1, 1]; larger is more
  alike.
- `pairwise_normalized_cross_correlation`: the same of every sample with every training image.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from relict_lightning.errors import InvalidImageError
from relict_lightning.functional.validation import check_image_shape, check_images, check_mask, check_pairs

# Images are read this many voxels at a time: samples are then centred, and training images squared, while they are in
# the processor's cache for the product.
_BLOCK_VOXELS = 2**16
# Training images of other dtypes than float32 are converted in blocks of at most this many voxels (256 MiB).
_BLOCK_ELEMENTS = 2**26
# A matrix product is fastest for a multiple of this many rows: on CPU by a fifth for 52 against 51.
_ROWS_ALIGNED = 4
# A variance that is taken from sums about zero has lost this much of its precision where the squared mean is so many
# times larger; beyond it, images are centred first.
_LARGEST_OFFSET = 30.0


def normalized_cross_correlation(
    generated: Float[Tensor, "n c *spatial"],
    training: Float[Tensor, "n c *spatial"],
    *,
    mask: Bool[Tensor, "#n #c *spatial"] | None = None,
) -> Float[Tensor, " n"]:
    """Return the Pearson correlation of each pair, over all channels and voxels together.

    A constant image correlates with nothing: the value is 0, also where both images are constant. So blank images
    are never evidence of copying. torchmetrics' and SciPy's Pearson correlations are NaN there, and take no mask.

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


def pairwise_normalized_cross_correlation(
    generated: Float[Tensor, "n c *spatial"], training: Float[Tensor, "m c *spatial"]
) -> Float[Tensor, "n m"]:
    """Return the Pearson correlation of every generated image with every training image.

    It is one matrix product, block by block: the generated images are centred, and a training image then needs no
    centring, because what is constant in it correlates with nothing. Its sum comes out of the same product, and its
    norm out of the block that the product has just read; so the cost is that of the product and little more, and no
    copy of float32 training images is made. Images whose mean is large against their contrast, so that float32 sums
    would lose it, are centred all the same.

    Args:
        generated: Generated images.
        training: Training images of the same shape.

    Returns:
        Correlation in [-1, 1], larger is more alike; 0 where either image is constant. It agrees with
        `normalized_cross_correlation` to about 1e-5, and has no gradient.

    Raises:
        InvalidImageError: If images are not floating point, not finite, or of different shapes.

    Example:
        >>> image = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
        >>> pairwise_normalized_cross_correlation(image, torch.cat([2 * image, -image, 0 * image])).round(decimals=4)
        tensor([[ 1., -1.,  0.]])
    """
    # Whether images are finite shows in their sums; looking at each voxel would cost more than the product.
    for name, images in (("generated", generated), ("training", training)):
        check_image_shape(images, name=name)
    if generated.shape[1:] != training.shape[1:]:
        raise InvalidImageError(
            f"generated and training must be images of one shape, but have shapes {tuple(generated.shape)} and "
            f"{tuple(training.shape)}. Only the number of images may differ."
        )
    rows, columns = generated.detach().float().flatten(1), training.detach().flatten(1)
    mean = rows.mean(dim=1)
    offset = _has_offset(mean, torch.linalg.vector_norm(rows, dim=1).square() / rows.shape[1])
    if offset.any():
        rows, mean = rows.clone(), mean.masked_fill(offset, 0.0)
        rows[offset] = _unit(_checked(rows[offset], name="generated"))
    correlation, offset = _correlate(rows, mean, columns)
    if offset.any():
        samples = _unit(rows)
        for positions in torch.split(offset.nonzero()[:, 0], max(1, _BLOCK_ELEMENTS // rows.shape[1])):
            correlation[:, positions] = samples @ _unit(_checked(columns[positions], name="training")).T
    return correlation.clamp(-1.0, 1.0)


def _correlate(rows: Tensor, mean: Tensor, columns: Tensor) -> tuple[Float[Tensor, "n m"], Bool[Tensor, " m"]]:
    """Return the correlations, and which columns have an offset that makes theirs inexact."""
    (n, voxels), m = rows.shape, len(columns)
    width = _BLOCK_VOXELS if columns.dtype == torch.float32 else min(_BLOCK_VOXELS, _BLOCK_ELEMENTS // max(m, 1))
    # Rows of ones beneath the samples give the sums of the training images.
    queries = rows.new_ones((n // _ROWS_ALIGNED + 1) * _ROWS_ALIGNED, max(1, min(width, voxels)))
    products, squares_of_rows, squares = rows.new_zeros(m, len(queries)), rows.new_zeros(n), rows.new_zeros(m)
    for start in range(0, voxels, queries.shape[1]):
        block = columns[:, start : start + queries.shape[1]].float()
        samples = queries[:, : block.shape[1]]
        torch.sub(rows[:, start : start + block.shape[1]], mean[:, None], out=samples[:n])
        products.addmm_(block, samples.T)
        squares_of_rows += torch.linalg.vector_norm(samples[:n], dim=1).square()
        squares += torch.linalg.vector_norm(block, dim=1).square()
    mean_of_columns = products[:, n] / voxels
    norms = (squares - voxels * mean_of_columns.square()).clamp(min=0).sqrt()
    scale = norms[:, None] * squares_of_rows.sqrt()
    correlation = products[:, :n] / torch.where(scale > 0, scale, torch.ones_like(scale))
    return correlation.T.contiguous(), _has_offset(mean_of_columns, squares / voxels)


def _has_offset(mean: Tensor, mean_square: Tensor) -> Bool[Tensor, " n"]:
    # Also true for NaN, for sums that left float32 on either side, and for constant images.
    small = torch.finfo(torch.float32).tiny ** 0.5
    return ~((mean_square - mean.square()) * _LARGEST_OFFSET > mean.square().clamp(min=small)) | mean_square.isinf()


def _checked(voxels: Tensor, *, name: str) -> Tensor:
    return check_images(voxels[:, None, None], name=name).flatten(1)


def _unit(voxels: Tensor) -> Tensor:
    centred = _centre(voxels, None)
    norm = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    return centred / torch.where(norm > 0, norm, torch.ones_like(norm))


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
