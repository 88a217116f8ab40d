"""A reference is what each image gives by itself, wherever it is kept and however it came there."""

import os
import stat
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from built_references import UNIT, above_half, build
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from relict_lightning.encoders import GradientEncoder
from relict_lightning.errors import IndexCorruptError, IndexStaleError, InvalidImageError, RelictWarning
from relict_lightning.index import IntensityScale, coarse_view, contents, feature_view, label_view, subset
from relict_lightning.index.exact import ExactIndex

GROUPS = ["anna", "ben", "ben", "cleo", "anna", "dora"]
EVERYONE = np.arange(6)


class CountingEncoder(nn.Module):
    """Counts how many images it was shown."""

    def __init__(self, weight=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        # An object of its own, because a plain number or a list is configuration that the fingerprint covers.
        self.counter = SimpleNamespace(shown=0)

    @property
    def shown(self):
        return self.counter.shown

    def forward(self, images):
        self.counter.shown += len(images)
        return self.weight * images.flatten(1)


class CountingSegmenter:
    """Counts how many images it was shown."""

    def __init__(self):
        self.shown = 0

    def __call__(self, images):
        self.shown += len(images)
        return above_half(images)


class Counted(Dataset):
    """Counts how often an item is read."""

    def __init__(self, images):
        self.images = images
        self.reads = SimpleNamespace(count=0)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


def _images(count=6, seed=0):
    return torch.rand((count, 1, 8, 8), generator=torch.Generator().manual_seed(seed))


def _build(images=None, **options):
    settings = {"groups": GROUPS, "segment": above_half, "segmenter": "halves", "scale": None}
    return build(_images() if images is None else images, **{**settings, **options})


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of two images, so that a few images are many chunks."""
    monkeypatch.setattr(contents, "chunk_rows", lambda _: 2)


def _same(reference, other):
    """Whether two references hold the same, to the bit."""
    everyone = np.arange(len(reference))
    assert (reference.ids, reference.groups, reference.scale) == (other.ids, other.groups, other.scale)
    np.testing.assert_array_equal(reference.digests, other.digests)
    np.testing.assert_array_equal(reference.volumes(everyone), other.volumes(everyone))
    np.testing.assert_array_equal(reference.label_maps[everyone], other.label_maps[everyone])
    for name, view in reference.views.items():
        np.testing.assert_array_equal(view.vectors[everyone], other.views[name].vectors[everyone])
    return True


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(("store", "error"), [("float16", 2**-12), ("uint8", 1 / 510), ("reference", 1e-6)])
def test_a_reference_holds_what_each_image_gives_by_itself(tmp_path, small_chunks, cached, store, error):
    images = 40 * _images() - 20
    scale = IntensityScale.covering(float(images.min()), float(images.max()))
    unit = scale.apply(images)

    reference = _build(images, store=store, cache_dir=tmp_path if cached else None)

    seen = torch.from_numpy(reference.volumes(EVERYONE))
    np.testing.assert_allclose(seen, unit, atol=1.01 * error)
    assert reference.groups == tuple(GROUPS)
    assert reference.group_codes.tolist() == [0, 1, 1, 2, 0, 3]
    assert reference.ids == tuple(f"training-{position}" for position in range(6))
    assert reference.image_shape == (1, 8, 8)
    np.testing.assert_array_equal(reference.label_maps[EVERYONE], above_half(seen))
    expected = {
        "feature": feature_view(GradientEncoder(), seen),
        "coarse": coarse_view(seen),
        "labels": label_view(above_half(seen)),
    }
    for name, view in reference.views.items():
        np.testing.assert_allclose(view.vectors[EVERYONE], expected[name], atol=1e-5)
    assert reference.feature.search(reference.feature.vectors[EVERYONE], 1)[1][:, 0].tolist() == list(range(6))


def test_a_second_build_finds_the_cache_and_shows_the_encoder_nothing(tmp_path, small_chunks):
    encoder, segmenter = CountingEncoder(), CountingSegmenter()
    built = _build(encoder=encoder, segment=segmenter, cache_dir=tmp_path)
    shown = encoder.shown, segmenter.shown

    found = _build(encoder=encoder, segment=segmenter, cache_dir=tmp_path)

    assert (built.from_cache, found.from_cache) == (False, True)
    assert shown == (encoder.shown, segmenter.shown) == (6, 6)
    assert (found.fingerprint, found.seconds) == (built.fingerprint, built.seconds)
    assert _same(found, built)


@pytest.mark.parametrize("source", ["map-style", "iterable", "workers"])
def test_every_kind_of_data_set_gives_the_same_reference(tmp_path, small_chunks, source):
    images = _images()

    class Streamed(IterableDataset):
        def __iter__(self):
            return iter(images)

    data = {"map-style": Counted(images), "workers": Counted(images), "iterable": Streamed()}[source]

    reference = _build(data, num_workers=2 if source == "workers" else 0, cache_dir=tmp_path)

    assert _same(reference, _build(images))


def _files(folder, column):
    return {path.name: path.stat().st_ino for path in folder.glob(f"*/{column}-*.npy")}


@pytest.mark.parametrize(
    ("change", "kept", "shown"),
    [
        ({"encoder": CountingEncoder(1.5)}, ("volumes", "coarse", "label_maps", "labels"), (6, 6)),
        ({"segmenter": "thirds"}, ("volumes", "coarse", "feature"), (6, 12)),
        ({"groups": GROUPS[::-1]}, ("volumes", "coarse", "feature", "label_maps", "labels"), (6, 6)),
        ({"scale": IntensityScale(low=0.0, high=2.0)}, ("volumes",), (12, 12)),
        ({"images": _images(seed=1)}, (), (12, 12)),
        ({"store": "uint8"}, (), (12, 12)),
    ],
    ids=["encoder", "segmenter", "groups", "scale", "images", "store"],
)
def test_a_change_rebuilds_what_depends_on_it_and_nothing_else(tmp_path, small_chunks, change, kept, shown):
    encoder, segmenter = CountingEncoder(), CountingSegmenter()
    arguments = {"encoder": encoder, "segment": segmenter, "cache_dir": tmp_path}
    first = _build(**arguments)
    before = {column: _files(tmp_path, column) for column in ("volumes", "coarse", "feature", "label_maps", "labels")}

    other = _build(**{**arguments, **change})

    assert not other.from_cache
    assert other.fingerprint != first.fingerprint
    assert (encoder.shown, segmenter.shown) == shown
    for column, files in before.items():
        assert (_files(tmp_path, column) == files) == (column in kept), column
    assert _same(_build(**arguments), first)


def test_patients_that_are_added_are_all_that_is_encoded(tmp_path, small_chunks):
    images = _images(9)
    encoder, segmenter = CountingEncoder(), CountingSegmenter()
    arguments = {"encoder": encoder, "segment": segmenter, "cache_dir": tmp_path, "scale": UNIT}
    _build(images[:5], groups=range(5), **arguments)
    before = _files(tmp_path, "volumes")

    more = _build(images, groups=range(9), **arguments)

    assert (encoder.shown, segmenter.shown) == (9, 9)
    # Two whole chunks of the five images are the same files.
    assert len(before.items() & _files(tmp_path, "volumes").items()) == 3
    assert _same(more, _build(images, groups=range(9), segment=above_half, scale=UNIT, encoder=encoder))


def test_images_in_another_order_are_not_encoded_again(tmp_path, small_chunks):
    images = _images()
    encoder = CountingEncoder()
    _build(images, encoder=encoder, cache_dir=tmp_path)

    reordered = _build(images.flip(0), encoder=encoder, cache_dir=tmp_path, groups=GROUPS[::-1])

    assert encoder.shown == 6
    assert _same(reordered, _build(images.flip(0), encoder=encoder, groups=GROUPS[::-1]))


def test_an_interrupted_build_goes_on_where_it_stopped(tmp_path, small_chunks):
    class Failing(CountingEncoder):
        def forward(self, images):
            if self.shown >= 4:
                raise RuntimeError("out of memory")
            return super().forward(images)

    failing = Failing()
    with pytest.raises(RuntimeError, match="out of memory"):
        _build(encoder=failing, cache_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []
    failing.counter.shown = 0

    again = _build(encoder=failing, cache_dir=tmp_path)

    assert failing.shown == 2
    assert _same(again, _build(encoder=CountingEncoder()))
    assert list(tmp_path.glob(".building-*")) == []


def test_a_build_that_fails_before_anything_is_stored_leaves_nothing(tmp_path):
    with pytest.raises(InvalidImageError):
        _build(torch.full((6, 1, 8, 8), torch.nan), cache_dir=tmp_path)

    assert list(tmp_path.iterdir()) == []


def _harm(path):
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 255]))


@pytest.mark.parametrize("column", ["feature", "coarse", "labels"])
def test_damaged_vectors_are_built_again_with_a_warning_and_nothing_else_is(tmp_path, small_chunks, column):
    encoder = CountingEncoder()
    built = _build(encoder=encoder, cache_dir=tmp_path)
    _harm(sorted(tmp_path.glob(f"*/{column}-*.npy"))[1])

    with pytest.warns(RelictWarning, match="checksum does not match"):
        again = _build(encoder=encoder, cache_dir=tmp_path)

    assert _same(again, built)
    assert encoder.shown == (8 if column == "feature" else 6)


@pytest.mark.parametrize("column", ["volumes", "label_maps"])
def test_damaged_images_are_refused_when_they_are_read_and_built_again_then(tmp_path, small_chunks, column):
    encoder = CountingEncoder()
    built = _build(encoder=encoder, cache_dir=tmp_path)
    _harm(sorted(tmp_path.glob(f"*/{column}-*.npy"))[1])
    found = _build(encoder=encoder, cache_dir=tmp_path)

    with pytest.raises(IndexCorruptError, match=r"checksum does not match.*Fit again"):
        found.volumes(EVERYONE), found.label_maps[EVERYONE]

    assert _same(_build(encoder=encoder, cache_dir=tmp_path), built)
    assert encoder.shown == 6


@pytest.mark.parametrize("name", ["manifest.json", "items.json", "digests.npy", "ranges.npy"])
def test_a_damaged_small_file_is_built_again(tmp_path, small_chunks, name):
    encoder = CountingEncoder()
    built = _build(encoder=encoder, cache_dir=tmp_path)
    path = tmp_path / built.fingerprint / name
    (path,) = tmp_path.glob(f"*/{name}")
    path.write_bytes(path.read_bytes()[:-3])

    again = _build(encoder=encoder, cache_dir=tmp_path)

    assert not again.from_cache
    assert _same(again, built)
    assert encoder.shown == 6
    assert len(list(tmp_path.glob(".damaged-*"))) == 1
    assert _build(encoder=encoder, cache_dir=tmp_path).from_cache


def test_cached_patient_data_is_readable_by_its_owner_only(tmp_path):
    previous = os.umask(0)
    try:
        _build(cache_dir=tmp_path / "cache", hash_ids=True)
    finally:
        os.umask(previous)

    for path in (tmp_path / "cache").rglob("*"):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077 or path.parent.parent == tmp_path / "cache", path
        if path.is_dir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_hashed_ids_are_nowhere_in_clear_and_the_same_in_every_build(tmp_path):
    items = [
        {"image": image, "id": f"Meier-{position}", "group": group}
        for position, (image, group) in enumerate(zip(_images(), GROUPS, strict=True))
    ]

    reference = _build(items, groups=None, hash_ids=True, cache_dir=tmp_path)
    again = _build(items, groups=None, hash_ids=True, cache_dir=tmp_path)

    assert again.from_cache
    assert (reference.ids, reference.groups) == (again.ids, again.groups)
    assert reference.group_codes.tolist() == [0, 1, 1, 2, 0, 3]
    for path in tmp_path.rglob("*"):
        content = path.name.encode() + (path.read_bytes() if path.is_file() else b"")
        assert not any(name in content for name in (b"Meier", b"anna", b"cleo")), path
    assert set(_build(items, groups=None, hash_ids=True).ids).isdisjoint(reference.ids)


def test_images_that_are_not_stored_are_refused_once_they_changed(tmp_path):
    images = _images()
    reference = _build(images, store="reference", cache_dir=tmp_path)
    before = reference.volumes(EVERYONE)

    images[3] += 0.1

    assert before.shape == (6, 1, 8, 8)
    with pytest.raises(IndexStaleError, match=r"Item 3 of the training set .* not what they were.*Fit again"):
        reference.volumes(EVERYONE)
    assert list(tmp_path.glob("*/volumes-*")) == []


def test_a_sampled_check_reads_a_sample_and_a_full_one_everything(tmp_path, monkeypatch):
    images = _images(100)
    reads = []

    class Watched(Dataset):
        def __len__(self):
            return 100

        def __getitem__(self, index):
            reads.append(index)
            return images[index]

    built = _build(Watched(), groups=range(100), cache_dir=tmp_path)
    _build(Watched(), groups=range(100), cache_dir=tmp_path, check="sampled")
    reads.clear()

    found = _build(Watched(), groups=range(100), cache_dir=tmp_path, check="sampled")
    sampled = len(reads)
    reads.clear()
    _build(Watched(), groups=range(100), cache_dir=tmp_path)

    assert found.from_cache
    assert _same(found, built)
    assert sampled < 50
    assert len(reads) >= 100


@pytest.mark.parametrize("change", ["sampled image", "group", "count"])
def test_a_sampled_check_sees_changes_of_what_it_samples(tmp_path, change):
    images, groups = _images(100), list(range(100))
    built = _build(images, groups=groups, cache_dir=tmp_path, check="sampled")
    if change == "sampled image":
        images[99] += 0.01
    elif change == "group":
        groups[50] = 7
    else:
        images, groups = images[:99], groups[:99]

    other = _build(images, groups=groups, cache_dir=tmp_path, check="sampled")

    assert not other.from_cache
    assert other.fingerprint != built.fingerprint


def test_labels_beyond_16_bits_do_not_wrap_around(tmp_path, small_chunks):
    maps = torch.zeros(6, 8, 8, dtype=torch.long)
    maps[2] = 70_000

    reference = _build(segmentations=maps, cache_dir=tmp_path)

    np.testing.assert_array_equal(reference.label_maps[EVERYONE], maps)
    assert _build(segmentations=maps, cache_dir=tmp_path).from_cache
    assert not _build(segmentations=maps + 1, cache_dir=tmp_path).from_cache


def test_a_set_of_one_value_is_refused():
    with pytest.raises(InvalidImageError, match=r"Every voxel of the held-out images has the value 0.5"):
        _build(torch.full((6, 1, 8, 8), 0.5), role="held-out")


def test_images_in_other_units_than_the_training_set_are_refused():
    with pytest.raises(InvalidImageError, match="times the training images' intensity range"):
        _build(_images() * 1e6, scale=IntensityScale(low=0.0, high=1.0))


def test_a_subset_keeps_ids_groups_and_vectors_of_its_images(tmp_path):
    reference = _build(cache_dir=tmp_path)

    some = subset(reference, [4, 1, 2])

    assert some.ids == ("training-4", "training-1", "training-2")
    assert some.groups == ("anna", "ben", "ben")
    assert some.group_codes.tolist() == [0, 1, 1]
    chosen = np.array([4, 1, 2])
    np.testing.assert_array_equal(some.volumes(np.arange(3)), reference.volumes(chosen))
    np.testing.assert_array_equal(some.fetch_label_maps(np.arange(3)), reference.label_maps[chosen])
    assert some.feature.search(reference.feature.vectors[np.array([1])], 1)[1].tolist() == [[1]]


@pytest.mark.parametrize("cached", [False, True])
def test_an_approximate_search_is_kept_with_its_recall_and_finds_copies(tmp_path, cached):
    images = _images(300)
    options = {"groups": range(300), "search": "ivf_flat", "cache_dir": tmp_path if cached else None}

    reference = _build(images, **options)
    again = _build(images, **options)

    assert reference.feature.index.report.kind == "ivf_flat"
    assert reference.feature.index.report.recall >= 0.99
    assert again.from_cache == cached
    assert again.feature.index.report == reference.feature.index.report
    everyone = np.arange(300)
    positions = again.feature.search(again.feature.vectors[everyone], 1)[1]
    assert (positions[:, 0] == everyone).mean() >= 0.99
    assert isinstance(_build(images, groups=range(300)).feature.index, ExactIndex)
