import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional import estimate_rate
from relict_lightning.onset.planning import (
    copies_to_exceed,
    found_probability,
    samples_to_find,
    smallest_rate_found,
)


def test_three_copies_of_64_do_not_exceed_one_percent_and_four_do():
    # Clopper-Pearson: 3 of 64 has the lower bound 0.98 %, 4 of 64 has 1.73 %.
    assert copies_to_exceed(0.01, num_samples=64) == 4
    assert estimate_rate(3, 64).low < 0.01 < estimate_rate(4, 64).low


@given(num_samples=st.integers(1, 300), tolerance=st.floats(0, 0.9))
@settings(max_examples=30)
def test_the_number_of_copies_is_the_first_whose_bound_exceeds(num_samples, tolerance):
    exceeding = [count for count in range(num_samples + 1) if estimate_rate(count, num_samples).low > tolerance]

    assert copies_to_exceed(tolerance, num_samples=num_samples) == (exceeding[0] if exceeding else None)


def test_the_probability_is_the_binomial_one_of_enough_copies():
    assert found_probability(0.05, num_samples=64) == pytest.approx(1 - sum(binom(64, 0.05).pmf(k) for k in range(4)))


def test_of_two_evaluations_both_must_miss():
    once = found_probability(0.05, num_samples=64)

    assert found_probability(0.05, num_samples=64, evaluations=2) == pytest.approx(1 - (1 - once) ** 2)


def test_without_tolerance_one_copy_is_enough():
    assert found_probability(0.05, num_samples=64, tolerance=0.0) == pytest.approx(1 - 0.95**64)


def test_too_few_samples_find_nothing():
    assert copies_to_exceed(0.5, num_samples=2) is None
    assert found_probability(1.0, num_samples=2, tolerance=0.5) == 0
    assert smallest_rate_found(2, tolerance=0.5) is None


@pytest.mark.parametrize("evaluations", [1, 2])
@pytest.mark.parametrize("num_samples", [16, 64, 256])
def test_the_smallest_rate_is_found_with_just_the_probability(num_samples, evaluations):
    rate = smallest_rate_found(num_samples, evaluations=evaluations, probability=0.9)

    assert found_probability(rate, num_samples=num_samples, evaluations=evaluations) == pytest.approx(0.9, abs=1e-6)


def test_more_samples_and_more_evaluations_find_smaller_rates():
    rates = [smallest_rate_found(count) for count in (32, 64, 128, 256)]

    assert rates == sorted(rates, reverse=True)
    assert smallest_rate_found(64, evaluations=2) < rates[1]


@pytest.mark.parametrize(("rate", "tolerance", "evaluations"), [(0.05, 0.01, 1), (0.05, 0.01, 2), (0.1, 0.0, 1)])
def test_the_number_of_samples_is_the_first_that_finds(rate, tolerance, evaluations):
    settings_ = {"tolerance": tolerance, "evaluations": evaluations}
    finding = [n for n in range(1, 300) if found_probability(rate, num_samples=n, **settings_) >= 0.95]

    assert samples_to_find(rate, **settings_) == finding[0]


@pytest.mark.parametrize("rate", [0.005, 0.01])
def test_a_tolerated_rate_is_found_by_no_number_of_samples(rate):
    assert samples_to_find(rate, tolerance=0.01) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: copies_to_exceed(1.0, num_samples=4), "tolerance=1.0"),
        (lambda: copies_to_exceed(0.1, num_samples=0), "num_samples=0"),
        (lambda: found_probability(1.5, num_samples=4), "rate=1.5"),
        (lambda: found_probability(0.5, num_samples=4, evaluations=0), "evaluations=0"),
        (lambda: smallest_rate_found(4, probability=1.0), "probability=1.0"),
        (lambda: samples_to_find(0.0), "rate=0.0"),
    ],
)
def test_a_number_out_of_range_is_refused(call, message):
    with pytest.raises(ConfigurationError, match=message):
        call()
