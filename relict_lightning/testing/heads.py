"""Simulated subjects: head MRI made by warping one T1-weighted template.

Every subject is a smooth diffeomorphic deformation of the MNI152 template that nilearn ships, with its own ventricles,
tissue contrast, bias field and noise, and with a lesion in some. Nothing is downloaded.

Conventions: axes are `[z, y, x]` in a volume and `[y, x]` in a slice; z runs from inferior to superior, y from anterior
to posterior, x from left to right, so the last axis is the one that a mirror image swaps. Voxels are isotropic, as
small as lets the head fit into the shape. A subject depends on the seed and on its number only, never on the batch it
is made in: every operation on more than one subject is elementwise, because sums in a matrix product may take another
order in another batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from relict_lightning.errors import ConfigurationError, MissingDependencyError

LABELS: tuple[str, ...] = ("background", "cerebrospinal fluid", "grey matter", "white matter", "lesion")

# Field of view, centre, and centre of the lateral ventricles in MNI millimetres, ordered z, y, x.
_EXTENT_MM = (166.0, 204.0, 170.0)
_CENTRE_MM = (5.0, -17.0, 0.0)
_VENTRICLES_MM = (16.0, -14.0, 0.0)
_VENTRICLE_WIDTH_MM = (16.0, 26.0, 15.0)
_SLICE_LEVEL_MM = 16.0
_SLICE_MARGIN_MM = 40
_COARSE_KNOTS_MM = 38.0
_FINE_KNOTS_MM = 15.0
_BIAS_KNOTS_MM = 70.0
_SQUARINGS = 5
_VOXELS_AT_ONCE = 2**18
_SCALARS = 32


@dataclass(frozen=True, kw_only=True)
class HeadSubjects:
    """Simulated subjects: images, label maps and ids, in one order.

    Attributes:
        images: Float32 in [0, 1], zero outside the head, `[n, 1, *spatial]`.
        labels: Position in `LABELS` for every voxel, `[n, *spatial]`.
        ids: One id per subject, such as `sub-00017`; the subject is the patient, so ids are groups as well.
        spacing_mm: Edge of a voxel.
    """

    images: Float[Tensor, "n 1 *spatial"]
    labels: UInt8[Tensor, "n *spatial"]
    ids: tuple[str, ...]
    spacing_mm: float


@dataclass(frozen=True, kw_only=True)
class _Template:
    """The template, smoothed for one target shape; channels are T1, fluid, grey and white matter."""

    channels: Tensor
    origin_mm: tuple[float, float, float]
    step_mm: float
    spacing_mm: float
    grid_mm: Tensor


def simulate_heads(
    count: int,
    *,
    seed: int = 0,
    first_subject: int = 0,
    shape: Sequence[int] = (64, 64),
    lesion_probability: float = 0.3,
    noise: float = 0.01,
) -> HeadSubjects:
    """Return simulated head-MRI subjects with their label maps.

    Two dimensions give an axial slice through the lateral ventricles, three a whole head. Subject 17 of a seed is the
    same image in whatever count or batch it is made.

    Args:
        count: Number of subjects, at least 0.
        seed: Seed of the population, at least 0; other seeds give other people under the same ids.
        first_subject: Number of the first subject, at least 0.
        shape: Two or three sides in voxels, each at least 16.
        lesion_probability: Share of subjects with a lesion in the white matter, in [0, 1].
        noise: Standard deviation of the noise inside the head, at least 0; white matter is about 0.8.

    Returns:
        Subjects `first_subject` to `first_subject + count - 1`.

    Raises:
        ConfigurationError: If an argument lies outside its range.
        MissingDependencyError: If nilearn, which ships the template, is not installed.

    Example:
        >>> subjects = simulate_heads(2, first_subject=17)
        >>> subjects.images.shape, subjects.ids
        (torch.Size([2, 1, 64, 64]), ('sub-00017', 'sub-00018'))

    References:
        Fonov et al. (2011), doi:10.1016/j.neuroimage.2010.07.033 (template); Arsigny et al. (2006),
        doi:10.1007/11866565_113 (exponentials of stationary velocity fields).
    """
    sides = tuple(int(side) for side in shape)
    _check_arguments(count, seed, first_subject, sides, lesion_probability, noise)
    template = _template(sides)
    images = torch.empty((count, 1, *sides))
    labels = torch.empty((count, *sides), dtype=torch.uint8)
    at_once = max(1, _VOXELS_AT_ONCE // math.prod(sides))
    with torch.no_grad():
        for start in range(0, count, at_once):
            stop = min(count, start + at_once)
            draws = _Draws(seed, range(first_subject + start, first_subject + stop))
            coordinates = _template_coordinates(template, draws)
            maps = _sample_template(template, coordinates)
            image, label = _appearance(template, maps, draws, lesion_probability=lesion_probability, noise=noise)
            images[start:stop, 0], labels[start:stop] = image, label
    ids = tuple(f"sub-{number:05d}" for number in range(first_subject, first_subject + count))
    return HeadSubjects(images=images, labels=labels, ids=ids, spacing_mm=template.spacing_mm)


def _check_arguments(
    count: int, seed: int, first_subject: int, shape: tuple[int, ...], lesion_probability: float, noise: float
) -> None:
    for name, value in (("count", count), ("seed", seed), ("first_subject", first_subject)):
        if value < 0:
            raise ConfigurationError(f"{name} must be at least 0, got {name}={value}.")
    if len(shape) not in (2, 3) or min(shape) < 16:
        raise ConfigurationError(f"shape must have 2 or 3 sides of at least 16 voxels, got shape={shape}.")
    if not 0 <= lesion_probability <= 1:
        raise ConfigurationError(f"lesion_probability must lie in [0, 1], got {lesion_probability}.")
    if not (math.isfinite(noise) and noise >= 0):
        raise ConfigurationError(f"noise must be finite and at least 0, got {noise}.")


class _Draws:
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


@lru_cache(maxsize=4)
def _template(shape: tuple[int, ...]) -> _Template:
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
    return _Template(
        channels=torch.from_numpy(channels),
        origin_mm=(z_mm, y_mm, x_mm),
        step_mm=float(step),
        spacing_mm=spacing_mm,
        grid_mm=torch.stack(torch.meshgrid(*axes, indexing="ij")),
    )


@lru_cache(maxsize=64)
def _spline_basis(side: int, knots: int) -> Tensor:
    """Return uniform cubic B-splines on a line, `[knots, side]`, scaled so that normal weights give unit variance."""
    position = torch.linspace(0, knots - 3, side)
    distance = (position - (torch.arange(knots)[:, None] - 1)).abs()
    inner = 2 / 3 - distance**2 + distance**3 / 2
    outer = (2 - distance).clamp(min=0) ** 3 / 6
    basis = torch.where(distance < 1, inner, outer)
    return basis / (basis**2).sum(0).sqrt()


def _random_field(
    draws: _Draws, *, components: int, shape: tuple[int, ...], knots_mm: float, spacing_mm: float
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


def _exponential(velocity: Tensor) -> Tensor:
    """Return the displacement, in voxels, reached by following a stationary velocity for unit time."""
    shape = velocity.shape[2:]
    displacement = velocity / 2.0**_SQUARINGS
    identity = torch.stack(torch.meshgrid(*[torch.arange(float(side)) for side in shape], indexing="ij"))
    scale = torch.tensor([2 / (side - 1) for side in shape]).reshape(-1, *[1] * len(shape))
    for _ in range(_SQUARINGS):
        grid = ((identity + displacement) * scale - 1).flip(1).movedim(1, -1)
        displacement += functional.grid_sample(displacement, grid, padding_mode="border", align_corners=True)
    return displacement


def _template_coordinates(template: _Template, draws: _Draws) -> Tensor:
    """Return where in the template every voxel of every subject lies, in millimetres, `[n, 3, z, y, x]`."""
    grid = template.grid_mm
    sides = tuple(grid.shape[1:])
    shape = sides if sides[0] > 1 else sides[1:]
    dims = len(shape)
    coarse, fine = (
        _random_field(draws, components=dims, shape=shape, knots_mm=knots_mm, spacing_mm=template.spacing_mm)
        for knots_mm in (_COARSE_KNOTS_MM, _FINE_KNOTS_MM)
    )
    centred = grid - torch.tensor(_VENTRICLES_MM).reshape(3, 1, 1, 1)
    window = torch.exp(-0.5 * ((centred / torch.tensor(_VENTRICLE_WIDTH_MM).reshape(3, 1, 1, 1)) ** 2).sum(0))
    radial = (centred * window)[-dims:].reshape(dims, *shape)
    velocity_mm = 4.0 * coarse + 1.8 * fine - (0.15 + 0.35 * draws.scalar(0, dims + 1)) * radial
    # Displacements are followed in millimetres along the axes of the array, where y points the other way.
    direction = torch.tensor((1.0, -1.0, 1.0)[-dims:]).reshape(dims, *[1] * dims)
    moved = _exponential(velocity_mm * direction / template.spacing_mm) * direction * template.spacing_mm

    centre = torch.tensor(_CENTRE_MM if dims == 3 else (_SLICE_LEVEL_MM, *_CENTRE_MM[1:])).reshape(3, 1, 1, 1)
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


def _sample_template(template: _Template, coordinates: Tensor) -> Tensor:
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


def _appearance(
    template: _Template, maps: Tensor, draws: _Draws, *, lesion_probability: float, noise: float
) -> tuple[Tensor, Tensor]:
    """Return images and labels, both `[n, *spatial]`, from the warped T1, fluid, grey and white matter."""
    t1, fluid, grey, white = maps.unbind(1)
    shape = tuple(t1.shape[1:])
    dims = len(shape)
    head = (fluid + grey + white).clamp(0, 1)
    label = torch.stack([1 - head, fluid, grey, white]).argmax(0).to(torch.uint8)

    image = t1 + 0.05 * draws.scalar(10, dims) * fluid + 0.06 * draws.scalar(11, dims) * grey
    image = image + 0.05 * draws.scalar(12, dims) * white
    lesion = _lesion(template, label, draws, probability=lesion_probability) * (grey + white).clamp(0, 1)
    brightness = torch.where(draws.scalar(13, dims) > 0, 1.0, 0.3)
    image = image + lesion * (brightness - image)
    label[(lesion > 0.5) & (label > 1)] = 4

    bias = _random_field(draws, components=1, shape=shape, knots_mm=_BIAS_KNOTS_MM, spacing_mm=template.spacing_mm)[
        :, 0
    ]
    image = image.clamp(min=0) ** torch.exp(0.12 * draws.scalar(14, dims))
    image = image * torch.exp(0.06 * draws.scalar(15, dims) + 0.08 * bias)
    image = image + noise * draws.normal(*shape) * head
    return (image * (head > 0.02)).clamp(0, 1), label


def _lesion(template: _Template, label: Tensor, draws: _Draws, *, probability: float) -> Tensor:
    """Return soft ellipsoids centred deep in white matter, `[n, *spatial]`, zero for subjects without a lesion."""
    n, *shape = label.shape
    dims = len(shape)
    uniform = torch.special.ndtr(draws.scalars[:, 16:18])
    white = label == 3
    pool = functional.max_pool2d if dims == 2 else functional.max_pool3d
    deep = pool((~white).float()[:, None], 3, stride=1, padding=1)[:, 0] == 0
    white = torch.where(deep.flatten(1).any(1).reshape(-1, *[1] * dims), deep, white).reshape(n, -1)
    count = white.sum(1)
    rank = torch.minimum((uniform[:, 0] * count).long(), count - 1)
    centre = (white.cumsum(1) > rank[:, None]).int().argmax(1)
    present = (uniform[:, 1] < probability) & (count > 0)
    radii = 9.0 * torch.exp(0.35 * draws.scalars[:, 18 : 18 + dims]) / template.spacing_mm
    squared = torch.zeros(n, *shape)
    for axis in range(dims):
        stride = math.prod(shape[axis + 1 :])
        position = (centre // stride) % shape[axis]
        line = torch.arange(shape[axis]).reshape([-1 if other == axis else 1 for other in range(dims)])
        offset = (line - position.reshape(-1, *[1] * dims)) / radii[:, axis].reshape(-1, *[1] * dims)
        squared = squared + offset**2
    inside = torch.sigmoid(4 * (1 - squared))
    return torch.where(present.reshape(-1, *[1] * dims), inside, torch.zeros(()))
