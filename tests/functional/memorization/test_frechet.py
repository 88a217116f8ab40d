import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from sklearn.metrics.pairwise import cosine_similarity
from torchmetrics.image.mifid import MemorizationInformedFrechetInceptionDistance

from relict_lightning.errors import ConfigurationError, EmptyDataError
from relict_lightning.functional import (
    frechet_distance,
    memorization_distance,
    memorization_informed_frechet_distance,
)


def normal_sets(seed: int, *, n: int = 30, m: int = 40, d: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64)
    generated, training = (torch.randn(size, d, generator=generator, dtype=torch.float64) for size in (n, m))
    return generated @ mixing + 0.5, training


def rotation(seed: int, rows: int, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(columns, rows, generator=generator, dtype=torch.float64)).Q.T


def test_the_frechet_distance_of_a_shifted_set_is_the_squared_shift():
    training = torch.tensor([[0.0, 1.0], [2.0, 1.0], [1.0, 0.0], [1.0, 2.0]])

    assert frechet_distance(training + torch.tensor([3.0, 4.0]), training) == pytest.approx(25)


def test_the_frechet_distance_in_one_dimension_is_that_of_means_and_deviations():
    generated, training = torch.tensor([[0.0], [4.0]]), torch.tensor([[1.0], [1.0], [4.0]])

    # Means 2 and 2, variances 8 and 3.
    assert frechet_distance(generated, training) == pytest.approx((8**0.5 - 3**0.5) ** 2)


@pytest.mark.parametrize("structured", [False, True], ids=["random", "correlated"])
def test_the_frechet_distance_agrees_with_scipys_matrix_square_root(structured):
    generated, training = normal_sets(0)
    if structured:
        generated[:, 1] = generated[:, 0] + 0.1 * generated[:, 1]

    covariances = [np.cov(each.numpy().T) for each in (generated, training)]
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    shift = (generated.mean(dim=0) - training.mean(dim=0)).square().sum()
    expected = float(shift) + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * np.trace(root)

    assert frechet_distance(generated, training) == pytest.approx(expected, rel=1e-9)


def test_the_frechet_distance_of_fewer_images_than_dimensions_is_that_of_the_space_they_span():
    generated, training = normal_sets(0, n=6, m=9, d=3)

    # A rotation into 64 dimensions changes no distance, and the covariances become singular.
    wide = frechet_distance(generated @ rotation(0, 3, 64), training @ rotation(0, 3, 64))

    assert wide == pytest.approx(frechet_distance(generated, training), rel=1e-12)


@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 10), offset=st.floats(-100, 100))
@settings(max_examples=25)
def test_the_frechet_distance_is_symmetric_and_scales_with_the_square(seed, scale, offset):
    generated, training = normal_sets(seed)
    turn = rotation(seed, 5, 5)

    distance = frechet_distance(generated, training)

    assert distance > 0
    assert frechet_distance(training, generated) == pytest.approx(distance)
    assert frechet_distance(scale * generated @ turn + offset, scale * training @ turn + offset) == pytest.approx(
        scale**2 * distance, rel=1e-6
    )


@given(seed=st.integers(0, 1000), offset=st.floats(-1e4, 1e4), data=st.data())
@settings(max_examples=25)
def test_the_frechet_distance_of_a_set_to_itself_in_any_order_is_0(seed, offset, data):
    _, training = normal_sets(seed, m=12)
    order = torch.tensor(data.draw(st.permutations(range(12))))

    assert frechet_distance((training + offset)[order], training + offset) == 0


def test_the_frechet_distance_of_constant_sets_is_that_of_their_values():
    assert frechet_distance(torch.full((3, 2), 0.1), torch.full((7, 2), 0.1)) == 0
    assert frechet_distance(torch.full((3, 2), 1.0), torch.full((7, 2), 2.0)) == pytest.approx(2)


def test_a_frechet_distance_far_below_the_spread_is_not_taken_for_rounding():
    training = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    assert frechet_distance(training + 1e-5, training) == pytest.approx(4e-10, rel=1e-3)


def test_the_memorization_distance_of_worked_embeddings():
    generated, training = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])

    assert memorization_distance(generated, training) == pytest.approx(0.1)


def test_the_memorization_distance_is_over_samples_and_cannot_be_swapped():
    generated, training = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])

    assert memorization_distance(generated, training) == 0
    assert memorization_distance(training, generated) == pytest.approx(2 / 3)


@given(seed=st.integers(0, 1000))
@settings(max_examples=25)
def test_the_memorization_distance_agrees_with_scikit_learn(seed):
    generated, training = normal_sets(seed)

    expected = (1 - np.abs(cosine_similarity(generated, training)).max(axis=1)).mean()

    assert memorization_distance(generated, training) == pytest.approx(expected)


@given(seed=st.integers(0, 1000), scale=st.floats(-10, -0.1) | st.floats(0.1, 10), data=st.data())
@settings(max_examples=25)
def test_the_memorization_distance_ignores_length_sign_and_order(seed, scale, data):
    generated, training = normal_sets(seed, n=10)
    order = torch.tensor(data.draw(st.permutations(range(10))))

    distance = memorization_distance(generated, training)

    assert 0 <= distance <= 1
    assert memorization_distance(scale * generated[order], training) == pytest.approx(distance)


def test_the_memorization_distance_grows_with_the_noise_on_copies():
    _, training = normal_sets(0, m=50, d=32)
    noise, _ = normal_sets(1, n=50, d=32)

    distances = [memorization_distance(training + level * noise, training) for level in (0.0, 0.05, 0.1, 0.2)]

    assert distances[0] == pytest.approx(0, abs=1e-12)
    assert distances == sorted(distances)


def test_an_embedding_of_zeros_is_like_none_and_one_that_sums_to_0_counts():
    training = torch.tensor([[1.0, -1.0], [0.0, 1.0]])

    assert memorization_distance(torch.zeros(1, 2), training) == 1
    assert memorization_distance(torch.tensor([[2.0, -2.0]]), training) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("noise", [0.3, 3.0], ids=["punished", "unpunished"])
def test_the_memorization_informed_distance_is_torchmetrics_with_roles_exchanged(noise):
    generator = torch.Generator().manual_seed(0)
    training = torch.randn(60, 8, generator=generator)
    generated = training[:40] + noise * torch.randn(40, 8, generator=generator)

    found = memorization_informed_frechet_distance(generated, training, threshold=0.1)

    # The distance is symmetric, and the penalty is averaged over what is called real there.
    exchanged = MemorizationInformedFrechetInceptionDistance(feature=torch.nn.Identity(), cosine_distance_eps=0.1)
    exchanged.update(generated, real=True)
    exchanged.update(training, real=False)
    assert (memorization_distance(generated, training) < 0.1) == (noise < 1)
    assert found == pytest.approx(float(exchanged.compute()), rel=1e-4)


def test_below_the_threshold_the_distance_is_divided_and_above_it_is_not():
    generated, training = normal_sets(0)
    plain, memorized = frechet_distance(generated, training), memorization_distance(generated, training)

    below, above = (
        memorization_informed_frechet_distance(generated, training, threshold=threshold)
        for threshold in (memorized * 1.01, memorized)
    )

    assert below == pytest.approx(plain / memorized)
    assert above == plain


def test_copies_of_everybody_go_unpunished_because_their_frechet_distance_is_0():
    _, training = normal_sets(0)

    assert memorization_informed_frechet_distance(training.flip(0), training, threshold=0.1) == 0


@pytest.mark.parametrize("n", [0, 1])
def test_without_enough_samples_the_value_is_nan(n):
    _, training = normal_sets(0)

    assert math.isnan(frechet_distance(training[:n], training))
    assert math.isnan(memorization_informed_frechet_distance(training[:n], training, threshold=0.1))
    assert math.isnan(memorization_distance(training[:0], training))


def test_copies_in_half_precision_are_measured_in_float64():
    training = torch.randn(20, 4, generator=torch.Generator().manual_seed(0)).half()

    assert frechet_distance(training, training) == 0
    assert memorization_distance(training, training) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.5, math.nan])
def test_a_threshold_that_no_cosine_distance_has_is_refused(threshold):
    with pytest.raises(ConfigurationError, match=f"threshold={threshold}"):
        memorization_informed_frechet_distance(torch.eye(3), torch.eye(3), threshold=threshold)


@pytest.mark.parametrize(
    ("measure", "settings"),
    [
        (frechet_distance, {}),
        (memorization_distance, {}),
        (memorization_informed_frechet_distance, {"threshold": 0.5}),
    ],
)
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"training": torch.zeros(0, 3)}, EmptyDataError, "training must hold at least"),
        ({"training": torch.zeros(4, 2)}, ConfigurationError, "one dimension, but have 3 and 2"),
        ({"training": torch.full((4, 3), math.inf)}, ConfigurationError, "training must be finite"),
        ({"generated": torch.full((4, 3), math.nan)}, ConfigurationError, "generated must be finite"),
        ({"generated": torch.zeros(4, 3).int()}, ConfigurationError, "generated must be floating point"),
        ({"generated": torch.zeros(4, 3, 1)}, ConfigurationError, r"generated must have shape \[n, d\]"),
    ],
)
def test_sets_that_cannot_be_compared_are_refused(measure, settings, changes, error, message):
    sets = {"generated": torch.ones(2, 3), "training": torch.ones(4, 3)} | changes

    with pytest.raises(error, match=message):
        inspect.unwrap(measure)(**sets, **settings)


@pytest.mark.parametrize("measure", [frechet_distance, memorization_informed_frechet_distance])
def test_one_training_image_has_no_covariance(measure):
    settings = {} if measure is frechet_distance else {"threshold": 0.5}

    with pytest.raises(EmptyDataError, match="training must hold at least 2 embeddings, but holds 1"):
        measure(torch.ones(2, 3), torch.ones(1, 3), **settings)
