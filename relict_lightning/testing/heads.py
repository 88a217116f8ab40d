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

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from relict_lightning.errors import ConfigurationError
from relict_lightning.testing.deformation import Draws, random_field, template_coordinates
from relict_lightning.testing.numbering import check_numbers, subject_ids
from relict_lightning.testing.template import Template, load_template, sample_template

LABELS: tuple[str, ...] = ("background", "cerebrospinal fluid", "grey matter", "white matter", "lesion")

_BIAS_KNOTS_MM = 70.0
_VOXELS_AT_ONCE = 2**18


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
    template = load_template(sides)
    images = torch.empty((count, 1, *sides))
    labels = torch.empty((count, *sides), dtype=torch.uint8)
    at_once = max(1, _VOXELS_AT_ONCE // math.prod(sides))
    with torch.no_grad():
        for start in range(0, count, at_once):
            stop = min(count, start + at_once)
            draws = Draws(seed, range(first_subject + start, first_subject + stop))
            coordinates = template_coordinates(template, draws)
            maps = sample_template(template, coordinates)
            image, label = _appearance(template, maps, draws, lesion_probability=lesion_probability, noise=noise)
            images[start:stop, 0], labels[start:stop] = image, label
    ids = subject_ids(first_subject, count)
    return HeadSubjects(images=images, labels=labels, ids=ids, spacing_mm=template.spacing_mm)


def _check_arguments(
    count: int, seed: int, first_subject: int, shape: tuple[int, ...], lesion_probability: float, noise: float
) -> None:
    check_numbers(count, seed, first_subject)
    if len(shape) not in (2, 3) or min(shape) < 16:
        raise ConfigurationError(f"shape must have 2 or 3 sides of at least 16 voxels, got shape={shape}.")
    if not 0 <= lesion_probability <= 1:
        raise ConfigurationError(f"lesion_probability must lie in [0, 1], got {lesion_probability}.")
    if not (math.isfinite(noise) and noise >= 0):
        raise ConfigurationError(f"noise must be finite and at least 0, got {noise}.")


def _appearance(
    template: Template, maps: Tensor, draws: Draws, *, lesion_probability: float, noise: float
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

    bias = random_field(draws, components=1, shape=shape, knots_mm=_BIAS_KNOTS_MM, spacing_mm=template.spacing_mm)[:, 0]
    image = image.clamp(min=0) ** torch.exp(0.12 * draws.scalar(14, dims))
    image = image * torch.exp(0.06 * draws.scalar(15, dims) + 0.08 * bias)
    image = image + noise * draws.normal(*shape) * head
    return (image * (head > 0.02)).clamp(0, 1), label


def _lesion(template: Template, label: Tensor, draws: Draws, *, probability: float) -> Tensor:
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
