import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from relict_lightning.data.items import parse_item, parse_segmentation, text_of
from relict_lightning.errors import InvalidImageError


def parse(item, *, role="training", position=3):
    return parse_item(item, role=role, position=position)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int16, torch.uint8, torch.bool])
def test_every_real_dtype_becomes_float32(dtype):
    image = torch.tensor([[[0, 1], [1, 0]]]).to(dtype)

    item = parse(image)

    assert item.image.dtype == torch.float32
    assert item.image.tolist() == [[[0, 1], [1, 0]]]


@pytest.mark.parametrize("dtype", [">f4", ">i2", "f2", "f8", "u2", "u8", "?"])
def test_every_real_numpy_dtype_becomes_float32(dtype):
    image = np.array([[[0, 1], [1, 0]]], dtype=dtype)

    assert parse(image).image.tolist() == [[[0, 1], [1, 0]]]


def test_the_image_is_contiguous_plain_and_without_gradient():
    image = MetaTensor(torch.rand(1, 6, 8), meta={"filename_or_obj": "/data/sub-anna.nii.gz"}).mT.requires_grad_()

    item = parse({"image": image})

    assert type(item.image) is torch.Tensor
    assert item.image.is_contiguous()
    assert not item.image.requires_grad
    assert item.id is None


def test_the_file_name_of_a_meta_tensor_does_not_survive():
    item = parse(MetaTensor(torch.rand(1, 6, 8), meta={"filename_or_obj": "/data/sub-anna.nii.gz"}))

    assert "anna" not in repr(item) + repr(vars(item.image))


@pytest.mark.parametrize("image", [torch.zeros(1, 4, 4, dtype=torch.uint8), np.zeros((1, 4, 4), dtype=np.int64)])
def test_integers_of_a_sampler_are_refused(image):
    with pytest.raises(InvalidImageError, match=r"Item 3 of the generated set has dtype \S*int\d+.*expected floating"):
        parse(image, role="generated")


@pytest.mark.parametrize("image", [torch.zeros(1, 4, 4, dtype=torch.complex64), np.full((1, 4, 4), "a")])
def test_what_is_not_a_real_number_is_refused(image):
    with pytest.raises(InvalidImageError, match=r"expected real numbers"):
        parse(image)


@pytest.mark.parametrize("shape", [(4, 4), (1, 1, 4, 4, 4), (0, 4, 4), (1, 0, 4)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(InvalidImageError, match=r"Item 3 of the training set has shape \[.*expected \[channels"):
        parse(torch.zeros(shape))


def test_nan_and_infinity_are_counted_and_refused():
    image = torch.zeros(1, 4, 4)
    image[0, 0, :2] = torch.nan
    image[0, 1, 0] = torch.inf

    with pytest.raises(InvalidImageError, match=r"2 NaN and 1 infinite values among 16"):
        parse(image)


def test_a_value_beyond_float32_is_refused():
    with pytest.raises(InvalidImageError, match=r"0 NaN and 16 infinite"):
        parse(np.full((1, 4, 4), 1e300))


def test_the_first_entry_of_a_tuple_is_the_image():
    image = torch.rand(1, 4, 4)

    item = parse((image, 7, "other"))

    assert torch.equal(item.image, image)
    assert item.segmentation is None


@pytest.mark.parametrize("shape", [(4, 5), (1, 4, 5)])
@pytest.mark.parametrize("kind", [torch.int32, torch.bool, torch.uint8, np.int16])
def test_an_integer_map_in_a_tuple_is_the_segmentation(shape, kind):
    labels = np.ones(shape, dtype=kind) if kind is np.int16 else torch.ones(shape, dtype=kind)

    item = parse((torch.zeros(1, 4, 5), labels))

    assert item.segmentation.dtype == torch.int64
    assert item.segmentation.tolist() == [[1] * 5] * 4


@pytest.mark.parametrize("second", [torch.zeros(4, 5), torch.tensor(3), torch.zeros(5, 4, dtype=torch.int64), "label"])
def test_any_other_second_entry_of_a_tuple_is_ignored(second):
    assert parse((torch.zeros(1, 4, 5), second)).segmentation is None


def test_a_dictionary_says_id_group_and_segmentation():
    item = parse({"image": torch.zeros(2, 3, 4, 5), "label": torch.ones(1, 3, 4, 5), "id": 12, "group": "anna"})

    assert (item.id, item.group) == ("12", "anna")
    assert item.segmentation.shape == (3, 4, 5)


@pytest.mark.parametrize("label", [1, torch.tensor(1), torch.tensor([0.0, 1.0]), None])
def test_a_class_label_is_ignored(label):
    assert parse({"image": torch.zeros(1, 4, 5), "label": label}).segmentation is None


def test_a_label_of_several_channels_is_reported_and_not_used():
    item = parse({"image": torch.zeros(1, 4, 5), "label": torch.zeros(3, 4, 5)})

    assert item.segmentation is None
    assert item.ignored_label_shape == (3, 4, 5)


def test_a_label_of_another_shape_is_refused():
    with pytest.raises(InvalidImageError, match=r"segmentation of shape \[5, 4\]; expected \[4, 5\]"):
        parse({"image": torch.zeros(1, 4, 5), "label": torch.zeros(5, 4)})


def test_probabilities_are_no_labels():
    with pytest.raises(InvalidImageError, match=r"not whole numbers.*argmax"):
        parse_segmentation(torch.full((4, 5), 0.5), spatial=(4, 5), name="Item 0")


def test_a_dictionary_without_image_names_its_keys():
    with pytest.raises(InvalidImageError, match=r"keys \['img', 'label'\]; expected the key 'image'"):
        parse({"img": torch.zeros(1, 4, 4), "label": 1})


def test_crops_of_one_image_are_refused():
    with pytest.raises(InvalidImageError, match=r"is 2 dictionaries, as cropping transforms return them"):
        parse([{"image": torch.zeros(1, 4, 4)}] * 2)


def test_another_type_is_refused_by_name():
    with pytest.raises(InvalidImageError, match=r"image of type dict_keys; expected a tensor, an array or a path"):
        parse({"image": {}.keys()})


def test_paths_are_read(tmp_path):
    np.save(tmp_path / "image.npy", np.ones((1, 4, 4), dtype=np.float32))
    np.save(tmp_path / "label.npy", np.full((4, 4), 2))

    item = parse({"image": tmp_path / "image.npy", "label": str(tmp_path / "label.npy")}, role="generated")

    assert item.image.sum() == 16
    assert item.segmentation.unique().tolist() == [2]


@pytest.mark.parametrize("value", ["3", 3, np.int64(3), np.array([3]), torch.tensor(3), torch.tensor([3])])
def test_an_id_reads_the_same_in_every_type(value):
    assert text_of(value) == "3"
