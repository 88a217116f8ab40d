"""Giving images the look of samples: as sharp as these are, and as bright.

A generator's samples differ from patients in more than being new: a decoder blurs, and drifts in contrast. What is left
of the difference, once held-out images look alike, is that they show other patients. So images are filtered to the
samples' mean power at every frequency, whatever its direction, and their intensities mapped to the samples' histogram.
Both are means over many images; no single sample can be told from them.
"""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

# Bands of frequency, up to the highest along an axis. In each a filter is constant but for interpolation.
_BANDS = 32
# Where images have next to no power, as empty ones do, a ratio says nothing; and noise is not amplified by more.
_SMALLEST_POWER, _LARGEST_GAIN = 1e-12, 4.0
_QUANTILES = 257
# Voxels of each image that its histogram is made of.
_VOXELS = 1 << 14


@final
@dataclass(frozen=True, kw_only=True)
class Appearance:
    """How sharp and how bright images are, the mean of many.

    Attributes:
        power: Mean power in each band of frequency that has any entries, of each channel, `[c, bands]`.
        quantiles: Evenly spaced quantiles of the intensities of each channel, `[c, quantiles]`.
    """

    power: Float[Tensor, "c bands"]
    quantiles: Float[Tensor, "c quantiles"]

    @classmethod
    def of(cls, images: Float[Tensor, "n c *spatial"]) -> "Appearance":
        """Return that of images."""
        band, _, counts = _bands(tuple(images.shape[2:]))
        power = torch.zeros(images.shape[1], len(counts), dtype=torch.float64)
        for image in images:
            power.index_add_(1, band, _spectrum(image).abs().square().flatten(1).double())
        return cls(power=power / counts / len(images), quantiles=_quantiles(images))


def match_look(
    images: Float[Tensor, "n c *spatial"], samples: Float[Tensor, "s c *spatial"]
) -> Float[Tensor, "n c *spatial"]:
    """Return images with the look of samples.

    The mean power of the result at each frequency comes near to that of the samples, and its histogram, pooled over all
    images, is theirs. An image that is brighter than others stays so.

    Args:
        images: Images, at least one, on the samples' intensity scale.
        samples: Samples of the same shape, at least one.
    """
    own, wanted = Appearance.of(images), Appearance.of(samples)
    _, centres, _ = _bands(tuple(images.shape[2:]))
    frequencies = _frequencies(tuple(images.shape[2:])).numpy()
    ratio = (wanted.power / own.power.clamp_min(_SMALLEST_POWER)).sqrt().clamp_max(_LARGEST_GAIN).numpy()
    gain = torch.from_numpy(np.stack([np.interp(frequencies, centres, of_channel) for of_channel in ratio])).float()
    filtered = torch.empty_like(images)
    # One image at a time, because several copies of a held-out set may not fit the memory.
    for place, image in enumerate(images):
        filtered[place] = _filtered(image, gain)
    source = _quantiles(filtered).numpy()
    for channel, (have, want) in enumerate(zip(source, wanted.quantiles.numpy(), strict=True)):
        # Of intensities that many voxels share, as air does, the middle quantile counts.
        levels, first, count = np.unique(have, return_index=True, return_counts=True)
        mapped = want[first + (count - 1) // 2]
        for values in filtered[:, channel]:
            values.copy_(torch.from_numpy(np.interp(values.numpy(), levels, mapped)))
    return filtered


def _filtered(image: Float[Tensor, "c *spatial"], gain: Tensor) -> Tensor:
    """Return an image of which each frequency is multiplied by a gain."""
    spatial = tuple(image.shape[1:])
    axes = tuple(range(1, image.ndim))
    # The mean is no matter of sharpness; the histogram settles it.
    filtered: Tensor = torch.fft.irfftn(_spectrum(image) * gain, s=spatial, dim=axes)
    return filtered + image.mean(dim=axes, keepdim=True)


def _spectrum(image: Float[Tensor, "c *spatial"]) -> Tensor:
    """Return the spectrum of an image without its mean."""
    axes = tuple(range(1, image.ndim))
    spectrum: Tensor = torch.fft.rfftn(image - image.mean(dim=axes, keepdim=True), dim=axes)
    return spectrum


def _bands(spatial: tuple[int, ...]) -> tuple[Tensor, Array, Tensor]:
    """Return the band of each entry of a spectrum, and of each band the mean frequency and the number of entries."""
    frequencies = _frequencies(spatial).flatten()
    # The mean was taken out, and what rounding leaves there must be no band of its own. Some bands hold nothing.
    if len(frequencies) > 1:
        frequencies = frequencies.clamp_min(frequencies[frequencies > 0].min())
    band = torch.unique((frequencies * _BANDS).long().clamp_max(_BANDS - 1), return_inverse=True)[1]
    counts = torch.bincount(band)
    return band, (torch.bincount(band, weights=frequencies) / counts).numpy(), counts


def _frequencies(spatial: tuple[int, ...]) -> Tensor:
    """Return the frequency of each entry of a spectrum, 1 for the highest along an axis, more in the corners."""
    axes = [torch.fft.fftfreq(side) for side in spatial[:-1]] + [torch.fft.rfftfreq(spatial[-1])]
    grids = torch.meshgrid(*axes, indexing="ij")
    radius: Tensor = torch.linalg.vector_norm(torch.stack(grids), dim=0)
    return 2 * radius


def _quantiles(images: Tensor) -> Tensor:
    """Return quantiles of the intensities of each channel, pooled over images, `[c, quantiles]`."""
    flat = images.flatten(2)
    # An odd step, because decoders leave grids of an even period.
    some = flat[:, :, :: flat.shape[2] // _VOXELS | 1].transpose(0, 1).flatten(1)
    return torch.from_numpy(np.quantile(some.numpy(), np.linspace(0, 1, _QUANTILES), axis=1).T.copy())
