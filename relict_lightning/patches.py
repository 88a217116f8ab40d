"""Comparing images patch by patch, where they lie, to find a part of a training image in front of another background.

Images on a coarse grid are cut into blocks of a sixth of their side. Two images of different people are alike in some
blocks, but hardly ever nearly equal; a lesion or vessel that was transplanted is, and little else of the image. So a
block counts by the eighth power of its correlation: half at a correlation of 0.92, and next to nothing below 0.7. What
stands out of the sample (`relict_lightning.saliency`) says how much each block weighs, once all of it, and once its
highest tenth.

The blocks of all training images are looked through for every sample; that costs as much as one matrix product does.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from relict_lightning.grids import of_each_image, pooled, pooling_factors
from relict_lightning.index import Entry, EntryWriter, Reference

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

# Sides of the grid: an image then takes 64 KiB in 3-D and 8 KiB in 2-D, and a block has some 120 voxels in both.
_GRID_SIDE = {2: 64, 3: 32}
# Smaller blocks are alike by chance, and in larger ones a lesion is lost.
_BLOCKS_PER_SIDE = 6
_SMALLEST_SIDE = 2
# The eighth power is the square, squared and squared again.
_DOUBLINGS = 3
# A share of the intensity range: the noise of scanners is about as large once it is averaged over a voxel of the grid.
# The correlation of two blocks that hold nothing else must not count.
_NOISE = 0.01
_BYTES_AT_ONCE = 1 << 26


@final
@dataclass(frozen=True, kw_only=True)
class PatchQueries:
    """Samples, cut into blocks.

    Attributes:
        blocks: Each block, as `Patches.blocks`, `[n, k, d]`.
        weights: How much each block counts by all that stands out of the sample, and by its highest tenth,
            `[2, n, k]`; both sum up to 1, or to 0 where nothing stands out.
    """

    blocks: Array
    weights: Array

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.blocks)

    @classmethod
    def joined(cls, parts: Sequence["PatchQueries"]) -> "PatchQueries":
        """Return all samples of some portions of them."""
        blocks, weights = [part.blocks for part in parts], [part.weights for part in parts]
        return cls(blocks=np.concatenate(blocks), weights=np.concatenate(weights, axis=1))


@final
@dataclass(frozen=True, kw_only=True)
class Patches:
    """The blocks of training images.

    Attributes:
        factors: Voxels of an image per voxel of the grid that is cut into blocks, along each axis.
        sides: Voxels of that grid per block, along each axis.
        blocks: Each block of each training image without its mean, of at most unit length, float16, `[k, m, d]`.
    """

    factors: tuple[int, ...]
    sides: tuple[int, ...]
    blocks: Array

    def cut(self, images: Float[Tensor, "n c *spatial"]) -> Float[Tensor, "n k d"]:
        """Return the blocks of images without their means, of at most unit length."""
        # Every block is summed up in one order on the CPU, whatever the batch.
        blocks = self._blocks(pooled(images, self.factors).cpu())
        centred = blocks - blocks.mean(dim=2, keepdim=True)
        floor = _NOISE**2 * blocks.shape[2]
        return centred / (centred.square().sum(dim=2, keepdim=True) + floor).sqrt()

    def queries(
        self,
        images: Float[Tensor, "n c *spatial"],
        whole: Float[Tensor, "n c *cells"],
        peaks: Float[Tensor, "n c *cells"],
    ) -> PatchQueries:
        """Return samples cut into blocks.

        Args:
            images: The samples.
            whole: How much each cell of them stands out.
            peaks: The same of their highest tenth alone.
        """
        grid = [side // factor for side, factor in zip(images.shape[2:], self.factors, strict=True)]
        weights = []
        for maps in (whole, peaks):
            of_blocks = self._blocks(functional.interpolate(maps.cpu(), size=grid, mode="nearest")).mean(dim=2)
            weights.append(of_blocks / of_blocks.sum(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny))
        return PatchQueries(blocks=_kept(self.cut(images)), weights=torch.stack(weights).numpy())

    def similarities(self, mirrorings: Sequence[PatchQueries]) -> Iterator[tuple[Array, Array]]:
        """Yield portions of samples, and their likeness to every training image, `[2, q, m]`, in [0, 1].

        The last digits depend on how many samples and training images there are; those of `pair_similarities` do not.

        Args:
            mirrorings: The same samples under each mirroring, of which the one that makes them most alike counts.
        """
        count, samples = self.blocks.shape[1], len(mirrorings[0])
        size = max(1, _BYTES_AT_ONCE // (8 * len(mirrorings) * max(1, count)))
        for start in range(0, samples, size):
            here = np.arange(start, min(start + size, samples))
            total = np.zeros((len(mirrorings), 2, len(here), count), dtype=np.float32)
            for number, training in enumerate(self.blocks):
                of_training = training.astype(np.float32).T
                for mirroring, queries in enumerate(mirrorings):
                    agreed = _counted(queries.blocks[here, number].astype(np.float32) @ of_training)
                    total[mirroring] += queries.weights[:, here, number, None] * agreed
            yield here, total.max(axis=0)

    def pair_similarities(self, queries: PatchQueries, sample: Array, training: Array) -> Array:
        """Return the likeness of pairs of a sample and a training image, `[2, p]`, in [0, 1]."""
        found = np.empty((2, len(sample)), dtype=np.float32)
        size = max(1, _BYTES_AT_ONCE // (8 * int(np.prod(queries.blocks.shape[1:]))))
        for start in range(0, len(sample), size):
            here = slice(start, start + size)
            of_samples = queries.blocks[sample[here]].astype(np.float32)
            of_training = np.ascontiguousarray(self.blocks[:, training[here]].swapaxes(0, 1).astype(np.float32))
            agreed = _counted(np.einsum("pkd,pkd->pk", of_samples, of_training))
            for way, weights in enumerate(queries.weights):
                found[way, here] = np.einsum("pk,pk->p", weights[sample[here]], agreed)
        return found

    def _blocks(self, on_grid: Tensor) -> Tensor:
        """Return images on the grid cut into blocks, the border that fills no block left out evenly, `[n, k, d]`."""
        count, ndim = len(on_grid), on_grid.ndim
        for axis, side in enumerate(self.sides, start=2):
            left_out = on_grid.shape[axis] % side
            on_grid = on_grid.narrow(axis, left_out // 2, on_grid.shape[axis] - left_out).unfold(axis, side, side)
        return on_grid.reshape(count, math.prod(on_grid.shape[1:ndim]), math.prod(self.sides))


def describe_patches(training: Reference) -> Patches:
    """Return the blocks of training images; all processes that share the reference call this.

    Args:
        training: The training images.
    """
    spatial = training.image_shape[1:]
    factors = pooling_factors(spatial, most_voxels=_GRID_SIDE[len(spatial)] ** len(spatial))
    grid = [side // factor for side, factor in zip(spatial, factors, strict=True)]
    empty = Patches(factors=factors, sides=_block_sides(grid), blocks=np.zeros((0, 0, 0), np.float16))

    of_images = of_each_image(training, lambda volume: _kept(empty.cut(volume)), doing="Cutting up training images")
    return replace(empty, blocks=np.ascontiguousarray(of_images.swapaxes(0, 1)))


def write_patches(patches: Patches, writer: EntryWriter, *, prefix: str) -> None:
    """Write them into a folder, its files' names starting with `prefix`."""
    writer.array(f"{prefix}blocks", patches.blocks)
    writer.table(f"{prefix}settings", {"factors": list(patches.factors), "sides": list(patches.sides)})


def read_patches(entry: Entry, *, prefix: str) -> Patches:
    """Return what `write_patches` put into a folder."""
    settings = entry.table(f"{prefix}settings")
    return Patches(
        factors=tuple(settings["factors"]),
        sides=tuple(settings["sides"]),
        # Memory-mapped, because those of many images take gigabytes.
        blocks=entry.array(f"{prefix}blocks"),
    )


def _block_sides(grid: Sequence[int]) -> tuple[int, ...]:
    """Return the sides of blocks, alike but where the grid is thinner, of which about 6 would fill a side of a cube."""
    wanted = math.prod(grid) / _BLOCKS_PER_SIDE ** len(grid)
    choices = [tuple(min(side, longest) for side in grid) for longest in range(_SMALLEST_SIDE, max(grid) + 1)]
    return min(choices or [tuple(grid)], key=lambda sides: abs(math.prod(sides) - wanted))


def _counted(correlation: Array) -> Array:
    """Return how much blocks of a correlation count, in place."""
    np.clip(correlation, 0.0, 1.0, out=correlation)
    for _ in range(_DOUBLINGS):
        correlation *= correlation
    return correlation


def _kept(blocks: Tensor) -> Array:
    kept: Array = blocks.numpy().astype(np.float16)
    return kept
