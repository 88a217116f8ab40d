"""Building a reference, or finding it in the cache."""

import logging
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from relict_lightning.data import ImageSource
from relict_lightning.errors import IndexCorruptError, RelictWarning
from relict_lightning.index.approximate import ApproximateIndex, SearchReport, choose_kind
from relict_lightning.index.chunks import Chunk, ChunkedRows, verify_all
from relict_lightning.index.columns import VIEWS, Pipeline, SourceRows, derive
from relict_lightning.index.contents import LABEL_MAPS, VOLUMES, Contents, Share, id_key, read_contents
from relict_lightning.index.entry import Entry, EntryWriter
from relict_lightning.index.exact import ExactIndex
from relict_lightning.index.fingerprint import combine
from relict_lightning.index.recollection import Recollection
from relict_lightning.index.reference import Reference, encode_groups
from relict_lightning.index.rows import Rows
from relict_lightning.index.sharing import HeldRows, SharedIndex
from relict_lightning.index.workshop import CacheWorkshop, MemoryWorkshop
from relict_lightning.processes import Processes

_LOGGER = logging.getLogger(__name__)

Search: TypeAlias = Literal["auto", "exact", "flat", "ivf_flat", "ivf_pq"]
"""How vectors are searched; "auto" is exact unless they do not fit the memory."""

Check: TypeAlias = Literal["full", "sampled"]
"""How a set is recognised: by the hash of every image, or of some, and by the names, sizes and dates of files."""

# Vectors of up to this size are verified before anything is searched, at about a second a GiB and core; larger ones
# when they are first gone through.
_VERIFIED_AT_ONCE = 1 << 30
# Each attempt after the first makes anew what the one before found damaged.
_ATTEMPTS = 8


def default_memory() -> int:
    """Return the memory that vectors may take: an eighth of the machine's, because a model is being trained in it."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 8


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Where and how a reference is built and searched; an exact search finds the same whatever they are.

    Attributes:
        cache_dir: Folder of the cache; None keeps everything in memory.
        processes: Who shares the work; all of them build together.
        check: How a set that was built before is recognised.
        hash_ids: Whether ids and groups are kept as keyed hashes.
        num_workers: Processes that read ahead.
        search: How vectors are searched.
        memory_bytes: Memory that the vectors of a view may take; they are kept there once they are searched.
        progress: Whether to show progress bars.
    """

    cache_dir: Path | None = None
    processes: Processes = field(default_factory=Processes)
    check: Check = "full"
    hash_ids: bool = False
    num_workers: int = 0
    search: Search = "auto"
    memory_bytes: int = field(default_factory=default_memory)
    progress: bool = False

    def kind_for(self, vectors: Rows) -> Literal["exact", "flat", "ivf_flat", "ivf_pq"]:
        """Return how these vectors are searched."""
        count, dimensions = vectors.shape
        return choose_kind(count, dimensions, memory_bytes=self.memory_bytes) if self.search == "auto" else self.search

    @property
    def shows_progress(self) -> bool:
        """Whether this process shows progress bars."""
        return self.progress and self.processes.is_first


def build_reference(source: ImageSource, pipeline: Pipeline, options: BuildOptions) -> Reference:
    """Return the reference of a set of images, from the cache where it holds one of the same fingerprint.

    Args:
        source: The images.
        pipeline: What computes. Without a scale it takes that of the images.
        options: Where and how.

    Returns:
        The reference, whose `from_cache` tells which of the two happened.

    Raises:
        InvalidImageError: If an image is not valid.
        CacheWriteError: If the disk is full or cannot be written to. What was built so far is kept.
        IndexCorruptError: If the cache is damaged again and again while it is built.
        OtherProcessError: If it failed on another process.
    """
    # Several processes would have to agree on trying again; the next fit does that.
    attempts = 1 if options.processes.count > 1 else _ATTEMPTS
    return _with_repairs(partial(_build, source, pipeline, options), attempts=attempts)


def _with_repairs(build: Callable[[], Reference], *, attempts: int) -> Reference:
    """Build, and where that finds a part of the cache damaged, which is set aside then, build again."""
    try:
        return build()
    except IndexCorruptError as error:
        if attempts == 1:
            raise
        warnings.warn(f"{error} It is built again now.", RelictWarning, stacklevel=4)
    return _with_repairs(build, attempts=attempts - 1)


@dataclass(frozen=True, kw_only=True)
class _Built:
    """The columns of this process's share, where they came to lie, and how long they took."""

    columns: Mapping[str, list[Chunk]]
    indexes: Mapping[str, ApproximateIndex]
    folder: Path | None
    was_there: bool
    seconds: float


def _build(source: ImageSource, pipeline: Pipeline, options: BuildOptions) -> Reference:
    started = time.perf_counter()
    processes = options.processes
    workshop = _workshop(source, options)
    finished = False
    try:
        key = id_key(options.cache_dir, processes) if options.hash_ids else None
        recollection = processes.together(
            lambda: _recollection(source, pipeline, options), doing=f"Reading the {source.role} images"
        )
        remembered = None if recollection is None else recollection.entry()
        contents, share = read_contents(
            source,
            workshop,
            store=pipeline.store,
            keep_labels=pipeline.segment is None,
            id_key=key,
            processes=processes,
            remembered=remembered,
            num_workers=options.num_workers,
            progress=options.shows_progress,
        )
        scaled = replace(pipeline, given_scale=pipeline.given_scale or contents.scale)

        def put() -> _Built:
            columns = derive(source, contents, share, workshop, scaled, progress=options.shows_progress)
            return _put_into_place(contents, share, columns, scaled, workshop, options, started=started)

        built = processes.together(put, doing=f"Encoding the {source.role} images")
        finished = True
    finally:
        if isinstance(workshop, CacheWorkshop):
            workshop.close(finished=finished)
    if recollection is not None and remembered is None and built.folder is not None:
        recollection.keep(built.folder)
    reference = _reference(source, contents, share, built, scaled, options)
    _say(reference, built, source.role)
    return reference


def _workshop(source: ImageSource, options: BuildOptions) -> MemoryWorkshop | CacheWorkshop:
    if options.cache_dir is None:
        return MemoryWorkshop()
    share = [options.processes.rank, options.processes.count]
    plan = {"role": source.role, "count": source.length, "shape": source.image_shape, "share": share}
    return CacheWorkshop(options.cache_dir, plan=combine(plan)[:12])


def _recollection(source: ImageSource, pipeline: Pipeline, options: BuildOptions) -> Recollection | None:
    if options.check == "full" or options.cache_dir is None or source.is_stream:
        return None
    settings = {"store": pipeline.store, "label_maps": pipeline.segment is None, "hash_ids": options.hash_ids}
    return Recollection(source, options.cache_dir, settings=settings, processes=options.processes)


def _put_into_place(
    contents: Contents,
    share: Share,
    columns: Mapping[str, list[Chunk]],
    pipeline: Pipeline,
    workshop: MemoryWorkshop | CacheWorkshop,
    options: BuildOptions,
    *,
    started: float,
) -> _Built:
    """Put a share's columns into the folder of their fingerprint, unless it is there."""
    vectors = {name: _vectors(columns[name], options) for name in VIEWS if columns.get(name)}
    kinds = {name: kind for name, rows in vectors.items() if (kind := options.kind_for(rows)) != "exact"}
    if isinstance(workshop, MemoryWorkshop) or not share.numbers:
        indexes = {name: ApproximateIndex.build(vectors[name], kind) for name, kind in kinds.items()}
        seconds = time.perf_counter() - started
        return _Built(columns=columns, indexes=indexes, folder=None, was_there=False, seconds=seconds)
    positions = share.positions(contents)

    def write(writer: EntryWriter) -> Mapping[str, object]:
        named = {name: [getattr(contents, name)[position] for position in positions] for name in ("ids", "groups")}
        writer.table("items", named)
        writer.array("digests", contents.digests[positions])
        writer.array("ranges", contents.ranges[positions])
        if contents.label_digests is not None:
            writer.array("label_digests", contents.label_digests[positions])
        reports = {}
        for name, kind in kinds.items():
            index = ApproximateIndex.build(vectors[name], kind)
            writer.file(_file_of(name), index.write)
            reports[name] = asdict(index.report)
        return {
            "count": len(positions),
            "numbers": share.numbers,
            "image_shape": contents.image_shape,
            "has_label_digests": contents.label_digests is not None,
            "made_of": _parts(contents, pipeline),
            "columns": {
                name: {"recipe": pipeline.recipe(name), "chunks": [_listed(chunk) for chunk in chunks]}
                for name, chunks in columns.items()
            },
            "search": reports,
            "seconds": time.perf_counter() - started,
        }

    name = combine({**_parts(contents, pipeline), "numbers": share.numbers, "search": kinds})
    folder, was_there = workshop.finish(name, columns, write)
    entry = Entry(folder)
    kept = {column: [_moved(chunk, folder) for chunk in chunks] for column, chunks in columns.items()}
    files = [chunk for view in VIEWS for chunk in kept[view]]
    if sum(chunk.source.stat().st_size for chunk in files if isinstance(chunk.source, Path)) <= _VERIFIED_AT_ONCE:
        verify_all(files)
    indexes = {
        name: ApproximateIndex.read(
            entry.verified(_file_of(name)),
            _vectors(kept[name], options),
            SearchReport(**entry.manifest["search"][name]),
        )
        for name in kinds
    }
    seconds = float(entry.manifest["seconds"])
    return _Built(columns=kept, indexes=indexes, folder=folder, was_there=was_there, seconds=seconds)


def _file_of(view: str) -> str:
    return f"{view}.faiss"


def _vectors(chunks: Sequence[Chunk], options: BuildOptions) -> ChunkedRows:
    return ChunkedRows(chunks, chunks[0].read().shape[1:], resident_bytes=options.memory_bytes)


def _parts(contents: Contents, pipeline: Pipeline) -> dict[str, Any]:
    """Return what a reference is made of, by name."""
    return {
        "images": contents.digest,
        "scale": [pipeline.scale.low, pipeline.scale.high],
        "store": pipeline.store,
        "encoder": pipeline.encoder_digest,
        "segmenter": pipeline.segmenter_digest,
    }


def _listed(chunk: Chunk) -> tuple[str, int]:
    assert isinstance(chunk.source, Path)  # noqa: S101 - a cache has files
    return chunk.source.name, chunk.rows


def _moved(chunk: Chunk, folder: Path) -> Chunk:
    name, rows = _listed(chunk)
    return Chunk(folder / name, rows)


def _reference(
    source: ImageSource, contents: Contents, share: Share, built: _Built, pipeline: Pipeline, options: BuildOptions
) -> Reference:
    """Put the parts together."""
    processes = options.processes
    positions = share.positions(contents)
    image_shape = contents.image_shape

    def held(rows: Rows) -> HeldRows:
        return HeldRows(rows, positions, len(contents))

    def chunked(name: str, row_shape: tuple[int, ...], resident_bytes: int = 0) -> ChunkedRows:
        return ChunkedRows(built.columns.get(name, []), row_shape, resident_bytes=resident_bytes)

    def agreed() -> tuple[dict[str, tuple[int, ...]], bool]:
        shapes = {name: built.columns[name][0].read().shape[1:] for name in VIEWS if built.columns.get(name)}
        return shapes, built.was_there or not share.numbers

    # A process whose share is empty does not know how long the vectors are.
    answers = processes.gather(agreed, doing="Opening the reference")
    shapes = {name: shape for shapes, _ in answers for name, shape in shapes.items()}
    views = {}
    for name in VIEWS:
        vectors = chunked(name, shapes[name], options.memory_bytes)
        index = built.indexes.get(name) or ExactIndex(vectors, device=pipeline.device)
        views[name] = SharedIndex(index, held(index.vectors), processes)
    if pipeline.store == "reference":
        # Everybody reads the data set, so everybody has all images.
        stored = HeldRows(SourceRows(source, contents), np.arange(len(contents)), len(contents))
    else:
        stored = held(chunked(VOLUMES, image_shape))
    return Reference(
        ids=contents.ids,
        groups=contents.groups,
        group_codes=encode_groups(contents.groups),
        digests=contents.digests,
        ranges=contents.ranges,
        scale=pipeline.scale,
        views=views,
        stored=stored,
        label_maps=held(chunked(LABEL_MAPS, image_shape[1:])),
        fingerprint=combine(_parts(contents, pipeline)),
        seconds=built.seconds,
        from_cache=options.cache_dir is not None and all(was_there for _, was_there in answers),
        processes=processes,
    )


def _say(reference: Reference, built: _Built, role: str) -> None:
    """Log what happened."""
    if built.was_there:
        message = "Reused the cached index of %d %s images, %s: %.2f s saved."
        _LOGGER.info(message, len(reference), role, built.folder, built.seconds)
    elif built.folder is not None:
        _LOGGER.info(
            "Built the index of %d %s images in %.2f s: %s.", len(reference), role, built.seconds, built.folder
        )
