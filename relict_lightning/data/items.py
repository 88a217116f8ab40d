"""Turns one item of whatever people train on into an image, a segmentation, an id and a group.

An item is an image `[c, *spatial]` (array, tensor or path), a tuple whose first entry is one, or a MONAI-style
dictionary with `image` and, optionally, `label`, `id` and `group`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from relict_lightning.data.readers import read_image, read_label_map
from relict_lightning.errors import InvalidImageError

Role = Literal["training", "held-out", "generated"]

ARGUMENTS: Mapping[str, str] = {"training": "training=", "held-out": "heldout=", "generated": "generated="}


@dataclass(frozen=True, kw_only=True)
class ImageItem:
    """One image and what is known of it.

    Attributes:
        image: `[c, *spatial]`, float32, contiguous, a plain tensor on the CPU.
        segmentation: Label of every voxel, int64; None if the item has none.
        id: The item's own id; None if it has none.
        group: The item's own group; None if it has none.
        ignored_label_shape: Shape of a label of several channels, which is not one label map and was left out.
    """

    image: Float[Tensor, "c *spatial"]
    segmentation: Int[Tensor, "*spatial"] | None = None
    id: str | None = None
    group: str | None = None
    ignored_label_shape: tuple[int, ...] | None = None


def item_name(position: int, role: Role) -> str:
    """Return what messages call an item.

    Example:
        >>> item_name(3, "held-out")
        'Item 3 of the held-out set'
    """
    return f"Item {position} of the {role} set"


def parse_item(item: object, *, role: Role, position: int) -> ImageItem:
    """Return the image, segmentation, id and group of one item.

    File names that MONAI's tensors carry are dropped: they name patients.

    Args:
        item: A tensor or array `[c, *spatial]`, a path, a tuple or list that starts with one of them, or a dictionary
            with `image` and, optionally, `label`, `id`, `group`. The second entry of a tuple is a segmentation if it
            holds integers in the image's spatial shape, and is ignored otherwise. A `label` of a dictionary that is a
            number or a vector is a class and is ignored.
        role: Which set the item belongs to, for messages; integers are refused in generated sets.
        position: Position of the item in its set, for messages.

    Returns:
        The item.

    Raises:
        InvalidImageError: If the item is none of these, or its image or label map is not valid.
        UnreadableDataError: If a path cannot be read.

    Example:
        >>> item = parse_item({"image": np.zeros((1, 8, 8)), "id": 7}, role="training", position=0)
        >>> item.image.shape, item.id
        (torch.Size([1, 8, 8]), '7')
    """
    name = item_name(position, role)
    if isinstance(item, Mapping):
        return _from_dictionary(item, role=role, name=name)
    if isinstance(item, tuple | list):
        if not item or isinstance(item[0], Mapping):
            found = "an empty tuple" if not item else f"{len(item)} dictionaries, as cropping transforms return them"
            raise InvalidImageError(
                f"{name} is {found}; expected one image. Pass `{ARGUMENTS[role]}` a data set with one image per item."
            )
        image = parse_image(item[0], role=role, name=name)
        second = item[1] if len(item) > 1 else None
        return ImageItem(image=image, segmentation=_integer_map(second, tuple(image.shape[1:])))
    return ImageItem(image=parse_image(item, role=role, name=name))


def parse_image(value: object, *, role: Role, name: str) -> Float[Tensor, "c *spatial"]:
    """Return an image as a finite, contiguous float32 tensor on the CPU, read from disk where `value` is a path.

    Args:
        value: Tensor, array, or path.
        role: Which set the image belongs to; integers are refused in generated sets.
        name: What messages call the item.

    Returns:
        The image. It may share memory with `value`.

    Raises:
        InvalidImageError: If it is not `[c, *spatial]` in 2-D or 3-D, not finite, or has a dtype that is refused.
        UnreadableDataError: If the file cannot be read.

    Example:
        >>> parse_image(np.ones((1, 4, 4), dtype=np.int16), role="training", name="Item 0").dtype
        torch.float32
    """
    if isinstance(value, str | Path):
        image = torch.from_numpy(read_image(value).array)
    else:
        image = _plain_tensor(_accepted_array(value, role=role, name=name), np.float32).to(torch.float32).contiguous()
    if image.ndim not in (3, 4) or 0 in image.shape:
        raise InvalidImageError(
            f"{name} has shape {list(image.shape)}; expected [channels, height, width] or [channels, depth, height, "
            f"width]. Add a missing channel axis with `image[None]`, and take images out of batches."
        )
    finite = torch.isfinite(image)
    if not bool(finite.all()):
        raise InvalidImageError(
            f"{name} has {int(torch.isnan(image).sum())} NaN and {int(torch.isinf(image).sum())} infinite values "
            f"among {image.numel()} (as float32); expected finite values. Replace them, for instance with "
            f"`torch.nan_to_num`, or leave the item out."
        )
    return image


def parse_segmentation(value: object, *, spatial: tuple[int, ...], name: str) -> Int[Tensor, "*spatial"]:
    """Return a label map as int64 in the spatial shape of its image, read from disk where `value` is a path.

    Args:
        value: Tensor, array or path, `[*spatial]` or `[1, *spatial]`, of whole numbers in any dtype.
        spatial: Spatial shape of the image.
        name: What messages call the item.

    Returns:
        The label of every voxel.

    Raises:
        InvalidImageError: If shapes differ, or labels are not whole numbers.
        UnreadableDataError: If the file cannot be read.

    Example:
        >>> parse_segmentation(np.ones((1, 4, 4)), spatial=(4, 4), name="Item 0").shape
        torch.Size([4, 4])
    """
    if isinstance(value, str | Path):
        labels = torch.from_numpy(read_label_map(value))
    elif isinstance(value, Tensor | np.ndarray):
        labels = _plain_tensor(value, np.float64)
    else:
        raise InvalidImageError(
            f"{name} has a segmentation of type {type(value).__qualname__}; expected a tensor, an array or a path."
        )
    if tuple(labels.shape) not in (spatial, (1, *spatial)):
        raise InvalidImageError(
            f"{name} has a segmentation of shape {list(labels.shape)}; expected {list(spatial)}, the spatial shape of "
            f"its image. Resample the segmentation onto the image."
        )
    whole = labels.to(torch.int64)
    if labels.is_complex() or not torch.equal(whole.to(labels.dtype), labels):
        raise InvalidImageError(
            f"{name} has a segmentation of dtype {labels.dtype} with values that are not whole numbers; expected one "
            f"label per voxel. Turn probabilities into labels first, with `argmax` or a threshold."
        )
    return whole.reshape(spatial).contiguous()


def text_of(value: object) -> str:
    """Return an id or a group as text, whatever number type it came in.

    Example:
        >>> text_of(np.int64(3)), text_of(torch.tensor(3)), text_of("3")
        ('3', '3', '3')
    """
    if isinstance(value, Tensor | np.ndarray | np.generic) and math.prod(value.shape) == 1:
        return str(value.item())
    return str(value)


def _from_dictionary(item: Mapping[Any, Any], *, role: Role, name: str) -> ImageItem:
    if "image" not in item:
        raise InvalidImageError(
            f"{name} is a dictionary with the keys {sorted(map(str, item))}; expected the key 'image'. Rename the key, "
            f"or pass `{ARGUMENTS[role]}` a data set of tensors."
        )
    image = parse_image(item["image"], role=role, name=name)
    spatial = tuple(image.shape[1:])
    segmentation, ignored = None, None
    label = item.get("label")
    if isinstance(label, str | Path):
        segmentation = parse_segmentation(label, spatial=spatial, name=name)
    elif isinstance(label, Tensor | np.ndarray) and label.ndim > 1:
        if tuple(label.shape[1:]) == spatial and label.shape[0] != 1:
            ignored = tuple(label.shape)
        else:
            segmentation = parse_segmentation(label, spatial=spatial, name=name)
    return ImageItem(
        image=image,
        segmentation=segmentation,
        id=None if item.get("id") is None else text_of(item["id"]),
        group=None if item.get("group") is None else text_of(item["group"]),
        ignored_label_shape=ignored,
    )


def _integer_map(value: object, spatial: tuple[int, ...]) -> Tensor | None:
    if not isinstance(value, Tensor | np.ndarray):
        return None
    if isinstance(value, np.ndarray) and value.dtype.kind not in "iub":
        return None
    labels = _plain_tensor(value, np.int64)
    if labels.is_floating_point() or labels.is_complex() or tuple(labels.shape) not in (spatial, (1, *spatial)):
        return None
    return labels.to(torch.int64).reshape(spatial).contiguous()


def _accepted_array(value: object, *, role: Role, name: str) -> Tensor | NDArray[Any]:
    if not isinstance(value, Tensor | np.ndarray):
        raise InvalidImageError(
            f"{name} holds an image of type {type(value).__qualname__}; expected a tensor, an array or a path. Convert "
            f"it, for instance with torchvision's `PILToTensor`."
        )
    if isinstance(value, Tensor):
        is_float, is_integer = value.is_floating_point(), not (value.is_floating_point() or value.is_complex())
    else:
        is_float, is_integer = value.dtype.kind == "f", value.dtype.kind in "iub"
    if role == "generated" and is_integer:
        raise InvalidImageError(
            f"{name} has dtype {value.dtype}; expected floating point in the range of the training images, because a "
            f"sampler that rounds to integers has usually changed the range too. Return the images before they are "
            f"turned into integers, or convert them with `.float()` and undo the scaling."
        )
    if not is_float and not is_integer:
        raise InvalidImageError(
            f"{name} has dtype {value.dtype}; expected real numbers. Take the magnitude of complex images."
        )
    return value


def _plain_tensor(value: Tensor | NDArray[Any], numpy_dtype: type[np.number[Any]]) -> Tensor:
    if isinstance(value, Tensor):
        # A MONAI tensor becomes a plain one, without the file name that it carries.
        return value.detach().as_subclass(Tensor).cpu()
    # The cast is checked by the callers, in words; numpy would only warn.
    with np.errstate(over="ignore", invalid="ignore"):
        # A copy, because torch can hold neither read-only memory maps, negative strides nor foreign byte orders.
        return torch.from_numpy(np.array(value, dtype=numpy_dtype, order="C"))
