"""A segmenter that learns from the label maps of the training images, and that samples do not confuse.

Patches of training images and label maps are cut in one pass over the set, half of them around labelled voxels. A
small U-Net is then fitted to them by the sum of Dice loss and cross-entropy, each patch under a random change of look.
Images count in units of their own spread, so that gain and offset do not matter.
"""

import io
import json
import math
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import cast, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval
from tqdm.auto import tqdm

from relict_lightning.data import ImageSource, images_per_batch, open_images, random_state_kept
from relict_lightning.errors import (
    ConfigurationError,
    EmptyDataError,
    InvalidImageError,
    NotFittedError,
    UnreadableDataError,
)
from relict_lightning.interfaces import Segmenter

_FORMAT = "relict_lightning.TrainedSegmenter"
_FORMAT_VERSION = 1
_HEADER = "header"

# A label map of more labels is an instance map or an image by mistake; and labels are kept as bytes while fitting.
_MOST_LABELS = 256

# Per number of axes. Patches hold about 2**15 voxels times the batch, which one step gets through in a sixth of a
# second on two cores; widths are what the time of 50 ms for a volume of 48 x 64 x 64 voxels allows.
_PATCH_SIDE = {2: 64, 3: 32}
_BATCH = {2: 16, 3: 4}
_WIDTHS = {2: (16, 32, 64, 64), 3: (8, 16, 32, 32)}
_LEARNING_RATE = 5e-3
_WARM_UP = 0.1

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
class TrainedSegmenter(Segmenter):
    """A small U-Net fitted to the training images and their label maps, for images that come without any.

    For users who have label maps of their training images, while samples have none and held-out images may have none:
    passed as `ReplicaDetector(segmenter=...)`, it segments all three alike. It is made by `fit` or `load`.

    Every channel of every image is standardised by its own mean and spread, so that any intensity scale will do. While
    fitting, patches take on random looks: blur by a Gaussian of up to 1.5 voxels, noise of 0.2 to 3 % of the range,
    gain of 0.8 to 1.25, offset of up to 8 % of the range, gamma of 0.7 to 1.4, and a smooth bias field of about 20 %.
    Blur goes up to nearly twice that of the decoder of a latent model (`relict_lightning.testing.look`), the others to
    one and a half times the alterations of `relict_lightning.testing.plant_replicas`. There are no
    mirrored or rotated images, so that left and right may be labels of their own. What differs from its surroundings by
    less than a few percent of the range drowns in such noise: pass computed tomography in the window that shows it.

    What it keeps of the patients is its weights, some 10**5 numbers, and the values of the labels.

    Args:
        labels: The values of the labels, rising, 0 first.
        channels: Channels of an image.
        dims: Axes of an image, 2 or 3.

    Raises:
        ConfigurationError: If an argument lies outside its range.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> truth = (torch.rand(8, 16, 16, generator=generator) > 0.9).long() * 5
        >>> images = truth[:, None] + 0.1 * torch.randn(8, 1, 16, 16, generator=generator)
        >>> segmenter = TrainedSegmenter.fit(images, truth, steps=30)
        >>> segmenter
        TrainedSegmenter(labels=(0, 5), channels=1, dims=2)
        >>> bool((segmenter(1000 * images) == truth).float().mean() > 0.9)
        True

    References:
        Ronneberger et al. (2015), doi:10.1007/978-3-319-24574-4_28 (U-Net); Isensee et al. (2021),
        doi:10.1038/s41592-020-01008-z (Dice loss and cross-entropy, patches around labelled voxels).
    """

    labels: Tensor

    def __init__(self, labels: Sequence[int], *, channels: int = 1, dims: int = 3) -> None:
        super().__init__()
        values = [int(label) for label in labels]
        rising = all(low < high for low, high in pairwise(values))
        if not 2 <= len(values) <= _MOST_LABELS or values[0] != 0 or not rising:
            raise ConfigurationError(f"labels must be 2 to {_MOST_LABELS} rising numbers from 0, got {values[:9]}.")
        if channels < 1:
            raise ConfigurationError(f"channels must be at least 1, got channels={channels}.")
        if dims not in _WIDTHS:
            raise ConfigurationError(f"dims must be 2 or 3, got dims={dims}.")
        self.channels = channels
        self.dims = dims
        self.is_fitted = False
        self.register_buffer("labels", torch.tensor(values))
        self.network = _Network(dims, channels, len(values), normalized=False)

    def __repr__(self) -> str:
        """Return the configuration, which is part of the fingerprint of an index."""
        return f"TrainedSegmenter(labels={tuple(self.labels.tolist())}, channels={self.channels}, dims={self.dims})"

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "n c *spatial"]) -> Int[Tensor, "n *spatial"]:
        """Return the label of every voxel; sides may have any length.

        Raises:
            InvalidImageError: If the images have other channels or axes than those that it was fitted to.
            NotFittedError: If it was made by the constructor.
        """
        if not self.is_fitted:
            raise NotFittedError("This TrainedSegmenter is not fitted. Make one with TrainedSegmenter.fit or .load.")
        if images.ndim != self.dims + 2 or images.shape[1] != self.channels:
            raise InvalidImageError(
                f"Images have shape {list(images.shape)}; expected [n, {self.channels}, *spatial] in {self.dims}-D, as "
                f"the images were that the segmenter was fitted to. Pass such images, or fit another segmenter."
            )
        # A volume at a time: a fitting cache is faster than a full batch.
        batch = max(1, _BATCH[self.dims] * _PATCH_SIDE[self.dims] ** self.dims // max(1, math.prod(images.shape[2:])))
        parts = [_best(self.network(_standardized(part.float()))) for part in torch.split(images, batch)]
        return self.labels[torch.cat(parts)]

    @classmethod
    def fit(
        cls,
        images: object,
        label_maps: object = None,
        *,
        steps: int = 500,
        seed: int = 0,
        device: str | torch.device = "cpu",
        progress: bool = False,
    ) -> "TrainedSegmenter":
        """Return a segmenter that is fitted to images and label maps.

        With the default number of steps it takes one to two minutes on two processor cores, however many images there
        are: at most `steps` times 2 (3-D) or 8 (2-D) of them are read, and only patches of them are held, about 200 MB.
        The same arguments give the same weights on the same machine with the same number of threads. The global random
        state, the number of threads and the grad mode stay as they are.

        Args:
            images: Training images, in any form that `relict_lightning.data.open_images` takes.
            label_maps: One label map `[*spatial]` or `[1, *spatial]` per image, 0 for background: an array, or a list
                of arrays or paths. None where the images bring their own.
            steps: Steps of the optimizer, at least 1.
            seed: Seed of the initial weights, of the patches, and of their looks.
            device: Where to fit; the segmenter stays there.
            progress: Whether to show a progress bar.

        Returns:
            The segmenter, in evaluation mode, without gradients.

        Raises:
            ConfigurationError: If `steps < 1`, or there are no label maps, or not one per image.
            EmptyDataError: If there is no image, or no label map has another label than 0.
            InvalidImageError: If an image is not finite, shapes differ, or labels are not whole numbers from 0, or are
                more than 256.
            UnreadableDataError: If a file cannot be read.
        """
        if steps < 1:
            raise ConfigurationError(f"steps must be at least 1, got steps={steps}.")
        source = open_images(images, role="training", segmentations=label_maps)
        if not source.has_segmentations:
            raise ConfigurationError(
                "The training images have no label maps; expected one each. Pass `label_maps`, or items with `label`."
            )
        dims, channels = len(source.image_shape) - 1, source.image_shape[0]
        half = _BATCH[dims] // 2
        with random_state_kept(), torch.inference_mode(mode=False), torch.enable_grad():
            patches = _Patches(source, steps * half, torch.Generator().manual_seed(seed), progress=progress)
            # Not `torch.manual_seed`, which would also seed a GPU that nobody has started yet.
            torch.default_generator.manual_seed(seed)
            segmenter = cls(patches.labels, channels=channels, dims=dims)
            network = _Network(dims, channels, len(patches.labels), normalized=True).to(device)
            optimizer = torch.optim.AdamW(network.parameters(), _LEARNING_RATE)
            for step in tqdm(range(steps), desc="Fitting the segmenter", disable=not progress):
                for group in optimizer.param_groups:
                    group["lr"] = _LEARNING_RATE * _schedule(step, steps)
                looks, classes = patches.batch(step, half)
                loss = _loss(network(looks.to(device)), classes.to(device))
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # torch ships it without types
                optimizer.step()
            segmenter.network = network.folded()
        return segmenter._finished(torch.device(device))

    def save(self, path: str | Path) -> None:
        """Write the segmenter to a file, as arrays without pickle; `load` reads it.

        The file is there whole or not at all, and readable by its owner only.

        Raises:
            NotFittedError: If it was made by the constructor.
        """
        if not self.is_fitted:
            raise NotFittedError("This TrainedSegmenter is not fitted. Make one with TrainedSegmenter.fit or .load.")
        path = Path(path)
        settings = {"labels": self.labels.tolist(), "channels": self.channels, "dims": self.dims}
        header = json.dumps({"format": _FORMAT, "version": _FORMAT_VERSION, **settings})
        arrays = {name: weight.detach().cpu().numpy() for name, weight in self.network.state_dict().items()}
        arrays[_HEADER] = np.frombuffer(header.encode(), dtype=np.uint8)
        content = io.BytesIO()
        # Typed for its options too, which not every release has.
        write: Callable[..., None] = np.savez_compressed
        write(content, **arrays)
        descriptor, temporary = tempfile.mkstemp(prefix=".writing-", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content.getvalue())
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | Path) -> "TrainedSegmenter":
        """Return the segmenter that `save` wrote, on the CPU.

        Raises:
            UnreadableDataError: If the file is missing, damaged, of another kind, or of a later version.
        """
        try:
            with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            header = json.loads(arrays.pop(_HEADER).tobytes())
            version = header["version"] if header["format"] == _FORMAT else None
        except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
            raise UnreadableDataError(
                f"{path} cannot be opened ({error.strerror}); expected a file written by TrainedSegmenter.save."
            ) from error
        # What NumPy and zipfile raise for what is no archive, is cut short, or fails its checksum.
        except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, *_ZIP_ERRORS) as error:
            raise _foreign(path) from error
        if version != _FORMAT_VERSION:
            if version is None:
                raise _foreign(path)
            raise UnreadableDataError(
                f"{path} has format version {version!r}, but this version of relict_lightning reads {_FORMAT_VERSION}. "
                f"Fit the segmenter again, or load the file with the version that wrote it."
            )
        try:
            segmenter = cls(header["labels"], channels=header["channels"], dims=header["dims"])
            segmenter.network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        except (ConfigurationError, KeyError, TypeError, RuntimeError) as error:
            raise _foreign(path) from error
        return segmenter._finished(torch.device("cpu"))

    def _finished(self, device: torch.device) -> "TrainedSegmenter":
        self.is_fitted = True
        return self.eval().requires_grad_(requires_grad=False).to(device)


_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, NotImplementedError)


def _foreign(path: str | Path) -> UnreadableDataError:
    return UnreadableDataError(
        f"{path} is damaged, or not a segmenter; expected a file written by TrainedSegmenter.save. Copy it again, or "
        f"fit the segmenter again."
    )


class _Layer(nn.Module):
    """A convolution of width 3, a normalisation over the batch, a rectifier."""

    def __init__(self, dims: int, inputs: int, outputs: int, *, stride: int = 1, normalized: bool) -> None:
        super().__init__()
        convolution = nn.Conv2d if dims == 2 else nn.Conv3d
        norm = nn.BatchNorm2d if dims == 2 else nn.BatchNorm3d
        self.convolution: nn.Module = convolution(inputs, outputs, 3, stride=stride, padding=1)
        self.norm: nn.Module = norm(outputs) if normalized else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        return functional.leaky_relu(self.norm(self.convolution(features)), 0.01)

    def fold(self) -> None:
        """Put the normalisation into the convolution, so that nothing is left that moves in training mode."""
        convolution, norm = cast("nn.Conv2d", self.convolution.eval()), cast("nn.BatchNorm2d", self.norm.eval())
        self.convolution = fuse_conv_bn_eval(convolution, norm)
        self.norm = nn.Identity()


class _Network(nn.Module):
    """A U-Net whose skip connections add up, so that few channels are needed at full resolution."""

    def __init__(self, dims: int, channels: int, labels: int, *, normalized: bool) -> None:
        super().__init__()
        widths = _WIDTHS[dims]
        pairs = list(pairwise(widths))
        point = nn.Conv2d if dims == 2 else nn.Conv3d
        self.stem = _Layer(dims, channels, widths[0], normalized=normalized)
        self.shrink = nn.ModuleList(
            _Layer(dims, wide, narrow, stride=2, normalized=normalized) for wide, narrow in pairs
        )
        self.refine = nn.ModuleList(_Layer(dims, width, width, normalized=normalized) for width in widths[1:])
        self.lift = nn.ModuleList(point(deep, shallow, 1) for shallow, deep in pairs)
        self.merge = nn.ModuleList(_Layer(dims, width, width, normalized=normalized) for width in widths[:-1])
        self.head = point(widths[0], labels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the score of every label at every voxel."""
        spatial = images.shape[2:]
        step = 2 ** len(self.shrink)
        missing = [-side % step for side in spatial]
        features = images
        if any(missing):
            features = functional.pad(images, [part for gap in reversed(missing) for part in (0, gap)], "replicate")
        features = self.stem(features)
        skipped = []
        for shrink, refine in zip(self.shrink, self.refine, strict=True):
            skipped.append(features)
            features = shrink(features)
            features = features + refine(features)
        for lift, merge, skip in reversed(list(zip(self.lift, self.merge, skipped, strict=True))):
            # Repeated rather than interpolated, which would take as long as a convolution.
            features = merge(functional.interpolate(lift(features), scale_factor=2.0) + skip)
        scores: Tensor = self.head(features)
        return scores[(slice(None), slice(None), *(slice(side) for side in spatial))]

    def folded(self) -> "_Network":
        """Return this network with every normalisation put into its convolution."""
        for layer in self.modules():
            if isinstance(layer, _Layer):
                layer.fold()
        return self


class _Patches:
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
        self._sides = tuple(min(side, _PATCH_SIDE[dims]) for side in source.image_shape[1:])
        self._codes = {0: 0}
        # Anywhere, and around labelled voxels.
        kinds: tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]] = ([], [])
        total = _count(source)
        positions = torch.randperm(total, generator=generator)[:count].sort().values.tolist()
        share = -(-count // len(positions))
        reading = tqdm(_read(source, positions), total=len(positions), desc="Cutting patches", disable=not progress)
        for position, image, label_map in reading:
            coded, present = self._coded(label_map, position)
            standard = _standardized(image[None])[0]
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
        if len(self._codes) > _MOST_LABELS:
            raise InvalidImageError(
                f"The label maps up to {position} have {len(self._codes)} labels; expected at most {_MOST_LABELS}. "
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


def _standardized(images: Tensor) -> Tensor:
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


def _best(scores: Tensor) -> Tensor:
    """Return the class of the highest score; for few classes much faster than `argmax` along channels."""
    best, highest = torch.zeros_like(scores[:, 0], dtype=torch.int64), scores[:, 0]
    for position in range(1, scores.shape[1]):
        best.masked_fill_(scores[:, position] > highest, position)
        highest = torch.maximum(highest, scores[:, position])
    return best


def _schedule(step: int, steps: int) -> float:
    """Return the share of the learning rate: a short rise, then half a cosine down to 0."""
    rise = min(1.0, (step + 1) / max(1.0, _WARM_UP * steps))
    return rise * (1 + math.cos(math.pi * step / steps)) / 2


def _loss(scores: Tensor, classes: Tensor) -> Tensor:
    """Return cross-entropy plus the Dice loss of the batch, over the labels that the batch has, without background."""
    entropy = functional.cross_entropy(scores, classes)
    shares = scores.softmax(1).transpose(0, 1).flatten(1)
    truth = torch.stack([(classes == label).flatten() for label in range(scores.shape[1])]).to(shares)
    sizes = truth.sum(1)
    dice = 2 * (shares * truth).sum(1) / (shares.sum(1) + sizes).clamp_min(1)
    is_there = (sizes > 0).to(shares)
    is_there[0] = 0
    return entropy + 1 - (dice * is_there).sum() / is_there.sum().clamp_min(1)


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
