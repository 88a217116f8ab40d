"""An encoder without weights: where the edges are, and which way they run."""

import math
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional.slopes import central_difference
from relict_lightning.interfaces import Encoder

# A gradient below this share of the image's own mean gradient is taken for noise rather than for an edge.
_NOISE_SHARE = 0.1


@final
class GradientEncoder(Encoder):
    """Histograms of oriented gradients on a grid of cells, in 2-D and in 3-D.

    Every image is standardised, smoothed once, and differentiated along each axis. Rising and falling gradients are
    kept apart, divided by the local gradient strength, and averaged within cells, so that an embedding says where
    edges lie and which way they run, and forgets gain, offset, slow shading and fine noise. Each orientation's mean
    over the cells is removed: a cosine of two embeddings is then a correlation of edge layouts.

    It needs no weights, no network and no training, and serves every modality in which anatomy shows as edges. A
    pretrained encoder for the modality at hand will usually separate patients better.

    Args:
        cells: Cells along each axis; None chooses 8 in 2-D and 6 in 3-D. An axis shorter than this gets one cell
            per voxel.

    Raises:
        ConfigurationError: If `cells` is below 1.

    Example:
        >>> GradientEncoder()(torch.rand(2, 1, 64, 64)).shape
        torch.Size([2, 256])

    References:
        Dalal and Triggs (2005), doi:10.1109/CVPR.2005.177.
    """

    def __init__(self, cells: int | None = None) -> None:
        super().__init__()
        if cells is not None and cells < 1:
            raise ConfigurationError(f"cells must be at least 1, got {cells}.")
        self.cells = cells

    def extra_repr(self) -> str:
        """Return the configuration, which is part of the fingerprint of an index."""
        return f"cells={self.cells}"

    def forward(self, images: Float[Tensor, "n c *spatial"]) -> Float[Tensor, "n d"]:
        """Return one embedding per image: channels times orientations times cells numbers.

        A constant image has no edges; its embedding is zero.
        """
        axes = tuple(range(2, images.ndim))
        pooled_axes = (1, *axes)
        standard = images - images.mean(pooled_axes, keepdim=True)
        deviation = standard.square().mean(pooled_axes, keepdim=True).sqrt()
        standard = standard / torch.where(deviation > 0, deviation, torch.ones_like(deviation))
        for axis in axes:
            standard = _smooth(standard, axis)
        gradients = torch.stack([central_difference(standard, axis) for axis in axes], dim=2)
        strength = gradients.square().sum(2, keepdim=True).sqrt()
        local = strength.flatten(1, 2)
        for axis in axes:
            local = _smooth(_smooth(local, axis), axis)
        floor = _NOISE_SHARE * strength.mean(dim=tuple(range(1, strength.ndim)), keepdim=True)
        edges = gradients / (local[:, :, None] + floor).clamp_min(1e-12)
        oriented = torch.cat([edges.clamp_min(0), (-edges).clamp_min(0)], dim=2).flatten(1, 2)
        cells = self.cells or (8 if len(axes) == 2 else 6)
        grid = tuple(min(cells, images.shape[axis]) for axis in axes)
        pool = torch.nn.AdaptiveAvgPool2d(grid) if len(axes) == 2 else torch.nn.AdaptiveAvgPool3d(grid)
        layout: Tensor = pool(oriented).flatten(2)
        layout = layout - layout.mean(2, keepdim=True)
        return layout.flatten(1) / math.sqrt(layout.shape[2])


def _smooth(images: Tensor, axis: int) -> Tensor:
    """Return the images after a (1, 2, 1) / 4 filter along one axis, the border repeated."""
    size = images.shape[axis]
    before = torch.cat([images.narrow(axis, 0, 1), images.narrow(axis, 0, size - 1)], dim=axis)
    after = torch.cat([images.narrow(axis, 1, size - 1), images.narrow(axis, size - 1, 1)], dim=axis)
    return (before + 2 * images + after) / 4
