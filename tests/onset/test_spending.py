import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relict_lightning.onset.spending import even_spending_level, spending_level, usual_surprise


def test_even_levels_sum_to_alpha():
    total = sum(even_spending_level(evaluation, alpha=0.05) for evaluation in range(1, 10_001))

    # The rest beyond t is alpha * 20 / (20 + t), because the levels are differences of such terms.
    assert total == pytest.approx(0.05 - 0.05 * 20 / 10_020)


def test_half_of_alpha_is_spent_after_twenty_evaluations():
    assert sum(even_spending_level(evaluation, alpha=0.05) for evaluation in range(1, 21)) == pytest.approx(0.025)


def test_even_levels_start_lower_and_end_higher():
    assert even_spending_level(1, alpha=0.05) < spending_level(1, alpha=0.05) / 10
    assert even_spending_level(100, alpha=0.05) > 10 * spending_level(100, alpha=0.05)


def test_the_surprise_of_p_values_is_what_their_logarithms_exceed_one_by():
    # 3, 2 and 4 are 3 on average.
    assert usual_surprise([math.exp(-3), math.exp(-2), math.exp(-4)]) == pytest.approx(2.0)


def test_uniform_p_values_are_no_surprise():
    assert usual_surprise([(rank + 0.5) / 1000 for rank in range(1000)]) == pytest.approx(0, abs=2e-3)


@pytest.mark.parametrize("p_values", [[], [1.0], [0.5, 0.5, 1.0]])
def test_p_values_that_are_large_or_missing_never_raise_a_level(p_values):
    assert usual_surprise(p_values) == 0


@pytest.mark.parametrize("p_values", [[0.0], [1e-300] * 5])
def test_no_surprise_lowers_a_level_more_than_a_hundredfold(p_values):
    assert math.exp(usual_surprise(p_values)) == pytest.approx(100)


@given(p_values=st.lists(st.floats(1e-12, 1.0), min_size=1), position=st.integers(0), factor=st.floats(0.01, 1.0))
def test_a_smaller_p_value_is_no_smaller_surprise(p_values, position, factor):
    smaller = list(p_values)
    smaller[position % len(smaller)] *= factor

    assert usual_surprise(smaller) >= usual_surprise(p_values)
