import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.neighbors import NearestNeighbors

from relict_lightning.errors import ConfigurationError, RelictWarning
from relict_lightning.functional import authenticity, nearest_training_distances
from relict_lightning.results import AuthenticityEstimate

NO_CONTROL = {"heldout_distances": torch.zeros(0), "heldout_reference_distances": torch.zeros(0)}


def test_the_authentic_share_of_worked_distances_stands_beside_that_of_heldout_images():
    estimate = authenticity(
        torch.tensor([0.0, 0.1, 3.0, 0.2]),
        torch.tensor([2.0, 2.0, 2.0, 1.0]),
        heldout_distances=torch.tensor([2.5, 1.5, 3.0, 2.2, 9.0]),
        heldout_reference_distances=torch.tensor([2.0, 2.0, 2.0, 1.0, 3.0]),
    )

    assert (estimate.value.successes, estimate.value.trials, estimate.value.value) == (1, 4, 0.25)
    assert (estimate.control.successes, estimate.control.trials, estimate.control.value) == (4, 5, 0.8)


@pytest.mark.parametrize("structured", [False, True], ids=["random", "with copies and twins"])
def test_the_authentic_share_agrees_with_scikit_learn(structured):
    rng = np.random.default_rng(0)
    training, generated = rng.normal(size=(80, 3)), rng.normal(size=(60, 3))
    if structured:
        training[40:] = training[:40] + 0.05 * rng.normal(size=(40, 3))
        generated[:20] = training[:20] + 0.03 * rng.normal(size=(20, 3))

    distances = nearest_training_distances(torch.from_numpy(generated), torch.from_numpy(training))

    search = NearestNeighbors(n_neighbors=2).fit(training)
    first, match = search.kneighbors(generated, n_neighbors=1)
    second = search.kneighbors(training)[0][match[:, 0], 1]
    assert authenticity(*distances, **NO_CONTROL).value.value == (first[:, 0] > second).mean()


def test_copies_are_not_authentic():
    training = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))

    assert authenticity(*nearest_training_distances(training, training), **NO_CONTROL).value.value == 0


def test_a_sample_on_two_training_images_at_once_is_not_authentic():
    assert authenticity(torch.zeros(1), torch.zeros(1), **NO_CONTROL).value.value == 0


def test_with_groups_a_twin_scan_does_not_make_a_copy_authentic():
    training = torch.tensor([[0.0], [0.01], [5.0], [5.01]])
    copy = torch.tensor([[-0.05]])

    alone = nearest_training_distances(copy, training)
    grouped = nearest_training_distances(copy, training, training_groups=torch.tensor([0, 0, 1, 1]))

    assert authenticity(*alone, **NO_CONTROL).value.value == 1
    assert authenticity(*grouped, **NO_CONTROL).value.value == 0


@given(pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=20))
@settings(max_examples=30)
def test_the_share_and_its_mirror_image_leave_out_the_ties(pairs):
    first, second = torch.tensor(pairs).float().unbind(1)

    share, mirrored = (authenticity(*each, **NO_CONTROL).value for each in ((first, second), (second, first)))

    assert share.successes + mirrored.successes == sum(a != b for a, b in pairs)


@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 10), further=st.floats(0, 1))
@settings(max_examples=30)
def test_the_share_does_not_change_with_the_unit_and_does_not_fall_with_the_distance(seed, scale, further):
    first, second = torch.rand(2, 15, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    share = authenticity(first, second, **NO_CONTROL).value

    assert authenticity(4 * first, 4 * second, **NO_CONTROL).value == share
    assert authenticity(first + further, second, **NO_CONTROL).value.value >= share.value
    assert authenticity(first * scale, second, **NO_CONTROL).value.trials == share.trials


def test_the_intervals_are_exact_and_of_the_confidence_asked_for():
    share = authenticity(torch.ones(7), torch.tensor([0.0] * 3 + [2.0] * 4), **NO_CONTROL, confidence=0.9).value

    exact = stats.binomtest(3, 7).proportion_ci(0.9, method="exact")
    assert (share.low, share.high) == pytest.approx((exact.low, exact.high))
    assert share.confidence == 0.9


def test_without_a_control_a_warning_says_that_the_share_says_nothing():
    with pytest.warns(RelictWarning, match=r"0/2 = 0\.0 % .* depends on the dimension .* Give held-out images"):
        estimate = authenticity(torch.zeros(2), torch.ones(2))

    assert isinstance(estimate, AuthenticityEstimate)
    assert estimate.control is None


def test_the_share_of_no_samples_is_nan():
    estimate = authenticity(torch.zeros(0), torch.zeros(0), **NO_CONTROL)

    for share in (estimate.value, estimate.control):
        assert math.isnan(share.value)
        assert (share.low, share.high) == (0, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference_distances": torch.ones(3)}, "generated_distances and reference_distances must have one shape"),
        ({"generated_distances": torch.tensor([math.nan, 0.0])}, "generated_distances must not hold NaN"),
        ({"reference_distances": torch.tensor([-0.5, 0.0])}, r"reference_distances must not be negative.*-0\.5"),
        ({"heldout_distances": None}, "but heldout_distances is missing"),
        ({"heldout_reference_distances": None}, "but heldout_reference_distances is missing"),
        ({"heldout_distances": torch.ones(2)}, r"have \(2,\) and \(3,\)"),
        ({"heldout_distances": torch.full((3,), math.nan)}, "heldout_distances must not hold NaN"),
        ({"heldout_reference_distances": -torch.ones(3)}, "heldout_reference_distances must not be negative"),
        ({"confidence": 1.0}, r"confidence=1\.0"),
    ],
)
def test_distances_that_cannot_be_compared_are_refused(changes, message):
    arguments = {
        "generated_distances": torch.ones(2),
        "reference_distances": torch.ones(2),
        "heldout_distances": torch.ones(3),
        "heldout_reference_distances": torch.ones(3),
    } | changes

    with pytest.raises(ConfigurationError, match=message):
        inspect.unwrap(authenticity)(**arguments)
