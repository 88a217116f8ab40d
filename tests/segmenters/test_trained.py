import io
import json
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from relict_lightning.errors import (
    ConfigurationError,
    EmptyDataError,
    InvalidImageError,
    NotFittedError,
    RelictError,
    UnreadableDataError,
)
from relict_lightning.index.fingerprint import digest_module
from relict_lightning.interfaces import Segmenter
from relict_lightning.segmenters import TrainedSegmenter, label_maps


def _discs(count, *spatial, labels=(5,), seed=0, absent=0):
    """Return images with one bright disc per label, the brighter the larger the label, and their label maps.

    The first `absent` of them have none.
    """
    generator = torch.Generator().manual_seed(seed)
    axes = torch.stack(torch.meshgrid(*[torch.arange(float(side)) for side in spatial], indexing="ij"))
    sides = torch.tensor([float(side) for side in spatial])
    maps = torch.zeros(count, *spatial, dtype=torch.int64)
    images = 0.1 * torch.randn(count, 1, *spatial, generator=generator)
    for position in range(absent, count):
        for turn, label in enumerate(labels, start=1):
            centre = (sides - 6) * torch.rand(len(spatial), generator=generator) + 3
            distance = (axes - centre.reshape(-1, *[1] * len(spatial))).square().sum(0).sqrt()
            maps[position][distance < 3] = label
            images[position, 0][distance < 3] = turn + 0.1 * torch.randn((), generator=generator)
    return images, maps


def _dice(found, truth, label):
    return float(2 * ((found == label) & (truth == label)).sum() / ((found == label).sum() + (truth == label).sum()))


@pytest.fixture(scope="module")
def segmenter():
    return TrainedSegmenter.fit(*_discs(30, 32, 32, labels=(1, 5)), steps=120)


@pytest.fixture(scope="module")
def hasty():
    """A segmenter that has learned little, which is enough to be saved."""
    return TrainedSegmenter.fit(*_discs(4, 16, 16), steps=2)


def test_labels_of_new_images_are_found_by_their_own_values(segmenter):
    images, truth = _discs(20, 32, 32, labels=(1, 5), seed=1)

    found = segmenter(images)

    assert found.shape == truth.shape
    assert found.dtype == torch.int64
    assert found.unique().tolist() == [0, 1, 5]
    assert _dice(found, truth, 1) > 0.8
    assert _dice(found, truth, 5) > 0.8


def test_small_structures_in_few_volumes_are_found():
    fitted = TrainedSegmenter.fit(*_discs(12, 16, 16, 16, absent=8), steps=80)
    images, truth = _discs(10, 16, 16, 16, seed=1, absent=5)

    assert _dice(fitted(images), truth, 5) > 0.8


@pytest.mark.parametrize(
    "change",
    [
        lambda images: torch.nn.functional.avg_pool2d(images, 3, stride=1, padding=1),
        lambda images: images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0)),
        lambda images: (images.clamp_min(0) / 2) ** 0.8,
        lambda images: images * torch.linspace(0.8, 1.2, 32),
    ],
    ids=["blur", "noise", "gamma", "bias"],
)
def test_another_look_is_segmented_alike(segmenter, change):
    images, truth = _discs(20, 32, 32, labels=(1, 5), seed=1)

    found = segmenter(change(images))

    assert _dice(found > 0, truth > 0, 1) > 0.75


def test_gain_and_offset_do_not_change_the_label_map(segmenter):
    images, _ = _discs(10, 32, 32, labels=(1, 5), seed=1)

    agreement = (segmenter(1000 * images - 300) == segmenter(images)).float().mean()

    assert agreement > 0.999


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_every_floating_point_type_is_segmented(segmenter, dtype):
    images, _ = _discs(10, 32, 32, labels=(1, 5), seed=1)

    agreement = (segmenter(images.to(dtype)) == segmenter(images)).float().mean()

    assert agreement > 0.99


@pytest.mark.parametrize("spatial", [(8, 8), (9, 31), (63, 40), (5, 70)])
def test_sides_may_have_any_length(segmenter, spatial):
    assert segmenter(_discs(2, *spatial)[0]).shape == (2, *spatial)


@pytest.mark.parametrize("spatial", [(8, 9, 11), (8, 8, 8), (33, 9, 40)])
def test_volumes_may_have_any_sides(spatial):
    images, maps = _discs(2, *spatial)

    assert TrainedSegmenter.fit(images, maps, steps=1)(images).shape == maps.shape


def test_a_label_map_does_not_depend_on_the_batch(segmenter):
    images, _ = _discs(7, 32, 32, labels=(1, 5), seed=1)

    one_by_one = torch.cat([segmenter(image[None]) for image in images])

    assert (segmenter(images) == one_by_one).float().mean() > 0.999


def test_a_constant_image_is_segmented_without_error(segmenter):
    assert segmenter(torch.full((1, 1, 16, 16), -1000.0)).shape == (1, 16, 16)


def test_several_channels_are_segmented():
    images, maps = _discs(6, 16, 16)
    both = torch.cat([torch.zeros_like(images), images], 1)

    fitted = TrainedSegmenter.fit(both, maps, steps=50)

    assert _dice(fitted(both), maps, 5) > 0.8


def test_the_same_seed_gives_the_same_weights_and_another_gives_others():
    images, maps = _discs(4, 16, 16)

    first, again, other = (digest_module(TrainedSegmenter.fit(images, maps, steps=3, seed=seed)) for seed in (0, 0, 1))

    assert first == again
    assert first != other


def test_the_global_state_stays_as_it_is():
    images, maps = _discs(4, 16, 16)
    # Not that of python, from which the shape checks draw.
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    threads = torch.get_num_threads()

    TrainedSegmenter.fit(images, maps, steps=2)

    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_grad_mode_outside_does_not_matter(mode):
    images, maps = _discs(4, 16, 16)
    expected = digest_module(TrainedSegmenter.fit(images, maps, steps=2))

    with mode():
        fitted = TrainedSegmenter.fit(images, maps, steps=2)
        assert not torch.is_grad_enabled()

    assert digest_module(fitted) == expected
    assert not any(parameter.requires_grad for parameter in fitted.parameters())


def test_training_mode_changes_nothing(segmenter):
    images, _ = _discs(5, 32, 32, seed=1)
    expected = segmenter(images)

    segmenter.train()
    found = segmenter(images), segmenter(images)
    segmenter.eval()

    assert all(torch.equal(maps, expected) for maps in found)


def test_items_with_labels_of_their_own_fit_the_same_segmenter():
    images, maps = _discs(4, 16, 16)
    items = [{"image": image, "label": label_map} for image, label_map in zip(images, maps, strict=True)]

    fitted = TrainedSegmenter.fit(items, steps=2)

    assert digest_module(fitted) == digest_module(TrainedSegmenter.fit(images.numpy(), maps.numpy(), steps=2))


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(*_discs(20, 16, 16), strict=True)


class Counting(Dataset):
    reads = 0

    def __init__(self):
        self.images, self.maps = _discs(40, 16, 16)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, position):
        Counting.reads += 1
        return self.images[position], self.maps[position]


def test_a_stream_fits_the_same_segmenter_as_an_array():
    streamed = TrainedSegmenter.fit(Stream(), steps=2)

    assert digest_module(streamed) == digest_module(TrainedSegmenter.fit(*_discs(20, 16, 16), steps=2))


def test_no_more_images_are_read_than_patches_are_needed():
    TrainedSegmenter.fit(Counting(), steps=1)

    # Eight to cut patches from; the others are the checks of whoever opens a data set.
    assert 8 <= Counting.reads < 20


def test_a_saved_segmenter_is_loaded_as_it_was(hasty, tmp_path):
    images, _ = _discs(5, 16, 16, seed=1)
    hasty.save(tmp_path / "segmenter")

    loaded = TrainedSegmenter.load(str(tmp_path / "segmenter"))

    assert torch.equal(loaded(images), hasty(images))
    assert digest_module(loaded) == digest_module(hasty)
    assert [path.name for path in tmp_path.iterdir()] == ["segmenter"]


def test_a_saved_segmenter_holds_weights_and_no_objects(hasty, tmp_path):
    hasty.save(tmp_path / "segmenter")

    with np.load(tmp_path / "segmenter", allow_pickle=False) as archive:
        sizes = {name: archive[name].size for name in archive.files}

    assert sizes.keys() == {"header", *hasty.network.state_dict()}
    assert sum(sizes.values()) < 300_000


def test_saving_where_no_folder_is_leaves_nothing(hasty, tmp_path):
    with pytest.raises(FileNotFoundError):
        hasty.save(tmp_path / "none" / "segmenter")

    assert not list(tmp_path.iterdir())


def _archive(path, **header):
    np.savez(path, header=np.frombuffer(json.dumps(header).encode(), dtype=np.uint8))
    return path.with_name(path.name + ".npz")


def _written(write, *arrays):
    file = io.BytesIO()
    write(file, *arrays)
    return file.getvalue()


FOREIGN = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no segmenter"),
    "pickle": lambda path: path.write_bytes(pickle.dumps({"weights": 1})),
    "array": lambda path: path.write_bytes(_written(np.save, np.zeros(3))),
    "archive": lambda path: path.write_bytes(_written(np.savez, np.zeros(3))),
    "header": lambda path: path.write_bytes(_written(partial(np.savez, header=np.zeros(3, dtype=np.uint8)))),
}


@pytest.mark.parametrize("write", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_file_is_refused(write, tmp_path):
    write(tmp_path / "segmenter")

    with pytest.raises(UnreadableDataError, match=r"segmenter is damaged, or not a segmenter; .* fit the segmenter"):
        TrainedSegmenter.load(tmp_path / "segmenter")


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_file_is_refused(hasty, damage, place, tmp_path):
    path = tmp_path / "segmenter"
    hasty.save(path)
    content = bytearray(path.read_bytes())
    at = int(place * len(content))
    if damage == "cut":
        del content[at:]
    else:
        content[at] ^= 255
    path.write_bytes(content)

    with pytest.raises(UnreadableDataError, match="damaged, or not a segmenter"):
        TrainedSegmenter.load(path)


def test_missing_weights_are_refused(tmp_path):
    form = {"format": "relict_lightning.TrainedSegmenter", "version": 1}
    path = _archive(tmp_path / "segmenter", **form, labels=[0, 1], channels=1, dims=2)

    with pytest.raises(UnreadableDataError, match="damaged, or not a segmenter"):
        TrainedSegmenter.load(path)


def test_a_later_version_is_refused_with_both_versions(tmp_path):
    path = _archive(tmp_path / "segmenter", format="relict_lightning.TrainedSegmenter", version=2)

    with pytest.raises(UnreadableDataError, match=r"has format version 2, but this version of .* reads 1"):
        TrainedSegmenter.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UnreadableDataError, match=r"none\.npz cannot be opened \(No such file"):
        TrainedSegmenter.load(tmp_path / "none.npz")


def _changed(images=None, maps=None):
    """Return discs, changed by functions of images and label maps."""
    good, truth = _discs(4, 16, 16)
    return (images or (lambda kept: kept))(good), (maps or (lambda kept: kept))(truth)


def _with_nan(images):
    images[1, 0, 3, 3] = float("nan")
    return images


REFUSED = {
    "no images": (_changed(lambda images: images[:0], lambda maps: maps[:0]), EmptyDataError, "set is empty"),
    "no label maps": ((_discs(4, 16, 16)[0], None), ConfigurationError, "Pass `label_maps`"),
    "too few": (_changed(maps=lambda maps: maps[:3]), ConfigurationError, "4 images, but 3 segmentations"),
    "other shape": (_changed(maps=lambda maps: maps[:, :8]), InvalidImageError, r"\[8, 16\]; expected \[16, 16\]"),
    "background only": (_changed(maps=torch.zeros_like), EmptyDataError, "No label map of 4 training images"),
    "fractions": (_changed(maps=lambda maps: maps + 0.5), InvalidImageError, "not whole numbers"),
    "negative": (_changed(maps=lambda maps: -maps), InvalidImageError, "Label map 0 has the label -5; expected"),
    "NaN": (_changed(_with_nan), InvalidImageError, "Item 1 of the training set has 1 NaN"),
    "instances": (
        _changed(maps=lambda maps: torch.arange(maps.numel()).reshape(maps.shape)),
        InvalidImageError,
        "have 2.. labels; expected at most 256|have 512 labels; expected at most 256",
    ),
}


@pytest.mark.parametrize(("data", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_learned_from_is_refused(data, error, message):
    with pytest.raises(error, match=message) as caught:
        TrainedSegmenter.fit(*data, steps=1)

    assert isinstance(caught.value, RelictError)


def test_no_steps_are_refused():
    with pytest.raises(ConfigurationError, match="steps must be at least 1, got steps=0"):
        TrainedSegmenter.fit(*_discs(2, 8, 8), steps=0)


@pytest.mark.parametrize("shape", [(1, 2, 32, 32), (1, 1, 8, 8, 8)])
def test_images_of_another_form_are_refused(segmenter, shape):
    with pytest.raises(InvalidImageError, match=r"expected \[n, 1, \*spatial\] in 2-D"):
        segmenter(torch.zeros(shape))


def test_an_unfitted_segmenter_says_how_to_get_a_fitted_one(tmp_path):
    unfitted = TrainedSegmenter((0, 1), dims=2)

    with pytest.raises(NotFittedError, match=r"TrainedSegmenter\.fit or \.load"):
        unfitted(torch.zeros(1, 1, 8, 8))
    with pytest.raises(NotFittedError, match=r"TrainedSegmenter\.fit or \.load"):
        unfitted.save(tmp_path / "segmenter")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": (0,)}, r"2 to 256 rising numbers from 0, got \[0\]"),
        ({"labels": (1, 2)}, r"got \[1, 2\]"),
        ({"labels": (0, 2, 1)}, r"got \[0, 2, 1\]"),
        ({"labels": (0, 1), "channels": 0}, "channels=0"),
        ({"labels": (0, 1), "dims": 4}, "dims=4"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        TrainedSegmenter(**arguments)


def test_it_is_a_segmenter_that_the_detector_can_use(segmenter):
    images, _ = _discs(3, 32, 32, labels=(1, 5), seed=1)

    assert isinstance(segmenter, Segmenter)
    assert repr(segmenter) == "TrainedSegmenter(labels=(0, 1, 5), channels=1, dims=2)"
    assert torch.equal(label_maps(segmenter, images, device=torch.device("cpu")), segmenter(images))
