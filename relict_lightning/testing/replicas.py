"""Samples with a known share of replicas: fresh images, some of them replaced by altered training images.

Alterations are mild, as a generator's would be; strengths are relative to the range of values of the image.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from relict_lightning.errors import ConfigurationError, EmptyDataError, InvalidImageError

ALTERATIONS: tuple[str, ...] = ("plain", "noise", "intensity", "blur", "shift", "mirror")

_NOISE = 0.02
_BLUR_VOXELS = 0.7
_LARGEST_SHIFT = 3


@dataclass(frozen=True, kw_only=True)
class PlantedSamples:
    """Samples of which it is known which are replicas, and of what.

    Attributes:
        images: The samples, `[n, c, *spatial]`.
        is_replica: Whether a sample is an altered training image, `[n]`.
        source: Position of that training image, -1 where there is none, `[n]`.
        alteration: How it was altered, None where it is not a replica, one per sample.
    """

    images: Float[Tensor, "n c *spatial"]
    is_replica: Bool[Tensor, " n"]
    source: Int[Tensor, " n"]
    alteration: tuple[str | None, ...]


def plant_replicas(
    training: Float[Tensor, "m ..."],
    fresh: Float[Tensor, "n ..."],
    *,
    rate: float,
    seed: int,
    alterations: Sequence[str] = ALTERATIONS,
) -> PlantedSamples:
    """Return the fresh images with a share of them replaced by altered training images.

    Exactly `round(rate * n)` samples are replaced. No training image is copied twice before every one was copied once,
    and the alterations occur equally often, up to one.

    Args:
        training: Training images, `[m, c, *spatial]`.
        fresh: Images of other patients, `[n, c, *spatial]`.
        rate: Share of replicas, in [0, 1].
        seed: Seed of the choice of samples, sources and strengths.
        alterations: Names out of `ALTERATIONS`: `plain` (no change), `noise` (2 % of the range), `intensity` (gain,
            offset and gamma), `blur` (0.7 voxels), `shift` (by up to 3 whole voxels along each axis, and by at least
            one along some), `mirror` (along the last axis).

    Returns:
        Samples in the order of `fresh`, and the truth about each; the arguments are left as they are.

    Raises:
        ConfigurationError: If `rate` lies outside [0, 1], or `alterations` is empty or has an unknown name.
        EmptyDataError: If there are replicas to plant and no training images.
        InvalidImageError: If the images of the two sets differ in shape.

    Example:
        >>> planted = plant_replicas(torch.rand(5, 1, 16, 16), torch.rand(8, 1, 16, 16), rate=0.25, seed=0)
        >>> int(planted.is_replica.sum()), sum(name is not None for name in planted.alteration)
        (2, 2)
    """
    if not 0 <= rate <= 1:
        raise ConfigurationError(f"rate must lie in [0, 1], got rate={rate}.")
    unknown = [name for name in alterations if name not in ALTERATIONS]
    if unknown or not alterations:
        raise ConfigurationError(f"alterations must be one or more of {ALTERATIONS}, got {tuple(alterations)}.")
    if training.shape[1:] != fresh.shape[1:]:
        raise InvalidImageError(
            f"Training and fresh images must have one shape [c, *spatial], got {list(training.shape[1:])} and "
            f"{list(fresh.shape[1:])}."
        )
    n, count = len(fresh), round(rate * len(fresh))
    if count and not len(training):
        raise EmptyDataError(f"{count} replicas are to be planted, but the training set has no images.")

    stream = torch.Generator().manual_seed(seed)
    replaced = torch.randperm(n, generator=stream)[:count]
    rounds = -(-count // len(training)) if count else 0
    sources = torch.cat(
        [torch.zeros(0, dtype=torch.int64)] + [torch.randperm(len(training), generator=stream) for _ in range(rounds)]
    )[:count]

    images = fresh.clone()
    source = torch.full((n,), -1)
    alteration: list[str | None] = [None] * n
    source[replaced] = sources
    for turn, (position, original) in enumerate(zip(replaced.tolist(), sources.tolist(), strict=True)):
        name = alterations[turn % len(alterations)]
        alteration[position] = name
        images[position] = _ALTER[name](training[original].to(fresh), stream)
    return PlantedSamples(images=images, is_replica=source >= 0, source=source, alteration=tuple(alteration))


def _uniform(stream: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=stream))


def _plain(image: Tensor, stream: torch.Generator) -> Tensor:
    return image


def _noise(image: Tensor, stream: torch.Generator) -> Tensor:
    extent = image.max() - image.min()
    return image + _NOISE * extent * torch.randn(image.shape, generator=stream).to(image)


def _intensity(image: Tensor, stream: torch.Generator) -> Tensor:
    low, extent = image.min(), image.max() - image.min()
    if not extent > 0:
        return image
    gain, offset = _uniform(stream, 0.85, 1.15), _uniform(stream, -0.05, 0.05)
    gamma = _uniform(stream, 0.8, 1.25)
    return low + extent * (gain * ((image - low) / extent) ** gamma + offset)


def _blur(image: Tensor, stream: torch.Generator) -> Tensor:
    reach = 2
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / _BLUR_VOXELS) ** 2)
    weights = weights / weights.sum()
    for axis in range(1, image.ndim):
        side = image.shape[axis]
        neighbours = [
            image.index_select(axis, (torch.arange(side) + step).clamp(0, side - 1).to(image.device))
            for step in range(-reach, reach + 1)
        ]
        image = torch.stack([float(weight) * part for weight, part in zip(weights, neighbours, strict=True)]).sum(0)
    return image


def _shift(image: Tensor, stream: torch.Generator) -> Tensor:
    axes = image.ndim - 1
    steps = torch.randint(-_LARGEST_SHIFT, _LARGEST_SHIFT + 1, (axes,), generator=stream).tolist()
    if not any(steps):
        steps[-1] = _LARGEST_SHIFT
    for axis, step in enumerate(steps, start=1):
        side = image.shape[axis]
        image = image.index_select(axis, (torch.arange(side) - step).clamp(0, side - 1).to(image.device))
    return image


def _mirror(image: Tensor, stream: torch.Generator) -> Tensor:
    return image.flip(-1)


_ALTER: Mapping[str, Callable[[Tensor, torch.Generator], Tensor]] = MappingProxyType(
    {
        "plain": _plain,
        "noise": _noise,
        "intensity": _intensity,
        "blur": _blur,
        "shift": _shift,
        "mirror": _mirror,
    }
)
