import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_pairs import SHAPES, random_pair, structured_pair

from relict_lightning.errors import InvalidImageError
from relict_lightning.functional import normalized_cross_correlation, pairwise_normalized_cross_correlation
from relict_lightning.functional.voxel import correlation as correlation_module


def test_correlation_of_a_worked_pair():
    generated, training = torch.tensor([[[[1.0, 2.0, 3.0]]]]), torch.tensor([[[[1.0, 2.0, 6.0]]]])

    # Deviations (-1, 0, 1) and (-2, -1, 3): 5 / sqrt(2 * 14).
    assert normalized_cross_correlation(generated, training).item() == pytest.approx(5 / 28**0.5, abs=1e-6)


@pytest.mark.parametrize("pair", [random_pair, structured_pair])
@pytest.mark.parametrize("shape", SHAPES)
def test_correlation_agrees_with_numpy(pair, shape):
    generated, training = pair(shape)

    expected = [
        np.corrcoef(a.ravel(), b.ravel())[0, 1]
        for a, b in zip(generated.double().numpy(), training.double().numpy(), strict=True)
    ]

    np.testing.assert_allclose(normalized_cross_correlation(generated, training), expected, atol=5e-6)


@given(
    scale=st.floats(0.01, 1000),
    offset=st.floats(-100, 100),
    seed=st.integers(0, 100),
)
@settings(max_examples=25)
def test_correlation_is_blind_to_brightness_and_contrast(scale, offset, seed):
    generated, training = random_pair((2, 1, 8, 8), seed)

    plain = normalized_cross_correlation(generated, training)
    recoloured = normalized_cross_correlation(scale * generated + offset * scale, training)

    torch.testing.assert_close(plain, recoloured, atol=1e-3, rtol=0)


@given(seed=st.integers(0, 100))
@settings(max_examples=25)
def test_correlation_lies_between_minus_1_and_1_and_changes_sign_with_the_contrast(seed):
    generated, training = random_pair((2, 1, 3, 2), seed)

    value = normalized_cross_correlation(generated, training)

    assert (value.abs() <= 1).all()
    torch.testing.assert_close(normalized_cross_correlation(-generated, training), -value)


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


def test_all_pairs_of_worked_images():
    generated = torch.tensor([[[[1.0, 2.0, 3.0]]], [[[3.0, 2.0, 1.0]]]])
    training = torch.tensor([[[[1.0, 2.0, 6.0]]], [[[4.0, 4.0, 4.0]]], [[[1.0, 2.0, 3.0]]]])

    expected = torch.tensor([[5 / 28**0.5, 0.0, 1.0], [-5 / 28**0.5, 0.0, -1.0]])

    torch.testing.assert_close(pairwise_normalized_cross_correlation(generated, training), expected)


@pytest.mark.parametrize("pair", [random_pair, structured_pair])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 0.5, -3.0, 1000.0])
def test_all_pairs_agree_with_pair_after_pair_whatever_the_offset(pair, dtype, offset):
    images = torch.cat(pair((5, 2, 12, 10)))
    generated, training = images[:3] + offset, (images[3:] + offset).to(dtype)

    value = pairwise_normalized_cross_correlation(generated, training)

    for position, image in enumerate(training.float()):
        expected = normalized_cross_correlation(generated, image.expand_as(generated))
        torch.testing.assert_close(value[:, position], expected, atol=2e-5, rtol=0)


def test_all_pairs_do_not_change_with_the_size_of_the_blocks(monkeypatch):
    generated, training = (images.double() for images in random_pair((7, 1, 6, 6)))
    whole = pairwise_normalized_cross_correlation(generated, training)

    monkeypatch.setattr(correlation_module, "_BLOCK_VOXELS", 10)
    monkeypatch.setattr(correlation_module, "_BLOCK_ELEMENTS", 7 * 8)

    torch.testing.assert_close(pairwise_normalized_cross_correlation(generated, training), whole)


@given(n=st.integers(0, 3), m=st.integers(0, 4), seed=st.integers(0, 100))
@settings(max_examples=20)
def test_all_pairs_have_a_row_per_sample_and_transpose_with_the_roles(n, m, seed):
    images = torch.rand(n + m, 1, 4, 4, generator=torch.Generator().manual_seed(seed))

    value = pairwise_normalized_cross_correlation(images[:n], images[n:])

    assert value.shape == (n, m)
    torch.testing.assert_close(pairwise_normalized_cross_correlation(images[n:], images[:n]).T, value)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_all_pairs_survive_extreme_intensities(scale):
    generated, training = random_pair((2, 1, 8, 8))

    torch.testing.assert_close(
        pairwise_normalized_cross_correlation(generated, training * scale),
        pairwise_normalized_cross_correlation(generated, training),
    )


def test_all_pairs_survive_large_intensities_about_zero():
    half, _ = random_pair((2, 1, 8, 4))
    # The mean is exactly 0, and only the squares leave float32.
    images = torch.cat([half, -half], dim=3)

    large = pairwise_normalized_cross_correlation(images * 2.0**80, images * 2.0**80)

    torch.testing.assert_close(large, pairwise_normalized_cross_correlation(images, images))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_all_pairs_notice_one_voxel_that_is_not_finite(value):
    generated, training = random_pair((3, 1, 8, 8))
    training[1, 0, 3, 4] = value

    with pytest.raises(InvalidImageError, match="training must be finite in float32, but holds 1 values"):
        pairwise_normalized_cross_correlation(generated, training)
    with pytest.raises(InvalidImageError, match="generated must be finite in float32, but holds 1 values"):
        pairwise_normalized_cross_correlation(training, generated)


def test_all_pairs_notice_images_that_are_not_finite_without_samples():
    assert pairwise_normalized_cross_correlation(torch.zeros(0, 1, 4, 4), torch.ones(2, 1, 4, 4)).shape == (0, 2)


def test_all_pairs_refuse_images_of_another_shape_or_dtype():
    generated = torch.rand(2, 1, 8, 8)
    function = inspect.unwrap(pairwise_normalized_cross_correlation)

    with pytest.raises(InvalidImageError, match=r"\(2, 1, 8, 8\) and \(3, 1, 8, 7\)"):
        function(generated, torch.rand(3, 1, 8, 7))
    with pytest.raises(InvalidImageError, match=r"training must be floating point.*torch\.int64"):
        function(generated, torch.zeros(3, 1, 8, 8, dtype=torch.long))
