import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from relict_lightning.index.volumes import IntensityScale, quantise, ranges_of, restore


# Intensities are float32.
@given(low=st.floats(-1e4, 1e4, width=32), span=st.floats(1e-3, 1e5))
def test_the_scale_covers_the_range_and_little_more(low, span):
    high = low + span

    scale = IntensityScale.covering(low, high)

    assert scale.low <= low
    assert scale.high >= high
    assert scale.high - scale.low <= 1.13 * (high - low)


def test_a_slightly_larger_range_mostly_has_the_same_scale():
    assert (
        IntensityScale.covering(0.001, 0.998)
        == IntensityScale.covering(0.0003, 0.9995)
        == IntensityScale(low=0.0, high=1.0)
    )


def test_unit_scale_takes_the_range_to_zero_and_one_and_does_not_clip():
    scaled = IntensityScale(low=-1000.0, high=3000.0).apply(torch.tensor([[[[-1000.0, 1000.0, 3000.0, 5000.0]]]]))

    assert scaled.flatten().tolist() == [0, 0.5, 1, 1.5]


@pytest.mark.parametrize(("store", "error"), [("float16", 2**-12), ("uint8", 1 / 510)])
def test_stored_images_come_back_within_the_promised_share_of_their_range(store, error):
    images = np.random.default_rng(0).normal(0, [[[[1.0]]], [[[500.0]]]], (2, 1, 8, 8)).astype(np.float32)
    scale = IntensityScale(low=-2.0, high=2.0)
    ranges = ranges_of(images)

    restored = restore(quantise(images, ranges, store), ranges, scale)

    assert restored.dtype == np.float32
    for image, again, (low, high) in zip(images, restored, ranges, strict=True):
        np.testing.assert_allclose(4 * again - 2, image, atol=1.01 * error * (high - low))


@pytest.mark.parametrize("store", ["float16", "uint8"])
def test_a_blank_image_comes_back_as_it_was(store):
    images = np.full((1, 1, 4, 4), 0.25, dtype=np.float32)
    ranges = ranges_of(images)

    restored = restore(quantise(images, ranges, store), ranges, IntensityScale(low=0.0, high=1.0))

    np.testing.assert_array_equal(restored, images)


def test_images_that_are_not_stored_only_change_their_scale():
    images = np.array([[[[2.0, 4.0]]]], dtype=np.float32)

    restored = restore(images, ranges_of(images), IntensityScale(low=0.0, high=4.0))

    assert restored.flatten().tolist() == [0.5, 1.0]
