"""How many samples an evaluation needs to find a given share of copies, and which share it finds.

Conventions: a rate is the share of copies among all that the generator makes, a fraction. Every copy is taken to be
called a replica, and the evidence to pass where copies are enough, as it does where they are more alike than every
held-out patient and there are at least 20 of these. What is left to chance is how many copies are among the samples.
Copies that hide among held-out patients make all of this worse.

An onset counts as found within one evaluation period where the first evaluation after it declares it; if copying starts
right at an evaluation, that one and the next both count, and `evaluations` is 2.

- `copies_to_exceed`: how many copies let the rate's lower bound exceed the tolerance.
- `found_probability`: how likely a rate is to be found.
- `smallest_rate_found`: the smallest rate that is found with a given probability.
- `samples_to_find`: how many samples per evaluation find a given rate.
"""

from collections.abc import Callable

from scipy import optimize, stats

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional import clopper_pearson_interval

_MOST_SAMPLES = 10_000


def copies_to_exceed(tolerance: float, *, num_samples: int, confidence: float = 0.95) -> int | None:
    """Return the smallest number of replicas among the samples for which the rate's lower bound exceeds `tolerance`.

    Args:
        tolerance: Replica rate that is put up with, in [0, 1).
        num_samples: Samples of one evaluation, at least 1.
        confidence: Coverage of the rate's two-sided exact interval.

    Returns:
        The number, at least 1, or None where even copies alone do not exceed it.

    Raises:
        ConfigurationError: If `tolerance` lies outside [0, 1), `num_samples` is below 1, or `confidence` lies outside
            (0, 1).

    Example:
        >>> copies_to_exceed(0.01, num_samples=64), copies_to_exceed(0.0, num_samples=64)
        (4, 1)
    """
    _check(tolerance=tolerance, num_samples=num_samples)

    def exceeds(copies: int) -> bool:
        return clopper_pearson_interval(copies, num_samples, confidence=confidence)[0] > tolerance

    if not exceeds(num_samples):
        return None
    too_few, enough = 0, num_samples
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if exceeds(middle) else (middle, enough)
    return enough


def found_probability(rate: float, *, num_samples: int, tolerance: float = 0.01, evaluations: int = 1) -> float:
    """Return how likely it is that one of some evaluations finds a generator that copies at a given rate.

    Args:
        rate: Share of copies, in [0, 1].
        num_samples: Samples of each evaluation, at least 1.
        tolerance: Replica rate that is put up with, in [0, 1).
        evaluations: How many evaluations count, at least 1; their samples are independent.

    Returns:
        Probability in [0, 1], larger is better.

    Raises:
        ConfigurationError: If a number lies outside its range.

    Example:
        >>> [round(found_probability(0.05, num_samples=count), 2) for count in (64, 128, 256)]
        [0.4, 0.77, 0.97]
    """
    if not 0 <= rate <= 1:
        raise ConfigurationError(f"rate must lie in [0, 1], but is rate={rate}. Give a fraction, such as 0.05.")
    if evaluations < 1:
        raise ConfigurationError(f"evaluations must be at least 1, but is evaluations={evaluations}.")
    copies = copies_to_exceed(tolerance, num_samples=num_samples)
    if copies is None:
        return 0.0
    # The probability that one evaluation misses, and all of them.
    missed = float(stats.binom.cdf(copies - 1, num_samples, rate))
    return 1 - float(missed**evaluations)


def smallest_rate_found(
    num_samples: int, *, tolerance: float = 0.01, evaluations: int = 1, probability: float = 0.95
) -> float | None:
    """Return the smallest rate of copies that is found with a given probability.

    Args:
        num_samples: Samples of each evaluation, at least 1.
        tolerance: Replica rate that is put up with, in [0, 1).
        evaluations: How many evaluations count, at least 1.
        probability: How likely it is to be found, between 0 and 1.

    Returns:
        Rate in (0, 1), or None where no rate exceeds the tolerance with so few samples.

    Raises:
        ConfigurationError: If a number lies outside its range.

    Example:
        >>> [round(smallest_rate_found(count), 3) for count in (64, 128, 256)]
        [0.117, 0.07, 0.046]
    """
    _check_probability(probability)

    def surplus(rate: float) -> float:
        found = found_probability(rate, num_samples=num_samples, tolerance=tolerance, evaluations=evaluations)
        return found - probability

    if surplus(1.0) < 0:
        return None
    return float(optimize.brentq(surplus, 0.0, 1.0))


def samples_to_find(
    rate: float, *, tolerance: float = 0.01, evaluations: int = 1, probability: float = 0.95
) -> int | None:
    """Return the smallest number of samples per evaluation that finds a rate of copies.

    Copies are whole numbers, so a few samples more can find a little less, where they ask for one copy more.

    Args:
        rate: Share of copies, in (0, 1].
        tolerance: Replica rate that is put up with, in [0, 1).
        evaluations: How many evaluations count, at least 1.
        probability: How likely it is to be found, between 0 and 1.

    Returns:
        Number of samples, or None where none up to 10,000 will do, as for a rate that is not above the tolerance.

    Raises:
        ConfigurationError: If a number lies outside its range.

    Example:
        >>> samples_to_find(0.05), samples_to_find(0.05, evaluations=2), samples_to_find(0.05, tolerance=0.0)
        (208, 106, 59)
    """
    if not 0 < rate <= 1:
        raise ConfigurationError(f"rate must lie in (0, 1], but is rate={rate}. Give a fraction, such as 0.05.")
    _check_probability(probability)

    def finds(num_samples: int) -> bool:
        found = found_probability(rate, num_samples=num_samples, tolerance=tolerance, evaluations=evaluations)
        return found >= probability

    if rate <= tolerance or copies_to_exceed(tolerance, num_samples=_MOST_SAMPLES) is None:
        return None
    start = 1
    while start <= _MOST_SAMPLES:
        # As long as the number of copies that it takes stays the same, more samples find more.
        stop = _last_with_the_same_copies(tolerance, start=start)
        if finds(stop):
            return _first(finds, start=start, stop=stop)
        start = stop + 1
    return None


def _last_with_the_same_copies(tolerance: float, *, start: int) -> int:
    """Return up to which number of samples it takes no more copies than with `start` samples."""
    copies = copies_to_exceed(tolerance, num_samples=start)

    def takes_more(num_samples: int) -> bool:
        return copies_to_exceed(tolerance, num_samples=num_samples) != copies

    if not takes_more(_MOST_SAMPLES):
        return _MOST_SAMPLES
    return _first(takes_more, start=start, stop=_MOST_SAMPLES) - 1


def _first(holds: Callable[[int], bool], *, start: int, stop: int) -> int:
    """Return the first number from `start` to `stop` that has what all later ones have, up to `stop`."""
    while start < stop:
        middle = (start + stop) // 2
        start, stop = (start, middle) if holds(middle) else (middle + 1, stop)
    return stop


def _check_probability(probability: float) -> None:
    if not 0 < probability < 1:
        raise ConfigurationError(f"probability must lie between 0 and 1, but is probability={probability}.")


def _check(*, tolerance: float, num_samples: int) -> None:
    if not 0 <= tolerance < 1:
        raise ConfigurationError(f"tolerance must lie in [0, 1), but is tolerance={tolerance}.")
    if num_samples < 1:
        raise ConfigurationError(f"num_samples must be at least 1, but is num_samples={num_samples}. Draw samples.")
