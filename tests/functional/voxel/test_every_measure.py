"""What holds for each measure of pairs of images."""

import functools
import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_pairs import random_pair, structured_pair

from relict_lightning.errors import InvalidImageError, RelictError
from relict_lightning.functional import (
    local_normalized_cross_correlation,
    mean_absolute_error,
    multiscale_structural_similarity,
    normalized_cross_correlation,
    normalized_mutual_information,
    peak_signal_noise_ratio,
    root_mean_squared_error,
    structural_similarity,
)

# Each with the value of identical images, and the value where nothing is compared.
MEASURES = {
    "mean absolute error": (mean_absolute_error, 0.0, torch.inf),
    "root mean squared error": (root_mean_squared_error, 0.0, torch.inf),
    "peak signal-to-noise ratio": (functools.partial(peak_signal_noise_ratio, data_range=1.0), torch.inf, -torch.inf),
    "correlation": (normalized_cross_correlation, 1.0, 0.0),
    "local correlation": (functools.partial(local_normalized_cross_correlation, window=5), 1.0, 0.0),
    "squared local correlation": (
        functools.partial(local_normalized_cross_correlation, window=5, squared=True),
        1.0,
        0.0,
    ),
    "structural similarity": (functools.partial(structural_similarity, data_range=1.0), 1.0, 0.0),
    "multiscale structural similarity": (
        functools.partial(multiscale_structural_similarity, data_range=1.0, window=5),
        1.0,
        0.0,
    ),
    "mutual information": (functools.partial(normalized_mutual_information, bins=16), 2.0, 1.0),
    "arithmetic mutual information": (
        functools.partial(normalized_mutual_information, bins=16, normalization="arithmetic"),
        1.0,
        0.0,
    ),
}
each_measure = pytest.mark.parametrize(("measure", "identical", "nothing"), list(MEASURES.values()), ids=list(MEASURES))


def unchecked(measure: functools.partial | object) -> functools.partial:
    """Return the measure without the shape checks of a test run, which would refuse first."""
    function, options = (measure.func, measure.keywords) if isinstance(measure, functools.partial) else (measure, {})
    return functools.partial(inspect.unwrap(function), **options)


@each_measure
def test_identical_images_have_the_best_value(measure, identical, nothing):
    for _, images in (random_pair((2, 2, 16, 16)), structured_pair((2, 1, 12, 16, 14))):
        torch.testing.assert_close(measure(images, images), torch.full((2,), identical), atol=1e-4, rtol=0)


@each_measure
@given(order=st.permutations(range(5)), seed=st.integers(0, 100))
@settings(max_examples=8)
def test_a_pair_has_one_value_whatever_its_batch_and_its_order(measure, identical, nothing, order, seed):
    generated, training = random_pair((5, 1, 12, 12), seed)

    together = measure(generated, training)
    alone = torch.cat([measure(generated[i : i + 1], training[i : i + 1]) for i in order])

    torch.testing.assert_close(together[list(order)], alone, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(measure(training, generated), together, atol=1e-6, rtol=1e-5)


@each_measure
@pytest.mark.parametrize("pair", [random_pair, structured_pair])
def test_noise_makes_images_less_alike(measure, identical, nothing, pair):
    _, training = pair((4, 1, 32, 32))
    noise = torch.randn(training.shape, generator=torch.Generator().manual_seed(1))

    values = torch.stack([measure(training + scale * noise, training) for scale in (0.02, 0.1, 0.5)])

    steps = values.diff(dim=0) * (1 if identical < nothing else -1)
    assert (steps > 0).all()


@each_measure
def test_a_mask_of_everything_changes_nothing(measure, identical, nothing):
    generated, training = random_pair((2, 2, 12, 16, 14))

    whole = measure(generated, training, mask=torch.ones(1, 1, 12, 16, 14) > 0)

    torch.testing.assert_close(whole, measure(generated, training), atol=1e-6, rtol=1e-5)


# Windows at several scales reach farther; `test_structure` looks at those.
@pytest.mark.parametrize(
    ("measure", "identical", "nothing"),
    [values for name, values in MEASURES.items() if not name.startswith("multiscale")],
    ids=[name for name in MEASURES if not name.startswith("multiscale")],
)
def test_what_lies_outside_the_mask_and_its_windows_does_not_matter(measure, identical, nothing):
    generated, training = random_pair((2, 1, 40, 40))
    mask = torch.zeros(1, 1, 40, 40) > 0
    mask[..., 10:18, 10:20] = True
    elsewhere = generated.clone()
    # Windows of up to 11 voxels do not reach here.
    elsewhere[..., 30:, :] = 0.9

    torch.testing.assert_close(
        measure(elsewhere, training, mask=mask), measure(generated, training, mask=mask), atol=1e-4, rtol=1e-4
    )
    assert not torch.allclose(measure(elsewhere, training), measure(generated, training), atol=1e-4)


@each_measure
def test_each_pair_may_have_its_own_mask_and_an_empty_mask_compares_nothing(measure, identical, nothing):
    generated, training = random_pair((2, 1, 24, 24))
    masks = torch.zeros(2, 1, 24, 24) > 0
    masks[0, :, 6:18, 6:18] = True

    values = measure(generated, training, mask=masks)

    torch.testing.assert_close(values[:1], measure(generated[:1], training[:1], mask=masks[:1]))
    assert values[1].item() == nothing


@each_measure
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_floating_dtype_is_measured_in_float32(measure, identical, nothing, dtype):
    generated, training = (image.to(dtype) for image in random_pair((2, 1, 12, 12)))

    value = measure(generated, training)

    assert value.dtype == torch.float32
    torch.testing.assert_close(value, measure(generated.float(), training.float()))


@each_measure
def test_no_pairs_have_no_values(measure, identical, nothing):
    assert measure(torch.zeros(0, 1, 12, 12), torch.zeros(0, 1, 12, 12)).shape == (0,)


@each_measure
def test_a_single_voxel_has_a_defined_value(measure, identical, nothing):
    value = measure(torch.full((1, 1, 1, 1), 0.5), torch.full((1, 1, 1, 1), 0.25))

    assert not value.isnan().any()


@each_measure
@pytest.mark.parametrize(
    ("generated", "training", "message"),
    [
        (torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 5), r"\(1, 1, 4, 4\) and \(1, 1, 4, 5\)"),
        (torch.zeros(1, 4, 4), torch.zeros(1, 4, 4), r"generated .*\(1, 4, 4\)"),
        (torch.zeros(1, 1, 4, 4, dtype=torch.uint8), torch.zeros(1, 1, 4, 4), r"generated .*torch.uint8"),
        (torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), torch.nan), r"training .*16 values"),
        (torch.full((1, 1, 4, 4), torch.inf), torch.zeros(1, 1, 4, 4), r"generated .*16 values"),
        (
            torch.full((1, 1, 4, 4), 1e300, dtype=torch.float64),
            torch.zeros(1, 1, 4, 4),
            r"generated must be finite in float32",
        ),
        (torch.zeros(1, 1, 0, 4), torch.zeros(1, 1, 0, 4), r"at least one voxel"),
    ],
)
def test_invalid_images_are_refused_by_name(measure, identical, nothing, generated, training, message):
    with pytest.raises(InvalidImageError, match=message) as raised:
        unchecked(measure)(generated, training)

    assert isinstance(raised.value, RelictError)


@each_measure
def test_a_mask_that_does_not_fit_is_refused(measure, identical, nothing):
    generated, training = random_pair((2, 1, 8, 8))

    with pytest.raises(InvalidImageError, match=r"mask .*\(2, 1, 8, 8\).*\(1, 1, 8, 7\)"):
        unchecked(measure)(generated, training, mask=torch.ones(1, 1, 8, 7) > 0)
    with pytest.raises(InvalidImageError, match=r"mask must be boolean.*torch\.float32"):
        unchecked(measure)(generated, training, mask=torch.ones(2, 1, 8, 8))
