"""Reads the items of an opened set and checks them, in the main process or in a worker."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast, final

import numpy as np
from jaxtyping import Float32, Int64
from torch import Tensor

from relict_lightning.data.containers import Opener
from relict_lightning.data.isolation import MapStyle
from relict_lightning.data.items import ImageItem, Role, item_name, parse_item, parse_segmentation
from relict_lightning.data.process_state import random_state_kept, reading_state
from relict_lightning.errors import ConfigurationError, InvalidImageError


@final
@dataclass(frozen=True, kw_only=True)
class Contents:
    """A set that can be opened any number of times.

    Attributes:
        role: Which set it is.
        images: Opens its items.
        segmentations: Opens the label maps that were passed beside them; None without.
        groups: The patients that were passed beside them; None without.
    """

    role: Role
    images: Opener
    segmentations: Opener | None = None
    groups: tuple[str, ...] | None = None

    @property
    def is_stream(self) -> bool:
        """Whether the items come one after the other, without positions."""
        return self.images.is_stream

    @property
    def may_be_read_by_workers(self) -> bool:
        """Whether processes can read the set at a time without getting into each other's way."""
        return not any(opener is not None and opener.shares_handles for opener in (self.images, self.segmentations))

    def refuse_other_lengths(self, length: int) -> None:
        """Raise an error if segmentations or groups were passed for another number of images.

        Raises:
            ConfigurationError: If numbers differ.
        """
        passed = {"segmentations": self.segmentations and self.segmentations(), "groups": self.groups}
        for what, values in passed.items():
            found = length if values is None else len(values)
            if found != length:
                raise ConfigurationError(
                    f"The {self.role} set has {length} images, but {found} {what} were passed; expected one per image, "
                    f"in the same order."
                )

    def reading_state(self) -> AbstractContextManager[None]:
        """Return the context in which items are read."""
        openers = [opener for opener in (self.images, self.segmentations) if opener is not None]
        return random_state_kept() if all(opener.is_inert for opener in openers) else reading_state()


@final
@dataclass(frozen=True, kw_only=True)
class Form:
    """What all images of a set have in common.

    Attributes:
        image_shape: `[c, *spatial]`.
        has_segmentations: Whether each comes with a segmentation.
    """

    image_shape: tuple[int, ...]
    has_segmentations: bool


@final
@dataclass(frozen=True, kw_only=True)
class Parcel:
    """Some images of a set, in order, in a form that travels between processes.

    Attributes:
        images: `[b, c, *spatial]`.
        segmentations: Label of every voxel; None if the set has none.
        ids: One per image.
        groups: The patient of each image.
    """

    images: Float32[np.ndarray, "b c *spatial"]
    segmentations: Int64[np.ndarray, "b *spatial"] | None
    ids: tuple[str, ...]
    groups: tuple[str, ...]


@final
class Reader:
    """Reads one copy of a set.

    Args:
        contents: The set, which is opened.
    """

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        with contents.reading_state():
            self._items: Any = contents.images()
            self._segmentations: MapStyle | None = None if contents.segmentations is None else contents.segmentations()

    def announced_length(self) -> int | None:
        """Return the number of items as the set gives it; None where an iterable set gives none."""
        with self._contents.reading_state():
            try:
                return len(self._items)
            # What an iterable data set raises that inherits `__len__` without meaning to have one.
            except (TypeError, NotImplementedError, AttributeError):
                if self._contents.is_stream:
                    return None
                raise

    def first(self) -> ImageItem | None:
        """Return the first item; None if there is none."""
        with self._contents.reading_state():
            if not self._contents.is_stream:
                return self._item(self._items[0], 0) if len(self._items) else None
            return next((self._item(raw, 0) for raw in iter(self._items)), None)

    def read(self, positions: Sequence[int], form: Form) -> Parcel:
        """Return the images at some positions.

        Args:
            positions: Positions in the set, in any order.
            form: What every image must have.

        Raises:
            InvalidImageError: If an image is not valid, or of another form.
        """
        with self._contents.reading_state():
            items = (self._checked(self._items[position], position, form) for position in positions)
            return _packed(items, len(positions), form)

    def stream(self, batch_size: int, form: Form) -> Iterator[Parcel]:
        """Return all images of an iterable set in order, in parcels of `batch_size`; the last one may be smaller."""
        with self._contents.reading_state():
            numbered = enumerate(iter(self._items))
        while True:
            with self._contents.reading_state():
                items = (self._checked(raw, position, form) for position, raw in islice(numbered, batch_size))
                parcel = _packed(items, batch_size, form)
            if parcel.ids:
                yield parcel
            if len(parcel.ids) < batch_size:
                return

    def _checked(self, raw: object, position: int, form: Form) -> ImageItem:
        item = self._item(raw, position)
        name = item_name(position, self._contents.role)
        if tuple(item.image.shape) != form.image_shape:
            raise InvalidImageError(
                f"{name} has shape {list(item.image.shape)}, but item 0 has {list(form.image_shape)}; expected one "
                f"shape. Crop, pad or resample the images to a common shape."
            )
        if (item.segmentation is not None) != form.has_segmentations:
            has, first_has = ("a", "none") if item.segmentation is not None else ("no", "one")
            raise InvalidImageError(
                f"{name} has {has} segmentation, but item 0 has {first_has}; expected one for every image or for none. "
                f"Complete them, or leave them all out."
            )
        return item

    def _item(self, raw: object, position: int) -> ImageItem:
        contents, name = self._contents, item_name(position, self._contents.role)
        item = parse_item(raw, role=contents.role, position=position)
        segmentation = item.segmentation
        if self._segmentations is not None:
            if segmentation is not None:
                raise ConfigurationError(
                    f"{name} has a segmentation of its own, and segmentations were passed as well; expected one of the "
                    f"two. Drop either."
                )
            self._refuse_beyond(len(self._segmentations), position, what="segmentations")
            spatial = tuple(item.image.shape[1:])
            segmentation = parse_segmentation(self._segmentations[position], spatial=spatial, name=name)
        if contents.groups is not None:
            self._refuse_beyond(len(contents.groups), position, what="groups")
        given_group = None if contents.groups is None else contents.groups[position]
        if item.group is not None and given_group not in (None, item.group):
            raise ConfigurationError(
                f"{name} has a group of its own that is not the one that was passed for it; expected one group. "
                f"Drop either."
            )
        id_ = f"{contents.role}-{position}" if item.id is None else item.id
        return ImageItem(
            image=item.image,
            segmentation=segmentation,
            id=id_,
            group=item.group or given_group or id_,
            ignored_label_shape=item.ignored_label_shape,
        )

    def _refuse_beyond(self, count: int, position: int, *, what: str) -> None:
        if position >= count:
            raise ConfigurationError(
                f"The {self._contents.role} set has more than {count} images, but {count} {what} were passed; expected "
                f"one per image, in the same order."
            )


def open_reader(contents: Contents, form: Form) -> Callable[[Sequence[int]], Parcel]:
    """Return what reads the images at some positions of a copy of a set.

    Example:
        >>> images = Opener(np.zeros((3, 1, 8, 8)), name="training set", argument="training=")
        >>> form = Form(image_shape=(1, 8, 8), has_segmentations=False)
        >>> open_reader(Contents(role="training", images=images), form)([2, 0]).ids
        ('training-2', 'training-0')
    """
    reader = Reader(contents)
    return lambda positions: reader.read(positions, form)


def open_stream(contents: Contents, form: Form, batch_size: int) -> Iterator[Parcel]:
    """Return all images of a copy of an iterable set, in order, in parcels.

    Example:
        >>> import torch
        >>> class Two(torch.utils.data.IterableDataset):
        ...     def __iter__(self):
        ...         yield from np.zeros((2, 1, 8, 8))
        >>> images = Opener(Two(), name="training set", argument="training=")
        >>> form = Form(image_shape=(1, 8, 8), has_segmentations=False)
        >>> [parcel.ids for parcel in open_stream(Contents(role="training", images=images), form, 2)]
        [('training-0', 'training-1')]
    """
    return Reader(contents).stream(batch_size, form)


def _packed(items: Iterable[ImageItem], most: int, form: Form) -> Parcel:
    """Return up to `most` items, each copied before the next one is read, as a data set may reuse its memory."""
    images = np.empty((most, *form.image_shape), dtype=np.float32)
    maps = np.empty((most, *form.image_shape[1:]), dtype=np.int64) if form.has_segmentations else None
    ids: list[str] = []
    groups: list[str] = []
    for row, item in enumerate(items):
        images[row] = item.image.numpy()
        if maps is not None:
            maps[row] = cast("Tensor", item.segmentation).numpy()
        ids.append(cast("str", item.id))
        groups.append(cast("str", item.group))
    count = len(ids)
    return Parcel(
        images=images[:count],
        segmentations=None if maps is None else maps[:count],
        ids=tuple(ids),
        groups=tuple(groups),
    )
