"""The states of a run, and what is worth watching before an alarm.

A watch is a warning. It has no error guarantee over the run: its tests are made at each evaluation anew, at a level of
their own that nothing is spent of, so that a clean run of a hundred evaluations will have some. It goes when its reason
goes.

- `RunState`, `WatchReason`: the states and the reasons as enums.
- `rises`: whether values rose over the last evaluations, by the rank test of Mann and Kendall.
"""

import enum
from collections.abc import Sequence

import numpy as np
from scipy import stats

TREND_LEVEL = 0.01
"""Level of the test for a trend, at each evaluation."""

TREND_WINDOW = 10
"""Evaluations that a trend is looked for in."""

# Five values in rising order are one of 120 orders, and four are one of 24, which never reaches the level.
_FEWEST = 5


class RunState(str, enum.Enum):
    """How a run stands."""

    CLEAN = "clean"
    WATCH = "watch"
    ONSET = "onset"


class WatchReason(str, enum.Enum):
    """Why a run is watched, the gravest first."""

    UNCONFIRMED = "unconfirmed"
    RATE_WITHIN_TOLERANCE = "rate_within_tolerance"
    UNSPENT_TEST = "unspent_test"
    TRAINING_SHARE_RISES = "training_share_rises"
    SIMILARITY_RISES = "similarity_rises"


def rises(values: Sequence[float]) -> bool:
    """Return whether values rose over the last `TREND_WINDOW` evaluations, at the level `TREND_LEVEL`.

    The test is Kendall's rank correlation with time (Mann-Kendall), one-sided: exact without ties, by its normal
    approximation with some. It takes the noise of the evaluations to be independent, as that of newly drawn samples is.

    Args:
        values: One value per evaluation, in order; those that are not finite are left out.

    Returns:
        Whether they rose; never with fewer than five.

    Example:
        >>> rises([0.5, 0.51, 0.55, 0.6, 0.7]), rises([0.5, 0.6, 0.5, 0.6, 0.7])
        (True, False)

    References:
        Mann (1945), Nonparametric tests against trend, doi:10.2307/1907187; Kendall (1938), A new measure of rank
        correlation, doi:10.1093/biomet/30.1-2.81.
    """
    recent = np.asarray([value for value in values[-TREND_WINDOW:] if np.isfinite(value)], dtype=np.float64)
    # The correlation of a constant is not defined.
    if len(recent) < _FEWEST or np.ptp(recent) == 0:
        return False
    p_value = stats.kendalltau(np.arange(len(recent)), recent, alternative="greater").pvalue
    return bool(p_value <= TREND_LEVEL)
