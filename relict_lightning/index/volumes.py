"""How images are stored: each on its own intensity range, in half precision or in 8 bits, or not at all.

An image's rows are `(x - low) / (high - low)` with its own smallest and largest intensity. So what is stored depends on
the image alone, and patients that are added do not change what is there.
"""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float
from torch import Tensor

from relict_lightning.index.rows import Array

Store: TypeAlias = Literal["float16", "uint8", "reference"]
"""float16: to 1/4096 of an image's intensity range, 2 bytes a voxel; uint8: to 1/510 of it, 1 byte; reference: nothing
is stored, images are read from the user's data when they are compared."""

# The range is rounded outwards to this many binary digits, at most an eighth of the range.
_RANGE_DIGITS = 4
_LARGEST_BYTE = 255


@dataclass(frozen=True, kw_only=True)
class IntensityScale:
    """The affine map that takes the training set's intensity range to [0, 1].

    The encoder, the segmenter and the structural similarity see images on it. Values outside the range are kept, not
    clipped.

    Attributes:
        low: Intensity that becomes 0.
        high: Intensity that becomes 1.
    """

    low: float
    high: float

    @classmethod
    def covering(cls, low: float, high: float) -> "IntensityScale":
        """Return the scale of a set with this smallest and largest intensity, `low < high`.

        The range is rounded outwards to a sixteenth of the power of two below it, so that a set to which patients are
        added mostly keeps its scale, and with it all that was computed on that scale.

        Example:
            >>> IntensityScale.covering(-1024.0, 3071.0)
            IntensityScale(low=-1024.0, high=3072.0)
        """
        step = 2.0 ** (math.floor(math.log2(high - low)) - _RANGE_DIGITS)
        return cls(low=math.floor(low / step) * step, high=math.ceil(high / step) * step)

    def apply(self, images: Float[Tensor, "n c *spatial"]) -> Float[Tensor, "n c *spatial"]:
        """Return the images on the training set's unit scale."""
        return (images - self.low) / (self.high - self.low)


def ranges_of(images: Array) -> Array:
    """Return the smallest and largest intensity of each image, `[n, 2]`, float32."""
    flat = images.reshape(len(images), -1)
    return np.stack([flat.min(1), flat.max(1)], axis=1).astype(np.float32)


def quantise(images: Array, ranges: Array, store: Store) -> Array:
    """Return images as they are stored.

    Args:
        images: `[n, c, *spatial]`, float32.
        ranges: What `ranges_of` returned for them.
        store: "float16" or "uint8".
    """
    low, span = _low_and_span(ranges, images.ndim)
    unit = (images - low) / np.where(span > 0, span, 1)
    return unit.astype(np.float16) if store == "float16" else np.rint(unit * _LARGEST_BYTE).astype(np.uint8)


def restore(values: Array, ranges: Array, scale: IntensityScale) -> Array:
    """Return stored images on the training set's unit scale, float32.

    Args:
        values: What `quantise` returned, or the images themselves, float32, where nothing is stored.
        ranges: Each image's range, `[n, 2]`.
        scale: The training set's scale.
    """
    if values.dtype != np.float32:
        low, span = _low_and_span(ranges, values.ndim)
        steps = _LARGEST_BYTE if values.dtype == np.uint8 else 1
        values = low + values.astype(np.float32) * (span / steps)
    restored: Array = (values - np.float32(scale.low)) / np.float32(scale.high - scale.low)
    return restored


def _low_and_span(ranges: Array, dimensions: int) -> tuple[Array, Array]:
    """Return each image's smallest intensity and its range, to be broadcast over voxels."""
    shape = (-1, *(1 for _ in range(dimensions - 1)))
    return ranges[:, 0].reshape(shape), (ranges[:, 1] - ranges[:, 0]).reshape(shape)
