import os
import stat
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from relict_lightning.data import open_images
from relict_lightning.encoders import GradientEncoder
from relict_lightning.errors import InvalidImageError, RelictWarning
from relict_lightning.index import (
    IntensityScale,
    build_reference,
    coarse_view,
    digest_module,
    feature_view,
    scan,
    subset,
)

GROUPS = ["anna", "ben", "ben", "cleo", "anna", "dora"]


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


def _images(count=6, seed=0):
    return torch.rand((count, 1, 8, 8), generator=torch.Generator().manual_seed(seed))


def _build(images=None, *, cache_dir=None, encoder=None, segmenter="halves", groups=GROUPS, scale=None):
    source = open_images(_images() if images is None else images, role="training", groups=groups)
    contents = scan(source)
    return build_reference(
        source,
        contents,
        scale=scale or contents.scale,
        encoder=encoder or GradientEncoder(),
        segment=lambda batch: (batch.images[:, 0] > 0.5).long(),
        segmenter_digest=segmenter,
        cache_dir=cache_dir,
        device=torch.device("cpu"),
        progress=False,
    )


def test_a_scan_tells_count_shape_and_range():
    images = 300 * _images() - 100

    contents = scan(open_images(images, role="training"))

    assert (contents.count, contents.shape) == (6, (1, 8, 8))
    assert (contents.scale.low, contents.scale.high) == (images.min(), images.max())


def test_bitwise_copies_have_equal_item_digests():
    images = _images()
    images[4] = images[1]

    digests = scan(open_images(images, role="training")).item_digests

    assert digests[4] == digests[1]
    assert len(set(digests)) == 5


def test_a_set_of_one_value_is_refused():
    with pytest.raises(InvalidImageError, match=r"Every voxel of the held-out images has the value 0.5"):
        scan(open_images(torch.full((3, 1, 8, 8), 0.5), role="held-out"))


@pytest.mark.parametrize("change", ["voxel", "order", "group", "id", "label"])
def test_any_change_of_the_data_changes_the_scan(change):
    items = [
        {"image": image, "id": str(position), "group": group, "label": torch.zeros(8, 8, dtype=torch.long)}
        for position, (image, group) in enumerate(zip(_images(), GROUPS, strict=True))
    ]
    before = scan(open_images(items, role="training")).digest
    if change == "voxel":
        items[3]["image"] = items[3]["image"].clone()
        items[3]["image"][0, 2, 2] += 1e-6
    elif change == "order":
        items.reverse()
    elif change == "label":
        items[3]["label"] = torch.ones(8, 8, dtype=torch.long)
    else:
        items[3][change] = "eve"

    assert scan(open_images(items, role="training")).digest != before


def test_unit_scale_takes_the_range_to_zero_and_one_and_does_not_clip():
    scaled = IntensityScale(low=-1000.0, high=3000.0).apply(torch.tensor([[[[-1000.0, 1000.0, 3000.0, 5000.0]]]]))

    assert scaled.flatten().tolist() == [0, 0.5, 1, 1.5]


@pytest.mark.parametrize("cached", [False, True])
def test_a_reference_holds_what_each_image_gives_by_itself(tmp_path, cached):
    images = 40 * _images() - 20
    unit = (images - images.min()) / (images.max() - images.min())

    reference = _build(images, cache_dir=tmp_path if cached else None)

    assert reference.groups == tuple(GROUPS)
    assert reference.group_codes.tolist() == [0, 1, 1, 2, 0, 3]
    assert reference.ids == tuple(f"training-{position}" for position in range(6))
    assert reference.image_shape == (1, 8, 8)
    np.testing.assert_allclose(reference.feature_vectors, feature_view(GradientEncoder(), unit), atol=1e-5)
    np.testing.assert_allclose(reference.coarse_vectors, coarse_view(unit), atol=1e-5)
    np.testing.assert_array_equal(reference.label_maps, unit[:, 0] > 0.5)
    # Half precision resolves [0, 1] to 2^-12 at worst.
    np.testing.assert_allclose(reference.volumes.astype(np.float32), unit, atol=2**-12)
    assert reference.feature.search(reference.feature_vectors, 1)[1][:, 0].tolist() == list(range(6))


def test_more_images_than_one_batch_keep_their_order():
    images = _images(75)

    reference = _build(images, groups=[str(position % 40) for position in range(75)])

    np.testing.assert_allclose(
        reference.volumes.astype(np.float32),
        IntensityScale(low=float(images.min()), high=float(images.max())).apply(images),
        atol=2**-12,
    )
    assert reference.groups[74] == "34"


def test_labels_beyond_16_bits_do_not_wrap_around():
    maps = torch.zeros(6, 8, 8, dtype=torch.long)
    maps[2] = 70_000
    source = open_images(_images(), role="training", segmentations=maps)
    contents = scan(source)

    reference = build_reference(
        source,
        contents,
        scale=contents.scale,
        encoder=GradientEncoder(),
        segment=lambda batch: batch.segmentations,
        segmenter_digest="given",
        cache_dir=None,
        device=torch.device("cpu"),
        progress=False,
    )

    assert contents.largest_label == 70_000
    assert reference.label_maps[2, 0, 0] == 70_000


def test_a_second_build_reads_the_cache_and_shows_the_encoder_nothing(tmp_path):
    encoder = CountingEncoder()
    built = _build(encoder=encoder, cache_dir=tmp_path)
    shown = encoder.shown

    found = _build(encoder=encoder, cache_dir=tmp_path)

    assert (built.from_cache, found.from_cache) == (False, True)
    assert (shown, encoder.shown) == (6, 6)
    assert (found.ids, found.groups, found.fingerprint, found.seconds) == (
        built.ids,
        built.groups,
        built.fingerprint,
        built.seconds,
    )
    for name in ("feature_vectors", "coarse_vectors", "volumes", "label_maps", "group_codes"):
        np.testing.assert_array_equal(getattr(found, name), getattr(built, name))
    assert isinstance(found.volumes, np.memmap)


@pytest.mark.parametrize(
    "change",
    [
        {"images": _images(seed=1)},
        {"encoder": CountingEncoder(1.5)},
        {"segmenter": "thirds"},
        {"scale": IntensityScale(low=0.0, high=2.0)},
        {"groups": GROUPS[::-1]},
    ],
    ids=["images", "weights", "segmenter", "scale", "groups"],
)
def test_a_cache_of_something_else_is_not_used(tmp_path, change):
    arguments = {"encoder": CountingEncoder()}
    _build(**arguments, cache_dir=tmp_path)

    other = _build(**{**arguments, **change}, cache_dir=tmp_path)

    assert not other.from_cache
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["volumes.npy", "feature_vectors.npy", "feature.faiss", "coarse.faiss", "items.json"])
def test_a_damaged_cache_is_built_again_with_a_warning(tmp_path, name):
    built = _build(cache_dir=tmp_path)
    volumes = np.array(built.volumes)
    path = tmp_path / built.fingerprint / name
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 255]))

    with pytest.warns(RelictWarning, match=f"checksum of {name} does not match"):
        again = _build(cache_dir=tmp_path)

    assert not again.from_cache
    np.testing.assert_array_equal(again.volumes, volumes)
    assert _build(cache_dir=tmp_path).from_cache


def test_a_truncated_cache_is_built_again_with_a_warning(tmp_path):
    built = _build(cache_dir=tmp_path)
    path = tmp_path / built.fingerprint / "volumes.npy"
    os.truncate(path, path.stat().st_size // 2)

    with pytest.warns(RelictWarning, match="checksum of volumes.npy does not match"):
        again = _build(cache_dir=tmp_path)

    assert not again.from_cache


def test_a_build_that_fails_leaves_nothing_in_the_cache(tmp_path):
    class Failing(nn.Module):
        def forward(self, images):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        _build(encoder=Failing(), cache_dir=tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_cached_patient_data_is_readable_by_its_owner_only(tmp_path):
    _build(cache_dir=tmp_path / "cache")

    for directory in (tmp_path / "cache", *(tmp_path / "cache").iterdir()):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_a_subset_keeps_ids_groups_and_vectors_of_its_images(tmp_path):
    reference = _build(cache_dir=tmp_path)

    some = subset(reference, [4, 1, 2])

    assert some.ids == ("training-4", "training-1", "training-2")
    assert some.groups == ("anna", "ben", "ben")
    assert some.group_codes.tolist() == [0, 1, 1]
    np.testing.assert_array_equal(some.volumes, reference.volumes[[4, 1, 2]])
    assert some.feature.search(reference.feature_vectors[[1]], 1)[1].tolist() == [[1]]
    assert not isinstance(some.volumes, np.memmap)


def test_the_fingerprint_names_encoder_segmenter_and_scale_apart():
    fingerprints = {
        _build().fingerprint,
        _build(encoder=GradientEncoder(4)).fingerprint,
        _build(segmenter=digest_module(GradientEncoder(4))).fingerprint,
        _build(scale=replace(IntensityScale(low=0.0, high=1.0), high=1.1)).fingerprint,
    }

    assert len(fingerprints) == 4


def test_images_in_other_units_than_the_training_set_are_refused():
    with pytest.raises(InvalidImageError, match="times the training images' intensity range"):
        _build(_images() * 1e6, scale=IntensityScale(low=0.0, high=1.0))


def test_an_encoder_of_another_depth_does_not_find_the_cache_of_the_first(tmp_path):
    class Deep(nn.Module):
        def __init__(self, layers):
            super().__init__()
            self.layers = layers

        def forward(self, images):
            return images.flatten(1)[:, : self.layers[0]]

    _build(encoder=Deep([2]), cache_dir=tmp_path)

    other = _build(encoder=Deep([4]), cache_dir=tmp_path)

    assert not other.from_cache
    assert other.feature_vectors.shape == (6, 4)
