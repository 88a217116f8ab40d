"""Comparing what stands out of samples with what stands out of training images, pair by pair.

Structures may have been copied without anything around them that an alignment of whole images could hold on to. So they
are compared as they lie, displaced by a little either way.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from relict_lightning.functional import mirror
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
        self._samples: dict[tuple[int, int], Spectrum] = {}
        self._patients: dict[int, Spectrum] = {}

    def similarities(self, sample: Array, mirroring: Array, training: Array) -> Float[Tensor, " p"]:
        """Return how alike pairs of a sample, mirrored, and a training image are, in [0, 1]."""
        # One pair at a time, so that no number depends on the batch that it is in.
        pairs = zip(sample.tolist(), mirroring.tolist(), training.tolist(), strict=True)
        return torch.tensor([self._sample(*of_sample).similarity(self._patient(other)) for *of_sample, other in pairs])

    def _sample(self, sample: int, mirroring: int) -> Spectrum:
        """Return the spectrum of what stands out of a sample, mirrored."""
        # A mirrored image is unusual in other places than the image.
        return _kept(
            self._samples,
            (sample, mirroring),
            lambda: self._spectrum(mirror(self.images[[sample]].to(self.device), self.mirrors[mirroring])),
            size=_SAMPLES,
        )

    def _patient(self, position: int) -> Spectrum:
        """Return the spectrum of what stands out of a training image."""
        return _kept(
            self._patients,
            position,
            lambda: self._spectrum(torch.from_numpy(self.reference.volumes(np.array([position]))).to(self.device)),
            size=_PATIENTS,
        )

    def _spectrum(self, image: Float[Tensor, "1 c *spatial"]) -> Spectrum:
        return Spectrum.of(self.saliency.maps(image)[0], max_shift=self.max_shift)


def _kept(spectra: dict[Any, Spectrum], name: Any, make: Callable[[], Spectrum], *, size: int) -> Spectrum:
    """Return a spectrum of a name, made where it is not kept; what was kept first makes room for it."""
    if name not in spectra:
        if len(spectra) >= size:
            del spectra[next(iter(spectra))]
        spectra[name] = make()
    return spectra[name]
