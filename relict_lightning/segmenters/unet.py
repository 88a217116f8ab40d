"""A small U-Net that scores every label at every voxel, and the loss that it is fitted by.

Normalisation over the batch is there for fitting only: `UNet.folded` puts it into the convolutions, so that the fitted
network labels an image alike in whatever batch it is.

| name | what it is |
| --- | --- |
| `UNet` | the network, images to scores `[n, l, *spatial]` |
| `best_classes` | scores to the class of each voxel |
| `dice_and_entropy` | the loss |
"""

from itertools import pairwise
from typing import cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

# Channels per resolution, by number of axes: what the time of 50 ms for a volume of 48 x 64 x 64 voxels allows.
_WIDTHS = {2: (16, 32, 64, 64), 3: (8, 16, 32, 32)}


@final
class UNet(nn.Module):
    """A U-Net whose skip connections add up, so that few channels are needed at full resolution.

    Args:
        dims: Axes of an image, 2 or 3.
        channels: Channels of an image.
        labels: Number of classes, background included.
        normalized: Whether to normalise over the batch, for fitting; without, it is as `folded` leaves it.
    """

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

    def folded(self) -> "UNet":
        """Return this network with every normalisation put into its convolution."""
        for layer in self.modules():
            if isinstance(layer, _Layer):
                layer.fold()
        return self


def best_classes(scores: Tensor) -> Tensor:
    """Return the class of the highest score; for few classes much faster than `argmax` along channels."""
    best, highest = torch.zeros_like(scores[:, 0], dtype=torch.int64), scores[:, 0]
    for position in range(1, scores.shape[1]):
        best.masked_fill_(scores[:, position] > highest, position)
        highest = torch.maximum(highest, scores[:, position])
    return best


def dice_and_entropy(scores: Tensor, classes: Tensor) -> Tensor:
    """Return cross-entropy plus the Dice loss of the batch, over the labels that the batch has, without background."""
    entropy = functional.cross_entropy(scores, classes)
    shares = scores.softmax(1).transpose(0, 1).flatten(1)
    truth = torch.stack([(classes == label).flatten() for label in range(scores.shape[1])]).to(shares)
    sizes = truth.sum(1)
    dice = 2 * (shares * truth).sum(1) / (shares.sum(1) + sizes).clamp_min(1)
    is_there = (sizes > 0).to(shares)
    is_there[0] = 0
    return entropy + 1 - (dice * is_there).sum() / is_there.sum().clamp_min(1)


@final
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
