"""Rates with their exact intervals.

- `clopper_pearson_interval`: the interval of a rate.
- `estimate_rate`: a rate, with its interval.
"""

import math
import operator
from typing import Any

from scipy import stats

from relict_lightning.errors import ConfigurationError
from relict_lightning.results import RateEstimate


def clopper_pearson_interval(successes: int, trials: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact (Clopper-Pearson) confidence interval of a rate.

    Whatever the true rate, the interval covers it with at least the probability `confidence`.

    Args:
        successes: Number of successes, `0 <= successes <= trials`.
        trials: Number of independent trials, at least 0.
        confidence: Coverage, between 0 and 1.

    Returns:
        Lower and upper bound, each in [0, 1]; `(0, 1)` without trials.

    Raises:
        ConfigurationError: If `successes` lies outside `[0, trials]` or `confidence` outside (0, 1), or a count is not
            an integer.

    Example:
        >>> low, high = clopper_pearson_interval(0, 50)
        >>> low, round(high, 4)
        (0.0, 0.0711)

    References:
        Clopper, Pearson (1934), The use of confidence or fiducial limits illustrated in the case of the binomial,
        doi:10.1093/biomet/26.4.404.
    """
    successes, trials = _check_counts(successes, trials)
    check_confidence(confidence)
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else float(stats.beta.ppf(tail, successes, trials - successes + 1))
    high = 1.0 if successes == trials else float(stats.beta.ppf(1 - tail, successes + 1, trials - successes))
    return low, high


def estimate_rate(successes: int, trials: int, *, confidence: float = 0.95) -> RateEstimate:
    """Return a rate with its exact interval.

    Args:
        successes: Number of successes, `0 <= successes <= trials`.
        trials: Number of independent trials, at least 0.
        confidence: Coverage of the interval, between 0 and 1.

    Returns:
        The rate; its value is NaN and its interval [0, 1] without trials.

    Raises:
        ConfigurationError: If `successes` lies outside `[0, trials]` or `confidence` outside (0, 1), or a count is not
            an integer.

    Example:
        >>> str(estimate_rate(12, 64))
        '12/64 = 18.8 % [10.1 %, 30.5 %]'

    References:
        Clopper, Pearson (1934), The use of confidence or fiducial limits illustrated in the case of the binomial,
        doi:10.1093/biomet/26.4.404.
    """
    successes, trials = _check_counts(successes, trials)
    low, high = clopper_pearson_interval(successes, trials, confidence=confidence)
    value = successes / trials if trials else math.nan
    return RateEstimate(value=value, low=low, high=high, successes=successes, trials=trials, confidence=confidence)


def check_confidence(confidence: float) -> None:
    """Accept a coverage of an interval.

    Args:
        confidence: Coverage.

    Raises:
        ConfigurationError: If it lies outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise ConfigurationError(
            f"confidence must lie between 0 and 1, but is confidence={confidence}. The usual value is 0.95."
        )


def check_count(value: Any, *, name: str) -> int:
    """Return a whole number as an integer.

    Args:
        value: An integer of Python, NumPy or torch. Floats, even whole ones, are none: they are rates in the wrong
            place more often than counts.
        name: What the caller calls it, for the message.

    Raises:
        ConfigurationError: If it is no integer.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise ConfigurationError(
            f"{name} must be a whole number, but is {name}={value!r}. Give a count, not a rate."
        ) from None


def _check_counts(successes: Any, trials: Any) -> tuple[int, int]:
    successes, trials = check_count(successes, name="successes"), check_count(trials, name="trials")
    if not 0 <= successes <= trials:
        raise ConfigurationError(
            f"successes must lie between 0 and trials, but successes={successes} and trials={trials}. Give counts."
        )
    return successes, trials
