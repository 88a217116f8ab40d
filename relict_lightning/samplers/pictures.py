"""Pictures as image pipelines return them, turned into `[n, c, *spatial]`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from relict_lightning.errors import SamplerError


def pictures_to_images(pictures: Any, *, image_shape: tuple[int, ...] | None = None) -> Tensor:
    """Return pictures as floating-point images.

    Args:
        pictures: A tensor `[n, c, *spatial]`; an array with channels last, `[n, *spatial, c]`, as diffusers returns
            it; or a list of PIL pictures, or of lists of these, the slices of a volume. Bytes become [0, 1].
        image_shape: `[c, *spatial]` of the training images: an array that has it already is left as it lies.

    Raises:
        SamplerError: If they are none of these.
    """
    if isinstance(pictures, Tensor):
        return _unit(pictures.detach())
    if isinstance(pictures, np.ndarray):
        images = torch.from_numpy(np.ascontiguousarray(pictures))
        is_first = image_shape is not None and tuple(images.shape[1:]) == image_shape
        return _unit(images if is_first else images.movedim(-1, 1))
    if isinstance(pictures, (list, tuple)) and len(pictures):
        return _unit(_stacked(pictures).movedim(-1, 1))
    raise SamplerError(
        f"A pipeline's `.images` must be a tensor [n, c, *spatial], an array [n, *spatial, c], or a list of PIL "
        f"pictures; got {'an empty list' if isinstance(pictures, (list, tuple)) else type(pictures).__name__}."
    )


def _stacked(pictures: Sequence[Any]) -> Tensor:
    """Return pictures, or lists of pictures, as one tensor with the channels last."""
    parts = [_stacked(part) if isinstance(part, (list, tuple)) else _pixels(part) for part in pictures]
    if len({part.shape for part in parts}) > 1:
        raise SamplerError(
            f"The pictures of a pipeline must have one size; got {[tuple(part.shape) for part in parts]}."
        )
    return torch.stack(parts)


def _pixels(picture: Any) -> Tensor:
    if not isinstance(picture, Image.Image):
        raise SamplerError(
            f"A pipeline's list of images must hold PIL pictures; got {type(picture).__name__}. Have it return a "
            f"tensor or an array, as by `output_type`."
        )
    # Palettes hold numbers of colours.
    plain = picture.convert("RGB") if picture.mode == "P" else picture
    pixels = torch.from_numpy(np.array(plain))
    return pixels if pixels.ndim == 3 else pixels.unsqueeze(-1)


def _unit(images: Tensor) -> Tensor:
    """Return whole numbers of 8 or 16 bits on [0, 1], floating-point numbers as they are."""
    if images.is_floating_point():
        return images
    if images.dtype == torch.bool:
        return images.float()
    largest = {torch.uint8: 255, torch.uint16: 65535}.get(images.dtype)
    if largest is None:
        raise SamplerError(
            f"A pipeline's images must be floating point, or whole numbers of 8 or 16 bits without sign; got "
            f"{images.dtype}, whose scale is not known."
        )
    return images.float() / largest
