"""Random numbers of one subject, smooth random fields, and the warp that makes a subject of the template."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from relict_lightning.testing.template import Template

# Centre and width of the lateral ventricles in MNI millimetres, ordered z, y, x.
_VENTRICLES_MM = (16.0, -14.0, 0.0)
_VENTRICLE_WIDTH_MM = (16.0, 26.0, 15.0)
_COARSE_KNOTS_MM = 38.0
_FINE_KNOTS_MM = 15.0
_SQUARINGS = 5
_SCALARS = 32


class Draws:
    """Standard normal draws, from a stream of its own for every subject."""

    def __init__(self, seed: int, numbers: Sequence[int]) -> None:
        self._streams = [np.random.default_rng([seed, number]) for number in numbers]
        self.scalars = self.normal(_SCALARS)

    def normal(self, *shape: int) -> Tensor:
        """Return float32 draws, `[n, *shape]`."""
        return torch.from_numpy(np.stack([stream.standard_normal(shape, dtype=np.float32) for stream in self._streams]))

    def scalar(self, position: int, dims: int) -> Tensor:
        """Return one scalar per subject, shaped to multiply `[n, *spatial]`."""
        return self.scalars[:, position].reshape(-1, *[1] * dims)


@lru_cache(maxsize=64)
def _spline_basis(side: int, knots: int) -> Tensor:
    """Return uniform cubic B-splines on a line, `[knots, side]`, scaled so that normal weights give unit variance."""
    position = torch.linspace(0, knots - 3, side)
    distance = (position - (torch.arange(knots)[:, None] - 1)).abs()
    inner = 2 / 3 - distance**2 + distance**3 / 2
    outer = (2 - distance).clamp(min=0) ** 3 / 6
    basis = torch.where(distance < 1, inner, outer)
    return basis / (basis**2).sum(0).sqrt()


def random_field(
    draws: Draws, *, components: int, shape: tuple[int, ...], knots_mm: float, spacing_mm: float
) -> Tensor:
    """Return smooth random fields of unit variance, `[n, components, *shape]`."""
    knots = [max(4, round(side * spacing_mm / knots_mm) + 3) for side in shape]
    field = draws.normal(components, *knots)
    for axis, (side, count) in enumerate(zip(shape, knots, strict=True)):
        basis = _spline_basis(side, count)
        field = field.movedim(2 + axis, -1)
        grown = torch.zeros((*field.shape[:-1], side))
        for knot in range(count):
            grown += field[..., knot, None] * basis[knot]
        field = grown.movedim(-1, 2 + axis)
    return field.contiguous()


def exponential(velocity: Tensor) -> Tensor:
    """Return the displacement, in voxels, reached by following a stationary velocity for unit time."""
    shape = velocity.shape[2:]
    displacement = velocity / 2.0**_SQUARINGS
    identity = torch.stack(torch.meshgrid(*[torch.arange(float(side)) for side in shape], indexing="ij"))
    scale = torch.tensor([2 / (side - 1) for side in shape]).reshape(-1, *[1] * len(shape))
    for _ in range(_SQUARINGS):
        grid = ((identity + displacement) * scale - 1).flip(1).movedim(1, -1)
        displacement += functional.grid_sample(displacement, grid, padding_mode="border", align_corners=True)
    return displacement


def template_coordinates(template: Template, draws: Draws) -> Tensor:
    """Return where in the template every voxel of every subject lies, in millimetres, `[n, 3, z, y, x]`."""
    grid = template.grid_mm
    sides = tuple(grid.shape[1:])
    shape = sides if sides[0] > 1 else sides[1:]
    dims = len(shape)
    coarse, fine = (
        random_field(draws, components=dims, shape=shape, knots_mm=knots_mm, spacing_mm=template.spacing_mm)
        for knots_mm in (_COARSE_KNOTS_MM, _FINE_KNOTS_MM)
    )
    centred = grid - torch.tensor(_VENTRICLES_MM).reshape(3, 1, 1, 1)
    window = torch.exp(-0.5 * ((centred / torch.tensor(_VENTRICLE_WIDTH_MM).reshape(3, 1, 1, 1)) ** 2).sum(0))
    radial = (centred * window)[-dims:].reshape(dims, *shape)
    velocity_mm = 4.0 * coarse + 1.8 * fine - (0.15 + 0.35 * draws.scalar(0, dims + 1)) * radial
    # Displacements are followed in millimetres along the axes of the array, where y points the other way.
    direction = torch.tensor((1.0, -1.0, 1.0)[-dims:]).reshape(dims, *[1] * dims)
    moved = exponential(velocity_mm * direction / template.spacing_mm) * direction * template.spacing_mm

    centre = torch.tensor(template.centre_mm).reshape(3, 1, 1, 1)
    point = (grid - centre).repeat(len(moved), 1, 1, 1, 1)
    point[:, 3 - dims :] += moved.reshape(len(moved), dims, *sides)
    point = point * torch.exp(0.04 * draws.scalars[:, 1:4].clamp(-2.5, 2.5)).reshape(-1, 3, 1, 1, 1)
    for position, (first, second) in enumerate(((1, 2), (0, 1), (0, 2))):
        angle = 0.06 * draws.scalar(4 + position, 3)
        one, other = point[:, first].clone(), point[:, second].clone()
        point[:, first] = angle.cos() * one - angle.sin() * other
        point[:, second] = angle.sin() * one + angle.cos() * other
    offset = torch.tensor((3.0, 2.0, 2.0)) * draws.scalars[:, 7:10].clamp(-2.5, 2.5)
    return point + centre + offset.reshape(-1, 3, 1, 1, 1)
