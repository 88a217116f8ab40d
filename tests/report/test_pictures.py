import numpy as np
import pytest
import torch

from relict_lightning.errors import InvalidImageError
from relict_lightning.report.pictures import DIFFERENCE_SCALE, pair_pictures


def shown(pictures, decoded):
    return [decoded(picture.source)[0] for picture in pictures]


@pytest.mark.parametrize(
    ("shape", "views"), [((1, 24, 20), 1), ((1, 12, 14, 10), 3), ((3, 16, 16), 1), ((4, 16, 16), 1)]
)
def test_every_picture_decodes_to_its_stated_size_at_full_contrast(pair, decoded, shape, views):
    pictures = pair_pictures(pair(*shape), position=0)

    for images in (pictures.generated, pictures.training):
        assert len(images) == views
        for picture, pixels in zip(images, shown(images, decoded), strict=True):
            assert pixels.shape[:2] == (picture.height, picture.width)
            assert pixels.dtype == np.uint8
            assert int(pixels.max()) - int(pixels.min()) > 200


def test_three_channels_are_shown_in_colour_and_four_as_the_first_in_grey(pair, decoded):
    assert shown(pair_pictures(pair(3, 16, 16), position=0).training, decoded)[0].ndim == 3
    assert shown(pair_pictures(pair(4, 16, 16), position=0).training, decoded)[0].ndim == 2


def test_a_copy_that_was_darkened_looks_like_its_original(pair, decoded):
    original = torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(0))

    pictures = pair_pictures(pair(1, 32, 32, generated=0.2 * original + 3), position=0)

    left, right = shown(pictures.generated, decoded)[0], shown(pictures.training, decoded)[0]
    assert np.abs(left.astype(int) - right).max() <= 1
    assert pictures.mean_difference == pytest.approx(0, abs=1e-5)


def test_the_difference_of_a_checkerboard_and_its_negative_is_one_and_saturates_the_scale(pair, decoded):
    board = (torch.arange(256)[:, None] // 32 + torch.arange(256)[None] // 32).remainder(2).float()[None]
    made = pair(1, 256, 256, generated=board)
    object.__setattr__(made, "training", 1 - board)

    pictures = pair_pictures(made, position=0)

    assert pictures.mean_difference == pytest.approx(1)
    assert DIFFERENCE_SCALE < 1
    # The last colour of the magma map.
    assert (shown(pictures.difference, decoded)[0] == (252, 253, 191)).all()


def test_a_difference_of_half_the_scale_has_the_colour_in_the_middle_of_the_map(pair, decoded):
    ramp = (torch.arange(256) // 128).float().expand(1, 256, 256).clone()
    made = pair(1, 256, 256, generated=ramp.clone())
    ramp[:, :128, :128] = DIFFERENCE_SCALE / 2
    object.__setattr__(made, "training", ramp)

    pictures = pair_pictures(made, position=0)

    # Magma at one half.
    assert np.abs(shown(pictures.difference, decoded)[0][64, 64].astype(int) - (183, 55, 121)).max() <= 3
    assert pictures.mean_difference == pytest.approx(DIFFERENCE_SCALE / 8)


def test_equal_images_have_a_black_difference(pair, decoded):
    image = torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(0))

    pictures = pair_pictures(pair(1, 32, 32, generated=image), position=0)

    assert shown(pictures.difference, decoded)[0].max() <= 4


def test_a_volume_is_shown_by_its_middle_slices_with_the_last_axis_upwards(pair, decoded):
    volume = torch.zeros(1, 64, 64, 64)
    volume[0, 32, :16, 48:] = 1

    pictures = pair_pictures(pair(1, 64, 64, 64, generated=volume), position=0)

    sagittal = shown(pictures.generated, decoded)[0]
    side = sagittal.shape[0]
    assert sagittal[: side // 5, : side // 5].min() > 200
    assert sagittal[side // 3 :].max() < 30
    assert pictures.views == ("middle slice of axis 0", "middle slice of axis 1", "middle slice of axis 2")


def test_a_bright_spot_outside_the_percentiles_is_still_seen(pair, decoded):
    image = torch.zeros(1, 256, 256)
    image[0, 100:104, 100:104] = 5

    pixels = shown(pair_pictures(pair(1, 256, 256, generated=image), position=0).generated, decoded)[0]

    assert pixels.max() == 255


def test_a_constant_image_is_black(pair, decoded):
    pictures = pair_pictures(pair(1, 16, 16, generated=torch.full((1, 16, 16), 7.0)), position=0)

    assert shown(pictures.generated, decoded)[0].max() == 0


@pytest.mark.parametrize(("size", "longest"), [((8, 4), 256), ((300, 200), 300), ((900, 30), 448)])
def test_small_images_are_enlarged_and_large_ones_reduced_in_proportion(pair, size, longest):
    (picture,) = pair_pictures(pair(1, *size), position=0).training

    assert picture.height == longest
    assert picture.width == pytest.approx(longest * size[1] / size[0], abs=0.5)


def test_half_precision_on_a_graph_and_plain_arrays_are_accepted(pair):
    half = torch.rand(1, 16, 16, dtype=torch.bfloat16, requires_grad=True)

    assert pair_pictures(pair(1, 16, 16, generated=half), position=0).channels == 1
    assert pair_pictures(pair(1, 16, 16, generated=np.eye(16, dtype=np.int64)[None]), position=0).channels == 1


def test_images_of_two_shapes_are_refused_with_both_shapes(pair):
    with pytest.raises(InvalidImageError, match=r"pair 5 .*\(1, 8, 8\).*\(1, 16, 16\)"):
        pair_pictures(pair(1, 16, 16, generated=torch.rand(1, 8, 8)), position=5)


def test_an_image_without_channels_is_refused_with_its_shape(pair):
    with pytest.raises(InvalidImageError, match=r"generated image of pair 2 .*\(16, 16\)"):
        pair_pictures(pair(1, 16, 16, generated=torch.rand(16, 16)), position=2)


def test_values_that_are_not_finite_are_refused_with_their_number(pair):
    broken = torch.rand(1, 16, 16)
    broken[0, 0, :3] = torch.nan

    with pytest.raises(InvalidImageError, match="3 of its 256 values"):
        pair_pictures(pair(1, 16, 16, generated=broken), position=0)
