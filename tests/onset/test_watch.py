import math

import numpy as np
import pytest

from relict_lightning.onset.watch import TREND_LEVEL, rises


@pytest.mark.parametrize(
    ("values", "rose"),
    [
        # One of 24 orders, so never below 1 %.
        ([1.0, 2.0, 3.0, 4.0], False),
        # One of 120.
        ([1.0, 2.0, 3.0, 4.0, 5.0], True),
        # Five of 120 orders have at most one exchange.
        ([1.0, 2.0, 3.0, 5.0, 4.0], False),
        ([5.0, 4.0, 3.0, 2.0, 1.0], False),
        ([2.0] * 8, False),
        ([], False),
    ],
)
def test_a_rise_is_an_order_rarer_than_the_level(values, rose):
    assert rises(values) == rose


def test_what_is_not_known_is_left_out():
    assert rises([1.0, math.nan, 2.0, 3.0, math.nan, 4.0, 5.0])


def test_only_the_last_ten_evaluations_count():
    assert not rises([float(value) for value in range(30)] + [5.0] * 10)


def test_constant_expectations_seldom_seem_to_rise():
    rng = np.random.default_rng(0)
    share = np.mean([rises(list(rng.normal(size=10))) for _ in range(1000)])

    assert share <= TREND_LEVEL + 3 * math.sqrt(TREND_LEVEL / 1000)
