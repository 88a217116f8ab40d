"""A segmenter that learns from the label maps of the training images, and that samples do not confuse.

A small U-Net (`relict_lightning.segmenters.unet`) is fitted to patches of the images in random looks
(`relict_lightning.segmenters.patches`), and kept as a file without pickle.
"""

import io
import json
import math
import zipfile
import zlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from relict_lightning.data import open_images, random_state_kept
from relict_lightning.errors import ConfigurationError, InvalidImageError, NotFittedError, UnreadableDataError
from relict_lightning.interfaces import Segmenter
from relict_lightning.segmenters.patches import BATCH, MOST_LABELS, PATCH_SIDE, Patches, standardized
from relict_lightning.segmenters.unet import UNet, best_classes, dice_and_entropy
from relict_lightning.whole_files import write_whole

_FORMAT = "relict_lightning.TrainedSegmenter"
_FORMAT_VERSION = 1
_HEADER = "header"

_LEARNING_RATE = 5e-3
# Share of the steps in which the learning rate rises.
_WARM_UP = 0.1

# What damage to an archive raises beyond `OSError` and `ValueError`.
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, NotImplementedError)


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
        if not 2 <= len(values) <= MOST_LABELS or values[0] != 0 or not rising:
            raise ConfigurationError(f"labels must be 2 to {MOST_LABELS} rising numbers from 0, got {values[:9]}.")
        if channels < 1:
            raise ConfigurationError(f"channels must be at least 1, got channels={channels}.")
        if dims not in PATCH_SIDE:
            raise ConfigurationError(f"dims must be 2 or 3, got dims={dims}.")
        self.channels = channels
        self.dims = dims
        self.is_fitted = False
        self.register_buffer("labels", torch.tensor(values))
        self.network = UNet(dims, channels, len(values), normalized=False)

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
        batch = max(1, BATCH[self.dims] * PATCH_SIDE[self.dims] ** self.dims // max(1, math.prod(images.shape[2:])))
        parts = [best_classes(self.network(standardized(part.float()))) for part in torch.split(images, batch)]
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
        half = BATCH[dims] // 2
        with random_state_kept(), torch.inference_mode(mode=False), torch.enable_grad():
            patches = Patches(source, steps * half, torch.Generator().manual_seed(seed), progress=progress)
            # Not `torch.manual_seed`, which would also seed a GPU that nobody has started yet.
            torch.default_generator.manual_seed(seed)
            segmenter = cls(patches.labels, channels=channels, dims=dims)
            network = UNet(dims, channels, len(patches.labels), normalized=True).to(device)
            optimizer = torch.optim.AdamW(network.parameters(), _LEARNING_RATE)
            for step in tqdm(range(steps), desc="Fitting the segmenter", disable=not progress):
                for group in optimizer.param_groups:
                    group["lr"] = _LEARNING_RATE * _schedule(step, steps)
                looks, classes = patches.batch(step, half)
                loss = dice_and_entropy(network(looks.to(device)), classes.to(device))
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
        write_whole(path.parent, lambda file: file.write(content.getvalue()), name=lambda: path.name)

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


def _schedule(step: int, steps: int) -> float:
    """Return the share of the learning rate: a short rise, then half a cosine down to 0."""
    rise = min(1.0, (step + 1) / max(1.0, _WARM_UP * steps))
    return rise * (1 + math.cos(math.pi * step / steps)) / 2


def _foreign(path: str | Path) -> UnreadableDataError:
    return UnreadableDataError(
        f"{path} is damaged, or not a segmenter; expected a file written by TrainedSegmenter.save. Copy it again, or "
        f"fit the segmenter again."
    )
