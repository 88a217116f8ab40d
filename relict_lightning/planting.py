"""Copies planted on purpose: training images, altered as a replica may have been.

They answer whether a detector would have found replicas, had there been any. Every kind of alteration
(`relict_lightning.alterations`) is planted equally often, blurred as a generator blurs; and for transplants, what is
most personal in an image is found without label maps, as what is unusual among the other patients.

| name | what it is |
| --- | --- |
| `plant_copies` | alters training images |
| `PlantedCopies` | the copies, and what they are copies of |
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import ndimage
from torch import Tensor

from relict_lightning.alterations import ALTERATION_NAMES, draw_alteration
from relict_lightning.errors import ConfigurationError, EmptyDataError
from relict_lightning.index import Reference

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

# A generator never hands out the scan that went in. Autoencoders of latent models lose about this much sharpness.
_LOOK_VOXELS = 0.7
# What of an image is transplanted: of a head that fills half of its image, a tenth, which a large lesion or the vessels
# around the circle of Willis take up. With much less, nothing personal is left; with much more, little of the host.
_REGION_SHARE = 0.05
# Shares of the shortest side. Noise is averaged over the first, which leaves a lesion or vessel of a twentieth of the
# side as it is; structures that lie off by up to the second in another patient, the rim of the head above all, are
# usual. On simulated hemorrhages of a three-hundredth of the voxels, the place that is found is that of the hemorrhage
# in 12 of 16 patients; with every voxel compared with the mean at that voxel alone, in 4.
_NOISE_SHARE, _TOLERANCE_SHARE = 1 / 64, 1 / 20
_LEAST_SMOOTHING = 0.7
# Patients that say what is usual: a mean over so many has an error of 18 % of the standard deviation.
_USUAL_PATIENTS = 32
# Where nothing varies, in air for instance, the spread is this share of the usual one, and not zero.
_SPREAD_FLOOR = 0.5


@final
@dataclass(frozen=True, kw_only=True)
class PlantedCopies:
    """Altered training images, of which it is known what they are copies of.

    Attributes:
        images: The copies, on the training set's unit scale, `[n, c, *spatial]`.
        label_maps: Their label maps, altered alike, `[n, *spatial]`.
        source: Position of the training image that each is a copy of, `[n]`.
        alteration: How each was altered, `[n]`.
    """

    images: Float[Tensor, "n c *spatial"]
    label_maps: Int[Tensor, "n *spatial"]
    source: Array
    alteration: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of copies."""
        return len(self.alteration)


def plant_copies(
    training: Reference, heldout: Reference, *, copies_per_alteration: int, seed: int = 0
) -> PlantedCopies:
    """Return copies of training images, equally many through each of `ALTERATION_NAMES`, in that order.

    All processes that share the references call this alike, and get the same. The copies of one alteration are of
    different patients; patients recur under another alteration only where there are too few. Every copy is blurred by
    0.7 voxels, as a generator would.

    A transplant keeps the training image's most unusual part, and takes the rest from a held-out image. That part are
    the twentieth of all voxels nearest to the place where the image lies most beyond what the mean of up to 32 other
    training patients holds nearby, in units of how much those vary nearby. No label maps are needed to find it.

    Args:
        training: The training images, of at least two patients.
        heldout: Images of other patients, on the training set's scale, which transplants are put into.
        copies_per_alteration: How many copies to plant per alteration, at least 1. At most one per training patient is.
        seed: Settles patients, hosts, and the strengths of the alterations.

    Raises:
        ConfigurationError: If `copies_per_alteration` is below 1.
        EmptyDataError: If there are fewer than two training patients, or no held-out image.
        InvalidImageError: If a side of the images is below 4 voxels.
    """
    if copies_per_alteration < 1:
        raise ConfigurationError(f"copies_per_alteration must be at least 1, got {copies_per_alteration}.")
    stream = torch.Generator().manual_seed(seed)
    patients, hosts = _one_image_per_patient(training, stream), _one_image_per_patient(heldout, stream)
    if len(patients) < 2 or not len(hosts):
        raise EmptyDataError(
            f"Planting copies needs at least 2 training patients and a held-out image; got {len(patients)} patient(s) "
            f"and {len(heldout)} held-out image(s)."
        )
    copies = min(copies_per_alteration, len(patients))
    names = tuple(name for name in ALTERATION_NAMES for _ in range(copies))
    # Cyclic, so that any `copies` neighbours are different patients.
    source = np.resize(patients, len(names))
    usual = _Usual(training, patients[:_USUAL_PATIENTS].tolist())
    images, label_maps = [], []
    for number, (name, position) in enumerate(zip(names, source.tolist(), strict=True)):
        image, labels = _fetched(training, position)
        drawn = draw_alteration(name, tuple(labels.shape), stream=stream)
        if name == "transplant":
            host, host_labels = _fetched(heldout, int(hosts[number % len(hosts)]))
            region = usual.most_unusual_part(image, is_one_of_them=position in usual.positions)
            altered = drawn.image(image, host=host, region=region)
            label_maps.append(drawn.labels(labels, host=host_labels, region=region))
        else:
            altered = drawn.image(image)
            label_maps.append(drawn.labels(labels))
        images.append(_smoothed(altered, _LOOK_VOXELS))
    return PlantedCopies(
        images=torch.stack(images), label_maps=torch.stack(label_maps), source=source, alteration=names
    )


class _Usual:
    """What is usual in training images, and where one of them deviates from it.

    Sums only are kept, because whole images of some patients may not fit the memory.
    """

    def __init__(self, training: Reference, positions: Sequence[int]) -> None:
        spatial = training.image_shape[1:]
        self.positions = positions
        self._voxels = max(1, round(_REGION_SHARE * int(np.prod(spatial))))
        self._sigma = max(_LEAST_SMOOTHING, _NOISE_SHARE * min(spatial))
        self._window = (1, *[2 * round(_TOLERANCE_SHARE * min(spatial)) + 1] * len(spatial))
        self._sum = torch.zeros(training.image_shape, dtype=torch.float64)
        self._sum_of_squares = torch.zeros_like(self._sum)
        for position in positions:
            structure = self._structure(_fetched(training, position)[0])
            self._sum += structure
            self._sum_of_squares += structure.square()

    def most_unusual_part(self, image: Float[Tensor, "c *spatial"], *, is_one_of_them: bool) -> Tensor:
        """Return the part of a training image that deviates most from the others, `[*spatial]`, boolean."""
        structure = self._structure(image)
        # An image that is part of what is usual would hide how far off it lies.
        own = structure if is_one_of_them else torch.zeros_like(structure)
        others = len(self.positions) - is_one_of_them
        mean = (self._sum - own) / others
        spread = ((self._sum_of_squares - own.square()) / others - mean.square()).clamp_min(0).sqrt()
        low, high = self._nearby(ndimage.minimum_filter, mean), self._nearby(ndimage.maximum_filter, mean)
        spread = self._nearby(ndimage.maximum_filter, spread)
        beyond = (structure - high).clamp_min(0) + (low - structure).clamp_min(0)
        floor = (_SPREAD_FLOOR * spread.mean()).clamp_min(1e-6)
        unusual = (beyond / torch.maximum(spread, floor)).square().sum(dim=0)
        peak = np.unravel_index(int(unusual.argmax()), tuple(unusual.shape))
        offsets = np.ogrid[tuple(slice(-int(at), side - int(at)) for at, side in zip(peak, unusual.shape, strict=True))]
        distance = np.add.reduce(np.broadcast_arrays(*[np.square(offset) for offset in offsets]))
        region = np.zeros(distance.size, dtype=bool)
        region[np.argsort(distance, axis=None, kind="stable")[: self._voxels]] = True
        return torch.from_numpy(region.reshape(distance.shape))

    def _nearby(self, extreme: Callable[..., Array], values: Tensor) -> Tensor:
        return torch.from_numpy(extreme(values.numpy(), size=self._window, mode="nearest"))

    def _structure(self, image: Tensor) -> Tensor:
        """Return the image without noise, and without the gain and offset in which scans differ."""
        smooth = _smoothed(image.double(), self._sigma)
        return (smooth - smooth.mean()) / smooth.std().clamp_min(1e-6)


def _one_image_per_patient(reference: Reference, stream: torch.Generator) -> Array:
    """Return the position of one image of every patient, both in random order."""
    order = torch.randperm(len(reference), generator=stream).numpy()
    _, first = np.unique(reference.group_codes[order], return_index=True)
    positions: Array = order[np.sort(first)]
    return positions


def _fetched(reference: Reference, position: int) -> tuple[Tensor, Tensor]:
    """Return one image and its label map."""
    positions = np.array([position])
    image, labels = reference.fetch_volumes(positions)[0], reference.fetch_label_maps(positions)[0]
    return torch.from_numpy(image), torch.from_numpy(labels)


def _smoothed(image: Tensor, sigma: float) -> Tensor:
    """Return `[c, *spatial]` blurred in space, the border continued."""
    widths = (0.0, *[sigma] * (image.ndim - 1))
    return torch.from_numpy(ndimage.gaussian_filter(image.numpy(), widths, mode="nearest"))
