"""The reference: a set of images as the detector sees it, embedded, stored and indexed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import numpy as np

from relict_lightning.index.chunks import Chunk, ChunkedRows, chunk_name
from relict_lightning.index.columns import COARSE, FEATURE, LABELS, VIEWS
from relict_lightning.index.contents import LABEL_MAPS, VOLUMES
from relict_lightning.index.durable import write_array
from relict_lightning.index.entry import Entry, EntryWriter
from relict_lightning.index.exact import ExactIndex
from relict_lightning.index.fingerprint import combine
from relict_lightning.index.rows import Array
from relict_lightning.index.sharing import HeldRows, SelectedRows, SharedIndex
from relict_lightning.index.volumes import IntensityScale, restore
from relict_lightning.processes import Processes

_BLOCK_BYTES = 1 << 26


@final
@dataclass(frozen=True, kw_only=True)
class Reference:
    """A set of images, ready to be searched and compared with.

    Where several processes share it, each holds the volumes and label maps of its share.

    Attributes:
        ids: Id of every image.
        groups: Group (patient) of every image.
        group_codes: The same as integers, `[m]`, equal for equal groups.
        digests: Hash of every image's values, `[m, 16]` bytes; equal ones are bitwise copies.
        ranges: Smallest and largest intensity of every image, `[m, 2]`.
        scale: The training set's intensity scale.
        views: The searchable vectors, by name: "feature", "coarse" (voxels), "labels" (coarse label maps).
        stored: The images as they are stored, `[m, c, *spatial]`.
        label_maps: `[m, *spatial]`, integer.
        fingerprint: Hash of everything that this was made from.
        seconds: How long it took to build.
        from_cache: Whether it was found in the cache rather than built.
        processes: Who shares it.
    """

    ids: tuple[str, ...]
    groups: tuple[str, ...]
    group_codes: Array
    digests: Array
    ranges: Array
    scale: IntensityScale
    views: Mapping[str, SharedIndex]
    stored: HeldRows
    label_maps: HeldRows
    fingerprint: str
    seconds: float
    from_cache: bool
    processes: Processes

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape `[c, *spatial]` of every image."""
        return self.stored.shape[1:]

    @property
    def feature(self) -> SharedIndex:
        """The feature view."""
        return self.views[FEATURE]

    @property
    def coarse(self) -> SharedIndex:
        """The coarse voxel view."""
        return self.views[COARSE]

    @property
    def labels(self) -> SharedIndex:
        """The coarse label map view."""
        return self.views[LABELS]

    @property
    def item_digests(self) -> tuple[str, ...]:
        """Hash of every image's values, as text."""
        return tuple(row.tobytes().hex() for row in self.digests)

    def volumes(self, positions: Array) -> Array:
        """Return images that this process holds, on the training set's unit scale, `[p, c, *spatial]`, float32.

        Raises:
            IndexError: If another process holds one.
            IndexStaleError: If images are read from the user's data, and one has changed.
        """
        return restore(self.stored[positions], self.ranges[positions], self.scale)

    def fetch_volumes(self, positions: Array) -> Array:
        """Return images, whoever holds them, as `volumes` does; all processes call this with the same positions."""
        positions = np.asarray(positions, dtype=np.int64)
        return restore(self._fetched(self.stored, positions), self.ranges[positions], self.scale)

    def fetch_label_maps(self, positions: Array) -> Array:
        """Return label maps, whoever holds them, `[p, *spatial]`, int64; all processes call this alike."""
        return self._fetched(self.label_maps, np.asarray(positions, dtype=np.int64)).astype(np.int64)

    def fetch_vectors(self, view: str, positions: Array) -> Array:
        """Return vectors of a view, whoever holds them, `[p, d]`; all processes call this alike."""
        return self._fetched(self.views[view].vectors, np.asarray(positions, dtype=np.int64))

    def _fetched(self, rows: HeldRows, positions: Array) -> Array:
        held = rows.holds(positions)
        shares = self.processes.gather(
            lambda: (np.flatnonzero(held), rows[positions[held]]), doing="Reading stored images"
        )
        if len(shares) == 1:
            return shares[0][1]
        dtype = np.result_type(*(values.dtype for places, values in shares if len(places)))
        fetched = np.empty((len(positions), *rows.shape[1:]), dtype=dtype)
        for places, values in shares:
            fetched[places] = values
        return fetched


def encode_groups(groups: Sequence[str]) -> Array:
    """Return one integer per image, equal for equal groups, in the order of their first images."""
    codes: dict[str, int] = {}
    return np.array([codes.setdefault(group, len(codes)) for group in groups], dtype=np.int64)


def subset(reference: Reference, positions: Sequence[int]) -> Reference:
    """Return a reference of some of the images, which reads from the first one."""
    chosen = np.asarray(positions, dtype=np.int64)
    groups = [reference.groups[position] for position in chosen]

    def held(rows: HeldRows) -> HeldRows:
        here = np.flatnonzero(rows.holds(chosen))
        return HeldRows(SelectedRows(rows, chosen[here]), here, len(chosen))

    return Reference(
        ids=tuple(reference.ids[position] for position in chosen),
        groups=tuple(groups),
        group_codes=encode_groups(groups),
        digests=reference.digests[chosen],
        ranges=reference.ranges[chosen],
        scale=reference.scale,
        views={name: view.selected(chosen) for name, view in reference.views.items()},
        stored=held(reference.stored),
        label_maps=held(reference.label_maps),
        fingerprint=combine({"of": reference.fingerprint, "positions": chosen.tolist()}),
        seconds=reference.seconds,
        from_cache=reference.from_cache,
        processes=reference.processes,
    )


def write_reference(reference: Reference, writer: EntryWriter | None, *, prefix: str) -> None:
    """Copy a reference into a folder that is being written, its files' names starting with `prefix`.

    Args:
        reference: The reference; all processes that share it call this.
        writer: The folder; None on all processes but the first.
        prefix: What tells it apart from other references in the folder.
    """
    columns: dict[str, list[tuple[str, int]]] = {}
    everything: dict[str, HeldRows] = {VOLUMES: reference.stored, LABEL_MAPS: reference.label_maps}
    everything |= {name: view.vectors for name, view in reference.views.items()}
    for name, rows in everything.items():
        size = max(1, _BLOCK_BYTES // (4 * int(np.prod(rows.shape[1:]))))
        for number, start in enumerate(range(0, len(reference), size)):
            values = reference._fetched(rows, np.arange(start, min(start + size, len(reference))))
            if writer is not None:
                naming = partial(chunk_name, f"{prefix}{name}", str(number))
                path, _ = write_array(writer.folder, values, name=naming)
                columns.setdefault(name, []).append((path.name, len(values)))
    if writer is None:
        return
    writer.array(f"{prefix}digests", reference.digests)
    writer.array(f"{prefix}ranges", reference.ranges)
    about: dict[str, Any] = {"fingerprint": reference.fingerprint, "seconds": reference.seconds, "columns": columns}
    about |= {"scale": [reference.scale.low, reference.scale.high], "image_shape": reference.image_shape}
    writer.table(f"{prefix}items", {"ids": reference.ids, "groups": reference.groups, **about})


def read_reference(entry: Entry, *, prefix: str, resident_bytes: int = 1 << 32) -> Reference:
    """Return the reference that `write_reference` put into a folder.

    Args:
        entry: The folder.
        prefix: What tells it apart from other references in the folder.
        resident_bytes: Vectors of up to this size are kept in memory once they are searched.
    """
    items = entry.table(f"{prefix}items")
    count = len(items["ids"])
    everyone = np.arange(count)
    image_shape = tuple(items["image_shape"])

    def rows(name: str, row_shape: tuple[int, ...], resident: int = 0) -> HeldRows:
        chunks = [Chunk(entry.directory / file, number) for file, number in items["columns"][name]]
        return HeldRows(ChunkedRows(chunks, row_shape, resident_bytes=resident), everyone, count)

    views = {}
    for name in VIEWS:
        first = Chunk(entry.directory / items["columns"][name][0][0], items["columns"][name][0][1])
        vectors = rows(name, first.read().shape[1:], resident_bytes)
        views[name] = SharedIndex(ExactIndex(vectors.rows), vectors, Processes())
    low, high = items["scale"]
    return Reference(
        ids=tuple(items["ids"]),
        groups=tuple(items["groups"]),
        group_codes=encode_groups(items["groups"]),
        digests=np.array(entry.array(f"{prefix}digests")),
        ranges=np.array(entry.array(f"{prefix}ranges")),
        scale=IntensityScale(low=low, high=high),
        views=views,
        stored=rows(VOLUMES, image_shape),
        label_maps=rows(LABEL_MAPS, image_shape[1:]),
        fingerprint=items["fingerprint"],
        seconds=float(items["seconds"]),
        from_cache=True,
        processes=Processes(),
    )
