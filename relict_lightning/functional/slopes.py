"""Differences between neighbouring voxels.

- `central_difference`: the slope of images along one axis.
"""

import torch
from torch import Tensor


def central_difference(images: Tensor, axis: int) -> Tensor:
    """Return the central difference along one axis, zero at the border.

    Args:
        images: Images of any number of axes.
        axis: Axis of the tensor.
    """
    size = images.shape[axis]
    slope = torch.zeros_like(images)
    if size > 2:
        slope.narrow(axis, 1, size - 2).copy_((images.narrow(axis, 2, size - 2) - images.narrow(axis, 0, size - 2)) / 2)
    return slope
