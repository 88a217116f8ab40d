"""Comparing what stands out of samples with what stands out of training images, pair by pair.

Structures may have been copied without anything around them that an alignment of whole images could hold on to. So they
are compared as they lie and as an alignment moved them, displaced by a little either way each time; all that stand out,
and the highest tenth alone, because a transplanted lesion stands out most of all that its host has.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from relict_lightning.functional import mirror, warp_affine
from relict_lightning.index import Reference
from relict_lightning.saliency import Saliency, Spectrum

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

# Spectra that are kept: those of volumes of 64 voxels a side take 250 KiB. Pairs come sorted by sample.
_SAMPLES, _PATIENTS = 16, 512


# Of all that stands out, and of its highest tenth.
_Spectra: TypeAlias = tuple[Spectrum, Spectrum]


class SalientSimilarity(NamedTuple):
    """How alike what stands out of two images is, pair by pair, in [0, 1].

    Attributes:
        whole: All that stands out, `[p]`.
        peaks: The highest tenth of it alone, `[p]`.
    """

    whole: Tensor
    peaks: Tensor


class Structures:
    """What stands out of samples and of training images.

    Args:
        images: The samples, on the training set's intensity scale.
        mirrors: The mirrorings that pairs count.
        reference: The training images.
        saliency: What stands out of them, on the device.
        max_shift: Largest displacement along any axis, in cells.
        device: Where to compare.
    """

    def __init__(
        self,
        images: Float[Tensor, "n c *spatial"],
        mirrors: Sequence[tuple[int, ...]],
        reference: Reference,
        saliency: Saliency,
        *,
        max_shift: int,
        device: torch.device,
    ) -> None:
        self.images, self.mirrors, self.reference = images, mirrors, reference
        self.saliency, self.max_shift, self.device = saliency, max_shift, device
        self._sample = lru_cache(_SAMPLES)(self._describe_sample)
        self._patient = lru_cache(_PATIENTS)(self._describe_patient)

    def as_they_lie(self, sample: Array, mirroring: Array, training: Array) -> SalientSimilarity:
        """Return how alike pairs of a sample, mirrored, and a training image are where they lie."""
        return self._similarity((self._sample(*one)[1] for one in _each(sample, mirroring)), training)

    def moved(
        self, sample: Array, mirroring: Array, training: Array, maps: Float[Tensor, "p ndim columns"]
    ) -> SalientSimilarity:
        """Return how alike pairs are once maps have moved the samples onto the training images."""
        if not len(maps):
            return self._similarity(iter(()), training)
        samples = torch.stack([self._sample(*one)[0] for one in _each(sample, mirroring)])
        return self._similarity((self._spectra(one) for one in warp_affine(samples, maps)), training)

    def _similarity(self, samples: Iterator[_Spectra], training: Array) -> SalientSimilarity:
        # One pair at a time, so that no number depends on the batch that it is in.
        found = [
            [one.similarity(other) for one, other in zip(of_sample, self._patient(position), strict=True)]
            for of_sample, position in zip(samples, training.tolist(), strict=True)
        ]
        values = torch.tensor(found) if found else torch.zeros(0, 2)
        return SalientSimilarity(*values.unbind(1))

    def _describe_sample(self, sample: int, mirroring: int) -> tuple[Tensor, _Spectra]:
        # A mirrored image is unusual in other places than the image.
        image = mirror(self.images[[sample]].to(self.device), self.mirrors[mirroring])
        found = self.saliency.maps(image)[0]
        return found, self._spectra(found)

    def _describe_patient(self, position: int) -> _Spectra:
        volume = torch.from_numpy(self.reference.volumes(np.array([position]))).to(self.device)
        return self._spectra(self.saliency.maps(volume)[0])

    def _spectra(self, one: Tensor) -> _Spectra:
        whole, peaks = one, self.saliency.peaks(one)
        return Spectrum.of(whole, max_shift=self.max_shift), Spectrum.of(peaks, max_shift=self.max_shift)


def _each(sample: Array, mirroring: Array) -> Iterator[tuple[int, int]]:
    return zip(sample.tolist(), mirroring.tolist(), strict=True)
