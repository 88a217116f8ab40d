"""What the training images have in common, and what sets one image apart from it.

Two people's images are alike because people are alike: skull, tissue, the field of view. A copy gives itself away by
what is a patient's own. So images are compared after what the population has in common was taken out of them:

- A voxel's *mean* and *spread* are the median and the median absolute deviation over training patients, one image of
  each, which neither lesions nor vessels of some patients move.
- An image is explained, by least squares weighted with the spread, as gain and bias field (linear in the position)
  times the mean, plus a bend of the contrast (the square of the mean), plus offset. What is left, divided by the
  spread, is its *residual*: how many robust standard deviations each voxel lies off what is usual there.

This is done on a coarse working grid, so that fine texture and moderate blur, in which generators differ from scanners,
hardly enter.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from relict_lightning.functional import affine_identity, align_affine, warp_affine
from relict_lightning.grids import NORMAL_CONSISTENCY, fetch_patients, pooled, pooling_factors
from relict_lightning.index import Entry, EntryWriter, Reference
from relict_lightning.rows import row_norms, row_sums

# Images that are aligned at once, which bounds the memory of it to some 100 MiB.
_AT_ONCE = 8
# Voxels of the working grid, at most: 32^3 or 181^2. A vessel or lesion of a twentieth of the field of view is then one
# to two voxels wide, and a pair is aligned in some ten milliseconds.
_WORKING_VOXELS = 2**15
# Where nothing varies, in air for instance, the spread is this share of the usual (root mean square) one, and not zero:
# a generator's faint texture there must not pass for a patient's own.
_SPREAD_FLOOR = 0.25
_RANK_TOLERANCE = 1e-6
# Far above what single precision leaves of an image that the population explains, and far below a faint image.
_ROUNDING = 1e-5
# Most of the way to the mean is made in the first steps, and the mean is sharp after the first round.
_STEPS, _ROUNDS = 8, 2


@final
@dataclass(frozen=True, kw_only=True)
class Population:
    """What the training images have in common, on the working grid.

    Attributes:
        factors: Voxels of an image per voxel of the working grid, along each axis.
        mean: Median over patients, `[c, *grid]`.
        spread: Robust standard deviation of residuals over patients, positive, `[c, *grid]`.
    """

    factors: tuple[int, ...]
    mean: Tensor
    spread: Tensor

    def working(self, images: Float[Tensor, "n c *spatial"]) -> Float[Tensor, "n c *grid"]:
        """Return images on the working grid."""
        return pooled(images, self.factors)

    def place(self, images: Float[Tensor, "n c *grid"]) -> Float[Tensor, "n ndim columns"]:
        """Return the maps that move images on the working grid to where the population's mean lies."""
        mean = self.mean.expand_as(images)
        coarse = align_affine(halved(images), halved(mean), iterations=_STEPS).maps
        return align_affine(images, mean, start=coarse, iterations=_STEPS).maps

    def residual(self, images: Float[Tensor, "n c *grid"]) -> Float[Tensor, "n c *grid"]:
        """Return what sets images on the working grid apart, in robust standard deviations.

        The images must lie where the training images lie: move them first.
        """
        scaled = images.flatten(1) / self.spread.flatten()
        left = scaled.clone()
        # One way after the other, because a product of matrices would make an image's residual depend on its batch.
        for way in self._usual:
            left -= row_sums(scaled * way)[:, None] * way
        # What rounding leaves of a constant image would correlate with what it leaves of another.
        is_rounding = ~(row_norms(left) > _ROUNDING * row_norms(scaled))
        return left.masked_fill(is_rounding[:, None], 0.0).reshape(images.shape)

    @cached_property
    def _usual(self) -> Tensor:
        """Orthonormal ways in which scaled images differ without differing in anatomy, `[b, c * voxels]`."""
        sides = self.mean.shape[1:]
        places = torch.meshgrid(
            *[torch.linspace(-1, 1, side, device=self.mean.device) for side in sides], indexing="ij"
        )
        ways = [torch.ones_like(self.mean), self.mean, self.mean.square(), *(self.mean * place for place in places)]
        basis = torch.stack([(way / self.spread).flatten() for way in ways], dim=1).double()
        vectors, sizes, _ = torch.linalg.svd(basis, full_matrices=False)
        # A constant mean gives ways that repeat each other.
        independent: Tensor = vectors[:, sizes > _RANK_TOLERANCE * sizes[0]]
        return independent.T.contiguous().float()

    def at_half_resolution(self) -> "Population":
        """Return the population on a grid of twice as large voxels."""
        factors = tuple(factor * min(2, side) for factor, side in zip(self.factors, self.mean.shape[1:], strict=True))
        return Population(factors=factors, mean=halved(self.mean[None])[0], spread=halved(self.spread[None])[0])

    def to(self, device: torch.device) -> "Population":
        """Return the population on a device."""
        return Population(factors=self.factors, mean=self.mean.to(device), spread=self.spread.to(device))


def describe_population(training: Reference) -> Population:
    """Return what training images have in common; all processes that share the reference call this.

    Args:
        training: The training images.
    """
    spatial = training.image_shape[1:]
    factors = working_factors(spatial)
    patients = fetch_patients(training, factors)
    maps = affine_identity(len(patients), len(spatial))
    # The mean of people who lie apart is blurred; the first rounds need no more than half the resolution.
    for images in (*[halved(patients)] * _ROUNDS, patients):
        maps = _placed_on(_median(images, maps), images, maps)
    mean = _median(patients, maps)
    placed = warp_affine(patients, maps)
    spread = torch.ones_like(mean)
    # Twice, because what varies most must not decide what the common part is.
    for _ in range(2):
        population = Population(factors=factors, mean=mean, spread=spread)
        left = population.residual(placed) * spread
        spread = _floored(NORMAL_CONSISTENCY * left.abs().median(dim=0).values)
    return Population(factors=factors, mean=mean, spread=spread)


def working_factors(spatial: tuple[int, ...]) -> tuple[int, ...]:
    """Return how many voxels a voxel of the working grid holds along each axis.

    Args:
        spatial: Sides of the images.
    """
    return pooling_factors(spatial, most_voxels=_WORKING_VOXELS)


def write_population(population: Population, writer: EntryWriter, *, prefix: str) -> None:
    """Write a population into a folder, its files' names starting with `prefix`."""
    writer.array(f"{prefix}mean", population.mean.cpu().numpy())
    writer.array(f"{prefix}spread", population.spread.cpu().numpy())
    writer.table(f"{prefix}factors", list(population.factors))


def read_population(entry: Entry, *, prefix: str) -> Population:
    """Return the population that `write_population` put into a folder."""
    mean, spread = (torch.from_numpy(np.array(entry.array(f"{prefix}{name}"))) for name in ("mean", "spread"))
    return Population(factors=tuple(entry.table(f"{prefix}factors")), mean=mean, spread=spread)


def halved(images: Tensor) -> Tensor:
    """Return images at half the resolution."""
    return pooled(images, tuple(min(2, side) for side in images.shape[2:]))


def _median(images: Tensor, maps: Tensor) -> Tensor:
    return warp_affine(images, maps).median(dim=0).values


def _placed_on(mean: Tensor, images: Tensor, maps: Tensor) -> Tensor:
    """Return the maps that move images onto a mean, starting from others."""
    parts = zip(torch.split(images, _AT_ONCE), torch.split(maps, _AT_ONCE), strict=True)
    return torch.cat(
        [align_affine(some, mean.expand_as(some), start=start, iterations=_STEPS).maps for some, start in parts]
    )


def _floored(spread: Tensor) -> Tensor:
    usual = float(spread.square().mean().sqrt())
    return spread.clamp_min(_SPREAD_FLOOR * usual if usual > 0 else 1.0)
