import gc
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, Subset, TensorDataset

from relict_lightning import ReplicaDetector
from relict_lightning.data import ImageBatch, open_images
from relict_lightning.encoders import GradientEncoder
from relict_lightning.errors import InvalidImageError
from relict_lightning.index import build_reference, read_once, scan
from relict_lightning.index.read_once import ReadOnce, is_in_memory

# Two items are probed twice for repeatability, and the first one is read once more for its shape.
PROBES = 5


class Slow(Dataset):
    """A lazy data set that counts its reads where every copy sees them."""

    reads = 0

    def __init__(self, count, *, seed=0, with_labels=False):
        self.images = torch.rand((count, 1, 8, 8), generator=torch.Generator().manual_seed(seed))
        self.with_labels = with_labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        Slow.reads += 1
        image = self.images[index].clone()
        return (image, (image[0] > 0.5).long() * 70_000) if self.with_labels else image


@pytest.fixture(autouse=True)
def _no_reads():
    Slow.reads = 0


@pytest.fixture
def small_memory(monkeypatch):
    """Everything spills into a file."""
    monkeypatch.setattr(read_once, "_IN_MEMORY_BYTES", 100)


def _build(source, contents, *, cache_dir=None, encoder=None):
    return build_reference(
        source,
        contents,
        scale=contents.scale,
        encoder=encoder or GradientEncoder(),
        segment=lambda batch: (batch.images[:, 0] > 0.5).long() if batch.segmentations is None else batch.segmentations,
        segmenter_digest="any",
        cache_dir=cache_dir,
        device=torch.device("cpu"),
        progress=False,
    )


def _batch(first, *, labels=None):
    images = torch.rand((3, 1, 4, 5), generator=torch.Generator().manual_seed(first))
    names = tuple(f"item {first + position}" for position in range(3))
    return ImageBatch(images=images, segmentations=labels, ids=names, groups=("anna", "ben", "ben"))


def _open_files():
    return {path for path in map(os.path.realpath, Path("/proc/self/fd").iterdir()) if "deleted" in path}


@pytest.mark.parametrize("cached", [False, True])
def test_a_fit_reads_every_item_once(tmp_path, cached):
    detector = ReplicaDetector(cache_dir=tmp_path if cached else None)

    detector.fit(Slow(90), Slow(40, seed=1))

    assert Slow.reads <= 90 + PROBES + 40 + PROBES


@pytest.mark.usefixtures("small_memory")
def test_a_fit_that_spills_reads_every_item_once(tmp_path):
    ReplicaDetector(cache_dir=tmp_path).fit(Slow(90), Slow(40, seed=1))

    assert Slow.reads <= 90 + PROBES + 40 + PROBES


@pytest.mark.parametrize("spills", [False, True])
def test_a_reference_is_the_same_whether_its_images_were_kept_or_not(tmp_path, monkeypatch, spills):
    if spills:
        monkeypatch.setattr(read_once, "_IN_MEMORY_BYTES", 100)
    lazy = Slow(70, with_labels=True)
    source = open_images(lazy, role="training")
    in_memory = open_images(lazy.images, role="training", segmentations=(lazy.images[:, 0] > 0.5).long() * 70_000)

    kept = _build(source, scan(source, cache_dir=tmp_path))

    read = _build(in_memory, scan(in_memory))
    assert kept.fingerprint == read.fingerprint
    assert (kept.ids, kept.groups) == (read.ids, read.groups)
    for name in ("feature_vectors", "coarse_vectors", "volumes", "label_maps"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(read, name))


@pytest.mark.usefixtures("small_memory")
def test_batches_come_back_as_they_were_kept(tmp_path):
    labels = torch.arange(60).reshape(3, 4, 5)
    kept = ReadOnce(tmp_path)
    batches = [_batch(0, labels=labels), _batch(3, labels=labels - 30), _batch(6, labels=labels * 2**40)]
    for batch in batches:
        kept.add(batch)

    again = [list(kept.batches()) for _ in range(2)]

    kept.close()
    for found in again:
        for before, after in zip(batches, found, strict=True):
            assert torch.equal(before.images, after.images)
            assert torch.equal(before.segmentations, after.segmentations)
            assert (before.ids, before.groups) == (after.ids, after.groups)


@pytest.mark.usefixtures("small_memory")
def test_a_spilled_file_has_no_name_and_is_closed_after_the_build(tmp_path):
    source = open_images(Slow(40), role="training")
    before = _open_files()
    contents = scan(source, cache_dir=tmp_path)
    during, names = _open_files() - before, list(tmp_path.iterdir())

    _build(source, contents)

    assert len(during) == 1
    assert str(tmp_path) in during.pop()
    assert names == []
    assert contents.kept.is_closed
    assert _open_files() == before


@pytest.mark.usefixtures("small_memory")
def test_a_build_that_fails_closes_the_file(tmp_path):
    class Failing(nn.Module):
        def forward(self, images):
            raise RuntimeError("out of memory")

    source = open_images(Slow(40), role="training")
    before = _open_files()
    contents = scan(source, cache_dir=tmp_path)

    with pytest.raises(RuntimeError, match="out of memory"):
        _build(source, contents, encoder=Failing())

    assert contents.kept.is_closed
    assert _open_files() == before


@pytest.mark.usefixtures("small_memory")
def test_a_scan_that_fails_closes_the_file(tmp_path):
    class Odd(Slow):
        def __getitem__(self, index):
            return torch.zeros(1, 8, 9) if index == 99 else super().__getitem__(index)

    before = _open_files()

    with pytest.raises(InvalidImageError, match="has shape"):
        scan(open_images(Odd(100), role="training"), cache_dir=tmp_path)

    assert _open_files() == before


@pytest.mark.usefixtures("small_memory")
def test_a_scan_that_nothing_is_built_from_leaves_no_file_open(tmp_path):
    before = _open_files()
    contents = scan(open_images(Slow(40), role="training"), cache_dir=tmp_path)

    del contents
    gc.collect()

    assert _open_files() == before


def test_a_full_disk_costs_a_second_read_and_nothing_else(monkeypatch):
    class Full(tempfile.SpooledTemporaryFile):
        def write(self, _):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(read_once.tempfile, "SpooledTemporaryFile", Full)
    lazy = Slow(40)
    source = open_images(lazy, role="training")

    reference = _build(source, scan(source))

    assert Slow.reads == 2 * 40 + PROBES
    np.testing.assert_array_equal(reference.ids, [f"training-{position}" for position in range(40)])


def test_a_second_build_from_one_scan_reads_the_set_again():
    source = open_images(Slow(40), role="training")
    contents = scan(source)
    first = _build(source, contents)

    second = _build(source, contents)

    assert Slow.reads == 2 * 40 + PROBES
    np.testing.assert_array_equal(first.volumes, second.volumes)


IMAGES = torch.rand((4, 1, 4, 4), generator=torch.Generator().manual_seed(0))
IN_MEMORY = {
    "tensor": IMAGES,
    "array": IMAGES.numpy(),
    "list": list(IMAGES),
    "dictionaries": [{"image": image, "id": str(position)} for position, image in enumerate(IMAGES)],
    "dataset": TensorDataset(IMAGES),
    "subset": Subset(TensorDataset(IMAGES), [0, 2]),
}


@pytest.mark.parametrize("images", IN_MEMORY.values(), ids=IN_MEMORY.keys())
def test_images_in_memory_are_not_kept_twice(images):
    source = open_images(images, role="training")

    assert is_in_memory(source)
    assert scan(source).kept is None


@pytest.mark.parametrize("kind", ["lazy", "map", "path", "path in a dictionary", "path in a tuple", "paths of labels"])
def test_images_that_a_file_holds_are_kept(tmp_path, kind):
    paths = [tmp_path / f"{position}.npy" for position in range(4)]
    for path, image in zip(paths, IMAGES, strict=True):
        np.save(path, image.numpy())
    np.save(tmp_path / "all.npy", IMAGES.numpy())
    np.save(tmp_path / "labels.npy", np.zeros((4, 4), dtype=np.int16))
    items = {
        "lazy": Slow(4),
        "map": np.load(tmp_path / "all.npy", mmap_mode="r"),
        "path": paths,
        "path in a dictionary": [{"image": str(path)} for path in paths],
        "path in a tuple": [(path,) for path in paths],
    }
    segmentations = [tmp_path / "labels.npy"] * 4 if kind == "paths of labels" else None
    source = open_images(items.get(kind, IMAGES), role="training", segmentations=segmentations)

    contents = scan(source)

    assert not is_in_memory(source)
    assert contents.kept is not None
