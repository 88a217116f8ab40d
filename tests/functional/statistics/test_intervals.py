import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional import clopper_pearson_interval, estimate_rate


def test_the_interval_of_0_in_50_is_not_a_point():
    low, high = clopper_pearson_interval(0, 50)

    assert low == 0
    # Solves (1 - p)^50 = 0.025.
    assert high == pytest.approx(1 - 0.025 ** (1 / 50))


@given(trials=st.integers(1, 300), data=st.data(), confidence=st.sampled_from([0.8, 0.95, 0.999]))
@settings(max_examples=60)
def test_the_bounds_leave_half_the_error_in_each_binomial_tail(trials, data, confidence):
    successes = data.draw(st.integers(0, trials))
    low, high = clopper_pearson_interval(successes, trials, confidence=confidence)

    assert 0 <= low <= successes / trials <= high <= 1
    if successes > 0:
        assert stats.binom.sf(successes - 1, trials, low) == pytest.approx((1 - confidence) / 2, rel=1e-6)
    if successes < trials:
        assert stats.binom.cdf(successes, trials, high) == pytest.approx((1 - confidence) / 2, rel=1e-6)


def test_the_interval_agrees_with_scipy():
    expected = stats.binomtest(12, 64).proportion_ci(0.9, method="exact")

    assert clopper_pearson_interval(12, 64, confidence=0.9) == pytest.approx((expected.low, expected.high))


def test_a_rate_carries_its_interval_and_counts():
    rate = estimate_rate(12, 64)

    assert str(rate) == "12/64 = 18.8 % [10.1 %, 30.5 %]"
    assert (rate.value, rate.successes, rate.trials, rate.confidence) == (12 / 64, 12, 64, 0.95)


def test_a_rate_without_trials_is_nan_and_could_be_anything():
    rate = estimate_rate(0, 0)

    assert math.isnan(rate.value)
    assert (rate.low, rate.high) == (0, 1)


@pytest.mark.parametrize(("successes", "trials"), [(-1, 5), (6, 5), (0, -1)])
def test_impossible_counts_are_refused(successes, trials):
    with pytest.raises(ConfigurationError, match=f"successes={successes} and trials={trials}"):
        clopper_pearson_interval(successes, trials)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_an_impossible_confidence_is_refused(confidence):
    with pytest.raises(ConfigurationError, match=f"confidence={confidence}"):
        estimate_rate(1, 2, confidence=confidence)


@pytest.mark.parametrize(
    ("successes", "trials", "confidence", "expected"),
    [
        # R 4.2.2: print(binom.test(successes, trials, conf.level = confidence)$conf.int, digits = 15)
        (12, 64, 0.95, (0.100815159353778, 0.304622873695148)),
        (0, 50, 0.95, (0.0, 0.0711217364641976)),
        (50, 50, 0.9, (0.941844920883028, 1.0)),
        (3, 1000, 0.99, (0.000338144529066493, 0.010933777420405244)),
        (9, 10, 0.99, (0.455712943100313, 0.999498871424535)),
    ],
)
def test_the_interval_agrees_with_r(successes, trials, confidence, expected):
    assert clopper_pearson_interval(successes, trials, confidence=confidence) == pytest.approx(expected, abs=1e-12)


@given(trials=st.integers(1, 200), data=st.data())
@settings(max_examples=40)
def test_failures_have_the_mirrored_interval_of_successes(trials, data):
    successes = data.draw(st.integers(0, trials))
    low, high = clopper_pearson_interval(successes, trials)

    assert clopper_pearson_interval(trials - successes, trials) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@given(trials=st.integers(1, 200), data=st.data())
@settings(max_examples=40)
def test_the_interval_rises_with_successes_falls_with_failures_and_widens_with_confidence(trials, data):
    successes = data.draw(st.integers(0, trials - 1))
    low, high = clopper_pearson_interval(successes, trials)

    more_successes = clopper_pearson_interval(successes + 1, trials)
    more_failures = clopper_pearson_interval(successes, trials + 1)
    surer = clopper_pearson_interval(successes, trials, confidence=0.99)

    assert low < more_successes[0]
    assert high < more_successes[1] or high == more_successes[1] == 1
    assert more_failures[1] < high
    assert more_failures[0] < low or low == more_failures[0] == 0
    assert surer[0] <= low
    assert surer[1] >= high


@pytest.mark.parametrize("trials", [1, 7, 30])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_interval_covers_every_rate_as_often_as_promised(trials, confidence):
    intervals = np.array([clopper_pearson_interval(k, trials, confidence=confidence) for k in range(trials + 1)])

    for rate in np.linspace(0, 1, 41):
        covering = (intervals[:, 0] <= rate) & (rate <= intervals[:, 1])
        assert stats.binom.pmf(np.arange(trials + 1), trials, rate)[covering].sum() >= confidence - 1e-12


def test_counts_of_numpy_and_torch_are_counts():
    expected = clopper_pearson_interval(3, 9)

    for successes, trials in ((np.int64(3), np.int32(9)), (torch.tensor(3), torch.tensor(9))):
        assert inspect.unwrap(clopper_pearson_interval)(successes, trials) == expected


@pytest.mark.parametrize(("successes", "trials"), [(0.1875, 64), (12.0, 64), (1, math.nan), (1, math.inf), ("1", 2)])
def test_rates_in_the_place_of_counts_are_refused(successes, trials):
    with pytest.raises(ConfigurationError, match=r"(successes|trials) must be a whole number"):
        inspect.unwrap(clopper_pearson_interval)(successes, trials)
    with pytest.raises(ConfigurationError, match="Give a count, not a rate"):
        inspect.unwrap(estimate_rate)(successes, trials)


def test_a_confidence_of_nan_is_refused():
    with pytest.raises(ConfigurationError, match="confidence=nan"):
        clopper_pearson_interval(1, 2, confidence=math.nan)
