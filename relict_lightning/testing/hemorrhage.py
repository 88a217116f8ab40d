"""Simulated non-contrast head CT with intracerebral hemorrhages.

Tissue is that of the MNI152 template, warped for every subject, in a brain window from 0 to 80 Hounsfield units:
fluid is darker than white matter, white matter a little darker than grey, and the skull saturates. One to three
hemorrhages lie deep, in a lobe or in a ventricle, each an ellipsoid that a smooth random field deforms, with a rim of
oedema. Nothing is downloaded.

Conventions: those of `relict_lightning.testing.scan_parts`. A subject is the same in whatever batch it is made.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial

import torch
from torch import Tensor
from torch.nn import functional

from relict_lightning.testing.deformation import Draws, random_field
from relict_lightning.testing.scan_parts import (
    ANATOMY,
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
    nearness,
    simulated,
    warped_coordinates,
)
from relict_lightning.testing.template import Template, load_template, sample_template

# Hounsfield units over 80. Air and bone lie far outside the window; these values keep the edges of the head sharp.
_FLUID, _WHITE, _GREY, _BLOOD, _OEDEMA = 0.08, 0.33, 0.46, 0.86, 0.16
_AIR, _BONE, _SCALP = -0.4, 1.7, 0.25
_NOISE = 0.035
_STREAKS = 0.03
# The skull begins 2.5 mm outside the brain and is 6 mm thick; the scalp adds 5 mm.
_SKULL_MM, _SCALP_MM = (2.5, 8.5), 13.5
_LARGEST = 3
# Centres in MNI millimetres, ordered z, y, x: basal ganglia and thalamus, lateral ventricles, the whole brain.
_DEEP_MM, _DEEP_SPREAD_MM = (6.0, -8.0, 24.0), (5.0, 11.0, 4.0)
_VENTRICLE_MM, _VENTRICLE_SPREAD_MM = (16.0, -16.0, 11.0), (4.0, 14.0, 2.0)
_BRAIN_MM, _BRAIN_RADII_MM = (16.0, -18.0, 0.0), (42.0, 66.0, 48.0)
# Radii of the largest and of further hemorrhages: medians of 12 and 7 mm give about 7 and 1.5 ml.
_RADIUS_MM = (12.0, 7.0)
_SMALLEST_MM, _LARGEST_MM = 4.5, 30.0
# The lattice, in template space, on which the field lives that deforms the ellipsoids.
_LATTICE_MM = 7.0
_LATTICE_KNOTS_MM = 13.0
_LATTICE_START_MM, _LATTICE_SIDES = (-80.0, -126.0, -91.0), (26, 32, 27)


def simulate_hemorrhage_ct(
    count: int, *, seed: int = 0, first_subject: int = 0, shape: Sequence[int] = (48, 64, 64)
) -> ScanSubjects:
    """Return simulated head CT of subjects with hemorrhages.

    Args:
        count: Number of subjects, at least 0.
        seed: Seed of the population, at least 0; other seeds give other people under the same ids.
        first_subject: Number of the first subject, at least 0.
        shape: Three sides in voxels, each at least 16; voxels are as small as lets the head fit, 3.5 mm by default.

    Returns:
        Subjects `first_subject` to `first_subject + count - 1`; label 1 is hemorrhage, and everybody has one.

    Raises:
        ConfigurationError: If an argument lies outside its range.
        MissingDependencyError: If nilearn, which ships the template, is not installed.

    Example:
        >>> subjects = simulate_hemorrhage_ct(1, first_subject=17, shape=(24, 32, 32))
        >>> subjects.images.shape, subjects.ids, int(subjects.labels.max())
        (torch.Size([1, 1, 24, 32, 32]), ('sub-00017',), 1)
    """
    sides = check_subjects(count, seed, first_subject, shape)
    spacing_mm = load_template(sides).spacing_mm
    make = partial(_parts, seed, sides)
    return simulated(make, count, first_subject=first_subject, shape=sides, spacing_mm=spacing_mm)


def hemorrhage_parts(
    *,
    seed: int,
    anatomies: Sequence[Person],
    lesions: Sequence[Person],
    scans: Sequence[int],
    shape: Sequence[int] = (48, 64, 64),
) -> ScanParts:
    """Return heads, hemorrhages and noise apart from each other, in any combination.

    Args:
        seed: Seed of the population, at least 0.
        anatomies: Whose head, one person per scan.
        lesions: Whose hemorrhages, at the same place of the anatomy as in their own head.
        scans: Number of the scan, which sets noise, streaks, position, and the size of the hemorrhages to 4 %.
        shape: Three sides in voxels, each at least 16.

    Raises:
        ConfigurationError: If the three sequences differ in length, or the shape is out of range.
        MissingDependencyError: If nilearn, which ships the template, is not installed.
    """
    sides = check_shape(shape)
    with torch.no_grad():
        return in_portions(partial(_parts, seed, sides), anatomies, lesions, scans, shape=sides)


def _parts(
    seed: int, shape: tuple[int, ...], anatomies: Sequence[Person], lesions: Sequence[Person], scans: Sequence[int]
) -> ScanParts:
    template = _ct_template(shape)
    anatomy = PersonDraws(seed, anatomies, stream=ANATOMY)
    lesion = PersonDraws(seed, lesions, stream=STRUCTURE)
    scan = PersonDraws(seed, scans, stream=SCAN)
    coordinates, textures = warped_coordinates(template, anatomy, scan, textures_mm=(24.0, 14.0))
    fluid, grey, white, near = sample_template(template, coordinates).unbind(1)
    brain = (grey + white).clamp(0, 1)

    background = _head(fluid, grey, white, distance_mm(near), textures, anatomy)
    blood, rim, texture = _blobs(coordinates, fluid, brain, lesion, scan, spacing_mm=template.spacing_mm)
    swollen = rim * (0.3 * grey + white).clamp(0, 1) * (0.6 + 0.12 * lesion.scalar(1, 3)).clamp(0.2, 0.85)
    shown = (_BLOOD + 0.05 * lesion.scalar(2, 3) + 0.05 * texture).clamp(0.65, 1)
    opacity = 1 - (1 - blood) * (1 - swollen)
    colour = blood * shown + (1 - blood) * swollen * _OEDEMA

    raw = scan.normal(*shape)
    # Reconstruction kernels correlate neighbours within a slice.
    smooth = (raw + raw.roll(1, -1) + raw.roll(1, -2) + raw.roll((1, 1), (-1, -2))) / 2
    noise = _NOISE * torch.exp(0.15 * scan.scalar(6, 3)) * smooth
    low = torch.sigmoid(-(template.grid_mm[0] + 25) / 8)
    noise = noise + _STREAKS * low * scan.normal(shape[0], shape[1], 1)
    return ScanParts(
        background=background[:, None],
        opacity=opacity[:, None],
        colour=colour[:, None],
        noise=noise[:, None],
        labels=(blood > 0.5).to(torch.uint8),
    )


@lru_cache(maxsize=4)
def _ct_template(shape: tuple[int, ...]) -> Template:
    """Return the template with fluid, grey matter, white matter, and nearness to the head."""
    template = load_template(shape)
    tissue = template.channels[1:]
    near = nearness((tissue.sum(0) > 0.5).numpy(), step_mm=template.step_mm)
    return replace(template, channels=torch.cat([tissue, near[None]]))


def _head(fluid: Tensor, grey: Tensor, white: Tensor, distance: Tensor, textures: Tensor, anatomy: Draws) -> Tensor:
    """Return heads without hemorrhage in units of the window, `[n, *spatial]`."""
    coarse, fine = textures.unbind(1)
    # In millimetres; wider, and the skull would brighten the whole brain.
    softness = 0.5
    start = _SKULL_MM[0] + 0.3 * anatomy.scalar(20, 3).clamp(-1.5, 1.5)
    stop = _SKULL_MM[1] + 1.2 * anatomy.scalar(21, 3).clamp(-2, 2)
    bone, outer, air = (
        torch.sigmoid((distance - edge) / softness) for edge in (start, stop, stop + _SCALP_MM - _SKULL_MM[1])
    )

    # White matter pales with age, in patches; grey and white differ more in some people.
    contrast = torch.exp(0.15 * anatomy.scalar(22, 3))
    pale = 0.05 * torch.exp(0.3 * anatomy.scalar(23, 3)) * (coarse - 0.3).clamp(min=0)
    brain = grey * (_WHITE + contrast * (_GREY - _WHITE)) + white * (_WHITE - pale)
    brain = brain + (1 - grey - white).clamp(0, 1) * _FLUID
    brain = brain * (1 + 0.03 * anatomy.scalar(24, 3)) + 0.02 * fine * (grey + white)
    tissue = brain + bone * (_BONE - brain)
    tissue = tissue + outer * (_SCALP - tissue)
    return tissue + air * (_AIR - tissue)


def _centres(uniform: Tensor, normal: Tensor, *, number: int) -> tuple[Tensor, Tensor]:
    """Return centres of one hemorrhage per subject in millimetres, `[n, 3]`, and whether it fills a ventricle."""
    side = torch.where(uniform[:, :1] < 0.5, -1.0, 1.0) * torch.tensor([0.0, 0.0, 1.0]) + torch.tensor([1.0, 1.0, 0.0])
    deep = side * (torch.tensor(_DEEP_MM) + torch.tensor(_DEEP_SPREAD_MM) * normal.clamp(-2, 2))
    inside = side * (torch.tensor(_VENTRICLE_MM) + torch.tensor(_VENTRICLE_SPREAD_MM) * normal.clamp(-2, 2))
    outward = normal / normal.square().sum(1, keepdim=True).sqrt().clamp(min=0.1)
    depth = 0.55 + 0.35 * uniform[:, 2:3]
    lobar = torch.tensor(_BRAIN_MM) + torch.tensor(_BRAIN_RADII_MM) * outward * depth
    lobar[:, 0] = lobar[:, 0].clamp(min=-10)
    # The first lies in the brain itself: blood in ventricles alone is rare, and small ventricles would hold none.
    ventricular = (uniform[:, 1] < 0.4) if number else torch.zeros(len(uniform), dtype=torch.bool)
    centre = (
        torch.where(uniform[:, 1:2] < 0.7, deep, lobar) if number else torch.where(uniform[:, 1:2] < 0.5, deep, lobar)
    )
    return torch.where(ventricular[:, None], inside, centre), ventricular


def _blobs(
    coordinates: Tensor, fluid: Tensor, brain: Tensor, lesion: Draws, scan: Draws, *, spacing_mm: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return blood, the rim around it, and the texture of the blood, each `[n, *spatial]`."""
    field = random_field(lesion, components=4, shape=_LATTICE_SIDES, knots_mm=_LATTICE_KNOTS_MM, spacing_mm=_LATTICE_MM)
    start = torch.tensor(_LATTICE_START_MM).reshape(3, 1, 1, 1)
    last = torch.tensor([side - 1.0 for side in _LATTICE_SIDES]).reshape(3, 1, 1, 1)
    grid = ((coordinates - start) / (_LATTICE_MM * last) * 2 - 1).flip(1).movedim(1, -1)
    field = functional.grid_sample(field, grid, padding_mode="border", align_corners=True)

    drawn = lesion.normal(_LARGEST, 10)
    many = torch.special.ndtr(lesion.scalars[:, 0])
    blood, rim = torch.zeros_like(brain), torch.zeros_like(brain)
    tissue = (brain + fluid).clamp(0, 1)
    for number in range(_LARGEST):
        normal = drawn[:, number]
        centre, ventricular = _centres(torch.special.ndtr(normal[:, :3]), normal[:, 3:6], number=number)
        present = torch.ones_like(many) if number == 0 else (many > (0.55, 0.85)[number - 1]).float()
        radius = _RADIUS_MM[min(number, 1)] * torch.exp(0.45 * normal[:, 6])
        radius = torch.where(ventricular, radius.clamp(min=12), radius) * torch.exp(0.04 * scan.scalars[:, 7])
        radius = radius.clamp(max(_SMALLEST_MM, 1.2 * spacing_mm), _LARGEST_MM)
        radii = radius[:, None] * torch.exp(0.22 * normal[:, 7:10]).clamp(0.6, 1.6)
        centre, radii, radius = (value.reshape(len(many), -1, 1, 1, 1) for value in (centre, radii, radius))
        offset = (coordinates - centre + 0.28 * radius * field[:, :3]) / radii
        outside = ((offset**2).sum(1).sqrt() - 1) * radius[:, 0]
        within = torch.where(ventricular.reshape(-1, 1, 1, 1), (1.3 * fluid - 0.1).clamp(0, 1), tissue)
        shown = present.reshape(-1, 1, 1, 1)
        blood = torch.maximum(blood, shown * within * (0.5 - outside / spacing_mm).clamp(0, 1))
        faded = torch.exp(-outside.clamp(min=0) / (3.5 + 0.25 * radius[:, 0]))
        rim = torch.maximum(rim, shown * ~ventricular.reshape(-1, 1, 1, 1) * faded * (faded > 0.05))
    return blood, rim * tissue, field[:, 3]
