"""Coarser grids on which images are looked at, and the training images of which is told what is usual there."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from relict_lightning.index import Reference

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

# Makes the median absolute deviation of a normal variable its standard deviation.
NORMAL_CONSISTENCY = 1.4826
# Standard error of a median of so many: 11 % of the standard deviation.
_PATIENTS = 128


def pooling_factors(spatial: tuple[int, ...], *, most_voxels: int) -> tuple[int, ...]:
    """Return how many voxels a voxel of the finest grid of at most so many voxels holds along each axis.

    Args:
        spatial: Sides of the images.
        most_voxels: Bound on the voxels of the grid, at least 1.
    """
    factor = 1
    while math.prod(max(1, side // factor) for side in spatial) > most_voxels:
        factor += 1
    return tuple(min(factor, side) for side in spatial)


def pooled(images: Tensor, factors: tuple[int, ...]) -> Tensor:
    """Return the means of images `[n, c, *spatial]` over boxes of `factors` voxels, float32."""
    if all(factor == 1 for factor in factors):
        return images.float()
    means: Tensor = (functional.avg_pool2d if images.ndim == 4 else functional.avg_pool3d)(images.float(), factors)
    return means


def fetch_patients(training: Reference, factors: tuple[int, ...]) -> Tensor:
    """Return one image of each of up to 128 patients, drawn alike each time, pooled, `[p, c, *grid]`.

    All processes that share the reference call this.
    """
    _, first_of_group = np.unique(training.group_codes, return_index=True)
    chosen = np.sort(np.random.default_rng(0).permutation(first_of_group)[:_PATIENTS])
    # One at a time, because whole images of all may not fit the memory.
    return torch.cat(
        [pooled(torch.from_numpy(training.fetch_volumes(one)), factors) for one in np.array_split(chosen, len(chosen))]
    )


def of_each_image(training: Reference, make: Callable[[Tensor], Array], *, doing: str) -> Array:
    """Return what is made of each training image, in order, `[m, ...]`.

    All processes that share the reference call this; each makes it of the images that it holds.

    Args:
        training: The training images, at least one.
        make: Makes an array `[1, ...]` of one image `[1, c, *spatial]`.
        doing: What it is, for the message of the processes that did not fail.
    """

    def of_held() -> tuple[Array, list[Array]]:
        held = np.flatnonzero(training.stored.holds(np.arange(len(training))))
        return held, [make(torch.from_numpy(training.volumes(held[[place]])))[0] for place in range(len(held))]

    made: dict[int, Array] = {}
    for held, of_images in training.processes.gather(of_held, doing=doing):
        made.update(zip(held.tolist(), of_images, strict=True))
    return np.stack([made[position] for position in range(len(training))])
