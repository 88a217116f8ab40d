"""Simulated time-of-flight angiograms of the circle of Willis.

Bright arteries on dim tissue: the tissue is that of the MNI152 template, warped for every subject, with textures of
its own that move with the anatomy; the arteries are tubes around centrelines (`relict_lightning.testing.vessel_tree`),
rendered with partial volume. Nothing is downloaded.

Conventions: those of `relict_lightning.testing.scan_parts`. A subject is the same in whatever batch it is made.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial

import torch
from torch import Tensor

from relict_lightning.testing.deformation import Draws, random_field
from relict_lightning.testing.scan_parts import (
    ANATOMY,
    BEND,
    SCAN,
    STRUCTURE,
    Person,
    PersonDraws,
    ScanParts,
    ScanSubjects,
    check_shape,
    check_subjects,
    distance_mm,
    in_portions,
    lie_down,
    nearness,
    simulated,
    warped_coordinates,
)
from relict_lightning.testing.template import Template, load_template, sample_template
from relict_lightning.testing.vessel_tree import BEND_DRAWS, CENTRE_MM, TREE_DRAWS, VesselTree, bend_tree, grow_tree

# What the slab of a time-of-flight scan of the circle of Willis covers, ordered z, y, x.
_EXTENT_MM = (78.0, 104.0, 104.0)
# A shape for which the template comes in steps of 2 mm: the background has no finer detail than that.
_TEMPLATE_SHAPE = (56, 68, 57)
_FLUID, _WHITE, _GREY = 0.13, 0.25, 0.31
_BONE, _MUSCLE, _BONE_MM = 0.06, 0.24, 7.0
_ARTERY = 0.92
_NOISE = 0.02
_BIAS_KNOTS_MM = 60.0
_TEXTURES_MM = (14.0, 7.0)


def simulate_tof_angiograms(
    count: int, *, seed: int = 0, first_subject: int = 0, shape: Sequence[int] = (48, 64, 64)
) -> ScanSubjects:
    """Return simulated time-of-flight angiograms of subjects.

    Args:
        count: Number of subjects, at least 0.
        seed: Seed of the population, at least 0; other seeds give other people under the same ids.
        first_subject: Number of the first subject, at least 0.
        shape: Three sides in voxels, each at least 16; voxels are as small as lets the slab fit, 1.6 mm by default.

    Returns:
        Subjects `first_subject` to `first_subject + count - 1`; label 1 is vessel.

    Raises:
        ConfigurationError: If an argument lies outside its range.
        MissingDependencyError: If nilearn, which ships the template, is not installed.

    Example:
        >>> subjects = simulate_tof_angiograms(1, first_subject=17, shape=(24, 32, 32))
        >>> subjects.images.shape, subjects.ids, int(subjects.labels.max())
        (torch.Size([1, 1, 24, 32, 32]), ('sub-00017',), 1)
    """
    sides = check_subjects(count, seed, first_subject, shape)
    spacing_mm = _slab_template(sides).spacing_mm
    make = partial(_parts, seed, sides)
    return simulated(make, count, first_subject=first_subject, shape=sides, spacing_mm=spacing_mm)


def angiogram_parts(
    *,
    seed: int,
    anatomies: Sequence[Person],
    trees: Sequence[Person],
    scans: Sequence[int],
    shape: Sequence[int] = (48, 64, 64),
    bend_mm: float = 0.0,
) -> ScanParts:
    """Return tissue, arteries and noise apart from each other, in any combination.

    Args:
        seed: Seed of the population, at least 0.
        anatomies: Whose tissue, one person per scan.
        trees: Whose arteries.
        scans: Number of the scan, which sets noise, bias, position, and flow to some per cent.
        shape: Three sides in voxels, each at least 16.
        bend_mm: How far arteries are displaced along each axis, smoothly and without changing how they hang together;
            the scan sets the direction.

    Raises:
        ConfigurationError: If the three sequences differ in length, or the shape is out of range.
        MissingDependencyError: If nilearn, which ships the template, is not installed.
    """
    sides = check_shape(shape)
    with torch.no_grad():
        return in_portions(partial(_parts, seed, sides, bend_mm=bend_mm), anatomies, trees, scans, shape=sides)


def _parts(
    seed: int,
    shape: tuple[int, ...],
    anatomies: Sequence[Person],
    trees: Sequence[Person],
    scans: Sequence[int],
    *,
    bend_mm: float = 0.0,
) -> ScanParts:
    template = _slab_template(shape)
    anatomy = PersonDraws(seed, anatomies, stream=ANATOMY)
    tree = PersonDraws(seed, trees, stream=STRUCTURE)
    scan = PersonDraws(seed, scans, stream=SCAN)
    coordinates, textures = warped_coordinates(template, anatomy, scan, textures_mm=_TEXTURES_MM)
    fluid, grey, white, near = sample_template(template, coordinates).unbind(1)
    tissue = _tissue(fluid, grey, white, distance_mm(near), textures, anatomy)
    bias = random_field(scan, components=1, shape=shape, knots_mm=_BIAS_KNOTS_MM, spacing_mm=template.spacing_mm)[:, 0]
    # Spins that enter from below are saturated on their way up.
    upwards = torch.linspace(-1, 1, shape[0]).reshape(-1, 1, 1)
    gain = torch.exp(0.06 * bias + 0.05 * scan.scalar(8, 3) - 0.05 * (1 + 0.5 * scan.scalar(9, 3)) * upwards)
    grown = [grow_tree(draws.numpy()) for draws in tree.normal(TREE_DRAWS)]
    if bend_mm:
        bends = PersonDraws(seed, scans, stream=BEND).normal(BEND_DRAWS)
        grown = [
            replace(own, points_mm=bend_tree(own.points_mm, draws.numpy(), size_mm=bend_mm))
            for own, draws in zip(grown, bends, strict=True)
        ]
    opacity, colour = _arteries(template, grown, scan, shape)
    noise = _NOISE * torch.exp(0.2 * scan.scalar(6, 3)) * scan.normal(*shape)
    return ScanParts(
        background=(tissue * gain)[:, None],
        opacity=opacity[:, None],
        colour=torch.minimum(colour * gain, opacity)[:, None],
        noise=noise[:, None],
        labels=(opacity > 0.5).to(torch.uint8),
    )


@lru_cache(maxsize=4)
def _slab_template(shape: tuple[int, ...]) -> Template:
    """Return fluid, grey matter, white matter and nearness to the head, with the grid of the slab."""
    head = load_template(_TEMPLATE_SHAPE)
    spacing_mm = max(extent / side for extent, side in zip(_EXTENT_MM, shape, strict=True))
    axes = [
        centre + direction * spacing_mm * (torch.arange(side) - (side - 1) / 2)
        for centre, side, direction in zip(CENTRE_MM, shape, (1, -1, 1), strict=True)
    ]
    tissue = head.channels[1:]
    near = nearness((tissue.sum(0) > 0.5).numpy(), step_mm=head.step_mm)
    return replace(
        head,
        channels=torch.cat([tissue, near[None]]),
        spacing_mm=spacing_mm,
        centre_mm=CENTRE_MM,
        grid_mm=torch.stack(torch.meshgrid(*axes, indexing="ij")),
    )


def _tissue(fluid: Tensor, grey: Tensor, white: Tensor, distance: Tensor, textures: Tensor, anatomy: Draws) -> Tensor:
    """Return what surrounds the arteries, `[n, *spatial]`."""
    coarse, fine = textures.unbind(1)
    inside = (fluid + grey + white).clamp(0, 1)
    brain = (_FLUID + 0.02 * anatomy.scalar(20, 3)) * fluid + (_GREY + 0.015 * anatomy.scalar(21, 3)) * grey
    brain = brain + (_WHITE + 0.015 * anatomy.scalar(22, 3)) * white
    outer = torch.sigmoid((distance - _BONE_MM - 2 * anatomy.scalar(23, 3)) / 1.5)
    muscle = _MUSCLE + 0.02 * anatomy.scalar(24, 3) + 0.06 * coarse
    around = _BONE + 0.02 * coarse + outer * (muscle - _BONE)
    tissue = inside * brain + (1 - inside) * around
    return (tissue * (1 + 0.06 * coarse + 0.05 * fine)).clamp(min=0)


def _arteries(
    template: Template, trees: Sequence[VesselTree], scan: Draws, shape: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Return how much of each voxel is artery and how bright that part is, both `[n, *spatial]`."""
    opacity, colour = (torch.zeros(len(trees), *shape) for _ in range(2))
    centre = torch.tensor([(side - 1) / 2 for side in shape])
    # Along the array, y runs the other way.
    direction = torch.tensor([1.0, -1.0, 1.0]) / template.spacing_mm
    for position, grown in enumerate(trees):
        points = (torch.from_numpy(grown.points_mm).float() - torch.tensor(CENTRE_MM)) * direction
        alone = scan.scalars[position : position + 1]
        points = lie_down(points.T[None], alone, spacing_mm=template.spacing_mm)[0].T + centre
        radius = torch.from_numpy(grown.radius_mm).float() / template.spacing_mm
        radius = radius * torch.exp(0.03 * scan.scalars[position, 10])
        signal = torch.from_numpy(grown.signal).float() * _ARTERY * torch.exp(0.04 * scan.scalars[position, 11])
        _splat(opacity[position], colour[position], points, radius, signal)
    return opacity, colour


def _splat(opacity: Tensor, colour: Tensor, points: Tensor, radius: Tensor, signal: Tensor) -> None:
    """Write tubes into one volume: a voxel holds as much artery as its nearest centreline point lets it."""
    sides = torch.tensor(opacity.shape)[:, None]
    reach = math.ceil(float(radius.max()) + 0.5)
    # Per point and axis, the voxels in reach; distances of the cube of voxels are sums over axes.
    voxel = points.round().long()[:, :, None] + torch.arange(-reach, reach + 1)
    squared = (voxel - points[:, :, None]).square()
    squared = torch.where((voxel >= 0) & (voxel < sides), squared, torch.inf)
    z, y, x = squared.unbind(1)
    distance = (z[:, :, None, None] + y[:, None, :, None] + x[:, None, None, :]).sqrt()
    share = (radius[:, None, None, None] - distance + 0.5).clamp(0, 1)
    point, *offsets = torch.nonzero(share, as_tuple=True)
    share = share[(point, *offsets)]
    z, y, x = (voxel[point, axis, offset] for axis, offset in enumerate(offsets))
    flat = (z * sides[1] + y) * sides[2] + x
    opacity.view(-1).scatter_reduce_(0, flat, share, "amax")
    colour.view(-1).scatter_reduce_(0, flat, share * signal.clamp(max=1)[point], "amax")
