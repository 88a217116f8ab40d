"""What can be passed as a set of images, and how it is opened without touching it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset, SubsetRandomSampler

from relict_lightning.data.isolation import MapStyle, Snapshot
from relict_lightning.data.items import ARGUMENTS, Role
from relict_lightning.errors import ConfigurationError, InvalidImageError


def container_of(source: object, *, role: Role, what: str = "images") -> MapStyle:
    """Return what holds the items: the source itself, or the data set of a data loader.

    Args:
        source: What a user passed.
        role: Which set it is, for messages.
        what: What its items are, `images` or `segmentations`.

    Returns:
        An array, a tensor, a list or a map-style data set.

    Raises:
        ConfigurationError: If it cannot be read by position.
        InvalidImageError: If it is an array of images with too few or too many axes.

    Example:
        >>> images = np.zeros((3, 1, 8, 8))
        >>> container_of(images, role="training") is images
        True
    """
    remedy = f"Pass `{ARGUMENTS[role]}` a map-style data set, an array `[m, c, *spatial]`, or a list of dictionaries."
    if isinstance(source, DataLoader):
        batch_sampler: Any = source.batch_sampler
        sampler = getattr(batch_sampler, "sampler", source.sampler)
        dataset: Any = source.dataset
        if isinstance(sampler, SubsetRandomSampler):
            # Two loaders that split one data set this way are training and held-out patients.
            dataset = Subset(dataset, sorted(sampler.indices))
        return container_of(dataset, role=role, what=what)
    if isinstance(source, str | Path):
        raise ConfigurationError(
            f"The {what} of the {role} set are given as the path {str(source)!r}; expected the images. Wrap a folder "
            f"as `relict_lightning.data.ImageFolder({str(source)!r})`."
        )
    if isinstance(source, IterableDataset) or not isinstance(source, MapStyle):
        raise ConfigurationError(
            f"The {what} of the {role} set are given as {type(source).__qualname__}, which cannot be read by position; "
            f"expected `__len__` and `__getitem__`. {remedy}"
        )
    if isinstance(source, dict):
        raise ConfigurationError(
            f"The {what} of the {role} set are given as one dictionary with the keys {sorted(map(str, source))}; "
            f"expected one dictionary per image. {remedy}"
        )
    if isinstance(source, Tensor | np.ndarray) and what == "images" and source.ndim not in (4, 5):
        raise InvalidImageError(
            f"The {role} set has shape {list(source.shape)}; expected [images, channels, height, width] or [images, "
            f"channels, depth, height, width]. Add a missing channel axis with `images[:, None]`."
        )
    return source


def opener_of(items: MapStyle, *, name: str, argument: str) -> Callable[[], MapStyle]:
    """Return a function that gives, at each call, items whose reading changes nothing outside of them.

    Args:
        items: What `container_of` returned.
        name: What messages call them, such as `training set`.
        argument: The argument that a user can change, such as `training=`.

    Returns:
        The function. Arrays and lists come as they are, data sets as independent copies of what they are now.

    Raises:
        ConfigurationError: If the data set cannot be copied.

    Example:
        >>> open_items = opener_of([1, 2], name="training set", argument="training=")
        >>> open_items()
        [1, 2]
    """
    if is_inert(items):
        return lambda: items
    return Snapshot(items, name=name, argument=argument).copy


def is_inert(items: object) -> bool:
    """Return whether reading the items runs no code of the user's, so that nothing can change or differ.

    Example:
        >>> is_inert([1, 2]), is_inert(range(2))
        (True, False)
    """
    return isinstance(items, Tensor | np.ndarray) or type(items) in (list, tuple)
