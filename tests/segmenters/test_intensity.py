import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relict_lightning.errors import ConfigurationError
from relict_lightning.interfaces import Segmenter
from relict_lightning.segmenters import IntensitySegmenter


def _images(count, *spatial, channels=1, seed=0):
    return torch.rand((count, channels, *spatial), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("spatial", [(16, 16), (10, 8, 6)])
@pytest.mark.parametrize("num_labels", [2, 4, 16])
def test_every_voxel_gets_one_of_the_labels(spatial, num_labels):
    labels = IntensitySegmenter(num_labels)(_images(3, *spatial))

    assert labels.shape == (3, *spatial)
    assert labels.dtype == torch.int64
    assert (labels.amin(), labels.amax()) == (0, num_labels - 1)


@pytest.mark.parametrize("spatial", [(4, 6), (2, 4, 6)])
def test_separate_intensities_are_separate_classes_darkest_first(spatial):
    levels = torch.tensor([0.0, 0.3, 0.6, 1.0])
    truth = torch.arange(int(np.prod(spatial))).reshape(spatial) % 4

    labels = IntensitySegmenter()(levels[truth][None, None])

    assert torch.equal(labels[0], truth)


def test_brighter_voxels_never_have_a_lower_label():
    image = _images(1, 20, 20)

    labels = IntensitySegmenter()(image)[0]

    assert (labels.flatten()[image.flatten().argsort()].diff() >= 0).all()


def test_two_classes_split_where_otsu_splits():
    generator = torch.Generator().manual_seed(0)
    dark = 0.2 + 0.05 * torch.randn(300, generator=generator)
    bright = 0.8 + 0.05 * torch.randn(100, generator=generator)
    image = torch.cat([dark, bright]).reshape(1, 1, 20, 20)
    values = image.flatten().numpy().astype(np.float64)
    within = [
        values[values <= cut].var() * (values <= cut).sum() + values[values > cut].var() * (values > cut).sum()
        for cut in np.sort(values)[:-1]
    ]
    best = values <= np.sort(values)[int(np.argmin(within))]

    labels = IntensitySegmenter(2)(image)

    np.testing.assert_array_equal(labels.flatten() == 0, best)


@settings(max_examples=30)
@given(gain=st.sampled_from([0.25, 0.5, 2.0, 1024.0]), offset=st.integers(-4, 4), seed=st.integers(0, 50))
def test_gain_and_offset_do_not_change_the_label_map(gain, offset, seed):
    # Multiples of 1/64, on which these gains and offsets are exact.
    images = (64 * _images(2, 12, 12, seed=seed)).round() / 64

    changed = IntensitySegmenter()(gain * images + offset)

    assert torch.equal(changed, IntensitySegmenter()(images))


@pytest.mark.parametrize("value", [0.0, 0.1, -1000.0])
@pytest.mark.parametrize("spatial", [(8, 8), (4, 4, 4)])
def test_a_constant_image_is_all_background(value, spatial):
    assert not IntensitySegmenter()(torch.full((2, 1, *spatial), value)).any()


def test_the_channel_mean_is_segmented():
    images = _images(2, 12, 12, channels=3)

    assert torch.equal(IntensitySegmenter()(images), IntensitySegmenter()(images.mean(1, keepdim=True)))


def test_a_label_map_does_not_depend_on_the_batch():
    images = _images(5, 12, 12)

    assert torch.equal(IntensitySegmenter()(images)[3:4], IntensitySegmenter()(images[3:4]))


def test_the_configuration_is_shown():
    assert repr(IntensitySegmenter(3)) == "IntensitySegmenter(num_labels=3)"


def test_it_is_a_segmenter():
    assert isinstance(IntensitySegmenter(), Segmenter)


@pytest.mark.parametrize("num_labels", [1, 17])
def test_a_number_of_labels_out_of_range_is_refused(num_labels):
    with pytest.raises(ConfigurationError, match=rf"\[2, 16\], got {num_labels}"):
        IntensitySegmenter(num_labels)
