"""Patches of training images and label maps, in random looks: what a segmenter is fitted to.

They are cut in one pass over the set, half of them around labelled voxels. Images count in units of their own spread,
so that gain and offset do not matter; and each patch is shown as a generator might have drawn it.

| name | what it is |
| --- | --- |
| `Patches` | the patches of a set, batch by batch |
| `standardized` | images in units of their own spread |
"""

import math
from collections.abc import Iterator
from typing import cast, final

import torch
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm

from relict_lightning.data import ImageSource, images_per_batch
from relict_lightning.errors import EmptyDataError, InvalidImageError

# A label map of more labels is an instance map or an image by mistake; and labels are kept as bytes while fitting.
MOST_LABELS = 256

# Per number of axes. Patches hold about 2**15 voxels times the batch, which one step gets through in a sixth of a
# second on two cores.
PATCH_SIDE = {2: 64, 3: 32}
BATCH = {2: 16, 3: 4}

# Spread and centre are taken between these quantiles, out of reach of hot voxels.
_TAIL = 0.005
# Standardised intensities beyond this number of spreads are cut off; what is as bright as that is bright.
_CUT_OFF = 12.0

# About one and a half times what `relict_lightning.testing.plant_replicas` changes a copy by, because a generator's
# look is not known when the segmenter is fitted. Shares of a patch's range of intensities, but for blur.
_NOISE = (0.002, 0.03)
_LARGEST_LOG_GAIN = 0.22
_LARGEST_OFFSET = 0.08
_LARGEST_LOG_GAMMA = 0.34
_LARGEST_LOG_BIAS = 0.2
# In voxels. Autoencoders of latent models blur by about 0.8 (`relict_lightning.testing.look`), and thin structures are
# lost to blur first: it goes up to nearly twice that, and two patches in three have some.
_LARGEST_BLUR = 1.5
_BLUR_REACH = 4


@final
class Patches:
    """Patches of a set, cut in one pass: as many around labelled voxels as anywhere.

    Args:
        source: The images and label maps.
        count: How many patches of each kind to have, about; each image gives at least one of each that it has.
        generator: Source of the choice of images and patches.
        progress: Whether to show a progress bar.
    """

    def __init__(self, source: ImageSource, count: int, generator: torch.Generator, *, progress: bool) -> None:
        self._generator = generator
        dims = len(source.image_shape) - 1
        self._sides = tuple(min(side, PATCH_SIDE[dims]) for side in source.image_shape[1:])
        self._codes = {0: 0}
        # Anywhere, and around labelled voxels.
        kinds: tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]] = ([], [])
        total = _count(source)
        positions = torch.randperm(total, generator=generator)[:count].sort().values.tolist()
        share = -(-count // len(positions))
        reading = tqdm(_read(source, positions), total=len(positions), desc="Cutting patches", disable=not progress)
        for position, image, label_map in reading:
            coded, present = self._coded(label_map, position)
            standard = standardized(image[None])[0]
            for _ in range(share):
                kinds[0].append(self._cut(standard, coded, self._anywhere(coded)))
                if present:
                    kinds[1].append(self._cut(standard, coded, self._around(coded, present)))
        if len(self._codes) == 1:
            raise EmptyDataError(
                f"No label map of {len(positions)} training images has another label than 0; expected labelled voxels "
                f"in some of them. Check that `label_maps` holds label maps, with 0 for background only."
            )
        self.labels = sorted(self._codes)
        # Codes are given in order of appearance, classes are in the order of their labels.
        class_of = torch.tensor([self.labels.index(label) for label in self._codes], dtype=torch.uint8)
        self._kinds = [
            (torch.stack([image for image, _ in kind]), torch.stack([class_of[coded.long()] for _, coded in kind]))
            for kind in kinds
        ]
        self._orders = [_order(len(images), count, generator) for images, _ in self._kinds]

    def batch(self, step: int, half: int) -> tuple[Tensor, Tensor]:
        """Return patches in random looks and their classes, `half` anywhere and `half` around labelled voxels."""
        chosen = [order[step * half : (step + 1) * half] for order in self._orders]
        images = torch.cat([kind[0][rows] for kind, rows in zip(self._kinds, chosen, strict=True)])
        classes = torch.cat([kind[1][rows] for kind, rows in zip(self._kinds, chosen, strict=True)])
        return _with_random_look(images.float(), self._generator), classes.long()

    def _coded(self, label_map: Tensor, position: int) -> tuple[Tensor, list[int]]:
        """Return a label map with labels counted through in order of appearance, and the codes of those but 0."""
        values, where = torch.unique(label_map, return_inverse=True)
        if values[0] < 0:
            raise InvalidImageError(
                f"Label map {position} has the label {int(values[0])}; expected labels from 0, which is background. "
                f"Give what is to be ignored the label 0, or leave the image out."
            )
        codes = [self._codes.setdefault(value, len(self._codes)) for value in values.tolist()]
        if len(self._codes) > MOST_LABELS:
            raise InvalidImageError(
                f"The label maps up to {position} have {len(self._codes)} labels; expected at most {MOST_LABELS}. "
                f"Check that `label_maps` holds label maps and no images, or merge labels."
            )
        return torch.tensor(codes, dtype=torch.uint8)[where], [code for code in codes if code]

    def _cut(self, image: Tensor, coded: Tensor, start: list[int]) -> tuple[Tensor, Tensor]:
        window = tuple(slice(low, low + side) for low, side in zip(start, self._sides, strict=True))
        return image[(slice(None), *window)].half(), coded[window].clone()

    def _anywhere(self, coded: Tensor) -> list[int]:
        spare = (whole - side for whole, side in zip(coded.shape, self._sides, strict=True))
        return [self._draw(most + 1) for most in spare]

    def _around(self, coded: Tensor, present: list[int]) -> list[int]:
        """Return the start of a patch whose inner half, where the border allows, has a voxel of a label at random."""
        voxels = (coded == present[self._draw(len(present))]).nonzero()
        voxel = voxels[self._draw(len(voxels))].tolist()
        return [
            min(max(place - side // 4 - self._draw(side // 2 + 1), 0), whole - side)
            for place, side, whole in zip(voxel, self._sides, coded.shape, strict=True)
        ]

    def _draw(self, end: int) -> int:
        return int(torch.randint(end, (), generator=self._generator))


def _count(source: ImageSource) -> int:
    if source.is_stream:
        return sum(len(batch.ids) for batch in source.batches(images_per_batch(source.image_shape)))
    return len(source)


def _read(source: ImageSource, positions: list[int]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Return position, image and label map of the images at rising positions."""
    at_once = images_per_batch(source.image_shape)
    if source.is_stream:
        chosen, position = set(positions), 0
        for batch in source.batches(at_once):
            for image, label_map in zip(batch.images, cast("Tensor", batch.segmentations), strict=True):
                if position in chosen:
                    yield position, image, label_map
                position += 1
        return
    for first in range(0, len(positions), at_once):
        some = positions[first : first + at_once]
        batch = source.read(some)
        yield from zip(some, batch.images, cast("Tensor", batch.segmentations), strict=True)


def _order(available: int, needed: int, generator: torch.Generator) -> Tensor:
    """Return positions in random order, none of which comes again before all came."""
    rounds = -(-needed // available)
    return torch.cat([torch.randperm(available, generator=generator) for _ in range(rounds)])[:needed]


def standardized(images: Tensor) -> Tensor:
    """Return each channel of each image with mean 0 and deviation 1 of the voxels between its outer quantiles."""
    values = images.flatten(2)
    count = values.shape[2]
    outside = int(_TAIL * count)
    low = values.kthvalue(1 + outside, dim=2, keepdim=True).values
    high = values.kthvalue(count - outside, dim=2, keepdim=True).values
    # All but a few voxels are equal: the few are what there is to see.
    inner = torch.where(high > low, values.clamp(low, high), values)
    centre = inner.mean(2, keepdim=True)
    spread = (inner - centre).square().mean(2, keepdim=True).sqrt()
    standard = (values - centre) / torch.where(spread > 0, spread, torch.ones_like(spread))
    return standard.clamp(-_CUT_OFF, _CUT_OFF).reshape(images.shape)


def _with_random_look(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return standardised patches as a generator might have drawn them, each with a look of its own."""
    dims = images.ndim - 2
    axes = tuple(range(1, images.ndim))

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand((len(images), *[1] * (dims + 1)), generator=generator)

    low = images.amin(axes, keepdim=True)
    extent = images.amax(axes, keepdim=True) - low

    def noise() -> Tensor:
        strength = draw(math.log(_NOISE[0]), math.log(_NOISE[1])).exp() * (draw(0.0, 1.0) < 1 / 2)
        return strength * extent * torch.randn(images.shape, generator=generator)

    unit = (images - low) / extent.clamp_min(1e-6)
    knots = torch.randn((len(images), 1, *[3] * dims), generator=generator)
    mode = "bilinear" if dims == 2 else "trilinear"
    bias = functional.interpolate(knots, size=images.shape[2:], mode=mode, align_corners=True)
    gain = (draw(-_LARGEST_LOG_GAIN, _LARGEST_LOG_GAIN) + draw(0.0, _LARGEST_LOG_BIAS) * bias).exp()
    gamma = draw(-_LARGEST_LOG_GAMMA, _LARGEST_LOG_GAMMA).exp()
    changed = low + extent * (gain * unit**gamma + draw(-_LARGEST_OFFSET, _LARGEST_OFFSET))
    # Noise before the blur is the mottle of decoders, noise after it the grain of samplers.
    return _blurred(changed + noise(), draw(-_LARGEST_BLUR / 2, _LARGEST_BLUR).clamp_min(0)) + noise()


def _blurred(images: Tensor, widths: Tensor) -> Tensor:
    """Return images after a Gaussian of a width of its own each, in voxels; 0 leaves an image as it is."""
    taps = torch.arange(-_BLUR_REACH, _BLUR_REACH + 1)
    weights = [torch.exp(-0.5 * (tap / widths.clamp_min(1e-3)) ** 2) for tap in taps]
    total = torch.stack(weights).sum(0)
    for axis in range(2, images.ndim):
        side = images.shape[axis]
        neighbours = [images.index_select(axis, (torch.arange(side) + tap).clamp(0, side - 1)) for tap in taps]
        parts = [weight / total * part for weight, part in zip(weights, neighbours, strict=True)]
        images = torch.stack(parts).sum(0)
    return images
