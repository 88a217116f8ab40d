import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import correlate1d
from skimage.filters import gaussian

from relict_lightning.functional.voxel.windows import (
    box_band,
    fitting_window,
    gaussian_band,
    local_means,
    mask_of_positions,
)


@given(side=st.integers(1, 20), window=st.integers(0, 6).map(lambda half: 2 * half + 1))
@settings(max_examples=40)
def test_a_band_averages_every_window_that_lies_inside(side, window):
    fitting = fitting_window(side, window)

    for band in (box_band(side, window=window), gaussian_band(side, window=window, sigma=1.5)):
        assert band.shape == (side, side - fitting + 1)
        torch.testing.assert_close(band.sum(dim=0), torch.ones(band.shape[1]))
        assert ((band > 0).sum(dim=0) == fitting).all()
    assert fitting % 2 == 1
    assert fitting == window or side - fitting in (0, 1)


def test_the_gaussian_is_that_of_scikit_image_away_from_the_border():
    row = np.random.default_rng(0).random(40)

    # Truncated at 3.5 standard deviations of 1.5 voxels, the filter has 11 weights.
    expected = gaussian(row, sigma=1.5, truncate=3.5)[5:-5]

    value = torch.tensor(row).float() @ gaussian_band(40, window=11, sigma=1.5)
    np.testing.assert_allclose(value, expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(9, 7), (8, 6, 7)])
def test_local_means_are_those_of_scipy_along_every_axis(shape):
    image = np.random.default_rng(0).random((2, 3, *shape))
    bands = [box_band(side, window=5) for side in shape]

    expected = image
    for axis, side in enumerate(shape, start=2):
        expected = correlate1d(expected, np.full(5, 0.2), axis=axis).take(range(2, side - 2), axis=axis)

    value = local_means(torch.tensor(image).float()[None], bands)[0]
    np.testing.assert_allclose(value, expected, atol=1e-6)


def test_positions_of_a_mask_are_where_the_centre_of_the_window_is():
    mask = torch.zeros(1, 1, 6, 5) > 0
    mask[0, 0, 2, 3] = True

    positions = mask_of_positions(mask, window=3)

    assert positions.shape == (1, 1, 4, 3)
    assert positions.nonzero().tolist() == [[0, 0, 1, 2]]
