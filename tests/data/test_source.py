import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import Dataset as MonaiDataset
from monai.data import MetaTensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from relict_lightning.data import open_images
from relict_lightning.errors import (
    ConfigurationError,
    EmptyDataError,
    InvalidImageError,
    RelictWarning,
    UnreadableDataError,
)


def numbered(m, shape=(1, 4, 4)):
    """Images whose every voxel is their position."""
    return torch.arange(m, dtype=torch.float32).reshape(m, *(1 for _ in shape)).expand(m, *shape).clone()


def all_images(source, batch_size=2):
    return torch.cat([batch.images for batch in source.batches(batch_size)])


def all_names(source, field):
    return [name for batch in source.batches(2) for name in getattr(batch, field)]


class Positions(Dataset):
    """A lazy data set that counts its reads where every copy sees them."""

    reads: list[int] = []  # noqa: RUF012

    def __init__(self, m, shape=(1, 4, 4)):
        self.m, self.shape = m, shape

    def __len__(self):
        return self.m

    def __getitem__(self, index):
        Positions.reads.append(index)
        return torch.full(self.shape, float(index))


@pytest.mark.parametrize(
    "source",
    [
        numbered(5),
        numbered(5).numpy(),
        numbered(5).to(torch.int16),
        TensorDataset(numbered(5)),
        DataLoader(TensorDataset(numbered(5)), batch_size=2, shuffle=True),
        list(numbered(5)),
        tuple(numbered(5).numpy()),
        [{"image": image} for image in numbered(5)],
        MonaiDataset([{"image": image} for image in numbered(5)]),
        Positions(5),
    ],
    ids=["tensor", "array", "integers", "dataset", "loader", "list", "tuple", "dictionaries", "monai", "lazy"],
)
def test_every_kind_of_source_gives_the_same_images(source):
    opened = open_images(source, role="training")

    assert len(opened) == 5
    assert opened.image_shape == (1, 4, 4)
    assert torch.equal(all_images(opened), numbered(5))
    assert all_names(opened, "ids") == [f"training-{position}" for position in range(5)]
    assert all_names(opened, "groups") == [f"training-{position}" for position in range(5)]


@settings(max_examples=30)
@given(m=st.integers(1, 12), batch_size=st.integers(1, 15), is_3d=st.booleans())
def test_the_stream_does_not_depend_on_the_batch_split(m, batch_size, is_3d):
    images = numbered(m, (2, 3, 4, 5) if is_3d else (2, 3, 4))
    source = open_images(images, role="held-out")

    batches = list(source.batches(batch_size))

    assert torch.equal(torch.cat([batch.images for batch in batches]), images)
    assert [len(batch.ids) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)


def test_two_passes_give_the_same_images():
    source = open_images(Positions(5), role="training")

    assert torch.equal(all_images(source), all_images(source))


def test_batches_are_plain_contiguous_float32_and_own_their_memory():
    images = MetaTensor(numbered(3).double().mT, meta={"filename_or_obj": ["anna"]})
    batch = next(open_images(images, role="training").batches(3))

    assert type(batch.images) is torch.Tensor
    assert batch.images.dtype == torch.float32
    assert batch.images.is_contiguous()
    assert "anna" not in repr(vars(batch.images))


def test_a_lazy_data_set_is_not_read_whole():
    source = open_images(Positions(1000), role="training")
    Positions.reads.clear()

    next(source.batches(4))

    assert Positions.reads == [0, 1, 2, 3]


def test_opening_reads_only_the_first_and_a_middle_item():
    Positions.reads.clear()
    open_images(Positions(1000), role="training")

    assert set(Positions.reads) == {0, 500}
    assert len(Positions.reads) <= 5


def test_a_stream_holds_no_more_than_a_batch():
    source = open_images(np.broadcast_to(np.zeros((), np.float64), (200, 1, 64, 64)), role="training")
    tracemalloc.start()
    for _ in source.batches(2):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 20 * 64 * 64 * 4


def test_a_read_only_memory_map_is_a_source(tmp_path):
    np.save(tmp_path / "images.npy", numbered(4).numpy())

    source = open_images(np.load(tmp_path / "images.npy", mmap_mode="r"), role="training")

    assert torch.equal(all_images(source), numbered(4))


def test_a_list_of_paths_is_a_source(tmp_path):
    for position, image in enumerate(numbered(3).numpy()):
        np.save(tmp_path / f"{position}.npy", image)

    source = open_images([tmp_path / f"{position}.npy" for position in range(3)], role="training")

    assert torch.equal(all_images(source), numbered(3))
    assert all_names(source, "ids") == [f"training-{position}" for position in range(3)]


def test_a_loader_is_used_for_its_data_set_only():
    loader = DataLoader(TensorDataset(numbered(4)), sampler=WeightedRandomSampler([1.0, 0, 0, 0], 9), drop_last=True)

    assert torch.equal(all_images(open_images(loader, role="training")), numbered(4))


@pytest.mark.parametrize("as_batch_sampler", [True, False])
def test_two_loaders_that_split_one_data_set_stay_apart(as_batch_sampler):
    sampler = SubsetRandomSampler([4, 1])
    dataset = TensorDataset(numbered(5))
    loader = (
        DataLoader(dataset, batch_sampler=BatchSampler(sampler, 2, drop_last=False))
        if as_batch_sampler
        else DataLoader(dataset, sampler=sampler)
    )

    assert all_images(open_images(loader, role="training"))[:, 0, 0, 0].tolist() == [1, 4]


def test_ids_groups_and_segmentations_come_from_dictionaries():
    items = [
        {"image": image, "id": f"scan-{position}", "group": position // 2, "label": torch.full((1, 4, 4), position)}
        for position, image in enumerate(numbered(4))
    ]
    source = open_images(items, role="training")

    assert source.has_segmentations
    assert all_names(source, "ids") == ["scan-0", "scan-1", "scan-2", "scan-3"]
    assert all_names(source, "groups") == ["0", "0", "1", "1"]
    assert next(source.batches(4)).segmentations[:, 0, 0].tolist() == [0, 1, 2, 3]


def test_the_group_is_the_id_where_nothing_says_the_patient():
    source = open_images([{"image": numbered(1)[0], "id": "scan"}], role="training")

    assert all_names(source, "groups") == ["scan"]


@pytest.mark.parametrize("groups", [["7", "7", "8"], [7, 7, 8], np.array([7, 7, 8]), torch.tensor([7, 7, 8])])
def test_groups_are_taken_in_every_type(groups):
    assert all_names(open_images(numbered(3), role="training", groups=groups), "groups") == ["7", "7", "8"]


@pytest.mark.parametrize("axis", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bool])
def test_segmentations_are_taken_in_every_type(dtype, axis):
    labels = torch.ones((3, 1, 4, 4) if axis else (3, 4, 4)).to(dtype)

    batch = next(open_images(numbered(3), role="training", segmentations=labels).batches(3))

    assert batch.segmentations.dtype == torch.int64
    assert batch.segmentations.shape == (3, 4, 4)


def test_without_segmentations_there_are_none():
    source = open_images(numbered(3), role="training")

    assert not source.has_segmentations
    assert next(source.batches(3)).segmentations is None


def test_labels_of_several_channels_are_left_out_with_a_warning():
    items = [{"image": image, "label": torch.zeros(3, 4, 4)} for image in numbered(2)]

    with pytest.warns(RelictWarning, match=r"training set have shape \[3, 4, 4\].*not used"):
        source = open_images(items, role="training")

    assert next(source.batches(2)).segmentations is None


@pytest.mark.parametrize("source", [torch.zeros(0, 1, 4, 4), [], TensorDataset(torch.zeros(0, 1, 4, 4))])
def test_an_empty_set_is_refused(source):
    with pytest.raises(EmptyDataError, match=r"The held-out set is empty.*`heldout=`"):
        open_images(source, role="held-out")


@pytest.mark.parametrize("source", [3, None, {1, 2}, TensorDataset])
def test_what_cannot_be_read_by_position_is_refused(source):
    with pytest.raises(ConfigurationError, match=r"cannot be read by position.*Pass `training=` a map-style data set"):
        open_images(source, role="training")


@pytest.mark.parametrize("source", [iter([1]), (image for image in numbered(3)), iter(DataLoader(numbered(3)))])
def test_what_can_be_read_only_once_is_refused(source):
    with pytest.raises(ConfigurationError, match=r"can be read only once.*`__iter__` starts anew"):
        open_images(source, role="training")


def test_a_folder_is_refused_with_the_class_that_reads_it(tmp_path):
    with pytest.raises(ConfigurationError, match=r"ImageFolder"):
        open_images(tmp_path, role="training")


def test_one_dictionary_of_columns_is_refused():
    with pytest.raises(ConfigurationError, match=r"one dictionary with the keys \['image'\]"):
        open_images({"image": numbered(3)}, role="training")


def test_images_without_channel_axis_are_refused():
    with pytest.raises(InvalidImageError, match=r"training set has shape \[9, 4, 4\].*images\[:, None\]"):
        open_images(torch.zeros(9, 4, 4), role="training")


def test_integers_of_a_sampler_are_refused():
    with pytest.raises(InvalidImageError, match=r"Item 0 of the generated set has dtype torch.uint8"):
        open_images(torch.zeros(3, 1, 4, 4, dtype=torch.uint8), role="generated")


def test_images_of_different_shape_are_refused():
    source = open_images([torch.zeros(1, 4, 4), torch.zeros(1, 4, 4), torch.zeros(1, 4, 5)], role="training")

    with pytest.raises(InvalidImageError, match=r"Item 2 of the training set has shape \[1, 4, 5\], but item 0 has"):
        all_images(source)


def test_a_value_that_is_not_finite_is_found_wherever_it_lies():
    images = numbered(5)
    images[3, 0, 2, 2] = torch.nan

    with pytest.raises(InvalidImageError, match=r"Item 3 of the training set has 1 NaN"):
        all_images(open_images(images, role="training"))


def test_duplicate_ids_are_refused_across_batches():
    items = [{"image": image, "id": name} for image, name in zip(numbered(4), "abca", strict=True)]

    with pytest.raises(InvalidImageError, match=r"Item 3 .* has the same id as item 0"):
        all_images(open_images(items, role="training"))


@pytest.mark.parametrize("first_has", [True, False])
def test_segmentations_of_some_images_only_are_refused(first_has):
    items = [{"image": image} for image in numbered(2)]
    items[0 if first_has else 1]["label"] = torch.zeros(4, 4)

    with pytest.raises(InvalidImageError, match=r"expected one for every image or for none"):
        all_images(open_images(items, role="training"))


def test_other_numbers_of_groups_or_segmentations_are_refused():
    with pytest.raises(ConfigurationError, match=r"training set has 3 images, but 2 groups"):
        open_images(numbered(3), role="training", groups=["a", "b"])
    with pytest.raises(ConfigurationError, match=r"training set has 3 images, but 4 segmentations"):
        open_images(numbered(3), role="training", segmentations=torch.zeros(4, 4, 4))


def test_a_string_is_not_a_list_of_groups():
    with pytest.raises(ConfigurationError, match=r"groups='abc'"):
        open_images(numbered(3), role="training", groups="abc")


def test_contradicting_groups_are_refused():
    items = [{"image": numbered(1)[0], "group": "anna"}]

    assert all_names(open_images(items, role="training", groups=["anna"]), "groups") == ["anna"]
    with pytest.raises(ConfigurationError, match="a group of its own that is not the one that was passed"):
        open_images(items, role="training", groups=["ben"])


def test_two_segmentations_of_one_image_are_refused():
    items = [{"image": numbered(1)[0], "label": torch.zeros(4, 4)}]

    with pytest.raises(ConfigurationError, match=r"segmentation of its own"):
        open_images(items, role="training", segmentations=torch.zeros(1, 4, 4))


def test_a_batch_size_below_one_is_refused_at_once():
    with pytest.raises(ConfigurationError, match=r"batch_size=0"):
        open_images(numbered(3), role="training").batches(0)


def test_a_missing_file_is_found_when_opening(tmp_path):
    with pytest.raises(UnreadableDataError, match=r"gone.nii"):
        open_images([{"image": tmp_path / "gone.nii"}], role="training")
