"""How many samples and held-out patients a run needs.

Rates are fractions in [0, 1]. A control is one score of each held-out patient. What the control allows is said of
conformal p-values, which cannot be smaller than one over its size plus one. Where `tail_p_value` extrapolates beyond
the control, which takes at least 20 held-out patients, fewer discoveries can suffice.

- `required_samples`: how many samples bound the replica rate from above.
- `minimum_discoveries`: how many discoveries it takes, given held-out patients and samples.
- `required_heldout`: how many held-out patients it takes, given samples and discoveries.
- `maximum_samples`: how many samples can be judged at a time, given held-out patients and discoveries.
- `discovery_probability`: how likely a given replica rate is to be discovered.
"""

import math
from typing import Any

from scipy import stats

from relict_lightning.errors import ConfigurationError, EmptyDataError, MissingControlError
from relict_lightning.functional.statistics.discoveries import TIE_TOLERANCE, check_fdr
from relict_lightning.functional.statistics.intervals import (
    check_confidence,
    check_count,
    clopper_pearson_interval,
)

# Of smaller rates, float64 no longer tells the bounds of neighbouring numbers of samples apart.
_SMALLEST_RATE = 1e-9


def required_samples(max_rate: float, *, successes: int = 0, confidence: float = 0.95) -> int:
    """Return the smallest number of samples that bounds the replica rate from above.

    With that many samples and no more than `successes` replicas among them, the upper bound of the exact
    (Clopper-Pearson) interval is at most `max_rate`. The interval has two sides, so without replicas at 95 % the answer
    is about `3.7 / max_rate`; the rule of three, `3 / max_rate`, is the bound of one side alone.

    Args:
        max_rate: Largest rate that may be left open, between 1e-9 and 1.
        successes: Number of replicas expected among the samples, at least 0.
        confidence: Coverage of the interval, between 0 and 1.

    Returns:
        Number of samples, more than `successes`.

    Raises:
        ConfigurationError: If `max_rate` lies outside [1e-9, 1), `successes` is negative or no integer, or `confidence`
            lies outside (0, 1).

    Example:
        >>> required_samples(0.05)
        72
        >>> required_samples(0.05, successes=1)
        110

    References:
        Clopper, Pearson (1934), The use of confidence or fiducial limits illustrated in the case of the binomial,
        doi:10.1093/biomet/26.4.404.
    """
    if not _SMALLEST_RATE <= max_rate < 1:
        raise ConfigurationError(
            f"max_rate must lie between {_SMALLEST_RATE:g} and 1, but is max_rate={max_rate}. Give a fraction, such as "
            f"0.05."
        )
    successes = check_count(successes, name="successes")
    if successes < 0:
        raise ConfigurationError(f"successes must not be negative, but is successes={successes}.")
    check_confidence(confidence)

    def suffices(trials: int) -> bool:
        return clopper_pearson_interval(successes, trials, confidence=confidence)[1] <= max_rate

    too_few, enough = successes, successes + 1
    while not suffices(enough):
        too_few, enough = enough, 2 * enough
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if suffices(middle):
            enough = middle
        else:
            too_few = middle
    return enough


def minimum_discoveries(control_size: int, num_samples: int, *, fdr: float) -> int:
    """Return how many samples must have the smallest possible conformal p-value for any to be a discovery.

    A control of `m` patients gives no p-value below `1 / (1 + m)`, so Benjamini-Hochberg makes discoveries only once
    `k >= n / (fdr * (1 + m))` samples reach it.

    Args:
        control_size: Number of control scores, at least 1.
        num_samples: Number of samples of one evaluation, at least 1.
        fdr: False discovery rate, between 0 and 1.

    Returns:
        Fewest discoveries possible, at least 1. More than `num_samples` says that none can ever be made: hold out more
        patients, or raise `fdr`.

    Raises:
        MissingControlError: If `control_size` is less than 1.
        EmptyDataError: If `num_samples` is less than 1.
        ConfigurationError: If `fdr` lies outside (0, 1), or a number is no integer.

    Example:
        >>> minimum_discoveries(99, 64, fdr=0.05)
        13
        >>> minimum_discoveries(10, 64, fdr=0.05)
        117
    """
    check_fdr(fdr)
    control_size, num_samples = _control_size(control_size), _num_samples(num_samples)
    return max(1, math.ceil(num_samples / (fdr * (1 + control_size) * (1 + TIE_TOLERANCE))))


def required_heldout(num_samples: int, discoveries: int, *, fdr: float) -> int:
    """Return how many held-out patients it takes for a number of copies to be discoveries.

    The inverse of `minimum_discoveries`: the smallest control with which it asks for no more than `discoveries`.

    Args:
        num_samples: Number of samples of one evaluation, at least 1.
        discoveries: Number of samples that are copies, from 1 to `num_samples`.
        fdr: False discovery rate, between 0 and 1.

    Returns:
        Number of held-out patients, at least 1.

    Raises:
        EmptyDataError: If `num_samples` is less than 1.
        ConfigurationError: If `discoveries` lies outside `[1, num_samples]`, `fdr` lies outside (0, 1), or a number is
            no integer.

    Example:
        >>> required_heldout(64, 13, fdr=0.05)
        98
        >>> required_heldout(64, 1, fdr=0.05)
        1279
    """
    check_fdr(fdr)
    num_samples, discoveries = _num_samples(num_samples), _discoveries(discoveries)
    if discoveries > num_samples:
        raise ConfigurationError(
            f"discoveries must not exceed num_samples, but discoveries={discoveries} and num_samples={num_samples}. "
            f"Draw more samples."
        )
    return max(1, math.ceil(num_samples / (fdr * discoveries * (1 + TIE_TOLERANCE))) - 1)


def maximum_samples(control_size: int, discoveries: int, *, fdr: float) -> int:
    """Return how many samples can be judged at a time for a number of copies among them to be discoveries.

    The other inverse of `minimum_discoveries`: the largest number of samples for which it asks for no more than
    `discoveries`. Among more samples, so few copies stay unnoticed, and this control allows no fewer.

    Args:
        control_size: Number of control scores, at least 1.
        discoveries: Number of samples that are copies, at least 1.
        fdr: False discovery rate, between 0 and 1.

    Returns:
        Number of samples. Less than `discoveries` says that no number of samples will do: hold out more patients, or
        raise `fdr`.

    Raises:
        MissingControlError: If `control_size` is less than 1.
        ConfigurationError: If `discoveries` is less than 1, `fdr` lies outside (0, 1), or a number is no integer.

    Example:
        >>> maximum_samples(99, 13, fdr=0.05)
        65
        >>> maximum_samples(10, 1, fdr=0.05)
        0
    """
    check_fdr(fdr)
    control_size, discoveries = _control_size(control_size), _discoveries(discoveries)
    return math.floor(fdr * (1 + control_size) * (1 + TIE_TOLERANCE) * discoveries)


def discovery_probability(rate: float, *, num_samples: int, control_size: int, fdr: float) -> float:
    """Return how likely it is that one evaluation discovers a generator that copies at a given rate.

    That is the probability that at least `minimum_discoveries` of the samples are copies. It takes every copy to be
    more like its training image than any held-out patient is; if copies hide among the held-out patients, the
    probability is smaller.

    Args:
        rate: Share of copies among all that the generator makes, in [0, 1].
        num_samples: Number of samples of one evaluation, at least 1.
        control_size: Number of control scores, at least 1.
        fdr: False discovery rate, between 0 and 1.

    Returns:
        Probability in [0, 1], larger is better; 0 if the control is too small for any discovery.

    Raises:
        MissingControlError: If `control_size` is less than 1.
        EmptyDataError: If `num_samples` is less than 1.
        ConfigurationError: If `rate` lies outside [0, 1], `fdr` lies outside (0, 1), or a number is no integer.

    Example:
        >>> round(discovery_probability(0.1, num_samples=64, control_size=199, fdr=0.05), 3)
        0.461
        >>> discovery_probability(0.5, num_samples=64, control_size=10, fdr=0.05)
        0.0
    """
    if not 0 <= rate <= 1:
        raise ConfigurationError(f"rate must lie in [0, 1], but is rate={rate}. Give a fraction, such as 0.1.")
    fewest = minimum_discoveries(control_size, num_samples, fdr=fdr)
    return float(stats.binom.sf(fewest - 1, num_samples, rate))


def _control_size(control_size: Any) -> int:
    count = check_count(control_size, name="control_size")
    if count < 1:
        raise MissingControlError(
            f"Discoveries need held-out images, but control_size={count}. Hold patients out of training."
        )
    return count


def _num_samples(num_samples: Any) -> int:
    count = check_count(num_samples, name="num_samples")
    if count < 1:
        raise EmptyDataError(f"Discoveries need samples, but num_samples={count}. Draw at least one.")
    return count


def _discoveries(discoveries: Any) -> int:
    count = check_count(discoveries, name="discoveries")
    if count < 1:
        raise ConfigurationError(f"discoveries must be at least 1, but is discoveries={count}.")
    return count
