"""What the functions of this package accept, and the errors that say what came instead.

Images are floating point, `[n, c, *spatial]` with two or three spatial axes, and finite. Computation is in float32,
whatever the precision of the input: half precision loses the differences that matter here, and double precision buys
nothing that an image holds.

- `check_image_shape`: dtype and axes of one set of images.
- `check_images`: one set of images, their values included.
- `check_pairs`: two sets of images of one shape, paired by position.
- `check_mask`: which of their voxels count.
- `check_data_range`: the width of the interval that intensities lie in.
- `check_embeddings`: one set of embeddings.
- `check_embedding_pairs`: two sets of one shape, paired by position.
- `check_not_nan`: a vector of scores, distances or p-values.
- `check_same_length`: two vectors that belong together.
"""

import math

import torch
from torch import Tensor

from relict_lightning.errors import ConfigurationError, InvalidImageError


def check_image_shape(images: Tensor, *, name: str) -> None:
    """Accept floating point images that are 2-D or 3-D and have voxels.

    Args:
        images: Images, `[n, c, *spatial]`.
        name: What the caller calls them, for the message.

    Raises:
        InvalidImageError: If the images are not floating point, not 2-D or 3-D, or without voxels.

    Example:
        >>> check_image_shape(torch.zeros(1, 1, 4, 4), name="training")
    """
    if not images.is_floating_point():
        raise InvalidImageError(f"{name} must be floating point, but has dtype {images.dtype}. Call `.float()` on it.")
    if images.ndim not in (4, 5):
        raise InvalidImageError(
            f"{name} must have shape [n, c, *spatial] with 2 or 3 spatial axes, but has shape {tuple(images.shape)}. "
            f"Add the missing batch or channel axis with `.unsqueeze`."
        )
    if 0 in images.shape[1:]:
        raise InvalidImageError(f"{name} must have at least one voxel, but has shape {tuple(images.shape)}.")


def check_images(images: Tensor, *, name: str) -> Tensor:
    """Return the images in float32.

    Args:
        images: Images, `[n, c, *spatial]`.
        name: What the caller calls them, for the message.

    Raises:
        InvalidImageError: If the images are not floating point, not 2-D or 3-D, without voxels, or not finite.

    Example:
        >>> check_images(torch.zeros(1, 1, 4, 4, dtype=torch.float64), name="generated").dtype
        torch.float32
    """
    check_image_shape(images, name=name)
    converted = images.float()
    if not torch.isfinite(converted).all():
        raise InvalidImageError(
            f"{name} must be finite in float32, but holds {int((~torch.isfinite(converted)).sum())} values that are "
            f"NaN or infinite. Replace them with `torch.nan_to_num`, or leave those images out."
        )
    return converted


def check_pairs(generated: Tensor, training: Tensor) -> tuple[Tensor, Tensor]:
    """Return both sets of images in float32.

    Args:
        generated: Generated images, `[n, c, *spatial]`.
        training: Training images, one for each generated image.

    Raises:
        InvalidImageError: If either set is invalid, or the shapes or devices differ.

    Example:
        >>> generated, training = check_pairs(torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4))
        >>> generated.shape == training.shape
        True
    """
    pairs = check_images(generated, name="generated"), check_images(training, name="training")
    if generated.shape != training.shape:
        raise InvalidImageError(
            f"generated and training must have one shape, but have {tuple(generated.shape)} and "
            f"{tuple(training.shape)}. Pair every sample with one training image of its size."
        )
    return pairs


def check_mask(mask: Tensor, images: Tensor) -> Tensor:
    """Return the mask in the shape of the images.

    Args:
        mask: Voxels to compare, `[n, c, *spatial]`; the first two axes may have length 1.
        images: The images that it lies on.

    Raises:
        InvalidImageError: If the mask is not boolean or does not fit the images.

    Example:
        >>> check_mask(torch.ones(1, 1, 4, 4) > 0, torch.zeros(2, 3, 4, 4)).shape
        torch.Size([2, 3, 4, 4])
    """
    if mask.dtype != torch.bool:
        raise InvalidImageError(f"mask must be boolean, but has dtype {mask.dtype}. Compare it, as in `mask > 0`.")
    fits = mask.ndim == images.ndim and all(
        size == wanted or (size == 1 and axis < 2)
        for axis, (size, wanted) in enumerate(zip(mask.shape, images.shape, strict=False))
    )
    if not fits:
        raise InvalidImageError(
            f"mask must have the shape {tuple(images.shape)} of the images, or length 1 along the first two axes, but "
            f"has shape {tuple(mask.shape)}."
        )
    return mask.expand(images.shape)


def check_data_range(data_range: float) -> None:
    """Accept the width of an interval of intensities.

    Args:
        data_range: Largest minus smallest value that an image can take.

    Raises:
        ConfigurationError: If it is not positive and finite.

    Example:
        >>> check_data_range(1.0)
    """
    if not (math.isfinite(data_range) and data_range > 0):
        raise ConfigurationError(
            f"data_range must be positive and finite, but is data_range={data_range}. Give the width of the interval "
            f"that intensities lie in."
        )


def check_embeddings(embeddings: Tensor, *, name: str) -> None:
    """Accept one set of embeddings.

    Args:
        embeddings: Embeddings, `[n, d]`.
        name: What the caller calls them, for the message.

    Raises:
        ConfigurationError: If embeddings are not floating point, not `[n, d]`, or not finite.

    Example:
        >>> check_embeddings(torch.zeros(2, 3), name="generated")
    """
    if not embeddings.is_floating_point():
        raise ConfigurationError(
            f"{name} must be floating point, but has dtype {embeddings.dtype}. Call `.float()` on it."
        )
    if embeddings.ndim != 2 or embeddings.shape[1] < 1:
        raise ConfigurationError(
            f"{name} must have shape [n, d] with d of at least 1, but has shape {tuple(embeddings.shape)}. Flatten "
            f"every embedding into one vector."
        )
    unusable = ~torch.isfinite(embeddings.float()).all(dim=1)
    if unusable.any():
        raise ConfigurationError(
            f"{name} must be finite in float32, but {int(unusable.sum())} of {len(embeddings)} embeddings hold NaN or "
            f"infinity. Look at the encoder's output for those images."
        )


def check_embedding_pairs(generated: Tensor, training: Tensor) -> tuple[Tensor, Tensor]:
    """Return both sets of embeddings in float32.

    Args:
        generated: Embeddings of the generated images, `[n, d]`.
        training: Embeddings of the training images, one for each generated image.

    Raises:
        ConfigurationError: If embeddings are not floating point, not finite in float32, or of different shapes.

    Example:
        >>> generated, training = check_embedding_pairs(torch.zeros(2, 3).double(), torch.zeros(2, 3).half())
        >>> generated.dtype, training.dtype
        (torch.float32, torch.float32)
    """
    for name, embeddings in (("generated", generated), ("training", training)):
        check_embeddings(embeddings, name=name)
    check_same_length(generated, training, names=("generated", "training"))
    return generated.float(), training.float()


def check_not_nan(values: Tensor, *, name: str) -> None:
    """Accept values of which none is NaN.

    Args:
        values: Scores, distances or p-values of any shape.
        name: What the caller calls them, for the message.

    Raises:
        ConfigurationError: If a value is NaN.

    Example:
        >>> check_not_nan(torch.tensor([0.0, 1.0]), name="scores")
    """
    if torch.isnan(values).any():
        raise ConfigurationError(
            f"{name} must not hold NaN, but {int(torch.isnan(values).sum())} of {values.numel()} values are NaN. "
            f"Leave those entries out before the call."
        )


def check_same_length(first: Tensor, second: Tensor, *, names: tuple[str, str]) -> None:
    """Accept two vectors of one length.

    Args:
        first: A vector.
        second: Another.
        names: What the caller calls them, for the message.

    Raises:
        ConfigurationError: If the lengths differ.

    Example:
        >>> check_same_length(torch.zeros(3), torch.ones(3), names=("scores", "labels"))
    """
    if first.shape != second.shape:
        raise ConfigurationError(
            f"{names[0]} and {names[1]} must have one shape, but have {tuple(first.shape)} and {tuple(second.shape)}. "
            f"Give one entry per sample in both."
        )
