"""Whether what a sampler returns are the images that were asked for, and its label maps those of the images."""

from typing import Any

import torch
from torch import Tensor

from relict_lightning.errors import SamplerError


def check_samples(images: Any, *, count: int, image_shape: tuple[int, ...]) -> Tensor:
    """Return samples as a plain tensor, after checking type, count, shape, dtype and finiteness.

    Raises:
        SamplerError: Which says what was expected, what came, and what to do.
    """
    expected = (count, *image_shape)
    if not isinstance(images, Tensor):
        raise SamplerError(
            f"The sampler must return a tensor of shape {expected}; got {type(images).__name__}. "
            f"Return the images themselves, for instance `.images` of a pipeline's output."
        )
    # Subclasses such as MONAI's MetaTensor carry file names along.
    plain: Tensor = images.detach().as_subclass(Tensor)
    if plain.ndim == len(expected) and plain.shape[1:] == image_shape and len(plain) != count:
        raise SamplerError(
            f"The sampler was asked for {count} images and returned {len(plain)}. "
            f"Return exactly n images per call; a missing or surplus image would falsify the rate."
        )
    if tuple(plain.shape) != expected:
        raise SamplerError(
            f"The sampler must return images of shape {expected}, as the training images have; got "
            f"{tuple(plain.shape)}. Decode latents, and put channels first."
        )
    if not plain.is_floating_point():
        raise SamplerError(
            f"The sampler must return floating-point images on the training images' intensity scale; got "
            f"{plain.dtype}. Return them before they are converted for display."
        )
    finite = torch.isfinite(plain).flatten(1).all(1)
    if not finite.all():
        bad = (~finite).nonzero().flatten().tolist()
        raise SamplerError(
            f"The sampler returned NaN or infinite values in {len(bad)} of {count} images. "
            f"Look for a diverged model or a half-precision overflow; sample in float32."
        )
    return plain


def check_label_maps(label_maps: Any, *, count: int, image_shape: tuple[int, ...]) -> Tensor:
    """Return label maps as whole numbers `[n, *spatial]` on the CPU, after checking type, shape and labels.

    Args:
        label_maps: Whole-numbered labels `[n, *spatial]` or `[n, 1, *spatial]`, or one-hot `[n, l, *spatial]`,
            background first.
        count: How many.
        image_shape: `[c, *spatial]` of the samples.

    Raises:
        SamplerError: Which says what was expected, what came, and what to do.
    """
    spatial = image_shape[1:]
    got = tuple(label_maps.shape) if isinstance(label_maps, Tensor) else type(label_maps).__name__
    if (
        not isinstance(label_maps, Tensor)
        or len(label_maps) != count
        or tuple(label_maps.shape[-len(spatial) :]) != spatial
    ):
        raise SamplerError(
            f"The samples' label maps must have the shape {(count, *spatial)}, or one axis of channels more; got "
            f"{got}. Give conditions on the samples' grid, or leave `conditions_are_label_maps` out."
        )
    maps: Tensor = label_maps.detach().as_subclass(Tensor).cpu()
    if maps.ndim == len(spatial) + 2:
        maps = maps.squeeze(1) if maps.shape[1] == 1 else _labels_of_one_hot(maps)
    labels: Tensor = maps.long()
    if maps.ndim != len(spatial) + 1 or (labels != maps).any() or (labels < 0).any():
        raise SamplerError(
            f"The samples' label maps must be whole numbers of at least 0, of shape {(count, *spatial)}; got "
            f"{maps.dtype} of shape {tuple(maps.shape)}. Pass the labels, not probabilities or embeddings."
        )
    return labels


def _labels_of_one_hot(maps: Tensor) -> Tensor:
    """Return the labels of one-hot maps `[n, l, *spatial]`."""
    if not ((maps == 0) | (maps == 1)).all() or not (maps.sum(1) == 1).all():
        raise SamplerError(
            f"Label maps of {maps.shape[1]} channels must be one-hot, with a channel for the background first; got "
            f"voxels of several labels or of none. Pass whole-numbered labels [n, *spatial]."
        )
    return maps.argmax(1)
