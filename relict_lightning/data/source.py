"""Opens whatever people train on as a repeatable stream of image batches.

Accepted are arrays and tensors `[m, c, *spatial]`, map-style data sets, data loaders (for their data set), and lists of
images, paths or MONAI-style dictionaries. Items are read one by one in the main process, when they are asked for. The
data set itself is never read, only copies of it, so that training does not notice.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast, final, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from relict_lightning.data.containers import container_of, is_inert, opener_of
from relict_lightning.data.isolation import MapStyle, random_state_kept
from relict_lightning.data.items import ARGUMENTS, ImageItem, Role, item_name, parse_item, parse_segmentation, text_of
from relict_lightning.data.repeatability import refuse_random
from relict_lightning.errors import ConfigurationError, EmptyDataError, InvalidImageError, RelictWarning


@final
@dataclass(frozen=True, kw_only=True)
class ImageBatch:
    """Some images of a set, in order.

    Attributes:
        images: `[b, c, *spatial]`, float32, contiguous, finite, plain tensors on the CPU.
        segmentations: Label of every voxel, int64; None if the set has none.
        ids: One per image, unique in the set; role and position (`training-17`) where the data gives none, so that the
            patients of two sets that name none are not taken for the same.
        groups: The patient of each image; the id where the data gives none.
    """

    images: Float[Tensor, "b c *spatial"]
    segmentations: Int[Tensor, "b *spatial"] | None
    ids: tuple[str, ...]
    groups: tuple[str, ...]


@final
class ImageSource:
    """A set of images that can be read any number of times, with the same result each time.

    Made by `open_images`.
    """

    def __init__(
        self,
        open_items: Callable[[], MapStyle],
        *,
        role: Role,
        open_segmentations: Callable[[], MapStyle] | None,
        groups: tuple[str, ...] | None,
    ) -> None:
        self._open_items = open_items
        self._open_segmentations = open_segmentations
        self._groups = groups
        self._role: Role = role
        with random_state_kept():
            items = open_items()
            self._length = len(items)
            first = self._read(items, None if open_segmentations is None else open_segmentations(), 0)
        if first.ignored_label_shape is not None:
            warnings.warn(
                f"The labels of the {role} set have shape {list(first.ignored_label_shape)}, which is not one label "
                f"per voxel; they are not used. Pass label maps as segmentations to compare those too.",
                RelictWarning,
                stacklevel=3,
            )
        self._image_shape = tuple(first.image.shape)
        self._has_segmentations = first.segmentation is not None

    @property
    def role(self) -> Role:
        """Which set this is: `training`, `held-out` or `generated`."""
        return self._role

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of every image, `(c, *spatial)`."""
        return self._image_shape

    @property
    def has_segmentations(self) -> bool:
        """Whether every image comes with a segmentation."""
        return self._has_segmentations

    def __len__(self) -> int:
        """Return the number of images."""
        return self._length

    def containers(self) -> tuple[object, object | None]:
        """Return what images and passed label maps are read from, as copies that share what is large."""
        with random_state_kept():
            return self._open_items(), None if self._open_segmentations is None else self._open_segmentations()

    def batches(self, batch_size: int) -> Iterator[ImageBatch]:
        """Return the images in order, in batches; the last one may be smaller.

        Args:
            batch_size: Images per batch, at least 1. No more than these are held at a time.

        Returns:
            An iterator over the batches.

        Raises:
            ConfigurationError: If `batch_size < 1`.
            InvalidImageError: While iterating, if an image is not finite, differs in shape from the first, has an id
                that an earlier one has, or if only some images have segmentations.

        Example:
            >>> source = open_images(torch.zeros(5, 1, 8, 8), role="training")
            >>> [len(batch.ids) for batch in source.batches(2)]
            [2, 2, 1]
        """
        if batch_size < 1:
            raise ConfigurationError(f"batch_size={batch_size}; expected at least 1.")
        return self._batches(batch_size)

    def _batches(self, batch_size: int) -> Iterator[ImageBatch]:
        with random_state_kept():
            items = self._open_items()
            segmentations = None if self._open_segmentations is None else self._open_segmentations()
        positions_by_id: dict[str, int] = {}
        for start in range(0, self._length, batch_size):
            with random_state_kept():
                batch = [
                    self._read(items, segmentations, position)
                    for position in range(start, min(start + batch_size, self._length))
                ]
            for position, item in enumerate(batch, start):
                self._refuse_odd(item, position)
                earlier = positions_by_id.setdefault(cast("str", item.id), position)
                if earlier != position:
                    # Without the id itself: error messages travel further than patients' names should.
                    raise InvalidImageError(
                        f"{item_name(position, self._role)} has the same id as item {earlier}; expected unique ids. "
                        f"Pass each image once, give each its own id, and images of one patient one group."
                    )
            yield ImageBatch(
                images=torch.stack([item.image for item in batch]),
                segmentations=torch.stack([cast("Tensor", item.segmentation) for item in batch])
                if self._has_segmentations
                else None,
                ids=tuple(cast("str", item.id) for item in batch),
                groups=tuple(cast("str", item.group) for item in batch),
            )

    def _read(self, items: MapStyle, segmentations: MapStyle | None, position: int) -> ImageItem:
        name = item_name(position, self._role)
        item = parse_item(items[position], role=self._role, position=position)
        segmentation = item.segmentation
        if segmentations is not None:
            if segmentation is not None:
                raise ConfigurationError(
                    f"{name} has a segmentation of its own, and segmentations were passed as well; expected one of the "
                    f"two. Drop either."
                )
            segmentation = parse_segmentation(segmentations[position], spatial=tuple(item.image.shape[1:]), name=name)
        given_group = None if self._groups is None else self._groups[position]
        if item.group is not None and given_group not in (None, item.group):
            raise ConfigurationError(
                f"{name} has a group of its own that is not the one that was passed for it; expected one group. "
                f"Drop either."
            )
        id_ = f"{self._role}-{position}" if item.id is None else item.id
        return ImageItem(
            image=item.image,
            segmentation=segmentation,
            id=id_,
            group=item.group or given_group or id_,
            ignored_label_shape=item.ignored_label_shape,
        )

    def _refuse_odd(self, item: ImageItem, position: int) -> None:
        name = item_name(position, self._role)
        if tuple(item.image.shape) != self._image_shape:
            raise InvalidImageError(
                f"{name} has shape {list(item.image.shape)}, but item 0 has {list(self._image_shape)}; expected one "
                f"shape. Crop, pad or resample the images to a common shape."
            )
        if (item.segmentation is not None) != self._has_segmentations:
            has, first_has = ("a", "none") if item.segmentation is not None else ("no", "one")
            raise InvalidImageError(
                f"{name} has {has} segmentation, but item 0 has {first_has}; expected one for every image or for none. "
                f"Complete them, or leave them all out."
            )


def open_images(
    source: object,
    *,
    role: Role,
    segmentations: object = None,
    groups: Iterable[Any] | None = None,
) -> ImageSource:
    """Return a repeatable, deterministic stream of the images of one set.

    The live data set, its augmentations and the global random state stay as they are. Of a data loader only the data
    set is used, all of it, in its own order; where the loader draws from a `SubsetRandomSampler`, the subset.

    Args:
        source: Array or tensor `[m, c, *spatial]`, map-style data set, data loader, or list of images, paths or
            dictionaries with `image` and, optionally, `label` (segmentation), `id` and `group` (the patient). Items
            of data sets are images, tuples that start with one, or such dictionaries.
        role: `training`, `held-out` or `generated`.
        segmentations: One label map `[*spatial]` or `[1, *spatial]` per image: an array, or a list of arrays or paths.
        groups: The patient of each image.

    Returns:
        The stream.

    Raises:
        ConfigurationError: If `source` is of another kind, cannot be copied, or if numbers of images, segmentations
            and groups differ.
        EmptyDataError: If there is no image.
        InvalidImageError: If an image is not valid; the first one is checked here, all others when they are read.
        NondeterministicDataError: If two reads of one item of a data set differ.
        UnreadableDataError: If a file cannot be read.

    Example:
        >>> source = open_images(torch.zeros(3, 1, 8, 8), role="training", groups=["anna", "ben", "ben"])
        >>> next(source.batches(3)).groups
        ('anna', 'ben', 'ben')
    """
    if role not in get_args(Role):
        raise ConfigurationError(f"role={role!r}; expected one of {', '.join(get_args(Role))}.")
    items = container_of(source, role=role)
    open_items = opener_of(items, name=f"{role} set", argument=ARGUMENTS[role])
    length = len(items)
    if length == 0:
        raise EmptyDataError(f"The {role} set is empty; expected at least one image. Check `{ARGUMENTS[role]}`.")
    open_segmentations = None
    if segmentations is not None:
        maps = container_of(segmentations, role=role, what="segmentations")
        _refuse_other_length(len(maps), length, what="segmentations", role=role)
        open_segmentations = opener_of(maps, name=f"segmentations of the {role} set", argument="segmentations=")
    group_names = None
    if groups is not None:
        if isinstance(groups, str):
            raise ConfigurationError(f"groups={groups!r}; expected one patient per image. Pass a list.")
        group_names = tuple(text_of(group) for group in groups)
        _refuse_other_length(len(group_names), length, what="groups", role=role)
    opened = ImageSource(open_items, role=role, open_segmentations=open_segmentations, groups=group_names)
    if not is_inert(items):
        refuse_random(open_items(), role=role)
    return opened


def _refuse_other_length(found: int, expected: int, *, what: str, role: Role) -> None:
    if found != expected:
        raise ConfigurationError(
            f"The {role} set has {expected} images, but {found} {what} were passed; expected one per image, in the "
            f"same order."
        )
