import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import SSIMMetric
from skimage.metrics import structural_similarity as skimage_structural_similarity

from relict_lightning.errors import ConfigurationError, InvalidImageError, RelictError
from relict_lightning.functional import (
    mean_absolute_error,
    normalized_cross_correlation,
    root_mean_squared_error,
    structural_similarity,
)

SHAPES = [(3, 1, 24, 20), (2, 2, 16, 18, 14)]


def random_pair(shape: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    training = torch.rand(shape, generator=generator)
    return 0.6 * training + 0.4 * torch.rand(shape, generator=generator), training


def ssim_of_unit_range(generated: torch.Tensor, training: torch.Tensor) -> torch.Tensor:
    return structural_similarity(generated, training, data_range=1.0)


MEASURES = [normalized_cross_correlation, ssim_of_unit_range, root_mean_squared_error, mean_absolute_error]


def test_correlation_of_a_worked_pair():
    generated, training = torch.tensor([[[[1.0, 2.0, 3.0]]]]), torch.tensor([[[[1.0, 2.0, 6.0]]]])

    # Deviations (-1, 0, 1) and (-2, -1, 3): 5 / sqrt(2 * 14).
    assert normalized_cross_correlation(generated, training).item() == pytest.approx(5 / 28**0.5, abs=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_correlation_agrees_with_numpy(shape):
    generated, training = random_pair(shape)

    expected = [
        np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(generated.numpy(), training.numpy(), strict=True)
    ]

    np.testing.assert_allclose(normalized_cross_correlation(generated, training), expected, atol=1e-6)


@given(
    scale=st.floats(0.01, 1000),
    offset=st.floats(-100, 100),
    seed=st.integers(0, 100),
)
@settings(max_examples=25, deadline=None)
def test_correlation_is_blind_to_brightness_and_contrast(scale, offset, seed):
    generated, training = random_pair((2, 1, 8, 8), seed)

    plain = normalized_cross_correlation(generated, training)
    recoloured = normalized_cross_correlation(scale * generated + offset * scale, training)

    torch.testing.assert_close(plain, recoloured, atol=1e-3, rtol=0)


@pytest.mark.parametrize("value", [0.0, 0.1, -1000.3])
def test_a_constant_image_correlates_with_nothing(value):
    _, training = random_pair((1, 1, 17, 13))
    constant = torch.full_like(training, value)

    assert normalized_cross_correlation(constant, training).item() == 0
    assert normalized_cross_correlation(training, constant).item() == 0
    assert normalized_cross_correlation(constant, constant).item() == 0


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_correlation_survives_extreme_intensities(scale):
    generated, training = random_pair((1, 1, 8, 8))

    torch.testing.assert_close(
        normalized_cross_correlation(generated * scale, training), normalized_cross_correlation(generated, training)
    )


def test_correlation_inside_a_mask_is_that_of_the_masked_voxels():
    generated, training = random_pair((2, 2, 8, 8))
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    mask[..., 2:7, 1:5] = True

    masked = normalized_cross_correlation(generated, training, mask=mask)
    cropped = normalized_cross_correlation(generated[..., 2:7, 1:5], training[..., 2:7, 1:5])

    torch.testing.assert_close(masked, cropped)


def test_correlation_inside_an_empty_mask_is_0():
    generated, training = random_pair((2, 1, 8, 8))

    assert normalized_cross_correlation(generated, training, mask=torch.zeros(2, 1, 8, 8) > 0).tolist() == [0, 0]


def test_a_mask_of_another_shape_is_refused():
    generated, training = random_pair((2, 1, 8, 8))

    with pytest.raises(InvalidImageError, match=r"\(2, 1, 8, 8\).*\(1, 1, 8, 7\)"):
        inspect.unwrap(normalized_cross_correlation)(generated, training, mask=torch.ones(1, 1, 8, 7) > 0)


def test_a_mask_of_numbers_is_refused():
    generated, training = random_pair((2, 1, 8, 8))

    with pytest.raises(InvalidImageError, match=r"boolean.*torch\.float32"):
        inspect.unwrap(normalized_cross_correlation)(generated, training, mask=torch.ones(2, 1, 8, 8))


def test_structural_similarity_of_constant_images_is_the_luminance_term():
    generated, training = torch.full((1, 1, 12, 12), 0.5), torch.full((1, 1, 12, 12), 1.0)

    expected = (2 * 0.5 * 1 + 1e-4) / (0.25 + 1 + 1e-4)

    assert structural_similarity(generated, training, data_range=1.0).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("data_range", [1.0, 2.5])
def test_structural_similarity_agrees_with_monai(shape, data_range):
    generated, training = random_pair(shape)
    metric = SSIMMetric(spatial_dims=len(shape) - 2, data_range=data_range, win_size=11, kernel_sigma=1.5)

    expected = metric(generated, training).flatten()

    torch.testing.assert_close(
        structural_similarity(generated, training, data_range=data_range), expected, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_structural_similarity_agrees_with_scikit_image(shape):
    generated, training = random_pair(shape)

    expected = [
        skimage_structural_similarity(
            a, b, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=0
        )
        for a, b in zip(generated.double().numpy(), training.double().numpy(), strict=True)
    ]

    np.testing.assert_allclose(structural_similarity(generated, training, data_range=1.0), expected, atol=1e-5)


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


@pytest.mark.parametrize(("side", "window"), [(4, 3), (5, 5), (10, 9), (1, 1)])
def test_the_window_shrinks_to_the_largest_odd_side_that_fits(side, window):
    generated, training = random_pair((2, 1, side, side))

    torch.testing.assert_close(
        structural_similarity(generated, training, data_range=1.0),
        structural_similarity(generated, training, data_range=1.0, window=window),
    )


def test_structural_similarity_of_many_pairs_is_that_of_each(monkeypatch):
    generated, training = random_pair((7, 1, 16, 16))
    whole = structural_similarity(generated, training, data_range=1.0)

    monkeypatch.setitem(inspect.unwrap(structural_similarity).__globals__, "_FILTERED_ELEMENTS", 5 * 256 * 2)

    torch.testing.assert_close(structural_similarity(generated, training, data_range=1.0), whole)


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
def test_structural_similarity_names_the_setting_that_it_refuses(settings_given, message):
    with pytest.raises(ConfigurationError, match=message):
        structural_similarity(*random_pair((1, 1, 16, 16)), **settings_given)


def test_errors_of_a_worked_pair():
    generated, training = torch.tensor([[[[3.0, -4.0]]]]), torch.zeros(1, 1, 1, 2)

    assert root_mean_squared_error(generated, training).item() == pytest.approx(12.5**0.5)
    assert mean_absolute_error(generated, training).item() == pytest.approx(3.5)


@pytest.mark.parametrize("shape", SHAPES)
def test_errors_agree_with_numpy(shape):
    generated, training = random_pair(shape)
    difference = (generated.double() - training.double()).numpy().reshape(shape[0], -1)

    np.testing.assert_allclose(
        root_mean_squared_error(generated, training), np.sqrt((difference**2).mean(1)), rtol=1e-5
    )
    np.testing.assert_allclose(mean_absolute_error(generated, training), np.abs(difference).mean(1), rtol=1e-5)


@given(factor=st.floats(-8, 8, width=32), seed=st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_errors_scale_with_the_images_and_are_ordered(factor, seed):
    generated, training = random_pair((2, 1, 5, 5), seed)

    squared, absolute = root_mean_squared_error(generated, training), mean_absolute_error(generated, training)

    assert (absolute <= squared + 1e-6).all()
    for measure, value in ((root_mean_squared_error, squared), (mean_absolute_error, absolute)):
        torch.testing.assert_close(measure(generated * factor, training * factor), value * abs(factor))


@pytest.mark.parametrize("measure", MEASURES)
@given(order=st.permutations(range(5)), seed=st.integers(0, 100))
@settings(max_examples=10, deadline=None)
def test_a_pair_is_measured_alike_whatever_its_batch_and_order(measure, order, seed):
    generated, training = random_pair((5, 1, 12, 12), seed)

    together = measure(generated, training)
    alone = torch.cat([measure(generated[i : i + 1], training[i : i + 1]) for i in order])

    torch.testing.assert_close(together[list(order)], alone, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(measure(training, generated), together, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_floating_dtype_is_measured_in_float32(measure, dtype):
    generated, training = (image.to(dtype) for image in random_pair((2, 1, 12, 12)))

    value = measure(generated, training)

    assert value.dtype == torch.float32
    torch.testing.assert_close(value, measure(generated.float(), training.float()))


@pytest.mark.parametrize("measure", MEASURES)
def test_no_pairs_give_no_values(measure):
    assert measure(torch.zeros(0, 1, 12, 12), torch.zeros(0, 1, 12, 12)).shape == (0,)


@pytest.mark.parametrize(
    ("generated", "training", "message"),
    [
        (torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 5), r"\(1, 1, 4, 4\) and \(1, 1, 4, 5\)"),
        (torch.zeros(1, 4, 4), torch.zeros(1, 4, 4), r"generated .*\(1, 4, 4\)"),
        (torch.zeros(1, 1, 4, 4, dtype=torch.int32), torch.zeros(1, 1, 4, 4), r"generated .*torch.int32"),
        (torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), torch.nan), r"training .*16 values"),
        (torch.zeros(1, 1, 0, 4), torch.zeros(1, 1, 0, 4), r"at least one voxel"),
    ],
)
def test_invalid_images_are_refused_by_name(generated, training, message):
    # Where the shape checks of a test run are on, they would refuse first.
    with pytest.raises(InvalidImageError, match=message) as raised:
        inspect.unwrap(root_mean_squared_error)(generated, training)

    assert isinstance(raised.value, RelictError)
