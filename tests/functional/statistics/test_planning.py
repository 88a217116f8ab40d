import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relict_lightning.errors import ConfigurationError, EmptyDataError, MissingControlError
from relict_lightning.functional import (
    benjamini_hochberg,
    clopper_pearson_interval,
    discovery_probability,
    maximum_samples,
    minimum_discoveries,
    required_heldout,
    required_samples,
)

CONTROLS = st.integers(1, 500)
SAMPLES = st.integers(1, 300)
RATES = st.sampled_from([0.01, 0.05, 0.1, 0.3, 0.5]) | st.floats(0.01, 0.9)


def vector(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(control_size=st.integers(1, 300), num_samples=st.integers(1, 100), fdr=st.sampled_from([0.01, 0.05, 0.1, 0.5]))
@settings(max_examples=80)
def test_the_fewest_discoveries_are_accepted_and_one_less_is_not(control_size, num_samples, fdr):
    fewest = minimum_discoveries(control_size, num_samples, fdr=fdr)
    smallest = 1 / (1 + control_size)

    for count, accepted in ((fewest, True), (fewest - 1, False)):
        if 0 < count <= num_samples:
            p_values = vector([smallest] * count + [1.0] * (num_samples - count))
            assert bool(benjamini_hochberg(p_values, fdr=fdr).any()) is accepted
    if fewest > num_samples:
        assert not benjamini_hochberg(vector([smallest] * num_samples), fdr=fdr).any()


def test_nineteen_controls_allow_a_single_sample_to_be_a_discovery():
    assert minimum_discoveries(19, 1, fdr=0.05) == 1
    assert minimum_discoveries(18, 1, fdr=0.05) == 2


def test_discoveries_without_a_control_or_samples_are_refused():
    with pytest.raises(MissingControlError, match="control_size=0"):
        minimum_discoveries(0, 10, fdr=0.05)
    with pytest.raises(EmptyDataError, match="num_samples=0"):
        minimum_discoveries(10, 0, fdr=0.05)


def test_72_samples_without_a_replica_bound_the_rate_below_5_percent():
    # Solves (1 - 0.05)^n = 0.025.
    assert required_samples(0.05) == math.ceil(math.log(0.025) / math.log(0.95)) == 72


@pytest.mark.parametrize(
    ("max_rate", "successes", "confidence", "expected"),
    [
        # R 4.2.2: n <- successes + 1; while (binom.test(successes, n, conf.level = confidence)$conf.int[2] > max_rate)
        # n <- n + 1; n
        (0.05, 0, 0.95, 72),
        (0.05, 1, 0.95, 110),
        (0.05, 5, 0.9, 208),
    ],
)
def test_the_samples_that_are_required_agree_with_r(max_rate, successes, confidence, expected):
    assert required_samples(max_rate, successes=successes, confidence=confidence) == expected


@given(successes=st.integers(0, 30), more=st.integers(1, 400), confidence=st.sampled_from([0.8, 0.95, 0.99]))
@settings(max_examples=50)
def test_the_upper_bound_of_so_many_samples_asks_for_just_as_many(successes, more, confidence):
    bound = clopper_pearson_interval(successes, successes + more, confidence=confidence)[1]

    assert required_samples(bound, successes=successes, confidence=confidence) == successes + more


@given(max_rate=st.floats(1e-4, 0.99), successes=st.integers(0, 30))
@settings(max_examples=50)
def test_so_many_samples_bound_the_rate_and_one_less_does_not(max_rate, successes):
    enough = required_samples(max_rate, successes=successes)

    assert clopper_pearson_interval(successes, enough)[1] <= max_rate
    assert clopper_pearson_interval(successes, enough - 1)[1] > max_rate


@given(max_rate=st.floats(1e-3, 0.5), successes=st.integers(0, 20))
@settings(max_examples=30)
def test_a_tighter_bound_more_replicas_and_more_confidence_take_more_samples(max_rate, successes):
    enough = required_samples(max_rate, successes=successes)

    assert required_samples(max_rate / 2, successes=successes) > enough
    assert required_samples(max_rate, successes=successes + 1) > enough
    assert required_samples(max_rate, successes=successes, confidence=0.999) > enough


def test_a_billionth_is_still_bounded_by_the_right_number_of_samples():
    # -log(0.025) / 1e-9, to first order.
    assert required_samples(1e-9) == pytest.approx(-math.log(0.025) * 1e9, rel=1e-8)


@pytest.mark.parametrize("max_rate", [0.0, -0.1, 1.0, 5.0, 1e-12, math.nan, math.inf])
def test_rates_that_no_number_of_samples_bounds_are_refused(max_rate):
    with pytest.raises(ConfigurationError, match=f"max_rate={max_rate}"):
        required_samples(max_rate)


@given(num_samples=SAMPLES, data=st.data(), fdr=RATES)
@settings(max_examples=80)
def test_so_many_heldout_patients_allow_so_few_discoveries_and_one_less_does_not(num_samples, data, fdr):
    discoveries = data.draw(st.integers(1, num_samples))

    patients = required_heldout(num_samples, discoveries, fdr=fdr)

    assert minimum_discoveries(patients, num_samples, fdr=fdr) <= discoveries
    if patients > 1:
        assert minimum_discoveries(patients - 1, num_samples, fdr=fdr) > discoveries


@given(control_size=CONTROLS, discoveries=st.integers(1, 30), fdr=RATES)
@settings(max_examples=80)
def test_so_many_samples_allow_so_few_discoveries_and_one_more_does_not(control_size, discoveries, fdr):
    most = maximum_samples(control_size, discoveries, fdr=fdr)

    assert minimum_discoveries(control_size, most + 1, fdr=fdr) > discoveries
    if most:
        assert minimum_discoveries(control_size, most, fdr=fdr) <= discoveries


@given(num_samples=SAMPLES, data=st.data(), fdr=st.sampled_from([0.01, 0.05, 0.1, 0.5]))
@settings(max_examples=50)
def test_copies_are_discovered_with_the_required_patients_and_not_with_one_less(num_samples, data, fdr):
    discoveries = data.draw(st.integers(1, num_samples))
    patients = required_heldout(num_samples, discoveries, fdr=fdr)

    for control_size, found in ((patients, True), (patients - 1, False)):
        smallest = 1 / (1 + control_size)
        p_values = vector([smallest] * discoveries + [1.0] * (num_samples - discoveries))
        if control_size:
            assert bool(benjamini_hochberg(p_values, fdr=fdr).any()) is found


@given(control_size=CONTROLS, num_samples=SAMPLES, fdr=RATES)
@settings(max_examples=50)
def test_more_patients_ask_for_no_more_discoveries_and_more_samples_for_no_fewer(control_size, num_samples, fdr):
    fewest = minimum_discoveries(control_size, num_samples, fdr=fdr)

    assert minimum_discoveries(control_size + 1, num_samples, fdr=fdr) <= fewest
    assert minimum_discoveries(control_size, num_samples + 1, fdr=fdr) >= fewest
    if fewest <= num_samples:
        assert required_heldout(num_samples, fewest, fdr=fdr) <= control_size
        assert maximum_samples(control_size, fewest, fdr=fdr) >= num_samples


def test_the_arguments_of_the_plans_are_not_interchangeable():
    assert minimum_discoveries(99, 10, fdr=0.05) != minimum_discoveries(10, 99, fdr=0.05)
    assert required_heldout(64, 13, fdr=0.05) != required_heldout(64, 1, fdr=0.05)
    assert maximum_samples(40, 3, fdr=0.05) != maximum_samples(3, 40, fdr=0.05)


def test_plans_of_worked_numbers():
    # 64 / (0.05 * 13) = 98.46, less the sample itself; 0.05 * 100 * 13 = 65.
    assert required_heldout(64, 13, fdr=0.05) == 98
    assert maximum_samples(99, 13, fdr=0.05) == 65
    # A copy among 100 samples needs a p-value of 1 / 2000.
    assert required_heldout(100, 1, fdr=0.05) == 1999
    assert minimum_discoveries(1999, 100, fdr=0.05) == 1


def test_plans_on_a_tie_do_not_depend_on_rounding():
    # 9 / (0.3 * 3) is 10, 0.3 * 3 * 30 is 27 and 3 / (0.3 * 5) is 2, each of which floats miss to the wrong side.
    assert required_heldout(9, 3, fdr=0.3) == 9
    assert maximum_samples(2, 30, fdr=0.3) == 27
    assert minimum_discoveries(4, 3, fdr=0.3) == 2


def test_the_probability_of_a_discovery_agrees_with_r():
    # Seven copies among 64 samples. R 4.2.2: print(pbinom(6, 64, 0.1, lower.tail = FALSE), digits = 15)
    found = discovery_probability(0.1, num_samples=64, control_size=199, fdr=0.05)

    assert found == pytest.approx(0.460961156471689, abs=1e-13)


@given(
    rate=st.floats(0, 1),
    num_samples=st.integers(1, 8),
    control_size=st.integers(1, 60),
    fdr=st.sampled_from([0.1, 0.5]),
)
@settings(max_examples=40)
def test_the_probability_of_a_discovery_is_that_of_the_numbers_of_copies_that_make_one(
    rate, num_samples, control_size, fdr
):
    smallest = 1 / (1 + control_size)

    expected = sum(
        math.comb(num_samples, copies) * rate**copies * (1 - rate) ** (num_samples - copies)
        for copies in range(num_samples + 1)
        if benjamini_hochberg(vector([smallest] * copies + [1.0] * (num_samples - copies)), fdr=fdr).any()
    )

    found = discovery_probability(rate, num_samples=num_samples, control_size=control_size, fdr=fdr)
    assert found == pytest.approx(expected, abs=1e-12)


@given(rate=st.floats(0, 0.9), num_samples=SAMPLES, control_size=CONTROLS, fdr=st.sampled_from([0.05, 0.2]))
@settings(max_examples=40)
def test_more_copies_and_more_patients_make_a_discovery_no_less_likely(rate, num_samples, control_size, fdr):
    found = discovery_probability(rate, num_samples=num_samples, control_size=control_size, fdr=fdr)
    more_copies = discovery_probability(rate + 0.1, num_samples=num_samples, control_size=control_size, fdr=fdr)
    more_patients = discovery_probability(rate, num_samples=num_samples, control_size=control_size + 10, fdr=fdr)

    assert 0 <= found <= more_copies <= 1
    assert found <= more_patients


@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan])
def test_a_rate_of_copies_outside_0_and_1_is_refused(rate):
    with pytest.raises(ConfigurationError, match=f"rate={rate}"):
        discovery_probability(rate, num_samples=64, control_size=99, fdr=0.05)


@pytest.mark.parametrize(
    ("plan", "error", "message"),
    [
        (lambda: required_heldout(0, 1, fdr=0.05), EmptyDataError, "num_samples=0"),
        (lambda: required_heldout(5, 0, fdr=0.05), ConfigurationError, "discoveries=0"),
        (lambda: required_heldout(5, 6, fdr=0.05), ConfigurationError, "discoveries=6 and num_samples=5"),
        (lambda: maximum_samples(0, 1, fdr=0.05), MissingControlError, "control_size=0"),
        (lambda: maximum_samples(5, 0, fdr=0.05), ConfigurationError, "discoveries=0"),
        (lambda: required_samples(0.05, successes=-1), ConfigurationError, "successes=-1"),
        (lambda: required_samples(0.05, confidence=1.0), ConfigurationError, r"confidence=1\.0"),
        (lambda: discovery_probability(0.1, num_samples=0, control_size=9, fdr=0.1), EmptyDataError, "num_samples=0"),
        *(
            (plan, ConfigurationError, f"fdr={fdr}")
            for fdr in (0.0, 1.0, math.nan)
            for plan in (
                lambda fdr=fdr: minimum_discoveries(9, 9, fdr=fdr),
                lambda fdr=fdr: required_heldout(9, 1, fdr=fdr),
                lambda fdr=fdr: maximum_samples(9, 1, fdr=fdr),
                lambda fdr=fdr: discovery_probability(0.1, num_samples=9, control_size=9, fdr=fdr),
            )
        ),
    ],
)
def test_impossible_plans_are_refused(plan, error, message):
    with pytest.raises(error, match=message):
        plan()


@pytest.mark.parametrize(
    ("plan", "name"),
    [
        (lambda: inspect.unwrap(required_samples)(0.05, successes=0.5), "successes"),
        (lambda: inspect.unwrap(minimum_discoveries)(9.5, 9, fdr=0.1), "control_size"),
        (lambda: inspect.unwrap(minimum_discoveries)(9, math.nan, fdr=0.1), "num_samples"),
        (lambda: inspect.unwrap(required_heldout)(9, 2.0, fdr=0.1), "discoveries"),
    ],
)
def test_numbers_that_are_not_whole_are_refused(plan, name):
    with pytest.raises(ConfigurationError, match=f"{name} must be a whole number"):
        plan()
