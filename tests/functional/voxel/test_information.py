import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_pairs import SHAPES, random_pair, structured_pair
from skimage.metrics import normalized_mutual_information as skimage_normalized_mutual_information
from sklearn.metrics import normalized_mutual_info_score

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional import normalized_mutual_information


def test_information_of_a_worked_pair():
    # Joint shares 1/2 of (0, 0), 1/4 of (0, 1), 1/4 of (1, 1); entropies in bits.
    generated, training = torch.tensor([[[[0.0, 0.0, 0.0, 1.0]]]]), torch.tensor([[[[0.0, 0.0, 1.0, 1.0]]]])
    of_generated, of_training, joint = 2 - 0.75 * np.log2(3), 1.0, 1.5

    value = normalized_mutual_information(generated, training, bins=2)
    arithmetic = normalized_mutual_information(generated, training, bins=2, normalization="arithmetic")

    assert value.item() == pytest.approx((of_generated + of_training) / joint, abs=1e-6)
    shared = of_generated + of_training - joint
    assert arithmetic.item() == pytest.approx(2 * shared / (of_generated + of_training), abs=1e-6)


@pytest.mark.parametrize("pair", [random_pair, structured_pair])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bins", [7, 100])
def test_information_agrees_with_scikit_image(pair, shape, bins):
    generated, training = pair(shape)

    expected = [
        skimage_normalized_mutual_information(a.ravel(), b.ravel(), bins=bins)
        for a, b in zip(generated.numpy(), training.numpy(), strict=True)
    ]

    value = normalized_mutual_information(generated, training, bins=bins)
    np.testing.assert_allclose(value, expected, atol=2e-3)


@given(bins=st.integers(2, 12), seed=st.integers(0, 1000))
@settings(max_examples=25)
def test_arithmetic_information_agrees_with_scikit_learn_on_labels(bins, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, bins, (2, 60))
    # Both ends occur, so that every label has a bin of its own.
    labels[:, :2] = 0, bins - 1
    generated, training = torch.tensor(labels, dtype=torch.float32).reshape(2, 1, 1, 6, 10)

    expected = normalized_mutual_info_score(*labels, average_method="arithmetic")

    value = normalized_mutual_information(generated, training, bins=bins, normalization="arithmetic")
    assert value.item() == pytest.approx(expected, abs=1e-5)


@given(bins=st.integers(2, 40), seed=st.integers(0, 1000))
@settings(max_examples=25)
def test_each_normalisation_follows_from_the_other_and_stays_in_range(bins, seed):
    generated, training = random_pair((2, 1, 9, 7), seed)

    value = normalized_mutual_information(generated, training, bins=bins)
    arithmetic = normalized_mutual_information(generated, training, bins=bins, normalization="arithmetic")

    assert ((value >= 1) & (value <= 2)).all()
    torch.testing.assert_close(arithmetic, 2 - 2 / value, atol=1e-5, rtol=0)


@given(relabelling=st.permutations(range(6)), gain=st.floats(0.1, 100), offset=st.floats(-100, 100))
@settings(max_examples=25)
def test_information_is_blind_to_any_recolouring(relabelling, gain, offset):
    labels = torch.arange(6).repeat(6).reshape(1, 1, 6, 6)
    noisy = (labels + torch.randint(0, 2, labels.shape, generator=torch.Generator().manual_seed(0))).clamp(max=5)
    recoloured = torch.tensor(relabelling)[noisy].float() * gain + offset

    torch.testing.assert_close(
        normalized_mutual_information(recoloured, labels.float(), bins=6),
        normalized_mutual_information(noisy.float(), labels.float(), bins=6),
        atol=1e-5,
        rtol=0,
    )


def test_a_constant_image_says_nothing():
    _, training = random_pair((1, 1, 8, 8))
    constant = torch.full_like(training, 0.3)

    for generated, other in ((constant, training), (training, constant), (constant, constant)):
        assert normalized_mutual_information(generated, other).item() == 1
        assert normalized_mutual_information(generated, other, normalization="arithmetic").item() == 0


def test_information_inside_a_mask_is_that_of_the_masked_voxels():
    generated, training = random_pair((2, 2, 8, 8))
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    mask[..., 2:7, 1:5] = True

    masked = normalized_mutual_information(generated, training, bins=5, mask=mask)
    cropped = normalized_mutual_information(generated[..., 2:7, 1:5], training[..., 2:7, 1:5], bins=5)

    torch.testing.assert_close(masked, cropped)


@pytest.mark.parametrize("scale", [1e-37, 3e38])
def test_information_survives_extreme_intensities(scale):
    generated, training = (2 * images - 1 for images in random_pair((1, 1, 8, 8)))

    torch.testing.assert_close(
        normalized_mutual_information(generated * scale, training * scale, bins=8),
        normalized_mutual_information(generated, training, bins=8),
        atol=1e-2,
        rtol=0,
    )


def test_information_refuses_impossible_settings():
    pair = random_pair((1, 1, 4, 4))

    with pytest.raises(ConfigurationError, match="bins=1"):
        normalized_mutual_information(*pair, bins=1)
    with pytest.raises(ConfigurationError, match="normalization='sqrt'"):
        normalized_mutual_information.__wrapped__(*pair, normalization="sqrt")
