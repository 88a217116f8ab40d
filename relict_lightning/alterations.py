"""Alterations that a replica may have gone through: what a generator, or its augmentation, does to a memorized image.

An alteration is drawn once and can then be applied to an image and to the label map of that image alike.

| name | what it does | strength |
| --- | --- | --- |
| `plain` | nothing | - |
| `intensity` | gain, offset and gamma, relative to the image's range | 0.85-1.15, 5 %, 0.8-1.25 |
| `shift` | moves along every axis, by fractions of a voxel too | 1 to 3 voxels on the axis that moves most |
| `rotation` | turns about the centre, in 3-D about an axis of any direction | 2 to 6 degrees |
| `mirror` | swaps the last axis | - |
| `elastic` | smooth diffeomorphic displacement | root mean square length of 1.5 to 2 voxels |
| `crop` | cuts the border off and scales the rest up | zoom of 5 to 12 %, centre off by up to 2 % |
| `transplant` | keeps a region and puts it softly into another person's image | seam of four voxels |

Conventions: images are `[c, *spatial]`, 2-D or 3-D, label maps `[*spatial]`; voxels count as isotropic. Images are
interpolated linearly, labels taken from the nearest voxel, which keeps thin structures, and the border is continued.
"""

import math
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn import functional

from relict_lightning.errors import ConfigurationError, InvalidImageError

SMALLEST_SIDE = 4
"""Images with a shorter side are not altered."""

ALTERATION_NAMES: tuple[str, ...] = (
    "plain",
    "intensity",
    "shift",
    "rotation",
    "mirror",
    "elastic",
    "crop",
    "transplant",
)

_SHIFT_VOXELS = (1.0, 3.0)
_ROTATION_DEGREES = (2.0, 6.0)
_ELASTIC_VOXELS = (1.5, 2.0)
# Distance of the knots of an elastic displacement; four of them are the least that a cubic interpolation needs.
_ELASTIC_KNOTS = 14.0
_SQUARINGS = 5
_ZOOM = (0.05, 0.12)
_CENTRE_OFF = 0.02
_SEAM = 2

_Item = TypeVar("_Item")


@dataclass(frozen=True, kw_only=True)
class Alteration:
    """One alteration with everything random about it settled, for images of one shape.

    Attributes:
        name: One of `ALTERATION_NAMES`.
        displacement: Where each voxel of the result is read from, as an offset in voxels, `[d, *spatial]`; None where
            nothing moves.
        gain: Factor of the intensity.
        offset: Share of the image's range that is added.
        gamma: Exponent of the intensity.
    """

    name: str
    displacement: Float[Tensor, "d *spatial"] | None = None
    gain: float = 1.0
    offset: float = 0.0
    gamma: float = 1.0

    def image(
        self,
        image: Float[Tensor, "c *spatial"],
        *,
        host: Float[Tensor, "c *spatial"] | None = None,
        region: Bool[Tensor, "*spatial"] | None = None,
    ) -> Float[Tensor, "c *spatial"]:
        """Return the altered image; `host` and `region` are what a transplant needs and others ignore.

        Raises:
            ConfigurationError: If a transplant has no host or no region.
        """
        if self.name == "transplant":
            host, region = _needed(host, "host"), _needed(region, "region")
            weight = _seam(region).to(image)
            return host + weight * (image - host)
        if self.name == "mirror":
            return image.flip(-1)
        if self.name == "intensity":
            return self._recoloured(image)
        if self.displacement is None:
            return image.clone()
        return _resample(image, self.displacement.to(image))

    def labels(
        self,
        labels: Shaped[Tensor, "*spatial"],
        *,
        host: Shaped[Tensor, "*spatial"] | None = None,
        region: Bool[Tensor, "*spatial"] | None = None,
    ) -> Shaped[Tensor, "*spatial"]:
        """Return the label map moved as the image is; `host` is the host's label map.

        Raises:
            ConfigurationError: If a transplant has no host or no region.
        """
        if self.name == "transplant":
            host, region = _needed(host, "host"), _needed(region, "region")
            return torch.where(_seam(region) > 0.5, labels, host)
        if self.name == "mirror":
            return labels.flip(-1)
        if self.displacement is None:
            return labels.clone()
        moved = _resample(labels[None].float(), self.displacement.to(labels.device), mode="nearest")[0]
        return moved.to(labels.dtype)

    def _recoloured(self, image: Tensor) -> Tensor:
        low, extent = image.min(), image.max() - image.min()
        if not extent > 0:
            return image.clone()
        return low + extent * (self.gain * ((image - low) / extent) ** self.gamma + self.offset)


def alter(
    image: Float[Tensor, "c *spatial"],
    name: str,
    *,
    stream: torch.Generator,
    host: Float[Tensor, "c *spatial"] | None = None,
    region: Bool[Tensor, "*spatial"] | None = None,
    strength: float = 1.0,
) -> Float[Tensor, "c *spatial"]:
    """Return one image, altered; `draw_alteration` is for callers who alter its label map, too.

    Args:
        image: The image, 2-D or 3-D.
        name: One of `ALTERATION_NAMES`.
        stream: Where the strengths come from, on the CPU.
        host: The image of another person that a transplant is put into.
        region: What of the image a transplant keeps.
        strength: See `draw_alteration`.

    Raises:
        ConfigurationError: If the name is unknown, or a transplant has no host or no region.
        InvalidImageError: If the image is not 2-D or 3-D.

    Example:
        >>> image = torch.rand(1, 8, 8)
        >>> torch.equal(alter(image, "mirror", stream=torch.Generator()), image.flip(-1))
        True
    """
    return draw_alteration(name, tuple(image.shape[1:]), stream=stream, strength=strength).image(
        image, host=host, region=region
    )


def draw_alteration(name: str, shape: tuple[int, ...], *, stream: torch.Generator, strength: float = 1.0) -> Alteration:
    """Return an alteration for images of one shape, with its direction and size drawn from the stream.

    Args:
        name: One of `ALTERATION_NAMES`.
        shape: Two or three sides in voxels.
        stream: Where direction and size come from, on the CPU.
        strength: Scales what the table of this module gives, in logarithms where that is a factor; with -1 and the
            same stream an alteration is undone, but for interpolation. `mirror` and `transplant` ignore it.

    Raises:
        ConfigurationError: If the name is unknown or `strength` is not finite.
        InvalidImageError: If the shape has not two or three sides of at least 4 voxels.
    """
    if name not in ALTERATION_NAMES:
        raise ConfigurationError(f"An alteration must be one of {ALTERATION_NAMES}, got {name!r}.")
    if not math.isfinite(strength):
        raise ConfigurationError(f"strength must be finite, got strength={strength}.")
    if len(shape) not in (2, 3) or min(shape) < SMALLEST_SIDE:
        raise InvalidImageError(f"Images must have 2 or 3 sides of at least {SMALLEST_SIDE} voxels, got shape={shape}.")
    if name == "intensity":
        gain, gamma = (
            math.exp(strength * _uniform(stream, math.log(low), math.log(high)))
            for low, high in ((0.85, 1.15), (0.8, 1.25))
        )
        offset = strength * _uniform(stream, -0.05, 0.05)
        return Alteration(name=name, gain=gain, gamma=gamma, offset=offset)
    draw = {"shift": _shift, "rotation": _rotation, "elastic": _elastic, "crop": _crop}.get(name)
    return Alteration(name=name, displacement=None if draw is None else draw(shape, stream, strength))


def _needed(value: _Item | None, name: str) -> _Item:
    if value is None:
        raise ConfigurationError(f"A transplant needs a {name}; pass {name}=...")
    return value


def _uniform(stream: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=stream))


def _along(value: Tensor, dims: int) -> Tensor:
    return value.reshape(-1, *[1] * dims)


def _offsets(shape: tuple[int, ...]) -> Tensor:
    """Return each voxel's offset from the centre, `[d, *spatial]`."""
    return torch.stack(torch.meshgrid(*[torch.arange(side) - (side - 1) / 2 for side in shape], indexing="ij"))


def _shift(shape: tuple[int, ...], stream: torch.Generator, strength: float) -> Tensor:
    direction = 2 * torch.rand(len(shape), generator=stream) - 1
    # The axis that moves most moves by at least a voxel: a smaller shift is none.
    direction = direction / direction.abs().max().clamp(min=1e-3)
    size = _uniform(stream, *_SHIFT_VOXELS)
    return _along(-strength * size * direction, len(shape)).repeat(1, *shape)


def _rotation(shape: tuple[int, ...], stream: torch.Generator, strength: float) -> Tensor:
    axis = torch.randn(3, generator=stream)
    axis = axis / axis.norm().clamp(min=1e-6)
    angle = strength * math.radians(_uniform(stream, *_ROTATION_DEGREES))
    if len(shape) == 2:
        axis = torch.tensor([float(axis[0].sign()), 0.0, 0.0])
    z, y, x = axis.tolist()
    # The exponential of a cross product is a rotation about the axis.
    turn = torch.linalg.matrix_exp(angle * torch.tensor([[0.0, -x, y], [x, 0.0, -z], [-y, z, 0.0]]))
    turn = turn[3 - len(shape) :, 3 - len(shape) :] - torch.eye(len(shape))
    offsets = _offsets(shape)
    displacement: Tensor = (turn @ offsets.flatten(1)).reshape(offsets.shape)
    return displacement


def _crop(shape: tuple[int, ...], stream: torch.Generator, strength: float) -> Tensor:
    zoom = math.exp(strength * math.log1p(_uniform(stream, *_ZOOM)))
    off = strength * _CENTRE_OFF * (2 * torch.rand(len(shape), generator=stream) - 1) * torch.tensor(shape)
    # What is read is the inverse of what is shown, so that -1 undoes 1.
    shown = off if strength >= 0 else off / zoom
    return _offsets(shape) * (1 / zoom - 1) + _along(shown, len(shape))


def _elastic(shape: tuple[int, ...], stream: torch.Generator, strength: float) -> Tensor:
    knots = [max(4, round(side / _ELASTIC_KNOTS) + 3) for side in shape]
    velocity = torch.randn(len(shape), *knots, generator=stream)
    for axis, (side, count) in enumerate(zip(shape, knots, strict=True), start=1):
        weights = _splines(side, count)
        velocity = torch.tensordot(velocity, weights, dims=([axis], [0])).movedim(-1, axis)
    size = velocity.square().sum(0).mean().sqrt()
    velocity = velocity * (strength * _uniform(stream, *_ELASTIC_VOXELS) / size)
    # Following a smooth velocity cannot fold an image, and following it backwards undoes it.
    displacement: Tensor = velocity / 2**_SQUARINGS
    for _ in range(_SQUARINGS):
        displacement = displacement + _resample(displacement, displacement)
    return displacement


def _splines(side: int, knots: int) -> Tensor:
    """Return cubic B-splines on a line, `[knots, side]`."""
    distance = (torch.linspace(0, knots - 3, side) - (torch.arange(knots)[:, None] - 1)).abs()
    inner = 2 / 3 - distance**2 + distance**3 / 2
    return torch.where(distance < 1, inner, (2 - distance).clamp(min=0) ** 3 / 6)


def _resample(values: Tensor, displacement: Tensor, *, mode: str = "bilinear") -> Tensor:
    """Return `[c, *spatial]` read at displaced places; bilinear is trilinear in 3-D."""
    shape = tuple(values.shape[1:])
    scale = _along(torch.tensor([2 / (side - 1) for side in shape]), len(shape)).to(values)
    place = (_offsets(shape).to(values) + displacement) * scale
    grid = place.flip(0).movedim(0, -1)[None]
    return functional.grid_sample(values[None], grid, mode=mode, padding_mode="border", align_corners=True)[0]


def _seam(region: Tensor) -> Tensor:
    """Return weights that are 1 in the region and fall to 0 within four voxels outside."""
    pool, mean = (
        (functional.max_pool2d, functional.avg_pool2d)
        if region.ndim == 2
        else (functional.max_pool3d, functional.avg_pool3d)
    )
    grown = pool(region[None, None].float(), 2 * _SEAM + 1, stride=1, padding=_SEAM)
    # The border does not count as outside.
    return mean(grown, 2 * _SEAM + 1, stride=1, padding=_SEAM, count_include_pad=False)[0, 0].clamp(0, 1)
