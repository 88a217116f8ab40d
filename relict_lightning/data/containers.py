"""What can be passed as a set of images, and how it is opened without touching it."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, final

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset, SubsetRandomSampler

from relict_lightning.data.datamodule import is_datamodule, loader_of
from relict_lightning.data.isolation import MapStyle, Snapshot
from relict_lightning.data.items import ARGUMENTS, Role
from relict_lightning.errors import ConfigurationError, InvalidImageError


def container_of(source: object, *, role: Role, what: str = "images") -> MapStyle | Iterable[Any]:
    """Return what holds the items: the source itself, or the data set of a data loader or a data module.

    Args:
        source: What a user passed.
        role: Which set it is, for messages, and to choose among the sets of a data module.
        what: What its items are, `images` or `segmentations`. Segmentations are read by position.

    Returns:
        An array, a tensor, a list, a map-style or an iterable data set.

    Raises:
        ConfigurationError: If it can be read neither by position nor again and again.
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
    if what == "images" and is_datamodule(source):
        return container_of(loader_of(source, role=role), role=role)
    if what == "images" and isinstance(source, IterableDataset):
        return source
    if isinstance(source, str | Path):
        raise ConfigurationError(
            f"The {what} of the {role} set are given as the path {str(source)!r}; expected the images. Wrap a folder "
            f"as `relict_lightning.data.ImageFolder({str(source)!r})`."
        )
    if isinstance(source, Iterator):
        raise ConfigurationError(
            f"The {what} of the {role} set are given as {type(source).__qualname__}, which can be read only once; "
            f"expected to read them again and again. {remedy} A stream becomes an "
            f"`torch.utils.data.IterableDataset` whose `__iter__` starts anew."
        )
    if isinstance(source, IterableDataset | type) or not isinstance(source, MapStyle):
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


@final
class Opener:
    """Gives, at each call, items whose reading changes nothing outside of them.

    Arrays and lists come as they are, data sets as independent copies of what they are now.

    Args:
        items: What `container_of` returned.
        name: What messages call them, such as `training set`.
        argument: The argument that a user can change, such as `training=`.

    Raises:
        ConfigurationError: If the data set cannot be copied.

    Example:
        >>> open_items = Opener([1, 2], name="training set", argument="training=")
        >>> open_items()
        [1, 2]
    """

    def __init__(self, items: Any, *, name: str, argument: str) -> None:
        self.is_inert = _is_inert(items)
        """Whether reading the items runs no code of the user's, so that nothing can change or differ."""
        self.is_stream = isinstance(items, IterableDataset)
        """Whether the items come one after the other, without positions."""
        self._held = items if self.is_inert else Snapshot(items, name=name, argument=argument)

    def __call__(self) -> Any:
        """Return the items."""
        return self._held.copy() if isinstance(self._held, Snapshot) else self._held

    @property
    def shares_handles(self) -> bool:
        """Whether what it gives shares an open file, so that only one process may read it at a time."""
        return isinstance(self._held, Snapshot) and self._held.shares_handles


def _is_inert(items: object) -> bool:
    return isinstance(items, Tensor | np.ndarray) or type(items) in (list, tuple)
