"""How many images to work on at once, so that memory depends on the budget and not on the size of the images."""

import math

# The default encoder takes about 260 MiB for this many voxels: it holds some 30 float32 numbers per voxel at its peak.
_VOXELS = 2**21
_MOST_IMAGES = 64


def images_per_batch(image_shape: tuple[int, ...]) -> int:
    """Return how many images to read, encode or segment at once.

    Args:
        image_shape: `[c, *spatial]` of every image.

    Returns:
        At most 64 and at least 1: an image that is larger than the budget is worked on alone.

    Example:
        >>> images_per_batch((1, 64, 64)), images_per_batch((1, 64, 64, 64)), images_per_batch((1, 256, 256, 256))
        (64, 8, 1)
    """
    return max(1, min(_MOST_IMAGES, _VOXELS // max(1, math.prod(image_shape))))
