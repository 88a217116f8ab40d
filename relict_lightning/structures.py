"""Comparing what stands out of samples with what stands out of training images, pair by pair.

Structures may have been copied without anything around them that an alignment of whole images could hold on to. So they
are compared as they lie and as an alignment moved them, displaced by a little either way each time.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from relict_lightning.functional import mirror, warp_affine
from relict_lightning.index import Reference
from relict_lightning.saliency import Saliency, Spectrum

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

# Spectra that are kept: those of volumes of 64 voxels a side take 160 KiB. Pairs come sorted by sample.
_SAMPLES, _PATIENTS = 16, 512


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
        self._samples: dict[tuple[int, int], tuple[Tensor, Spectrum]] = {}
        self._patients: dict[int, Spectrum] = {}

    def as_they_lie(self, sample: Array, mirroring: Array, training: Array) -> Float[Tensor, " p"]:
        """Return how alike pairs of a sample, mirrored, and a training image are where they lie, in [0, 1]."""
        return self._similarity((self._sample(*one)[1] for one in _each(sample, mirroring)), training)

    def moved(
        self, sample: Array, mirroring: Array, training: Array, maps: Float[Tensor, "p ndim columns"]
    ) -> Float[Tensor, " p"]:
        """Return how alike pairs are once maps have moved the samples onto the training images, in [0, 1]."""
        if not len(maps):
            return torch.zeros(0)
        samples = torch.stack([self._sample(*one)[0] for one in _each(sample, mirroring)])
        return self._similarity((self._spectrum(one) for one in warp_affine(samples, maps)), training)

    def _similarity(self, samples: Iterator[Spectrum], training: Array) -> Tensor:
        # One pair at a time, so that no number depends on the batch that it is in.
        pairs = zip(samples, training.tolist(), strict=True)
        return torch.tensor([of_sample.similarity(self._patient(position)) for of_sample, position in pairs])

    def _sample(self, sample: int, mirroring: int) -> tuple[Tensor, Spectrum]:
        """Return what stands out of a sample, mirrored, and the spectrum of that."""
        if (sample, mirroring) not in self._samples:
            # A mirrored image is unusual in other places than the image.
            image = mirror(self.images[[sample]].to(self.device), self.mirrors[mirroring])
            found = self.saliency.maps(image)[0]
            _make_room(self._samples, _SAMPLES)
            self._samples[sample, mirroring] = found, self._spectrum(found)
        return self._samples[sample, mirroring]

    def _patient(self, position: int) -> Spectrum:
        """Return the spectrum of what stands out of a training image."""
        if position not in self._patients:
            volume = torch.from_numpy(self.reference.volumes(np.array([position]))).to(self.device)
            _make_room(self._patients, _PATIENTS)
            self._patients[position] = self._spectrum(self.saliency.maps(volume)[0])
        return self._patients[position]

    def _spectrum(self, one: Tensor) -> Spectrum:
        return Spectrum.of(one, max_shift=self.max_shift)


def _make_room(kept: dict[Any, Any], size: int) -> None:
    """Drop what was kept first, where there is no room for more."""
    if len(kept) >= size:
        del kept[next(iter(kept))]


def _each(sample: Array, mirroring: Array) -> Iterator[tuple[int, int]]:
    return zip(sample.tolist(), mirroring.tolist(), strict=True)
