"""What a set of images contains: one pass that hashes every image, finds its range, and stores it as it goes.

The pass holds one chunk of images at a time. Processes that share the work read a share each and exchange what
they learned, so that all of them know every id, group, hash and range, and each keeps the volumes of its share.
"""

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from relict_lightning.data import ImageBatch, ImageSource, images_per_batch
from relict_lightning.errors import EmptyDataError, InvalidImageError
from relict_lightning.index.chunks import Chunk
from relict_lightning.index.durable import explained, make_private_folder
from relict_lightning.index.entry import Entry
from relict_lightning.index.fingerprint import combine, digest_array, digest_rows
from relict_lightning.index.rows import Array
from relict_lightning.index.volumes import IntensityScale, Store, quantise, ranges_of
from relict_lightning.index.workshop import Workshop
from relict_lightning.processes import Processes

VOLUMES, LABEL_MAPS = "volumes", "label_maps"

_CHUNK_BYTES = 1 << 25
_FEWEST_ROWS, _MOST_ROWS = 4, 4096
_KEY_FILE = ".id-key"


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What one pass over a set of images tells.

    Attributes:
        image_shape: `[c, *spatial]` of every image.
        ids: Id of every image; a keyed hash of it where ids are hashed.
        groups: Group (patient) of every image, likewise.
        digests: Hash of every image's values, `[m, 16]` bytes; equal ones are bitwise copies.
        ranges: Smallest and largest intensity of every image, `[m, 2]`.
        label_digests: Hash of every given label map, `[m, 16]` bytes; None where none are given.
        chunk_rows: Images per chunk.
    """

    image_shape: tuple[int, ...]
    ids: tuple[str, ...]
    groups: tuple[str, ...]
    digests: Array
    ranges: Array
    label_digests: Array | None
    chunk_rows: int

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)

    @cached_property
    def digest(self) -> str:
        """Hash of every image, label map, id and group, in order."""
        labels = None if self.label_digests is None else digest_array(self.label_digests)
        named = {"ids": self.ids, "groups": self.groups}
        return combine({"images": digest_array(self.digests), "labels": labels, "shape": self.image_shape, **named})

    @property
    def item_digests(self) -> tuple[str, ...]:
        """Hash of every image's values, as text."""
        return tuple(row.tobytes().hex() for row in self.digests)

    @cached_property
    def scale(self) -> IntensityScale:
        """The intensity scale of the set."""
        return IntensityScale.covering(float(self.ranges[:, 0].min()), float(self.ranges[:, 1].max()))

    def rows_of(self, number: int) -> slice:
        """Return which images a chunk holds."""
        return slice(number * self.chunk_rows, min((number + 1) * self.chunk_rows, len(self)))


@dataclass(frozen=True, kw_only=True)
class Share:
    """What this process has read of a set.

    Attributes:
        numbers: Numbers of its chunks, ascending.
        chunks: The chunks that were stored while reading, by column.
    """

    numbers: tuple[int, ...]
    chunks: dict[str, list[Chunk]]

    def positions(self, contents: Contents) -> Array:
        """Return the positions of its images in the whole set."""
        images = np.arange(len(contents))
        return np.concatenate([images[:0], *(images[contents.rows_of(number)] for number in self.numbers)])


@dataclass(frozen=True, kw_only=True)
class _Read:
    """What one chunk tells."""

    number: int
    ids: tuple[str, ...]
    groups: tuple[str, ...]
    digests: Array
    ranges: Array
    label_digests: Array | None


def chunk_rows(image_shape: Sequence[int]) -> int:
    """Return how many images a chunk holds: some 32 MiB of them in whole batches, which so do not depend on chunks.

    Example:
        >>> chunk_rows((1, 64, 64)), chunk_rows((1, 64, 64, 64)), chunk_rows((1, 256, 256, 256))
        (2048, 32, 4)
    """
    batch = images_per_batch(tuple(image_shape))
    fitting = max(_FEWEST_ROWS, min(_MOST_ROWS, _CHUNK_BYTES // (4 * int(np.prod(image_shape)))))
    return max(1, fitting // batch) * batch


def read_contents(
    source: ImageSource,
    workshop: Workshop,
    *,
    store: Store,
    keep_labels: bool,
    id_key: bytes | None,
    processes: Processes,
    remembered: Entry | None = None,
    num_workers: int = 0,
    progress: bool = False,
) -> tuple[Contents, Share]:
    """Read a set once, and store its volumes and given label maps.

    Args:
        source: The images.
        workshop: Where chunks are kept.
        store: How volumes are stored.
        keep_labels: Whether to store the label maps that the data bring.
        id_key: Key that ids and groups are hashed with; None keeps them in clear.
        processes: Who shares the work; all of them call this with one source.
        remembered: A finished folder of this process's share, to be taken instead of reading; None reads.
        num_workers: Processes that read ahead.
        progress: Whether to show a progress bar.

    Raises:
        InvalidImageError: If an image is not valid, or every voxel of the set has one value.
        EmptyDataError: If there is no image.
    """
    rows = chunk_rows(source.image_shape)
    chunks: dict[str, list[Chunk]] = {}

    def read() -> list[_Read]:
        if remembered is not None:
            chunks.update({name: chunks_of(remembered, name) for name in _kept(store, keep_labels=keep_labels)})
            return _remembered(remembered, rows)
        total = None if source.length is None else len(_own_positions(source.length, rows, processes))
        with tqdm(total=total, desc=f"Reading {source.role} images", unit="image", disable=not progress) as bar:
            found = []
            for number, batch in _own_chunks(source, rows, processes, num_workers):
                named = replace(batch, ids=_hashed(batch.ids, id_key), groups=_hashed(batch.groups, id_key))
                found.append(_read_chunk(number, named, workshop, chunks, store=store, keep_labels=keep_labels))
                bar.update(len(batch.ids))
            return found

    shares = processes.gather(read, doing=f"Reading the {source.role} images")
    numbers = tuple(chunk.number for chunk in shares[processes.rank])
    everything = sorted((chunk for share in shares for chunk in share), key=lambda chunk: chunk.number)
    if not everything:
        raise EmptyDataError(f"The {source.role} set is empty; expected at least one image.")
    ids = tuple(id_ for chunk in everything for id_ in chunk.ids)
    labelled = [chunk.label_digests for chunk in everything if chunk.label_digests is not None]
    contents = Contents(
        image_shape=source.image_shape,
        ids=ids,
        groups=tuple(group for chunk in everything for group in chunk.groups),
        digests=np.concatenate([chunk.digests for chunk in everything]),
        ranges=np.concatenate([chunk.ranges for chunk in everything]),
        label_digests=np.concatenate(labelled) if labelled else None,
        chunk_rows=rows,
    )
    _refuse_repeated_ids(ids, source)
    low, high = contents.ranges[:, 0].min(), contents.ranges[:, 1].max()
    if not high > low:
        raise InvalidImageError(
            f"Every voxel of the {source.role} images has the value {low}: there is nothing to compare. "
            f"Check how the images are read and scaled."
        )
    return contents, Share(numbers=numbers, chunks=chunks)


def _kept(store: Store, *, keep_labels: bool) -> list[str]:
    """Return the columns that are stored while reading."""
    return ([] if store == "reference" else [VOLUMES]) + ([LABEL_MAPS] if keep_labels else [])


def _remembered(entry: Entry, rows: int) -> list[_Read]:
    """Return what the chunks of a finished folder tell."""
    items = entry.table("items")
    arrays = {name: np.array(entry.array(name)) for name in ("digests", "ranges")}
    labels = np.array(entry.array("label_digests")) if entry.manifest["has_label_digests"] else None
    found = []
    for index, number in enumerate(entry.manifest["numbers"]):
        here = slice(index * rows, (index + 1) * rows)
        found.append(
            _Read(
                number=number,
                ids=tuple(items["ids"][here]),
                groups=tuple(items["groups"][here]),
                digests=arrays["digests"][here],
                ranges=arrays["ranges"][here],
                label_digests=None if labels is None else labels[here],
            )
        )
    return found


def chunks_of(entry: Entry, column: str) -> list[Chunk]:
    """Return the chunks of a column of a finished folder, in order."""
    return [Chunk(entry.directory / name, rows) for name, rows in entry.manifest["columns"][column]["chunks"]]


def id_key(cache_dir: Path | None, processes: Processes) -> bytes:
    """Return the key that ids are hashed with: the cache's own, made when there is none.

    Without it nobody can try out which id gives a hash. Whoever holds the cache holds it, so where hashes must never
    be traced back, delete `.id-key`; the cache is then built anew.
    """

    def first() -> bytes:
        if not processes.is_first:
            return b""
        if cache_dir is None:
            return secrets.token_bytes(32)
        path = cache_dir / _KEY_FILE
        if not path.exists():
            make_private_folder(cache_dir)
            with explained(path):
                path.touch(mode=0o600)
                path.write_bytes(secrets.token_bytes(32))
        return path.read_bytes()

    return processes.gather(first, doing="Reading the key of the ids")[0]


def _hashed(names: Sequence[str], key: bytes | None) -> tuple[str, ...]:
    if key is None:
        return tuple(names)
    return tuple(blake2b(name.encode(), key=key, digest_size=12).hexdigest() for name in names)


def _refuse_repeated_ids(ids: Sequence[str], source: ImageSource) -> None:
    """Refuse ids that two processes have read; within one, the source has refused them."""
    if len(set(ids)) == len(ids):
        return
    first_of: dict[str, int] = {}
    for position, id_ in enumerate(ids):
        if (earlier := first_of.setdefault(id_, position)) != position:
            raise InvalidImageError(
                f"Items {earlier} and {position} of the {source.role} set have the same id; expected unique ids. "
                f"Pass each image once, give each its own id, and images of one patient one group."
            )


def _own_positions(length: int, rows: int, processes: Processes) -> range:
    """Return the positions that this process reads of a set of known length: an even share of whole chunks."""
    chunks = -(-length // rows)
    first, stop = (chunks * rank // processes.count for rank in (processes.rank, processes.rank + 1))
    return range(min(first * rows, length), min(stop * rows, length))


def _own_chunks(
    source: ImageSource, rows: int, processes: Processes, num_workers: int
) -> Iterator[tuple[int, ImageBatch]]:
    """Return the chunks of this process, each as one batch with its number."""
    if source.is_stream:
        # Its items come in order only, so everybody reads all of them and the processes take turns.
        for number, batch in enumerate(source.batches(rows, num_workers=num_workers)):
            if number % processes.count == processes.rank:
                yield number, batch
        return
    own = _own_positions(len(source), rows, processes)
    if len(own):
        batches = source.batches(rows, num_workers=num_workers, start=own.start, stop=own.stop)
        yield from enumerate(batches, own.start // rows)


def _read_chunk(
    number: int,
    batch: ImageBatch,
    workshop: Workshop,
    chunks: dict[str, list[Chunk]],
    *,
    store: Store,
    keep_labels: bool,
) -> _Read:
    images = batch.images.numpy()
    digests = digest_rows(images)
    ranges = ranges_of(images)
    if store != "reference":
        key = combine({"of": digest_array(digests), "store": store})
        made = workshop.chunk(VOLUMES, key, len(images), lambda: quantise(images, ranges, store))
        chunks.setdefault(VOLUMES, []).append(made)
    label_digests = None
    if keep_labels and batch.segmentations is not None:
        maps = batch.segmentations.numpy()
        label_digests = digest_rows([narrow(labels) for labels in maps])
        key = combine({"given": digest_array(label_digests)})
        made = workshop.chunk(LABEL_MAPS, key, len(maps), lambda: narrow(maps))
        chunks.setdefault(LABEL_MAPS, []).append(made)
    return _Read(
        number=number,
        ids=batch.ids,
        groups=batch.groups,
        digests=digests,
        ranges=ranges,
        label_digests=label_digests,
    )


def narrow(labels: Array) -> Array:
    """Return labels in the narrowest integers that hold them; int64 would take four times the space of the image."""
    dtype = np.result_type(np.min_scalar_type(labels.min()), np.min_scalar_type(labels.max()))
    return np.ascontiguousarray(labels.astype(dtype if dtype.kind in "iu" else np.int64))
