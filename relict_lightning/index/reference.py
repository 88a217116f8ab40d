"""The reference: a set of images as the detector sees it, embedded, stored and indexed, in memory or in the cache."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from relict_lightning.data import ImageBatch, ImageSource, images_per_batch
from relict_lightning.errors import InvalidImageError
from relict_lightning.index.entry import Entry, EntryWriter, open_or_put_aside, writing
from relict_lightning.index.fingerprint import combine, digest_array, digest_module
from relict_lightning.index.flat import FlatIndex
from relict_lightning.index.read_once import ReadOnce, is_in_memory
from relict_lightning.index.views import coarse_view, feature_view

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

_LOGGER = logging.getLogger(__name__)
_ARRAYS = ("feature_vectors", "coarse_vectors", "volumes", "label_maps")


@dataclass(frozen=True, kw_only=True)
class IntensityScale:
    """The affine map that takes the training set's intensity range to [0, 1].

    Volumes are stored in float16, which resolves [0, 1] finely and CT numbers coarsely, and the structural
    similarity needs a data range; both take the training set's. Values outside the range are kept, not clipped.

    Attributes:
        low: Smallest intensity of the training set.
        high: Largest intensity of the training set.
    """

    low: float
    high: float

    def apply(self, images: Float[Tensor, "n c *spatial"]) -> Float[Tensor, "n c *spatial"]:
        """Return the images on the training set's unit scale."""
        return (images - self.low) / (self.high - self.low)


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What one pass over a set of images tells.

    Attributes:
        shape: `[c, *spatial]` of every image.
        count: Number of images.
        scale: Their intensity range.
        digest: Hash of every image, label map, id and group, in order.
        item_digests: Hash of every image's values alone; equal ones are bitwise copies.
        largest_label: Largest label of the given label maps; None where there are none.
        kept: What was read, until a reference is built from it; None where reading again costs nothing.
    """

    shape: tuple[int, ...]
    count: int
    scale: IntensityScale
    digest: str
    item_digests: tuple[str, ...]
    largest_label: int | None
    kept: ReadOnce | None = field(default=None, repr=False, compare=False)


@final
@dataclass(frozen=True, kw_only=True)
class Reference:
    """A set of images, ready to be searched and compared with.

    Attributes:
        ids: Id of every image.
        groups: Group (patient) of every image.
        group_codes: The same as integers, `[m]`, equal for equal groups.
        feature: Index over the feature view.
        coarse: Index over the coarse voxel view.
        feature_vectors: `[m, d]`, unit vectors.
        coarse_vectors: `[m, d]`, unit vectors.
        volumes: `[m, c, *spatial]`, float16, on the training set's unit scale.
        label_maps: `[m, *spatial]`, integer.
        fingerprint: Hash of everything that this was made from.
        seconds: How long it took to build.
        from_cache: Whether it was read from the cache rather than built.
    """

    ids: tuple[str, ...]
    groups: tuple[str, ...]
    group_codes: Array
    feature: FlatIndex
    coarse: FlatIndex
    feature_vectors: Array
    coarse_vectors: Array
    volumes: Array
    label_maps: Array
    fingerprint: str
    seconds: float
    from_cache: bool

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape `[c, *spatial]` of every image."""
        return self.volumes.shape[1:]


def scan(source: ImageSource, *, cache_dir: Path | None = None) -> Scan:
    """Read a set once: count, shape, intensity range and content hash.

    What is read from anything but arrays in memory is kept for `build_reference`, which drops it. Beyond 256 MiB that
    takes, for so long, the disk space of the set in float32.

    Args:
        source: The images.
        cache_dir: Folder whose disk holds what is kept; None takes the system's folder for temporary files.

    Raises:
        InvalidImageError: If every voxel of the set has one value.
    """
    kept = None if is_in_memory(source) else ReadOnce(cache_dir)
    try:
        return _scan(source, kept)
    except BaseException:
        if kept is not None:
            kept.close()
        raise


def _scan(source: ImageSource, kept: ReadOnce | None) -> Scan:
    """Read a set, and keep what is read where there is something to keep it in."""
    digests: list[str] = []
    item_digests: list[str] = []
    low, high = np.inf, -np.inf
    shape: tuple[int, ...] = ()
    largest_label: int | None = None
    for batch in source.batches(images_per_batch(source.image_shape)):
        if kept is not None:
            kept.add(batch)
        images = batch.images.numpy()
        shape = images.shape[1:]
        low, high = min(low, float(images.min())), max(high, float(images.max()))
        for position, (image, item_id, group) in enumerate(zip(images, batch.ids, batch.groups, strict=True)):
            item_digests.append(digest_array(image))
            digests += [item_digests[-1], item_id, group]
            if batch.segmentations is not None:
                digests.append(digest_array(batch.segmentations[position].numpy()))
        if batch.segmentations is not None:
            largest_label = max(largest_label or 0, int(batch.segmentations.max()))
    if not high > low:
        raise InvalidImageError(
            f"Every voxel of the {source.role} images has the value {low}: there is nothing to compare. "
            f"Check how the images are read and scaled."
        )
    return Scan(
        shape=shape,
        count=len(item_digests),
        scale=IntensityScale(low=low, high=high),
        digest=combine({"items": digests}),
        item_digests=tuple(item_digests),
        largest_label=largest_label,
        kept=kept,
    )


@torch.no_grad()
def build_reference(
    source: ImageSource,
    contents: Scan,
    *,
    scale: IntensityScale,
    encoder: nn.Module,
    segment: Callable[[ImageBatch], Tensor],
    segmenter_digest: str,
    cache_dir: Path | None,
    device: torch.device,
    progress: bool,
    encoder_digest: str | None = None,
) -> Reference:
    """Return the reference of a set of images, from the cache where it holds one of the same fingerprint.

    Args:
        source: The images. They are read only where the scan did not keep them.
        contents: What `scan` told of them. What it kept is dropped, whether building succeeds or not.
        scale: The training set's intensity scale.
        encoder: Images on that scale to embeddings.
        segment: A batch on that scale to its label maps, `[b, *spatial]`.
        segmenter_digest: Hash of where the label maps come from.
        cache_dir: Folder of the cache; None keeps everything in memory.
        device: Where to encode.
        progress: Whether to show a progress bar.
        encoder_digest: Hash of the encoder, from before it was used for the first time; None takes it now.

    Returns:
        The reference, whose `from_cache` tells which of the two happened.
    """
    parts = {"images": contents.digest, "scale": [scale.low, scale.high]}
    pipeline = _Pipeline(scale=scale, encoder=encoder, segment=segment, device=device, progress=progress)
    try:
        fingerprint = combine(
            {**parts, "encoder": encoder_digest or digest_module(encoder), "segmenter": segmenter_digest}
        )
        return _found_or_built(source, contents, pipeline, fingerprint, cache_dir)
    finally:
        if contents.kept is not None:
            contents.kept.close()


def _found_or_built(
    source: ImageSource, contents: Scan, pipeline: "_Pipeline", fingerprint: str, cache_dir: Path | None
) -> Reference:
    """Return the reference from the cache, or fill it and put it there."""
    directory = None if cache_dir is None else cache_dir / fingerprint
    entry = None if directory is None else open_or_put_aside(directory)
    if entry is not None:
        cached = read_reference(entry, prefix="")
        message = "Reused the cached index of %d %s images, %s: %.2f s saved."
        _LOGGER.info(message, len(cached), source.role, directory, cached.seconds)
        return cached
    if directory is None:
        return pipeline.fill(source, contents, lambda _, shape, dtype: np.empty(shape, dtype), fingerprint)
    with writing(directory) as writer:
        built = pipeline.fill(source, contents, writer.array, fingerprint)
        _write_lists(built, writer, prefix="")
        writer.commit({"count": len(built)})
    message = "Built the index of %d %s images in %.2f s: %s."
    _LOGGER.info(message, len(built), source.role, built.seconds, directory)
    return built


@dataclass(frozen=True, kw_only=True)
class _Pipeline:
    """The road that every image of a reference takes."""

    scale: IntensityScale
    encoder: nn.Module
    segment: Callable[[ImageBatch], Tensor]
    device: torch.device
    progress: bool

    def fill(
        self,
        source: ImageSource,
        contents: Scan,
        allocate: Callable[[str, tuple[int, ...], type[np.generic]], Array],
        fingerprint: str,
    ) -> Reference:
        """Encode and store every image in the arrays that `allocate` hands out by name, shape and dtype."""
        started = time.perf_counter()
        count, spatial = contents.count, contents.shape[1:]
        volumes = allocate("volumes", (count, *contents.shape), np.float16)
        # Some atlases number their labels beyond 16 bits; they must not wrap around.
        wide = (contents.largest_label or 0) > np.iinfo(np.int16).max
        label_maps = allocate("label_maps", (count, *spatial), np.int32 if wide else np.int16)
        ids: list[str] = []
        groups: list[str] = []
        vectors: dict[str, Array] = {}
        bar = tqdm(total=count, desc=f"Indexing {source.role} images", unit="image", disable=not self.progress)
        with bar:
            for batch in _batches(source, contents):
                here = slice(len(ids), len(ids) + len(batch.ids))
                images = self.scale.apply(batch.images.to(self.device))
                _refuse_other_units(images, source.role)
                scaled = replace(batch, images=images)
                views = {"feature": feature_view(self.encoder, images), "coarse": coarse_view(images)}
                for name, view in views.items():
                    if name not in vectors:
                        vectors[name] = allocate(f"{name}_vectors", (count, view.shape[1]), np.float32)
                    vectors[name][here] = view.cpu().numpy()
                volumes[here] = images.cpu().numpy()
                label_maps[here] = self.segment(scaled).cpu().numpy()
                ids += batch.ids
                groups += batch.groups
                bar.update(len(batch.ids))
        return Reference(
            ids=tuple(ids),
            groups=tuple(groups),
            group_codes=_encode_groups(groups),
            feature=FlatIndex.from_vectors(vectors["feature"]),
            coarse=FlatIndex.from_vectors(vectors["coarse"]),
            feature_vectors=vectors["feature"],
            coarse_vectors=vectors["coarse"],
            volumes=volumes,
            label_maps=label_maps,
            fingerprint=fingerprint,
            seconds=time.perf_counter() - started,
            from_cache=False,
        )


def _batches(source: ImageSource, contents: Scan) -> Iterator[ImageBatch]:
    """Return the images as the scan kept them, or read them again."""
    if contents.kept is None or contents.kept.is_closed:
        return source.batches(images_per_batch(source.image_shape))
    return contents.kept.batches()


def subset(reference: Reference, positions: Sequence[int]) -> Reference:
    """Return a reference of some of the images, in memory."""
    arrays = {name: np.ascontiguousarray(getattr(reference, name)[list(positions)]) for name in _ARRAYS}
    groups = [reference.groups[position] for position in positions]
    return Reference(
        ids=tuple(reference.ids[position] for position in positions),
        groups=tuple(groups),
        group_codes=_encode_groups(groups),
        feature=FlatIndex.from_vectors(arrays["feature_vectors"]),
        coarse=FlatIndex.from_vectors(arrays["coarse_vectors"]),
        **arrays,
        fingerprint=combine({"of": reference.fingerprint, "positions": list(positions)}),
        seconds=reference.seconds,
        from_cache=reference.from_cache,
    )


def write_reference(reference: Reference, writer: EntryWriter, *, prefix: str) -> None:
    """Copy a reference into a folder that is being written, its files' names starting with `prefix`."""
    for name in _ARRAYS:
        values = getattr(reference, name)
        writer.array(f"{prefix}{name}", values.shape, values.dtype.type)[:] = values
    _write_lists(reference, writer, prefix=prefix)


def read_reference(entry: Entry, *, prefix: str) -> Reference:
    """Return the reference that `write_reference` put into a folder."""
    items = entry.table(f"{prefix}items")
    return Reference(
        ids=tuple(items["ids"]),
        groups=tuple(items["groups"]),
        group_codes=_encode_groups(items["groups"]),
        feature=FlatIndex(entry.index(f"{prefix}feature")),
        coarse=FlatIndex(entry.index(f"{prefix}coarse")),
        **{name: entry.array(f"{prefix}{name}") for name in _ARRAYS},
        fingerprint=items["fingerprint"],
        seconds=float(items["seconds"]),
        from_cache=True,
    )


def _write_lists(reference: Reference, writer: EntryWriter, *, prefix: str) -> None:
    """Write what is not a plain array of a reference: its FAISS indexes, and the table of its items."""
    writer.index(f"{prefix}feature", reference.feature.index)
    writer.index(f"{prefix}coarse", reference.coarse.index)
    items = {"ids": reference.ids, "groups": reference.groups}
    writer.table(f"{prefix}items", {**items, "fingerprint": reference.fingerprint, "seconds": reference.seconds})


def _refuse_other_units(images: Tensor, role: str) -> None:
    """Refuse images that float16 cannot hold on the training set's unit scale."""
    largest = float(images.abs().max())
    if largest > torch.finfo(torch.float16).max:
        raise InvalidImageError(
            f"The {role} images reach {largest:.3g} times the training images' intensity range. "
            f"Pass both through the same preprocessing."
        )


def _encode_groups(groups: Sequence[str]) -> Array:
    """Return one integer per image, equal for equal groups."""
    codes: dict[str, int] = {}
    return np.array([codes.setdefault(group, len(codes)) for group in groups], dtype=np.int64)
