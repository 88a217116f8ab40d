"""What stands out of an image: its vessels, its lesions, whatever is far from what is usual at that place.

Heads are alike because people are. What stands out of one is the patient's own, and it is what a transplant copies and
what a copy in front of another background keeps. No label maps are needed to find it:

- An image's *detail* is what is left between two Gaussian widths: noise and slow variation are taken out.
- How unusual a voxel's detail is, is counted from the median over training patients in robust standard deviations,
  where the images lie: a structure that another background came with must not be moved by that background. The standard
  deviation is the largest nearby, because heads are not registered to a voxel: else the edge of every skull stands out.
- The most unusual fiftieth of an image's voxels stand out, each with the logarithm of its rank. So a generator that
  blurs or recolours everything changes nothing, and a few voxels that stand out most have the say.

Bright or dark is decided by the training images: by which of the two tails reaches further.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from relict_lightning.grids import NORMAL_CONSISTENCY, fetch_patients, of_each_image, pooled, pooling_factors
from relict_lightning.index import Entry, EntryWriter, ExactIndex, MemoryRows, Reference

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

# Sides of a grid of which a vessel or lesion of a thirtieth of the field of view is two voxels wide in 3-D.
_DETAIL_SIDE = {2: 128, 3: 64}
# In voxels of that grid: the first is what a decoder blurs anyway, the second keeps what is up to some ten voxels wide.
_FINE_VOXELS, _COARSE_VOXELS = 0.7, 3.0
# The spread of two neighbouring voxels is the same but for the error of estimating it.
_SPREAD_VOXELS = 2.0
# Share of the shortest side by which one structure, the rim of the head above all, lies off in another patient.
_TOLERANCE_SHARE = 1 / 20
# Where nothing varies, in air for instance, the spread is this share of the usual (root mean square) one.
_SPREAD_FLOOR = 0.25
# Vessels and lesions fill up to some hundredths of an image.
_SALIENT_SHARE = 0.02
# A lesion may fill some thousandths only.
_PEAK_SHARE = 0.1
# Fewer voxels of a small image agree by chance.
_LEAST_VOXELS = 20
# Far above what single precision leaves of an image without any detail, and far below a faint one.
_ROUNDING = 1e-5
# How far a tail reaches is read off where a lesion of a thousandth of the image shows.
_TAIL_SHARE = 0.001
# A cell holds the largest value of so many voxels along each axis, so that structures may lie a voxel apart.
_CELL = 2
# Numbers by which a map is looked up: the cosine of two is then off by a thirtieth (1 / sqrt(1024)) or less.
_NUMBERS = 1024


@final
@dataclass(frozen=True, kw_only=True)
class Saliency:
    """What is usual in the details of training images, and what stands out of each of them.

    Attributes:
        factors: Voxels of an image per voxel of the detail grid, along each axis.
        usual: Median detail over patients, `[c, *grid]`.
        spread: Its robust standard deviation, positive, `[c, *grid]`.
        sign: 1 where bright details stand out, -1 where dark ones do.
        vectors: What each training image is looked up by, unit or zero, `[m, d]`.
    """

    factors: tuple[int, ...]
    usual: Tensor
    spread: Tensor
    sign: int
    vectors: Array

    @property
    def cell(self) -> tuple[int, ...]:
        """Voxels of an image per cell of a map, along each axis."""
        sides = self.usual.shape[1:]
        return tuple(min(_CELL, side) * factor for side, factor in zip(sides, self.factors, strict=True))

    def maps(self, images: Float[Tensor, "n c *spatial"]) -> Float[Tensor, "n c *cells"]:
        """Return how much each cell of images stands out, at least 0; most cells do not."""
        pool = functional.max_pool2d if images.ndim == 4 else functional.max_pool3d
        cell = tuple(one // factor for one, factor in zip(self.cell, self.factors, strict=True))
        # One image at a time, so that its map does not depend on the batch that it is in.
        found = [pool(self._ranked(one)[None], cell)[0] for one in images]
        cells = [side // one for side, one in zip(self.usual.shape[1:], cell, strict=True)]
        return torch.stack(found) if found else images.new_zeros(0, images.shape[1], *cells)

    def to_vectors(self, maps: Float[Tensor, "n c *cells"]) -> Array:
        """Return what maps are looked up by, unit vectors or zero, `[n, d]`."""
        flat = maps.flatten(1).cpu()
        if flat.shape[1] > _NUMBERS:
            bucket, sign = self._hash
            flat = torch.zeros(len(flat), _NUMBERS).index_add_(1, bucket, flat * sign)
        vectors: Array = functional.normalize(flat, dim=1).numpy()
        return vectors

    def peaks(self, maps: Float[Tensor, "n c *cells"]) -> Float[Tensor, "n c *cells"]:
        """Return what of maps belongs to the tenth of the salient voxels that stand out most."""
        # Ranks are logarithms: this is the map that a tenth of the voxels would have given.
        kept = max(_PEAK_SHARE * self._count, min(_LEAST_VOXELS, self._count))
        return (maps - math.log(self._count / kept)).clamp_min(0)

    @cached_property
    def index(self) -> ExactIndex:
        """Searches the training images by what stands out of them."""
        return ExactIndex(MemoryRows(self.vectors))

    def to(self, device: torch.device) -> "Saliency":
        """Return the same on a device."""
        return replace(self, usual=self.usual.to(device), spread=self.spread.to(device))

    @property
    def _count(self) -> int:
        """Number of voxels of the detail grid that stand out of an image."""
        voxels = self.usual.numel()
        return min(voxels, max(round(_SALIENT_SHARE * voxels), _LEAST_VOXELS))

    @cached_property
    def _hash(self) -> tuple[Tensor, Tensor]:
        """Return which number each cell is added to, and with which sign (a count sketch)."""
        stream = torch.Generator().manual_seed(0)
        cells = [side // min(_CELL, side) for side in self.usual.shape[1:]]
        count = len(self.usual) * math.prod(cells)
        bucket = torch.randint(_NUMBERS, (count,), generator=stream)
        return bucket, 2.0 * torch.randint(2, (count,), generator=stream) - 1

    def _ranked(self, image: Tensor) -> Tensor:
        """Return the logarithmic ranks of what stands out of an image, on the detail grid."""
        on_grid = pooled(image[None], self.factors)[0]
        detail = _detail(on_grid)
        if not detail.norm() > _ROUNDING * on_grid.norm():
            # A blank image lacks all that is usual; that is nothing of its own.
            return torch.zeros_like(detail)
        unusual = (self.sign * (detail - self.usual) / self.spread).flatten()
        count = self._count
        values, places = unusual.topk(count)
        ranks = torch.arange(1, count + 1, device=image.device) - 0.5
        # What is no more than usual does not stand out, however little of the image does.
        ranks = torch.where(values > 0, torch.log(count / ranks).clamp_min(0), 0.0)
        return torch.zeros_like(unusual).scatter_(0, places, ranks).reshape(detail.shape)


@final
@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """What stands out of an image, ready to be laid over what stands out of others.

    Attributes:
        values: Fourier coefficients of a map with room around it, `[c, *frequencies]`.
        length: Euclidean norm of the map.
        sides: Sides of the map and the room around it, in cells.
        max_shift: Largest displacement along any axis, in cells.
    """

    values: Tensor
    length: Tensor
    sides: tuple[int, ...]
    max_shift: int

    @classmethod
    def of(cls, one: Float[Tensor, "c *cells"], *, max_shift: int) -> "Spectrum":
        """Return the spectrum of one map for displacements of up to so many cells, at least 0."""
        # Room for what moves past a border, so that it does not come in at the other side.
        sides = tuple(side + max_shift for side in one.shape[1:])
        values = torch.fft.rfftn(one, s=sides, dim=tuple(range(1, one.ndim)))
        return cls(values=values, length=one.norm(), sides=sides, max_shift=max_shift)

    def similarity(self, other: "Spectrum") -> float:
        """Return the cosine with another map at the displacement that makes it largest, in [0, 1]; 0 if one is blank.

        Args:
            other: That of an image of the same size, for the same displacements.
        """
        lengths = float(self.length * other.length)
        if not lengths > 0:
            return 0.0
        products = torch.fft.irfftn((self.values.conj() * other.values).sum(0), s=self.sides)
        for axis, side in enumerate(self.sides):
            near = products.narrow(axis, 0, self.max_shift + 1)
            past = products.narrow(axis, side - self.max_shift, self.max_shift)
            products = torch.cat([near, past], dim=axis)
        return min(max(float(products.max()) / lengths, 0.0), 1.0)


def describe_saliency(training: Reference) -> Saliency:
    """Return what stands out of training images; all processes that share the reference call this.

    Args:
        training: The training images.
    """
    spatial = training.image_shape[1:]
    factors = _detail_factors(spatial)
    details = torch.stack([_detail(patient) for patient in fetch_patients(training, factors)])
    usual = details.median(dim=0).values
    off = details.sub_(usual)
    deviation = NORMAL_CONSISTENCY * off.abs().median(dim=0).values
    typical = float(deviation.square().mean().sqrt())
    floor = _SPREAD_FLOOR * typical if typical > 0 else 1.0
    spread = (_largest_nearby(_smooth(deviation, _SPREAD_VOXELS)).square() + floor**2).sqrt()
    tails = (off / spread).flatten(1)
    count = max(1, round(_TAIL_SHARE * tails.shape[1]))
    bright, dark = (float((sign * tails).topk(count, dim=1).values[:, -1].mean()) for sign in (1, -1))
    saliency = Saliency(
        factors=factors, usual=usual, spread=spread, sign=1 if bright >= dark else -1, vectors=np.zeros((0, 0))
    )

    vectors = of_each_image(
        training,
        lambda volume: saliency.to_vectors(saliency.maps(volume)),
        doing="Finding what stands out of training images",
    )
    return replace(saliency, vectors=vectors)


def write_saliency(saliency: Saliency, writer: EntryWriter, *, prefix: str) -> None:
    """Write it into a folder, its files' names starting with `prefix`."""
    writer.array(f"{prefix}usual", saliency.usual.cpu().numpy())
    writer.array(f"{prefix}spread", saliency.spread.cpu().numpy())
    writer.array(f"{prefix}vectors", saliency.vectors)
    writer.table(f"{prefix}settings", {"factors": list(saliency.factors), "sign": saliency.sign})


def read_saliency(entry: Entry, *, prefix: str) -> Saliency:
    """Return what `write_saliency` put into a folder."""
    usual, spread = (torch.from_numpy(np.array(entry.array(f"{prefix}{name}"))) for name in ("usual", "spread"))
    settings = entry.table(f"{prefix}settings")
    return Saliency(
        factors=tuple(settings["factors"]),
        usual=usual,
        spread=spread,
        sign=int(settings["sign"]),
        vectors=np.array(entry.array(f"{prefix}vectors")),
    )


def _detail_factors(spatial: tuple[int, ...]) -> tuple[int, ...]:
    """Return how many voxels a voxel of the detail grid holds along each axis."""
    return pooling_factors(spatial, most_voxels=_DETAIL_SIDE[len(spatial)] ** len(spatial))


def _detail(image: Tensor) -> Tensor:
    """Return what is finer than anatomy's slow variation and coarser than noise, of one image `[c, *grid]`."""
    return _smooth(image - _smooth(image, _COARSE_VOXELS), _FINE_VOXELS)


def _largest_nearby(image: Tensor) -> Tensor:
    """Return the largest value of one image `[c, *grid]` within the tolerance along each axis."""
    reach = round(_TOLERANCE_SHARE * min(image.shape[1:]))
    pool = functional.max_pool2d if image.ndim == 3 else functional.max_pool3d
    return pool(image, 2 * reach + 1, stride=1, padding=reach)


def _smooth(image: Tensor, sigma: float) -> Tensor:
    """Return one image `[c, *grid]` smoothed by a Gaussian of `sigma` voxels, by voxels within it only."""
    for axis in range(1, image.ndim):
        places = torch.arange(image.shape[axis], device=image.device)
        weights = torch.exp(-0.5 * ((places[:, None] - places) / sigma).square())
        # A product with a matrix takes a tenth of the time of a convolution with so wide a kernel.
        image = torch.tensordot(image, weights / weights.sum(dim=1, keepdim=True), dims=([axis], [1])).movedim(-1, axis)
    return image
