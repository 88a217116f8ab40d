"""A repeatable stream of image batches, with ids and groups.

Items are read when they are asked for, in the main process or, on request, by workers ahead of it. The data set itself
is never read, only copies of it, so that training does not notice.
"""

import operator
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import SupportsIndex, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from relict_lightning.data.items import ARGUMENTS, Role
from relict_lightning.data.passes import pass_by_position, pass_in_order, unique
from relict_lightning.data.reading import Contents, Form, Parcel, Reader
from relict_lightning.data.stamp import stamp_of
from relict_lightning.errors import (
    ConfigurationError,
    EmptyDataError,
    NondeterministicDataError,
    RelictWarning,
)


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

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self._role: Role = contents.role
        reader = Reader(contents)
        announced = reader.announced_length()
        if not contents.is_stream and announced:
            contents.refuse_other_lengths(announced)
        first = reader.first()
        if first is None:
            raise EmptyDataError(
                f"The {self._role} set is empty; expected at least one image. Check `{ARGUMENTS[self._role]}`."
            )
        if first.ignored_label_shape is not None:
            warnings.warn(
                f"The labels of the {self._role} set have shape {list(first.ignored_label_shape)}, which is not one "
                f"label per voxel; they are not used. Pass label maps as segmentations to compare those too.",
                RelictWarning,
                stacklevel=3,
            )
        self._form = Form(image_shape=tuple(first.image.shape), has_segmentations=first.segmentation is not None)
        # What an iterable announces may be wrong, or count batches; it is for progress bars only.
        self._length = None if contents.is_stream else announced
        self._announced_length = announced
        self._kept_reader: tuple[int, Reader] | None = None

    @property
    def role(self) -> Role:
        """Which set this is: `training`, `held-out` or `generated`."""
        return self._role

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of every image, `(c, *spatial)`."""
        return self._form.image_shape

    @property
    def has_segmentations(self) -> bool:
        """Whether every image comes with a segmentation."""
        return self._form.has_segmentations

    @property
    def is_stream(self) -> bool:
        """Whether the images come in order only, as those of an iterable data set do."""
        return self._contents.is_stream

    @property
    def given_groups(self) -> tuple[str, ...] | None:
        """The patients that were passed beside the images; None where the data give them, or nobody does."""
        return self._contents.groups

    @property
    def length(self) -> int | None:
        """Number of images, for progress bars: of an iterable what it announces until a pass has ended, or None."""
        return self._announced_length if self._length is None else self._length

    def __len__(self) -> int:
        """Return the number of images.

        Raises:
            ConfigurationError: If the set is iterable and no pass over it has ended.
        """
        if self._length is None:
            raise ConfigurationError(
                f"The {self._role} set is an iterable data set, whose number of images is known only once all have "
                f"been read; expected a data set with positions. Read all batches first, or use `length`, which may be "
                f"None."
            )
        return self._length

    def containers(self) -> tuple[object, object | None]:
        """Return what images and passed label maps are read from, as copies that share what is large."""
        contents = self._contents
        with contents.reading_state():
            return contents.images(), None if contents.segmentations is None else contents.segmentations()

    def stamp(self) -> str | None:
        """Return a hash that tells, without reading an image, whether the set is the one that it was.

        It covers the path, size and modification time of every file, and every id and group. It does not see a file
        that is rewritten in place with equal size and a forged modification time, nor one that is replaced while it is
        memory-mapped.

        Returns:
            The hash, in hexadecimal; None where the items are not files known by name: for arrays in memory, and for
            data sets other than `ImageFolder`, whose code may do anything.

        Example:
            >>> from relict_lightning.data import open_images
            >>> open_images(torch.zeros(3, 1, 8, 8), role="training").stamp() is None
            True
        """
        images, segmentations = self.containers()
        return stamp_of(images, segmentations=segmentations, groups=self._contents.groups, role=self._role)

    def read(self, positions: Sequence[SupportsIndex]) -> ImageBatch:
        """Return the images at some positions, from a copy that is opened once and kept.

        Args:
            positions: Positions in the set, in any order.

        Returns:
            One batch, in the order of the positions. Its ids are those of `batches`.

        Raises:
            ConfigurationError: If the set is iterable, or a position lies outside of it.
            InvalidImageError: If an image is not finite, or differs from the first in shape or in having a
                segmentation.

        Example:
            >>> from relict_lightning.data import open_images
            >>> open_images(torch.zeros(5, 1, 8, 8), role="training").read([3, 0]).ids
            ('training-3', 'training-0')
        """
        self._refuse_stream("read by position")
        chosen = [operator.index(position) for position in positions]
        outside = [position for position in chosen if not 0 <= position < len(self)]
        if outside:
            raise ConfigurationError(
                f"Position {outside[0]} was asked for; expected 0 to {len(self) - 1}, as the {self._role} set has "
                f"{len(self)} images."
            )
        # A process that was forked since must not share open files with this one.
        if self._kept_reader is None or self._kept_reader[0] != os.getpid():
            self._kept_reader = os.getpid(), Reader(self._contents)
        return _batch_of(self._kept_reader[1].read(chosen, self._form))

    def batches(
        self, batch_size: int, *, num_workers: int = 0, start: int = 0, stop: int | None = None
    ) -> Iterator[ImageBatch]:
        """Return the images in order, in batches; the last one may be smaller.

        Args:
            batch_size: Images per batch, at least 1. Without workers no more than these are held at a time.
            num_workers: Number of processes that read ahead, each up to two batches; 0 reads in this process. The
                images are bit-identical. An iterable set is read by one worker at most, since several would each see a
                part of it; a set that holds an open HDF5, LMDB or picture file, which processes cannot share, is read
                in this process.
            start: Position of the first image.
            stop: Position after the last image; None reads to the end.

        Returns:
            An iterator over the batches. Workers end when it ends or is closed.

        Raises:
            ConfigurationError: If an argument is out of range, or `start` or `stop` is given for an iterable set.
                While iterating, if an iterable set has more or fewer images than segmentations or groups were passed.
            InvalidImageError: While iterating, if an image is not finite, differs in shape from the first, has an id
                that an earlier one has, or if only some images have segmentations.
            NondeterministicDataError: While iterating, if an iterable set has another number of images than before.

        Example:
            >>> from relict_lightning.data import open_images
            >>> source = open_images(torch.zeros(5, 1, 8, 8), role="training")
            >>> [len(batch.ids) for batch in source.batches(2)]
            [2, 2, 1]
            >>> [batch.ids for batch in source.batches(2, start=3)]
            [('training-3', 'training-4')]
        """
        if batch_size < 1:
            raise ConfigurationError(f"batch_size={batch_size}; expected at least 1.")
        if num_workers < 0:
            raise ConfigurationError(f"num_workers={num_workers}; expected 0, which reads in this process, or more.")
        if self._contents.is_stream:
            if start != 0 or stop is not None:
                self._refuse_stream("read in parts")
            return self._streamed(batch_size, num_workers=num_workers)
        end = len(self) if stop is None else stop
        if not 0 <= start <= end <= len(self):
            raise ConfigurationError(
                f"start={start} and stop={stop}; expected 0 <= start <= stop <= {len(self)}, the number of images of "
                f"the {self._role} set."
            )
        chunks = [range(first, min(first + batch_size, end)) for first in range(start, end, batch_size)]
        return self._located(chunks, num_workers=num_workers)

    def _located(self, chunks: list[range], *, num_workers: int) -> Iterator[ImageBatch]:
        with closing(pass_by_position(self._contents, self._form, chunks, num_workers=num_workers)) as parcels:
            for parcel in unique(parcels, role=self._role):
                yield _batch_of(parcel)

    def _streamed(self, batch_size: int, *, num_workers: int) -> Iterator[ImageBatch]:
        count = 0
        with closing(pass_in_order(self._contents, self._form, batch_size, num_workers=num_workers)) as parcels:
            for parcel in unique(parcels, role=self._role):
                count += len(parcel.ids)
                yield _batch_of(parcel)
        if self._length not in (None, count):
            raise NondeterministicDataError(
                f"The {self._role} set gave {count} images in this pass, and {self._length} in an earlier one; "
                f"expected the same items whenever it is iterated. Pass `{ARGUMENTS[self._role]}` a data set without "
                f"random choice."
            )
        self._contents.refuse_other_lengths(count)
        self._length = count

    def _refuse_stream(self, what: str) -> None:
        if self._contents.is_stream:
            raise ConfigurationError(
                f"The {self._role} set is an iterable data set and cannot be {what}; expected a data set with "
                f"`__len__` and `__getitem__`. Read all of it with `batches`, or pass `{ARGUMENTS[self._role]}` a "
                f"map-style data set."
            )


def _batch_of(parcel: Parcel) -> ImageBatch:
    maps = parcel.segmentations
    return ImageBatch(
        images=torch.from_numpy(parcel.images),
        segmentations=None if maps is None else torch.from_numpy(maps),
        ids=parcel.ids,
        groups=parcel.groups,
    )
