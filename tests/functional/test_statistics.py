import inspect
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import balanced_accuracy_score

from relict_lightning.errors import ConfigurationError, EmptyDataError, MissingControlError
from relict_lightning.functional import (
    balanced_accuracy_at_optimal_threshold,
    benjamini_hochberg,
    clopper_pearson_interval,
    conformal_p_value,
    estimate_rate,
    minimum_discoveries,
    out_of_sample_balanced_accuracy,
    simes_p_value,
)

P_VALUES = st.lists(st.integers(0, 20).map(lambda i: i / 20), min_size=1, max_size=12)


def vector(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random_ratings(seed: int, *, n: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.rand(n, generator=generator) < 0.5
    labels[:4] = torch.tensor([True, True, False, False])
    # Few distinct values, so that ties between the two ratings occur.
    return torch.randint(0, 6, (n,), generator=generator) / 4 + labels / 2, labels


def test_the_interval_of_0_in_50_is_not_a_point():
    low, high = clopper_pearson_interval(0, 50)

    assert low == 0
    # Solves (1 - p)^50 = 0.025.
    assert high == pytest.approx(1 - 0.025 ** (1 / 50))


@given(trials=st.integers(1, 300), data=st.data(), confidence=st.sampled_from([0.8, 0.95, 0.999]))
@settings(max_examples=60, deadline=None)
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


def test_conformal_p_values_of_worked_scores():
    p_values = conformal_p_value(torch.tensor([0.9, 0.5, 0.0]), torch.tensor([0.6, 0.1, 0.5]))

    assert p_values.tolist() == [0.25, 0.75, 1.0]


@given(seed=st.integers(0, 1000), m=st.integers(1, 20))
@settings(max_examples=30, deadline=None)
def test_conformal_p_values_agree_with_counting(seed, m):
    generator = torch.Generator().manual_seed(seed)
    scores, control = (
        torch.randint(0, 5, (6,), generator=generator) / 3,
        torch.randint(0, 5, (m,), generator=generator) / 3,
    )

    expected = [(1 + sum(h >= s for h in control.tolist())) / (1 + m) for s in scores.tolist()]

    assert conformal_p_value(scores, control).tolist() == pytest.approx(expected, abs=1e-15)


@given(values=st.lists(st.integers(0, 5), min_size=2, max_size=12), numerator=st.integers(1, 20))
@settings(max_examples=50, deadline=None)
def test_conformal_p_values_of_exchangeable_scores_are_valid(values, numerator):
    # Each of the values takes its turn as the sample, the others are the control.
    p_values = [
        conformal_p_value(vector([values[i]]), vector(values[:i] + values[i + 1 :])).item() for i in range(len(values))
    ]
    alpha = numerator / 20

    assert np.mean([p <= alpha for p in p_values]) <= alpha + 1e-12


def test_no_scores_give_no_p_values():
    assert conformal_p_value(torch.zeros(0), torch.ones(3)).shape == (0,)


def test_a_p_value_without_a_control_is_refused():
    with pytest.raises(MissingControlError, match="control_scores is empty"):
        conformal_p_value(torch.ones(2), torch.zeros(0))


@pytest.mark.parametrize(("scores", "control"), [([math.nan], [1.0]), ([1.0], [math.nan])])
def test_scores_that_are_nan_are_refused(scores, control):
    with pytest.raises(ConfigurationError, match="1 of 1 values are NaN"):
        conformal_p_value(vector(scores), vector(control))


def test_discoveries_of_the_example_of_benjamini_and_hochberg():
    # The fifteen p-values of their section 3.2, of which the procedure rejects the four smallest at 0.05.
    p_values = vector(
        [
            0.0001,
            0.0004,
            0.0019,
            0.0095,
            0.0201,
            0.0278,
            0.0298,
            0.0344,
            0.0459,
            0.324,
            0.4262,
            0.5719,
            0.6528,
            0.759,
            1,
        ]
    )

    assert benjamini_hochberg(p_values, fdr=0.05).tolist() == [True] * 4 + [False] * 11


@given(p_values=P_VALUES, fdr=st.sampled_from([0.05, 0.1, 0.25, 0.5]))
@settings(max_examples=80, deadline=None)
def test_discoveries_agree_with_exact_fractions(p_values, fdr):
    exact = [Fraction(round(p * 20), 20) for p in p_values]
    level, n = Fraction(fdr).limit_denominator(100), len(p_values)
    passing = [p for rank, p in enumerate(sorted(exact), start=1) if p <= level * rank / n]
    expected = [bool(passing) and p <= passing[-1] for p in exact]

    assert benjamini_hochberg(vector(p_values), fdr=fdr).tolist() == expected
    assert benjamini_hochberg(vector(p_values).float(), fdr=fdr).tolist() == expected


@given(p_values=P_VALUES, fdr=st.sampled_from([0.05, 0.1, 0.25, 0.5]))
@settings(max_examples=50, deadline=None)
def test_discoveries_are_those_of_scipys_adjusted_p_values(p_values, fdr):
    adjusted = stats.false_discovery_control(p_values)

    assert benjamini_hochberg(vector(p_values), fdr=fdr).tolist() == (adjusted <= fdr + 1e-9).tolist()


@given(p_values=P_VALUES, fdr=st.sampled_from([0.05, 0.1, 0.25, 0.5]))
@settings(max_examples=50, deadline=None)
def test_simes_passes_exactly_where_there_is_a_discovery(p_values, fdr):
    assert (simes_p_value(vector(p_values)) <= fdr + 1e-9) == bool(benjamini_hochberg(vector(p_values), fdr=fdr).any())
    assert simes_p_value(vector(p_values)) == pytest.approx(min(stats.false_discovery_control(p_values)))


def test_nothing_tested_is_nothing_found():
    assert benjamini_hochberg(vector([])).tolist() == []
    assert simes_p_value(vector([])) == 1


@pytest.mark.parametrize("function", [benjamini_hochberg, simes_p_value])
@pytest.mark.parametrize(("p_value", "message"), [(-0.5, r"\[-0.5, 0.5\]"), (1.5, r"\[0.5, 1.5\]"), (math.nan, "NaN")])
def test_p_values_outside_their_range_are_refused(function, p_value, message):
    with pytest.raises(ConfigurationError, match=message):
        function(vector([0.5, p_value]))


@pytest.mark.parametrize("fdr", [0.0, 1.0, 5.0])
def test_an_impossible_fdr_is_refused(fdr):
    with pytest.raises(ConfigurationError, match=f"fdr={fdr}"):
        benjamini_hochberg(vector([0.5]), fdr=fdr)


@given(control_size=st.integers(1, 300), num_samples=st.integers(1, 100), fdr=st.sampled_from([0.01, 0.05, 0.1, 0.5]))
@settings(max_examples=80, deadline=None)
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


def test_the_optimal_threshold_of_worked_ratings():
    scores, labels = vector([0.1, 0.3, 0.2, 0.9, 0.5]), torch.tensor([False, False, True, True, True])

    # Above 0.4: two of three copies, no other.
    assert balanced_accuracy_at_optimal_threshold(scores, labels) == (pytest.approx((2 / 3 + 1) / 2), 0.4)


@given(seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_no_threshold_does_better_and_no_higher_one_as_well(seed):
    scores, labels = random_ratings(seed)
    accuracy, threshold = balanced_accuracy_at_optimal_threshold(scores, labels)

    levels = scores.unique().tolist()
    candidates = [-math.inf, *((a + b) / 2 for a, b in itertools.pairwise(levels)), math.inf]
    reached = {c: balanced_accuracy_score(labels.numpy(), (scores >= c).numpy()) for c in candidates}

    assert reached[threshold] == pytest.approx(accuracy)
    assert accuracy == pytest.approx(max(reached.values()))
    assert all(value < accuracy - 1e-9 for c, value in reached.items() if c > threshold)


@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_out_of_sample_accuracy_agrees_with_leaving_out_by_hand(seed):
    scores, labels = random_ratings(seed)

    called = []
    for left_out in range(len(scores)):
        others = [i for i in range(len(scores)) if i != left_out]
        _, threshold = balanced_accuracy_at_optimal_threshold(scores[others], labels[others])
        called.append(scores[left_out].item() >= threshold)

    assert out_of_sample_balanced_accuracy(scores, labels) == pytest.approx(
        balanced_accuracy_score(labels.numpy(), called)
    )


def test_out_of_sample_accuracy_does_not_flatter_scores_that_know_nothing():
    generator = torch.Generator().manual_seed(0)
    in_sample, out_of_sample = [], []
    for _ in range(40):
        scores, labels = torch.rand(20, generator=generator), torch.arange(20) < 10
        in_sample.append(balanced_accuracy_at_optimal_threshold(scores, labels)[0])
        out_of_sample.append(out_of_sample_balanced_accuracy(scores, labels))

    assert np.mean(in_sample) > 0.6
    assert np.mean(out_of_sample) < 0.52


def test_scores_that_rank_the_wrong_way_call_nothing():
    scores, labels = vector([0.9, 0.8, 0.2, 0.1]), torch.tensor([False, False, True, True])

    assert balanced_accuracy_at_optimal_threshold(scores, labels) == (0.5, math.inf)


def test_neighbouring_floats_are_told_apart():
    lower = 1.0
    upper = math.nextafter(1.0, 2.0)

    accuracy, threshold = balanced_accuracy_at_optimal_threshold(vector([lower, upper]), torch.tensor([False, True]))

    assert (accuracy, threshold) == (1.0, upper)


def test_ratings_of_one_kind_are_refused():
    with pytest.raises(EmptyDataError, match="3 are rated copies and 0 are not"):
        balanced_accuracy_at_optimal_threshold(torch.rand(3), torch.ones(3) > 0)
    with pytest.raises(EmptyDataError, match=r"at least 2.*1 are rated copies and 2 are not"):
        out_of_sample_balanced_accuracy(torch.rand(3), torch.tensor([True, False, False]))


def test_ratings_that_are_numbers_are_refused():
    with pytest.raises(ConfigurationError, match=r"torch\.int64"):
        inspect.unwrap(balanced_accuracy_at_optimal_threshold)(torch.rand(2), torch.tensor([0, 1]))
