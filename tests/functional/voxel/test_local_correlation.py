import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_pairs import SHAPES, random_pair, structured_pair
from monai.losses import LocalNormalizedCrossCorrelationLoss

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional import local_normalized_cross_correlation, normalized_cross_correlation
from relict_lightning.functional.voxel import windows


def by_hand(generated: np.ndarray, training: np.ndarray, window: int) -> float:
    """Return the mean of numpy's correlation over all windows of one channel, with the stated rule for flat ones."""
    values = []
    for corner in itertools.product(*(range(side - window + 1) for side in generated.shape)):
        part = tuple(slice(start, start + window) for start in corner)
        first, second = generated[part].ravel(), training[part].ravel()
        flat = first.std() == 0, second.std() == 0
        if not all(flat):
            values.append(0.0 if any(flat) else np.corrcoef(first, second)[0, 1])
    return float(np.mean(values)) if values else 0.0


def test_local_correlation_of_worked_windows():
    generated, training = torch.tensor([[[[0.0, 1.0, 3.0, 2.0]]]]), torch.tensor([[[[0.0, 1.0, 2.0, 3.0]]]])

    # The two windows of three voxels: (0, 1, 3) and (1, 3, 2) against ascending thirds.
    expected = (3 / (14 / 3 * 2) ** 0.5 + 1 / (2 * 2) ** 0.5) / 2

    value = local_normalized_cross_correlation(generated, training, window=3)
    assert value.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("shape", [(2, 1, 9, 8), (1, 1, 6, 5, 7)])
@pytest.mark.parametrize("pair", [random_pair, structured_pair])
def test_local_correlation_agrees_with_numpy_window_by_window(pair, shape):
    generated, training = pair(shape)

    expected = [by_hand(a[0], b[0], 3) for a, b in zip(generated.numpy(), training.numpy(), strict=True)]

    value = local_normalized_cross_correlation(generated, training, window=3)
    np.testing.assert_allclose(value, expected, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_squared_local_correlation_agrees_with_monai_inside_the_border(shape):
    generated, training = (images[:, :1] for images in random_pair(shape))
    loss = LocalNormalizedCrossCorrelationLoss(
        spatial_dims=len(shape) - 2, kernel_size=5, reduction="none", smooth_nr=0.0
    )

    inside = (slice(None), slice(None), *(slice(2, side - 2) for side in shape[2:]))
    expected = -loss(generated, training)[inside].flatten(1).mean(dim=1)

    value = local_normalized_cross_correlation(generated, training, window=5, squared=True)
    torch.testing.assert_close(value, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("side", [5, 4])
def test_one_window_that_fills_the_image_is_the_correlation_of_the_image(side):
    # Along an axis of four voxels the window shrinks to three.
    generated, training = random_pair((3, 1, 5, side))

    value = local_normalized_cross_correlation(generated, training, window=5)

    fitting = [slice(start, start + 5 - (side == 4) * 2) for start in range(1 + (side == 4))]
    expected = torch.stack([normalized_cross_correlation(generated[..., p], training[..., p]) for p in fitting])
    torch.testing.assert_close(value, expected.mean(dim=0), atol=1e-5, rtol=0)


@given(gain=st.floats(0.1, 10), offset=st.floats(-10, 10), seed=st.integers(0, 100))
@settings(max_examples=20)
def test_local_correlation_is_blind_to_brightness_and_contrast_and_stays_in_range(gain, offset, seed):
    generated, training = random_pair((2, 1, 12, 12), seed)

    value = local_normalized_cross_correlation(generated, training, window=5)

    assert (value.abs() <= 1).all()
    for factor in (gain, -gain):
        recoloured = local_normalized_cross_correlation(factor * generated + offset, training, window=5)
        torch.testing.assert_close(recoloured, value if factor > 0 else -value, atol=1e-3, rtol=0)
    squared = local_normalized_cross_correlation(-gain * generated + offset, training, window=5, squared=True)
    assert ((squared >= value.square() - 1e-3) & (squared <= 1)).all()


def test_shading_that_misleads_the_correlation_of_images_does_not_mislead_the_local_one():
    _, training = random_pair((1, 1, 32, 32))
    shading = torch.linspace(0, 4, 32)[:, None]

    shaded = training + shading

    assert normalized_cross_correlation(shaded, training).item() < 0.3
    assert local_normalized_cross_correlation(shaded, training, window=5).item() > 0.75


def test_windows_that_are_flat_in_both_images_are_left_out_and_flat_ones_in_one_count_as_0():
    _, body = random_pair((1, 1, 9, 9))
    air = torch.zeros(1, 1, 9, 9)
    image = torch.cat([body, air], dim=3)

    with_air = local_normalized_cross_correlation(image, image, window=3)
    against_air = local_normalized_cross_correlation(image, torch.cat([air, air], dim=3), window=3)
    half = local_normalized_cross_correlation(image, torch.cat([body, body], dim=3), window=3)

    assert with_air.item() == pytest.approx(1, abs=1e-5)
    assert against_air.item() == 0
    assert 0.4 < half.item() < 0.6


@pytest.mark.parametrize("value", [0.0, 0.1, -1000.3])
def test_a_constant_image_has_no_local_correlation(value):
    _, training = random_pair((1, 1, 17, 13))
    constant = torch.full_like(training, value)

    for generated, other in ((constant, training), (training, constant), (constant, constant)):
        assert local_normalized_cross_correlation(generated, other).item() == 0


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_local_correlation_survives_extreme_intensities(scale):
    generated, training = random_pair((1, 1, 12, 12))

    torch.testing.assert_close(
        local_normalized_cross_correlation(generated * scale, training),
        local_normalized_cross_correlation(generated, training),
    )


def test_local_correlation_of_many_pairs_is_that_of_each(monkeypatch):
    generated, training = random_pair((7, 1, 16, 16))
    whole = local_normalized_cross_correlation(generated, training)

    monkeypatch.setattr(windows, "_FILTERED_ELEMENTS", 5 * 256 * 2)

    torch.testing.assert_close(local_normalized_cross_correlation(generated, training), whole)


@pytest.mark.parametrize("window", [0, 4, -3])
def test_a_window_without_a_centre_is_refused(window):
    with pytest.raises(ConfigurationError, match=f"window={window}"):
        local_normalized_cross_correlation(*random_pair((1, 1, 8, 8)), window=window)
