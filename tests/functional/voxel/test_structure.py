from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_pairs import SHAPES, random_pair, structured_pair
from monai.metrics import MultiScaleSSIMMetric, SSIMMetric
from skimage.metrics import structural_similarity as skimage_structural_similarity

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional import (
    multiscale_structural_similarity,
    normalized_cross_correlation,
    structural_similarity,
)
from relict_lightning.functional.voxel import windows

PAIRS = [(pair, shape) for pair in (random_pair, structured_pair) for shape in SHAPES]


def test_structural_similarity_of_constant_images_is_the_luminance_term():
    generated, training = torch.full((1, 1, 12, 12), 0.5), torch.full((1, 1, 12, 12), 1.0)

    expected = (2 * 0.5 * 1 + 1e-4) / (0.25 + 1 + 1e-4)

    assert structural_similarity(generated, training, data_range=1.0).item() == pytest.approx(expected, abs=1e-6)
    assert multiscale_structural_similarity(generated, training, data_range=1.0).item() == pytest.approx(
        expected, abs=1e-6
    )


@pytest.mark.parametrize(("pair", "shape"), PAIRS)
@pytest.mark.parametrize("data_range", [1.0, 2.5])
def test_structural_similarity_agrees_with_monai(pair, shape, data_range):
    generated, training = pair(shape)
    metric = SSIMMetric(spatial_dims=len(shape) - 2, data_range=data_range, win_size=11, kernel_sigma=1.5)

    expected = metric(generated, training).flatten()

    # On nearly flat bodies MONAI is off by 1.2e-5 itself: its float32 weights do not quite sum to one. The test against
    # scikit-image in double precision is the sharper one.
    tolerance = 1e-5 if pair is random_pair else 2e-5
    value = structural_similarity(generated, training, data_range=data_range)
    torch.testing.assert_close(value, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize(("pair", "shape"), PAIRS)
def test_structural_similarity_agrees_with_scikit_image(pair, shape):
    generated, training = pair(shape)

    expected = [
        skimage_structural_similarity(
            a, b, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=0
        )
        for a, b in zip(generated.double().numpy(), training.double().numpy(), strict=True)
    ]

    np.testing.assert_allclose(structural_similarity(generated, training, data_range=1.0), expected, atol=2e-6)


@pytest.mark.parametrize("pair", [random_pair, structured_pair])
def test_structural_similarity_inside_a_mask_is_the_mean_of_scikit_images_map_there(pair):
    generated, training = pair((1, 1, 24, 20))
    mask = torch.zeros(1, 1, 24, 20, dtype=torch.bool)
    mask[..., 3:15, 7:18] = True

    _, similarity = skimage_structural_similarity(
        *(image[0, 0].double().numpy() for image in (generated, training)),
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )

    # A window of 11 voxels lies inside the image where its centre is 5 voxels from every border.
    expected = similarity[5:15, 7:15].mean()
    value = structural_similarity(generated, training, data_range=1.0, mask=mask)
    assert value.item() == pytest.approx(expected, abs=1e-5)


def test_structural_similarity_under_a_large_offset_agrees_with_double_precision():
    generated, training = (image + 2000 for image in random_pair((1, 1, 24, 24)))

    expected = skimage_structural_similarity(
        generated[0, 0].double().numpy(),
        training[0, 0].double().numpy(),
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )

    assert structural_similarity(generated, training, data_range=1.0).item() == pytest.approx(expected, abs=1e-3)


def test_structural_similarity_of_two_blank_images_is_1_and_their_correlation_0():
    blank = torch.zeros(1, 1, 16, 16)

    assert structural_similarity(blank, blank, data_range=1.0).item() == 1
    assert normalized_cross_correlation(blank, blank).item() == 0


@given(seed=st.integers(0, 100), factor=st.floats(0.1, 100))
@settings(max_examples=15)
def test_structural_similarity_has_no_unit_and_is_at_most_1(seed, factor):
    generated, training = random_pair((2, 1, 12, 12), seed)

    for measure in (structural_similarity, multiscale_structural_similarity):
        value = measure(generated, training, data_range=1.0)
        assert (value <= 1).all()
        torch.testing.assert_close(
            measure(factor * generated, factor * training, data_range=factor), value, atol=1e-4, rtol=0
        )
    assert (structural_similarity(1 - training, training, data_range=1.0) < 0).all()
    assert (multiscale_structural_similarity(1 - training, training, data_range=1.0) == 0).all()


@pytest.mark.parametrize(("side", "window"), [(4, 3), (5, 5), (10, 9), (1, 1)])
def test_the_window_shrinks_to_the_largest_odd_side_that_fits(side, window):
    generated, training = random_pair((2, 1, side, side))

    torch.testing.assert_close(
        structural_similarity(generated, training, data_range=1.0),
        structural_similarity(generated, training, data_range=1.0, window=window),
    )


@pytest.mark.parametrize("measure", [structural_similarity, multiscale_structural_similarity])
def test_structural_similarity_of_many_pairs_is_that_of_each(monkeypatch, measure):
    generated, training = random_pair((7, 1, 24, 24))
    mask = torch.rand(7, 1, 24, 24, generator=torch.Generator().manual_seed(0)) > 0.5
    whole = measure(generated, training, data_range=1.0, mask=mask)

    monkeypatch.setattr(windows, "_FILTERED_ELEMENTS", 5 * 24 * 24 * 2)

    torch.testing.assert_close(measure(generated, training, data_range=1.0, mask=mask), whole)


@pytest.mark.parametrize("pair", [random_pair, structured_pair])
@pytest.mark.parametrize(
    ("shape", "weights"),
    [
        ((2, 1, 176, 177), None),
        ((2, 2, 60, 48), (0.2, 0.3, 0.5)),
        ((1, 1, 22, 24, 30), (0.4, 0.6)),
    ],
)
def test_multiscale_similarity_agrees_with_monai(pair, shape, weights):
    generated, training = pair(shape)
    options = {} if weights is None else {"weights": weights}
    metric = MultiScaleSSIMMetric(
        spatial_dims=len(shape) - 2, data_range=1.0, kernel_size=11, kernel_sigma=1.5, reduction="none", **options
    )

    expected = metric(generated, training).flatten()

    # MONAI's own rounding at five scales is 2.4e-5.
    value = multiscale_structural_similarity(generated, training, data_range=1.0, weights=weights)
    torch.testing.assert_close(value, expected, atol=5e-5, rtol=0)


def by_scikit_image(generated: torch.Tensor, training: torch.Tensor, weights: Sequence[float]) -> list[float]:
    """Return the value of each pair of slices from scikit-image's terms, in double precision."""
    values = np.ones(len(generated))
    for scale, weight in enumerate(weights):
        # A huge luminance constant makes that term 1, and leaves contrast and structure.
        constants = {} if scale == len(weights) - 1 else {"K1": 1e6}
        for position, (a, b) in enumerate(zip(generated, training, strict=True)):
            similarity = skimage_structural_similarity(
                *(image[0].double().numpy() for image in (a, b)),
                data_range=1.0,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
                **constants,
            )
            values[position] *= max(similarity, 0) ** weight
        generated, training = (torch.nn.functional.avg_pool2d(images, 2) for images in (generated, training))
    return values.tolist()


@pytest.mark.parametrize("pair", [random_pair, structured_pair])
def test_multiscale_similarity_agrees_with_scikit_image_scale_by_scale(pair):
    generated, training = pair((2, 1, 180, 192))

    expected = by_scikit_image(generated, training, (0.0448, 0.2856, 0.3001, 0.2363, 0.1333))

    value = multiscale_structural_similarity(generated, training, data_range=1.0)
    np.testing.assert_allclose(value, expected, atol=2e-6)


def test_what_lies_outside_the_mask_and_its_windows_does_not_matter_at_several_scales():
    generated, training = random_pair((2, 1, 40, 40))
    mask = torch.zeros(1, 1, 40, 40) > 0
    mask[..., 10:18, 10:20] = True
    elsewhere = generated.clone()
    # Windows of five voxels of twice the size do not reach here.
    elsewhere[..., 30:, :] = 0.9

    inside, outside = (
        multiscale_structural_similarity(images, training, data_range=1.0, window=5, weights=(0.5, 0.5), mask=mask)
        for images in (generated, elsewhere)
    )

    torch.testing.assert_close(inside, outside, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("shape", "scales"),
    [
        ((1, 1, 176, 200), 5),
        ((1, 1, 175, 200), 4),
        ((1, 1, 32, 128, 128), 2),
        ((1, 1, 16, 20, 30), 1),
        ((1, 1, 8, 9), 1),
    ],
)
def test_as_many_scales_are_compared_as_fit_the_shortest_side(shape, scales):
    generated, training = structured_pair(shape)
    usual = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]

    value = multiscale_structural_similarity(generated, training, data_range=1.0)

    weights = tuple(usual if scales == 5 else usual / usual.sum())
    expected = multiscale_structural_similarity(generated, training, data_range=1.0, weights=weights)
    torch.testing.assert_close(value, expected)
    with pytest.raises(ConfigurationError, match=f"weights ask for {scales + 1} scales.* at {scales}"):
        multiscale_structural_similarity(generated, training, data_range=1.0, weights=(0.1,) * (scales + 1))


def test_one_scale_is_structural_similarity():
    generated, training = random_pair((2, 1, 24, 24))

    torch.testing.assert_close(
        multiscale_structural_similarity(generated, training, data_range=1.0, weights=(1.0,)),
        structural_similarity(generated, training, data_range=1.0),
    )


@pytest.mark.parametrize("measure", [structural_similarity, multiscale_structural_similarity])
@pytest.mark.parametrize(
    ("settings_given", "message"),
    [
        ({"data_range": 0.0}, "data_range=0.0"),
        ({"data_range": float("nan")}, "data_range=nan"),
        ({"data_range": 1.0, "sigma": -1.0}, "sigma=-1.0"),
        ({"data_range": 1.0, "window": 8}, "window=8"),
        ({"data_range": 1.0, "window": -1}, "window=-1"),
    ],
)
def test_structural_similarity_names_the_setting_that_it_refuses(measure, settings_given, message):
    with pytest.raises(ConfigurationError, match=message):
        measure(*random_pair((1, 1, 16, 16)), **settings_given)


@pytest.mark.parametrize("weights", [(), (0.5, 0.0), (0.5, float("nan"))])
def test_multiscale_similarity_refuses_impossible_weights(weights):
    with pytest.raises(ConfigurationError, match="weights must be positive"):
        multiscale_structural_similarity(*random_pair((1, 1, 64, 64)), data_range=1.0, weights=weights)
