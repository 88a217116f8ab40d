import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_pairs import SHAPES, random_pair, structured_pair
from monai.metrics import MAEMetric, PSNRMetric, RMSEMetric
from skimage.metrics import peak_signal_noise_ratio as skimage_peak_signal_noise_ratio

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional import mean_absolute_error, peak_signal_noise_ratio, root_mean_squared_error

PAIRS = [(pair, shape) for pair in (random_pair, structured_pair) for shape in SHAPES]


def test_errors_of_a_worked_pair():
    generated, training = torch.tensor([[[[3.0, -4.0]]]]), torch.zeros(1, 1, 1, 2)

    assert root_mean_squared_error(generated, training).item() == pytest.approx(12.5**0.5)
    assert mean_absolute_error(generated, training).item() == pytest.approx(3.5)
    assert peak_signal_noise_ratio(generated, training, data_range=125**0.5).item() == pytest.approx(10.0)


def test_errors_inside_a_mask_of_a_worked_pair():
    generated, training = torch.tensor([[[[3.0, -4.0, 100.0]]]]), torch.zeros(1, 1, 1, 3)
    mask = torch.tensor([[[[True, True, False]]]])

    assert root_mean_squared_error(generated, training, mask=mask).item() == pytest.approx(12.5**0.5)
    assert mean_absolute_error(generated, training, mask=mask).item() == pytest.approx(3.5)
    assert peak_signal_noise_ratio(generated, training, data_range=125**0.5, mask=mask).item() == pytest.approx(10.0)


@pytest.mark.parametrize(("pair", "shape"), PAIRS)
def test_errors_agree_with_monai_and_numpy(pair, shape):
    generated, training = pair(shape)
    difference = (generated.double() - training.double()).numpy().reshape(shape[0], -1)

    absolute, squared = mean_absolute_error(generated, training), root_mean_squared_error(generated, training)

    np.testing.assert_allclose(absolute, np.abs(difference).mean(1), rtol=1e-5)
    np.testing.assert_allclose(squared, np.sqrt((difference**2).mean(1)), rtol=1e-5)
    torch.testing.assert_close(absolute, MAEMetric(reduction="none")(generated, training).flatten())
    torch.testing.assert_close(squared, RMSEMetric(reduction="none")(generated, training).flatten())


@pytest.mark.parametrize(("pair", "shape"), PAIRS)
def test_the_signal_to_noise_ratio_agrees_with_monai_and_scikit_image(pair, shape):
    generated, training = pair(shape)

    value = peak_signal_noise_ratio(generated, training, data_range=2.5)

    expected = [
        skimage_peak_signal_noise_ratio(a, b, data_range=2.5)
        for a, b in zip(training.double().numpy(), generated.double().numpy(), strict=True)
    ]
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    torch.testing.assert_close(value, PSNRMetric(max_val=2.5, reduction="none")(generated, training).flatten())


@given(factor=st.floats(-8, 8, width=32), seed=st.integers(0, 100))
@settings(max_examples=25)
def test_errors_scale_with_the_images_and_are_ordered(factor, seed):
    generated, training = random_pair((2, 1, 5, 5), seed)

    squared, absolute = root_mean_squared_error(generated, training), mean_absolute_error(generated, training)

    assert (absolute <= squared + 1e-6).all()
    for measure, value in ((root_mean_squared_error, squared), (mean_absolute_error, absolute)):
        torch.testing.assert_close(measure(generated * factor, training * factor), value * abs(factor))


@given(factor=st.floats(0.01, 100), seed=st.integers(0, 100))
@settings(max_examples=25)
def test_the_signal_to_noise_ratio_does_not_change_with_the_unit_of_intensity(factor, seed):
    generated, training = random_pair((2, 1, 5, 5), seed)

    torch.testing.assert_close(
        peak_signal_noise_ratio(factor * generated, factor * training, data_range=factor),
        peak_signal_noise_ratio(generated, training, data_range=1.0),
        atol=1e-3,
        rtol=1e-4,
    )


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_errors_survive_extreme_intensities(scale):
    generated, training = random_pair((2, 1, 8, 8))

    for measure in (root_mean_squared_error, mean_absolute_error):
        torch.testing.assert_close(measure(scale * generated, scale * training) / scale, measure(generated, training))


@pytest.mark.parametrize("data_range", [0.0, -1.0, float("nan"), float("inf")])
def test_the_signal_to_noise_ratio_refuses_an_impossible_range(data_range):
    with pytest.raises(ConfigurationError, match=f"data_range={data_range}"):
        peak_signal_noise_ratio(*random_pair((1, 1, 4, 4)), data_range=data_range)
