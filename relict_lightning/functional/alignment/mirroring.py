"""Mirror images.

- `mirror`: images mirrored along some axes.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional.validation import check_images


def mirror(images: Float[Tensor, "n c *spatial"], axes: Sequence[int]) -> Float[Tensor, "n c *spatial"]:
    """Return the images, mirrored along some spatial axes.

    Args:
        images: Images.
        axes: Spatial axes, counted from 0; none leaves the images as they are.

    Returns:
        Mirrored images of the same shape and dtype. Mirroring twice gives the images back.

    Raises:
        InvalidImageError: If images are not floating point, not finite, or not 2-D or 3-D.
        ConfigurationError: If an axis does not exist or occurs twice.

    Example:
        >>> import torch
        >>> mirror(torch.tensor([[[[1.0, 2.0, 3.0]]]]), (1,))
        tensor([[[[3., 2., 1.]]]])
    """
    check_images(images, name="images")
    ndim = images.ndim - 2
    if len(set(axes)) != len(axes) or any(not 0 <= axis < ndim for axis in axes):
        raise ConfigurationError(
            f"axes must be different spatial axes from 0 to {ndim - 1}, but are {tuple(axes)}. "
            f"Batch and channel axes are not counted."
        )
    return images.flip([axis + 2 for axis in axes])
