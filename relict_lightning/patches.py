"""Comparing images patch by patch, where they lie, to find a part of a training image in front of another background.

Images on a coarse grid are cut into overlapping blocks of a sixth of their side. People are alike in some blocks, at
the rim of the head above all, and unlike in others; so a block is judged against its own place: it is like a patient by
one minus the ratio of its distance (one minus the correlation) to that patient to the mean distance to the two next
ones. Where all people are alike the two are equal, however small. Where a lesion or vessel was transplanted, its source
is near and nobody else is.

Of a lesion few blocks are copied, and among hundreds one is near to somebody by chance. So only those count where
something stands out of the sample (`relict_lightning.saliency`), and what counts is the best of them: once of all of
these alike, once of those with the highest tenth of what stands out, and less where less of that is. Of a larger part
many blocks are copied, whether anything stands out or not, and all of the same patient, which chance does not do. So
blocks are counted, too, each for its nearest patient, by the square of how alike it is.

The blocks of all training images are looked through for every sample; that costs as much as one matrix product does.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from relict_lightning.grids import of_each_image, pooled, pooling_factors
from relict_lightning.index import Entry, EntryWriter, Reference

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

MEASURES_OF_PATCHES = ("patch_likeness", "peak_patch_likeness", "alike_patches")

# Sides of the grid: an image then takes 64 KiB in 3-D and 8 KiB in 2-D, and a block has some 120 voxels in both.
_GRID_SIDE = {2: 64, 3: 32}
# Smaller blocks are alike by chance, and in larger ones a lesion is lost.
_BLOCKS_PER_SIDE = 6
_SMALLEST_SIDE = 2
# Blocks count by all that stands out where that is a tenth of what it is in the block with most.
_LEAST_SHARE = 0.1
# And by the highest tenth with the fourth root of that share: half as much for a sixteenth.
_ROOT = 0.25
# A share of the intensity range: the noise of scanners is about as large once it is averaged over a voxel of the grid.
# The correlation of two blocks that hold nothing else must not count.
_NOISE = 0.01
# A block is judged against so many other patients.
_OTHERS = 2
_SMALLEST_DISTANCE = 1e-6
# Components of unit vectors are multiples of this. A product of two is then one of 2^-22, and sums of such up to 1, in
# whatever order, are exact in float32: no number depends on how a matrix product goes about it, and equal images tie.
# It puts a correlation off by 2e-4, where copies are off by a hundredth or more.
_STEP = 2.0**-11
_BYTES_AT_ONCE = 1 << 26


@final
@dataclass(frozen=True, kw_only=True)
class PatchQueries:
    """Samples on the grid that is cut into blocks.

    Attributes:
        grids: The samples, float32, `[n, c, *grid]`.
        weights: How much each block counts by all that stands out of the sample, and by its highest tenth,
            `[2, n, k]`, in [0, 1].
    """

    grids: Array
    weights: Array

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.grids)

    @classmethod
    def joined(cls, parts: Sequence["PatchQueries"]) -> "PatchQueries":
        """Return all samples of some portions of them."""
        grids, weights = [part.grids for part in parts], [part.weights for part in parts]
        return cls(grids=np.concatenate(grids), weights=np.concatenate(weights, axis=1))


@final
@dataclass(frozen=True, kw_only=True)
class LocalLikeness:
    """Pairs of which a block is nearer to each other than to all other patients.

    Attributes:
        sample: Position of the sample, `[p]`, in order.
        training: Position of the training image, `[p]`, in order for each sample.
        values: `MEASURES_OF_PATCHES` in order, `[3, p]`: how alike the block is in which they are so most, as blocks
            count by all that stands out of the sample, and by its highest tenth, both in [0, 1]; and how many blocks
            are alike to the image's group, each counted by the square of how alike it is. Of all other pairs all three
            are 0.
    """

    sample: Array
    training: Array
    values: Array

    @classmethod
    def joined(cls, parts: Sequence["LocalLikeness"]) -> "LocalLikeness":
        """Return the pairs of some portions of the samples, in order."""
        nothing, no_values = np.zeros(0, np.int64), np.zeros((len(MEASURES_OF_PATCHES), 0), np.float32)
        parts = [cls(sample=nothing, training=nothing, values=no_values), *parts]
        sample, training = (np.concatenate([getattr(part, name) for part in parts]) for name in ("sample", "training"))
        order = np.lexsort((training, sample))
        values = np.concatenate([part.values for part in parts], axis=1)
        return cls(sample=sample[order], training=training[order], values=values[:, order])

    def of_pairs(self, sample: Array, training: Array) -> Array:
        """Return the values of pairs, `[3, p]`."""
        found = np.zeros((len(MEASURES_OF_PATCHES), len(sample)), dtype=np.float32)
        if len(self.sample):
            size = 1 + max(int(self.training.max()), int(training.max(initial=0)))
            mine, wanted = self.sample * size + self.training, sample * size + training
            place = np.searchsorted(mine, wanted).clip(max=len(mine) - 1)
            is_here = mine[place] == wanted
            found[:, is_here] = self.values[:, place[is_here]]
        return found

    def nearest(self, top_k: int, *, codes: Array) -> Array:
        """Return the pairs of each sample and the likest image of each of its `top_k` likest groups, `[p, 2]`.

        Each of the three ways to count blocks gives so many.

        Args:
            top_k: How many groups.
            codes: The group of each training image.
        """
        chosen = []
        for of_way in self.values:
            best = np.lexsort((self.training, -of_way, self.sample))
            best = best[of_way[best] > 0]
            # The first of each group of a sample is its likest.
            names = np.stack([self.sample[best], codes[self.training[best]]])
            best = best[np.sort(np.unique(names, axis=1, return_index=True)[1])]
            starts = np.searchsorted(self.sample[best], self.sample[best])
            chosen.append(best[np.arange(len(best)) - starts < top_k])
        pairs = np.concatenate(chosen)
        return np.stack([self.sample[pairs], self.training[pairs]], axis=1)


@final
@dataclass(frozen=True, kw_only=True)
class Patches:
    """Training images on the grid that is cut into blocks.

    Attributes:
        factors: Voxels of an image per voxel of that grid, along each axis.
        sides: Voxels of that grid per block, along each axis.
        grids: The training images, float16, `[m, c, *grid]`.
    """

    factors: tuple[int, ...]
    sides: tuple[int, ...]
    grids: Array

    @cached_property
    def starts(self) -> tuple[Array, ...]:
        """Where blocks begin along each axis: from one border to the other, each overlapping the next by half."""
        free = [grid - side for grid, side in zip(self.grids.shape[2:], self.sides, strict=True)]
        counts = [1 + space // math.ceil(side / 2) for space, side in zip(free, self.sides, strict=True)]
        return tuple(
            np.linspace(0, space, count).round().astype(int) for space, count in zip(free, counts, strict=True)
        )

    def queries(
        self,
        images: Float[Tensor, "n c *spatial"],
        whole: Float[Tensor, "n c *cells"],
        peaks: Float[Tensor, "n c *cells"],
    ) -> PatchQueries:
        """Return samples, and how much each of their blocks counts.

        Args:
            images: The samples.
            whole: How much each cell of them stands out.
            peaks: The same of their highest tenth alone.
        """
        grids = pooled(images, self.factors).cpu()
        pool = functional.avg_pool2d if images.ndim == 4 else functional.avg_pool3d
        shares = []
        for maps in (whole, peaks):
            on_grid = functional.interpolate(maps.cpu().mean(dim=1, keepdim=True), size=grids.shape[2:], mode="nearest")
            of_blocks = pool(on_grid, self.sides, stride=1)
            for axis, starts in enumerate(self.starts, start=2):
                of_blocks = of_blocks.index_select(axis, torch.from_numpy(starts))
            of_blocks = of_blocks.flatten(1)
            shares.append(of_blocks / of_blocks.amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny))
        weights = torch.stack([(shares[0] >= _LEAST_SHARE).float(), shares[1] ** _ROOT])
        return PatchQueries(grids=grids.numpy(), weights=weights.numpy())

    def likeness(self, mirrorings: Sequence[PatchQueries], samples: Array, *, codes: Array) -> LocalLikeness:
        """Return which samples are like which training images in some block, under the mirroring that shows it best.

        Args:
            mirrorings: Samples under each mirroring.
            samples: Positions of the samples that are looked at, in order.
            codes: The group of each training image, at least two.
        """
        size = max(1, _BYTES_AT_ONCE // (8 * len(mirrorings) * len(self.grids)))
        parts = [
            self._likeness(mirrorings, samples[start : start + size], codes) for start in range(0, len(samples), size)
        ]
        return LocalLikeness.joined(parts)

    def _likeness(self, mirrorings: Sequence[PatchQueries], samples: Array, codes: Array) -> LocalLikeness:
        grids = np.concatenate([queries.grids[samples] for queries in mirrorings])
        weights = np.concatenate([queries.weights[:, samples] for queries in mirrorings], axis=1)
        mirroring, sample = np.indices((len(mirrorings), len(samples))).reshape(2, -1)
        best = np.zeros((len(MEASURES_OF_PATCHES), len(samples), len(self.grids)), dtype=np.float32)
        blocks = np.zeros((len(mirrorings), len(samples), int(codes.max()) + 1), dtype=np.float32)
        for number, corner in enumerate(itertools.product(*self.starts)):
            block: Any = tuple(slice(start, start + side) for start, side in zip(corner, self.sides, strict=True))
            of_training = _centred(self.grids[(..., *block)])
            nearest, likeness = _judged(_centred(grids[(..., *block)]), of_training, codes)
            # No row occurs twice, so that nothing is lost.
            blocks[mirroring, sample, codes[nearest]] += np.square(likeness)
            for of_way, weight in zip(best[:-1], weights[..., number], strict=True):
                np.maximum.at(of_way, (sample, nearest), weight * likeness)
            best[-1, sample[likeness > 0], nearest[likeness > 0]] = 1.0
        best[-1] *= blocks.max(axis=0)[:, codes]
        sample, training = np.nonzero(best[-1])
        return LocalLikeness(sample=samples[sample], training=training, values=best[:, sample, training])


def describe_patches(training: Reference) -> Patches:
    """Return training images on the grid that is cut into blocks; all processes that share the reference call this.

    Args:
        training: The training images.
    """
    spatial = training.image_shape[1:]
    factors = pooling_factors(spatial, most_voxels=_GRID_SIDE[len(spatial)] ** len(spatial))
    grids = of_each_image(
        training,
        lambda volume: pooled(volume, factors).numpy().astype(np.float16),
        doing="Cutting up training images",
    )
    return Patches(factors=factors, sides=_block_sides(grids.shape[2:]), grids=grids)


def write_patches(patches: Patches, writer: EntryWriter, *, prefix: str) -> None:
    """Write them into a folder, its files' names starting with `prefix`."""
    writer.array(f"{prefix}grids", patches.grids)
    writer.table(f"{prefix}settings", {"factors": list(patches.factors), "sides": list(patches.sides)})


def read_patches(entry: Entry, *, prefix: str) -> Patches:
    """Return what `write_patches` put into a folder."""
    settings = entry.table(f"{prefix}settings")
    return Patches(
        factors=tuple(settings["factors"]),
        sides=tuple(settings["sides"]),
        # Memory-mapped, because those of many images take gigabytes.
        grids=entry.array(f"{prefix}grids"),
    )


def _block_sides(grid: Sequence[int]) -> tuple[int, ...]:
    """Return the sides of blocks, alike but where the grid is thinner, of which about 6 would fill a side of a cube."""
    wanted = math.prod(grid) / _BLOCKS_PER_SIDE ** len(grid)
    choices = [tuple(min(side, longest) for side in grid) for longest in range(_SMALLEST_SIDE, max(grid) + 1)]
    return min(choices or [tuple(grid)], key=lambda sides: abs(math.prod(sides) - wanted))


def _centred(blocks: Array) -> Array:
    """Return one block of each of some images without its mean, of at most about unit length, `[n, d]`."""
    flat = blocks.reshape(len(blocks), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    flat /= np.sqrt(np.square(flat).sum(axis=1, keepdims=True) + np.float32(_NOISE**2 * flat.shape[1]))
    flat /= np.float32(_STEP)
    return np.rint(flat, out=flat) * np.float32(_STEP)


def _judged(of_samples: Array, of_training: Array, codes: Array) -> tuple[Array, Array]:
    """Return the training image that is nearest to each of some samples in a block, and how alike they are there."""
    nearest, correlation = _nearest(of_samples @ of_training.T, codes)
    distance = 1 - correlation
    others = distance[:, 1:].mean(axis=1)
    likeness = 1 - distance[:, 0] / np.maximum(others, _SMALLEST_DISTANCE)
    return nearest, np.where(others > _SMALLEST_DISTANCE, likeness, 0.0).clip(0.0, 1.0)


def _nearest(correlation: Array, codes: Array) -> tuple[Array, Array]:
    """Return the nearest image, of equals the first, `[q]`, and the correlations with the nearest groups, `[q, j]`."""
    groups = int(codes.max()) + 1
    wanted = min(1 + _OTHERS, groups)
    if groups == len(codes):
        best = torch.from_numpy(correlation).topk(wanted, dim=1).values.numpy()
        return (correlation == best[:, :1]).argmax(axis=1), best
    left, found = correlation.copy(), []
    for _ in range(wanted):
        found.append(left.argmax(axis=1))
        left[codes == codes[found[-1]][:, None]] = -np.inf
    return found[0], np.take_along_axis(correlation, np.stack(found, axis=1), axis=1)
