"""The template that simulated heads are warped from: MNI152, smoothed and thinned out for one target shape."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from relict_lightning.errors import MissingDependencyError

# Field of view and centre in MNI millimetres, ordered z, y, x.
_EXTENT_MM = (166.0, 204.0, 170.0)
_CENTRE_MM = (5.0, -17.0, 0.0)
_SLICE_LEVEL_MM = 16.0
# A slice is cut from this much template on either side, which holds every level and tilt.
_SLICE_MARGIN_MM = 40


@dataclass(frozen=True, kw_only=True)
class Template:
    """The template, smoothed for one target shape. Axes are z, y, x; millimetres are those of MNI space.

    Attributes:
        channels: T1, fluid, grey and white matter, `[4, z, y, x]`.
        origin_mm: Where the first voxel of the channels lies.
        step_mm: Edge of a voxel of the channels.
        spacing_mm: Edge of a voxel of the target.
        centre_mm: Centre of the target.
        grid_mm: Where the voxels of the target lie, `[3, z, y, x]`; a slice has one plane.
    """

    channels: Tensor
    origin_mm: tuple[float, float, float]
    step_mm: float
    spacing_mm: float
    centre_mm: tuple[float, float, float]
    grid_mm: Tensor


@lru_cache(maxsize=4)
def load_template(shape: tuple[int, ...]) -> Template:
    """Return the template for images of one shape, two or three sides; read once and kept.

    Raises:
        MissingDependencyError: If nilearn is not installed.
    """
    try:
        from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template
    except ImportError as error:
        raise MissingDependencyError(
            'The head template comes with nilearn, which is not installed. pip install "relict-lightning[examples]"'
        ) from error
    from scipy.ndimage import gaussian_filter

    dims = len(shape)
    spacing_mm = max(extent / side for extent, side in zip(_EXTENT_MM[-dims:], shape, strict=True))
    head = load_mni152_template(resolution=1)
    x_mm, y_mm, z_mm = (float(value) for value in head.affine[:3, 3])
    planes = slice(None)
    if dims == 2:
        level = round(_SLICE_LEVEL_MM - z_mm)
        planes = slice(level - _SLICE_MARGIN_MM, level + _SLICE_MARGIN_MM + 1)
        z_mm += level - _SLICE_MARGIN_MM
    t1, grey, white = (
        np.ascontiguousarray(np.transpose(np.asanyarray(image.dataobj)[..., planes], (2, 1, 0)), dtype=np.float32)
        for image in (head, load_mni152_gm_template(resolution=1), load_mni152_wm_template(resolution=1))
    )
    fluid = np.clip((t1 > 0.02) - grey - white, 0, 1).astype(np.float32)
    step = max(1, int(spacing_mm / 1.5))
    channels = np.stack(
        [
            gaussian_filter(channel, 0.4 * spacing_mm, truncate=3.0)[::step, ::step, ::step]
            for channel in (t1, fluid, grey, white)
        ]
    )
    centre_mm = _CENTRE_MM if dims == 3 else (_SLICE_LEVEL_MM, *_CENTRE_MM[1:])
    sides = shape if dims == 3 else (1, *shape)
    axes = [
        centre + direction * spacing_mm * (torch.arange(side) - (side - 1) / 2)
        for centre, side, direction in zip(centre_mm, sides, (1, -1, 1), strict=True)
    ]
    return Template(
        channels=torch.from_numpy(channels),
        origin_mm=(z_mm, y_mm, x_mm),
        step_mm=float(step),
        spacing_mm=spacing_mm,
        centre_mm=centre_mm,
        grid_mm=torch.stack(torch.meshgrid(*axes, indexing="ij")),
    )


def sample_template(template: Template, coordinates: Tensor) -> Tensor:
    """Return the template's channels at the coordinates, `[n, channels, *spatial]`."""
    n, _, *sides = coordinates.shape
    origin = torch.tensor(template.origin_mm).reshape(3, 1, 1, 1)
    last = torch.tensor(template.channels.shape[1:]).reshape(3, 1, 1, 1) - 1
    normalised = (coordinates - origin) / (template.step_mm * last) * 2 - 1
    # All subjects are planes of one output, so that the template is read once and never repeated.
    grid = normalised.flip(1).movedim(1, -1).reshape(1, n * sides[0], sides[1], sides[2], 3)
    sampled = functional.grid_sample(template.channels[None], grid, padding_mode="zeros", align_corners=True)[0]
    spatial = sides if sides[0] > 1 else sides[1:]
    return sampled.reshape(len(template.channels), n, *spatial).movedim(0, 1)
