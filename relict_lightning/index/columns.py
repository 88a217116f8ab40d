"""What is computed from a set's images, chunk by chunk: label maps and the vectors that images are searched by.

A row depends on one image, the intensity scale and what computes it, so a row that any folder of the cache holds is not
computed again.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import final

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from relict_lightning.data import ImageSource, images_per_batch
from relict_lightning.errors import IndexCorruptError, IndexStaleError, InvalidImageError
from relict_lightning.index.chunks import Chunk
from relict_lightning.index.contents import LABEL_MAPS, VOLUMES, Contents, Share, chunks_of, narrow
from relict_lightning.index.fingerprint import combine, digest_array, digest_rows
from relict_lightning.index.rows import Array, Rows
from relict_lightning.index.views import coarse_view, feature_view, label_view
from relict_lightning.index.volumes import IntensityScale, Store, restore
from relict_lightning.index.workshop import CacheWorkshop, Workshop

FEATURE, COARSE, LABELS = "feature", "coarse", "labels"
VIEWS = (FEATURE, COARSE, LABELS)


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """The road that every image of a reference takes.

    Attributes:
        given_scale: The training set's intensity scale; None until the training set was read.
        encoder: Images on that scale to embeddings.
        encoder_digest: Its hash.
        segment: Images on that scale to label maps; None where the data bring them.
        segmenter_digest: Hash of where label maps come from.
        store: How volumes are stored.
        device: Where to encode.
    """

    given_scale: IntensityScale | None
    encoder: nn.Module
    encoder_digest: str
    segment: Callable[[Tensor], Tensor] | None
    segmenter_digest: str
    store: Store
    device: torch.device

    @property
    def scale(self) -> IntensityScale:
        """The training set's intensity scale."""
        if self.given_scale is None:
            raise AssertionError("The training set was not read yet.")
        return self.given_scale

    def recipe(self, column: str) -> str:
        """Return the hash of all that a column's rows depend on beside the image."""
        common = {"scale": [self.scale.low, self.scale.high], "store": self.store, "column": column}
        made_by = {FEATURE: self.encoder_digest, COARSE: ""}.get(column, self.segmenter_digest)
        return combine({**common, "by": made_by})


def read_unchanged(source: ImageSource, contents: Contents, positions: Sequence[int]) -> Array:
    """Return images from the data set, after making sure that they are the ones that were indexed.

    Raises:
        IndexStaleError: If one has changed since.
    """
    images = source.read(positions).images.numpy()
    changed = np.flatnonzero((digest_rows(images) != contents.digests[list(positions)]).any(axis=1))
    if len(changed):
        raise IndexStaleError(
            f"Item {positions[changed[0]]} of the {source.role} set and {len(changed) - 1} others are not what they "
            f"were when they were indexed. Fit again, or store the images (store='float16') if the files must change."
        )
    return images


@final
class SourceRows(Rows):
    """Images that are not stored: read from the data set each time, and compared with what was indexed.

    Args:
        source: The data set.
        contents: What was indexed.
    """

    def __init__(self, source: ImageSource, contents: Contents) -> None:
        self._source = source
        self._contents = contents

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape `(m, c, *spatial)`."""
        return (len(self._contents), *self._contents.image_shape)

    def __getitem__(self, positions: Array) -> Array:
        """Return the images at some positions, on their own scale.

        Raises:
            IndexStaleError: If one has changed since it was indexed.
        """
        return read_unchanged(self._source, self._contents, [int(position) for position in positions])

    def blocks(self) -> Iterator[tuple[int, Array]]:
        """Return all images in order, chunk by chunk."""
        for start in range(0, len(self), self._contents.chunk_rows):
            yield start, self[np.arange(start, min(start + self._contents.chunk_rows, len(self)))]


@torch.no_grad()
def derive(
    source: ImageSource,
    contents: Contents,
    share: Share,
    workshop: Workshop,
    pipeline: Pipeline,
    *,
    progress: bool,
) -> dict[str, list[Chunk]]:
    """Return all columns of this process's share: what reading stored, and what is computed from it.

    Args:
        source: The images; read again only where volumes are not stored.
        contents: What is known of them.
        share: What of them is stored here.
        workshop: Where chunks are kept.
        pipeline: What computes.
        progress: Whether to show a progress bar.
    """
    columns = {name: list(chunks) for name, chunks in share.chunks.items()}
    donors = {name: _Donors(name, pipeline.recipe(name), workshop) for name in (LABEL_MAPS, *VIEWS)}
    made_here = VIEWS if pipeline.segment is None else (LABEL_MAPS, *VIEWS)
    total = len(share.positions(contents))
    with tqdm(total=total, desc=f"Encoding {source.role} images", unit="image", disable=not progress) as bar:
        for index, number in enumerate(share.numbers):
            rows = contents.rows_of(number)
            stored = share.chunks[VOLUMES][index] if VOLUMES in share.chunks else None
            computing = _Computing(source, contents, rows, stored, pipeline)
            if pipeline.segment is None:
                computing.label_maps = columns[LABEL_MAPS][index]
            for name in made_here:
                of_labels = name == LABELS and contents.label_digests is not None
                digests = contents.label_digests if of_labels else contents.digests
                assert digests is not None  # noqa: S101 - tested above
                made = donors[name].chunk(digests[rows], partial(computing.rows, name))
                columns.setdefault(name, []).append(made)
                if name == LABEL_MAPS:
                    computing.label_maps = made
            bar.update(rows.stop - rows.start)
    return columns


@final
class _Computing:
    """Computes rows of one chunk; its images are read once, when they are first needed."""

    def __init__(
        self, source: ImageSource, contents: Contents, rows: slice, stored: Chunk | None, pipeline: Pipeline
    ) -> None:
        self._source = source
        self._contents = contents
        self._rows = rows
        self._stored = stored
        self._pipeline = pipeline
        self.label_maps: Chunk | None = None

    def rows(self, column: str, places: Sequence[int]) -> Array:
        """Return some rows of a column, given their places in the chunk."""
        size = images_per_batch(self._contents.image_shape)
        parts = [self._batch(column, list(places[start : start + size])) for start in range(0, len(places), size)]
        return narrow(np.concatenate(parts)) if column == LABEL_MAPS else np.concatenate(parts)

    def _batch(self, column: str, places: list[int]) -> Array:
        device = self._pipeline.device
        if column == LABELS:
            assert self.label_maps is not None  # noqa: S101 - made before
            maps = torch.from_numpy(self.label_maps.read()[places].astype(np.int64))
            return label_view(maps.to(device)).cpu().numpy()
        images = self._images[places].to(device)
        if column == FEATURE:
            return feature_view(self._pipeline.encoder, images).cpu().numpy()
        if column == COARSE:
            return coarse_view(images).cpu().numpy()
        assert self._pipeline.segment is not None  # noqa: S101 - given label maps were stored while reading
        return self._pipeline.segment(images).cpu().numpy()

    @cached_property
    def _images(self) -> Tensor:
        """The images of the chunk on the unit scale."""
        rows = self._rows
        if self._stored is None:
            values = read_unchanged(self._source, self._contents, range(rows.start, rows.stop))
        else:
            values = self._stored.read()
        images = torch.from_numpy(restore(values, self._contents.ranges[rows], self._pipeline.scale))
        largest = float(images.abs().max())
        if largest > torch.finfo(torch.float16).max:
            raise InvalidImageError(
                f"The {self._source.role} images reach {largest:.3g} times the training images' intensity range. "
                f"Pass both through the same preprocessing."
            )
        return images


@final
class _Donors:
    """Makes the chunks of one column, of rows that other folders of the cache hold as far as possible."""

    def __init__(self, column: str, recipe: str, workshop: Workshop) -> None:
        self._column = column
        self._recipe = recipe
        self._workshop = workshop

    def chunk(self, digests: Array, compute: Callable[[Sequence[int]], Array]) -> Chunk:
        """Return a chunk.

        Args:
            digests: Hash of what each row is computed from.
            compute: From places in the chunk to their rows.
        """

        def make() -> Array:
            known = {place: at for place, digest in enumerate(digests) if (at := self._known.get(digest.tobytes()))}
            missing = [place for place in range(len(digests)) if place not in known]
            found = [(list(known), self._copied(list(known.values())))] if known else []
            computed = [(missing, compute(missing))] if missing else []
            parts = found + computed
            dtype = np.result_type(*(values.dtype for _, values in parts))
            rows = np.empty((len(digests), *parts[0][1].shape[1:]), dtype=dtype)
            for places, values in parts:
                rows[places] = values
            return rows

        key = combine({"of": digest_array(digests), "recipe": self._recipe})
        return self._workshop.chunk(self._column, key, len(digests), make)

    @staticmethod
    def _copied(places: Sequence[tuple[Chunk, int]]) -> Array:
        return np.stack([chunk.read()[row] for chunk, row in places])

    @cached_property
    def _known(self) -> dict[bytes, tuple[Chunk, int]]:
        """Where each row that was made by the same recipe lies, by the hash of what it was made from."""
        known: dict[bytes, tuple[Chunk, int]] = {}
        if not isinstance(self._workshop, CacheWorkshop):
            return known
        for entry in self._workshop.entries():
            column = entry.manifest.get("columns", {}).get(self._column)
            if column is None or column["recipe"] != self._recipe:
                continue
            of_labels = self._column == LABELS and entry.manifest["has_label_digests"]
            # Another damaged folder is no reason to stop; its rows are computed anew.
            with contextlib.suppress(IndexCorruptError):
                digests = [digest.tobytes() for digest in entry.array("label_digests" if of_labels else "digests")]
                places = [(chunk, row) for chunk in chunks_of(entry, self._column) for row in range(chunk.rows)]
                known.update(
                    {digest: place for digest, place in zip(digests, places, strict=True) if place[0].is_there}
                )
        return known
