"""What a simulated scan is put together from: a background, what lies in it, and noise; and who it shows.

A person has an anatomy (the background), a structure (the hemorrhages or the vessel tree) and scans of both, and each
comes from a stream of random numbers of its own. So the vessels of one person can be shown in another's head, one
person can be scanned again, and two can be blended, all with the functions that make ordinary subjects.

Conventions: axes are `[z, y, x]`, y runs from anterior to posterior, and voxels are isotropic. Every part depends on
the seed and on its own number only, never on the batch.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from relict_lightning.errors import ConfigurationError
from relict_lightning.testing.deformation import Draws, random_field, template_coordinates
from relict_lightning.testing.numbering import check_numbers, subject_ids
from relict_lightning.testing.template import Template

# A person's number, or two numbers: somebody halfway between two people.
Person: TypeAlias = int | tuple[int, int]

# Streams of one person. Numbers are interleaved, so that no two people share a stream.
ANATOMY, STRUCTURE, SCAN, BEND = 0, 1, 2, 3
_STREAMS = 4
# How far a head lies from where it lay in another session: about what remains after planning on a scout.
_TILT_DEGREES = 0.7
_SHIFT_MM = 0.5
_VOXELS_AT_ONCE = 2**19


class PersonDraws(Draws):
    """Standard normal draws of people, of whom some are blends of two: their draws are the mean of their parents'."""

    def __init__(self, seed: int, people: Sequence[Person], *, stream: int) -> None:
        parents = [(person, person) if isinstance(person, int) else person for person in people]
        numbers = sorted({number for pair in parents for number in pair})
        position = {number: place for place, number in enumerate(numbers)}
        # Everybody draws from a stream of their own, a person who occurs twice as well.
        self._parents = [torch.tensor([position[pair[side]] for pair in parents]) for side in (0, 1)]
        super().__init__(seed, [_STREAMS * number + stream for number in numbers])

    def normal(self, *shape: int) -> Tensor:
        """Return float32 draws, `[n, *shape]`."""
        drawn = super().normal(*shape)
        return (drawn[self._parents[0]] + drawn[self._parents[1]]) / 2


@dataclass(frozen=True, kw_only=True)
class ScanParts:
    """The parts of scans, noise-free but for `noise`. A scan is `background * (1 - opacity) + colour + noise`.

    Attributes:
        background: The scan without hemorrhage or vessels, `[n, 1, *spatial]`; not limited to [0, 1].
        opacity: How much of a voxel the structure hides, in [0, 1], `[n, 1, *spatial]`.
        colour: What the structure shows there, at most as large as its opacity, `[n, 1, *spatial]`.
        noise: Noise of the scan, `[n, 1, *spatial]`.
        labels: 1 in a hemorrhage or a vessel, else 0, `[n, *spatial]`.
    """

    background: Float[Tensor, "n 1 *spatial"]
    opacity: Float[Tensor, "n 1 *spatial"]
    colour: Float[Tensor, "n 1 *spatial"]
    noise: Float[Tensor, "n 1 *spatial"]
    labels: UInt8[Tensor, "n *spatial"]

    def images(self) -> Float[Tensor, "n 1 *spatial"]:
        """Return the scans, in [0, 1]."""
        return (self.background * (1 - self.opacity) + self.colour + self.noise).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class ScanSubjects:
    """Simulated subjects: images, label maps and ids, in one order.

    Attributes:
        images: Float32 in [0, 1], `[n, 1, *spatial]`.
        labels: 1 in a hemorrhage or a vessel, else 0, `[n, *spatial]`.
        ids: One id per subject, such as `sub-00017`; the subject is the patient, so ids are groups as well.
        spacing_mm: Edge of a voxel.
    """

    images: Float[Tensor, "n 1 *spatial"]
    labels: UInt8[Tensor, "n *spatial"]
    ids: tuple[str, ...]
    spacing_mm: float


# Makes the parts of scans out of anatomies, structures and scans.
PartsMaker: TypeAlias = Callable[[Sequence[Person], Sequence[Person], Sequence[int]], ScanParts]


def check_subjects(count: int, seed: int, first_subject: int, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape as a tuple.

    Raises:
        ConfigurationError: If a number is negative, or the shape has not three sides of at least 16 voxels.
    """
    check_numbers(count, seed, first_subject)
    return check_shape(shape)


def check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape as a tuple of three sides; refuse any other."""
    sides = tuple(int(side) for side in shape)
    if len(sides) != 3 or min(sides) < 16:
        raise ConfigurationError(f"shape must have 3 sides of at least 16 voxels, got shape={sides}.")
    return sides


def rendered(
    make: PartsMaker, people: Sequence[int], scans: Sequence[int], *, shape: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Return images and label maps of people as they are, without ever holding the parts of all of them.

    Args:
        make: Makes parts out of anatomies, structures and scans.
        people: Whose anatomy and structure.
        scans: Number of each scan.
        shape: Sides of the images.
    """
    images = torch.empty((len(people), 1, *shape))
    labels = torch.empty((len(people), *shape), dtype=torch.uint8)
    step = max(1, _VOXELS_AT_ONCE // math.prod(shape))
    for start in range(0, len(people), step):
        portion = slice(start, start + step)
        parts = make(people[portion], people[portion], scans[portion])
        images[portion], labels[portion] = parts.images(), parts.labels
    return images, labels


def simulated(
    make: PartsMaker, count: int, *, first_subject: int, shape: tuple[int, ...], spacing_mm: float
) -> ScanSubjects:
    """Return consecutive subjects, each with the anatomy, the structure and the scan of its own number.

    Args:
        make: Makes parts out of anatomies, structures and scans.
        count: Number of subjects.
        first_subject: Number of the first subject.
        shape: Sides of the images.
        spacing_mm: Edge of a voxel.
    """
    numbers = range(first_subject, first_subject + count)
    with torch.no_grad():
        images, labels = rendered(make, numbers, numbers, shape=shape)
    return ScanSubjects(images=images, labels=labels, ids=subject_ids(first_subject, count), spacing_mm=spacing_mm)


def in_portions(
    make: PartsMaker,
    anatomies: Sequence[Person],
    structures: Sequence[Person],
    scans: Sequence[int],
    *,
    shape: tuple[int, ...],
) -> ScanParts:
    """Return the parts of all people, made a few at a time so that the memory holds them.

    Raises:
        ConfigurationError: If there are not as many structures and scans as anatomies.
    """
    count = len(anatomies)
    if not count == len(structures) == len(scans):
        raise ConfigurationError(
            f"Every anatomy needs a structure and a scan, got {count}, {len(structures)} and {len(scans)}."
        )
    if count == 0:
        empty = torch.empty((0, 1, *shape))
        labels = torch.empty((0, *shape), dtype=torch.uint8)
        return ScanParts(background=empty, opacity=empty, colour=empty, noise=empty, labels=labels)
    step = max(1, _VOXELS_AT_ONCE // math.prod(shape))
    portions = [
        make(anatomies[start : start + step], structures[start : start + step], scans[start : start + step])
        for start in range(0, count, step)
    ]
    return ScanParts(
        **{part.name: torch.cat([getattr(portion, part.name) for portion in portions]) for part in fields(ScanParts)}
    )


def lie_down(points: Tensor, scalars: Tensor, *, spacing_mm: float, back: bool = False) -> Tensor:
    """Return where points of the anatomy lie in a scan's session, or with `back` the reverse.

    Args:
        points: Offsets from the centre of the image in voxels, `[n, 3, *]`.
        scalars: Scalars of the scans, `[n, k]`, of which the first six set the position.
        spacing_mm: Edge of a voxel.
        back: Whether points of the image are asked for their place in the anatomy.
    """
    position = scalars[:, :6].reshape(-1, 6, *[1] * (points.ndim - 2))
    shift = position[:, :3] * (_SHIFT_MM / spacing_mm)
    turns = [
        (pair, math.radians(_TILT_DEGREES) * position[:, 3 + place])
        for place, pair in enumerate(((1, 2), (0, 1), (0, 2)))
    ]
    if not back:
        points = points + shift
    axes = list(points.unbind(1))
    for (first, second), angle in turns if not back else [(pair, -angle) for pair, angle in reversed(turns)]:
        one, other = axes[first], axes[second]
        axes[first] = angle.cos() * one - angle.sin() * other
        axes[second] = angle.sin() * one + angle.cos() * other
    points = torch.stack(axes, 1)
    return points - shift if back else points


def warped_coordinates(
    template: Template, anatomy: Draws, scan: Draws, *, textures_mm: Sequence[float] = ()
) -> tuple[Tensor, Tensor]:
    """Return where in the template each voxel of each scan lies, and textures that move with the anatomy.

    The warp is smooth, so that it is computed on every second voxel and interpolated between.

    Args:
        template: The template, whose grid is the image's.
        anatomy: Draws of the anatomies, which set the warp and the textures.
        scan: Draws of the scans, which set where the head lies.
        textures_mm: Distance of the knots of each texture.

    Returns:
        Template millimetres, `[n, 3, z, y, x]`, and textures of unit variance, `[n, len(textures_mm), z, y, x]`.
    """
    sides = tuple(template.grid_mm.shape[1:])
    starts = [float(template.grid_mm[axis, 0, 0, 0]) for axis in range(3)]
    step = 2 * template.spacing_mm
    # One more knot on either side holds what a shift or a tilt brings in.
    knots = [-(-(side - 1) // 2) + 3 for side in sides]
    lines = [
        start + direction * step * (torch.arange(count) - 1)
        for start, count, direction in zip(starts, knots, (1, -1, 1), strict=True)
    ]
    coarse = replace(template, grid_mm=torch.stack(torch.meshgrid(*lines, indexing="ij")), spacing_mm=step)
    carried = [template_coordinates(coarse, anatomy)]
    carried += [
        random_field(anatomy, components=1, shape=tuple(knots), knots_mm=knots_mm, spacing_mm=step)
        for knots_mm in textures_mm
    ]

    centre = torch.tensor([(side - 1) / 2 for side in sides]).reshape(3, 1, 1, 1)
    voxels = torch.stack(torch.meshgrid(*[torch.arange(float(side)) for side in sides], indexing="ij")) - centre
    voxels = voxels.expand(len(anatomy.scalars), -1, -1, -1, -1)
    place = (lie_down(voxels, scan.scalars, spacing_mm=template.spacing_mm, back=True) + centre) / 2 + 1
    last = torch.tensor([count - 1.0 for count in knots]).reshape(3, 1, 1, 1)
    grid = (place * 2 / last - 1).flip(1).movedim(1, -1)
    sampled = functional.grid_sample(torch.cat(carried, 1), grid, padding_mode="border", align_corners=True)
    return sampled[:, :3], sampled[:, 3:]


def nearness(head: np.ndarray, *, step_mm: float) -> Tensor:
    """Return `exp(-d / 10 mm)` for the distance d from the head, which fades to zero as a template does outside."""
    from scipy.ndimage import distance_transform_edt

    distance = np.asarray(distance_transform_edt(~head), dtype=np.float32) * step_mm
    return torch.from_numpy(np.exp(-distance / 10).astype(np.float32))


def distance_mm(near: Tensor) -> Tensor:
    """Return the distance that a nearness stands for, at most about 140 mm."""
    return -10 * near.clamp(min=1e-6).log()
