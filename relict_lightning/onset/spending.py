"""How the probability of a false alarm is spent over the evaluations of a run, and what it takes to reach a level.

- `spending_level`: the level of each evaluation; the levels of all evaluations sum to `alpha`.
- `even_spending_level`: the same, with less for the first evaluations and more for the later ones.
- `usual_surprise`: by how much smaller than they should be the p-values of a run have been.
- `copies_to_decide`: how many patients must be copied for the permutation test to reach a level.
"""

import math
import sys
from collections.abc import Sequence

_EVEN = 20
# That far the run's own p-values can lower a level. Without an end, copies from the first evaluation on, too few to be
# declared, would hide those that follow.
_LARGEST_SURPRISE = math.log(100)


def spending_level(evaluation: int, *, alpha: float) -> float:
    """Return the level at which evaluation number `evaluation` is tested, so that all levels sum to `alpha`.

    Args:
        evaluation: Number of the evaluation, counted from 1.
        alpha: Bound on the probability of a false alarm over the whole run.

    Example:
        >>> round(spending_level(1, alpha=0.05), 4), round(spending_level(10, alpha=0.05), 6)
        (0.0304, 0.000304)
    """
    return 6 * alpha / (math.pi * evaluation) ** 2


def even_spending_level(evaluation: int, *, alpha: float) -> float:
    """Return the level at which evaluation number `evaluation` is tested, more evenly than by `spending_level`.

    It is alpha (1 / (1 + (t - 1) / 20) - 1 / (1 + t / 20)) for evaluation number t, so all levels sum to `alpha`, half
    of it spent after 20 evaluations. At the beginning a generator has nothing by heart, and its look is farthest from
    that of patients, so what assumes that they look alike should decide little there.

    Args:
        evaluation: Number of the evaluation, counted from 1.
        alpha: Bound on the probability of a false alarm over the whole run.

    Example:
        >>> round(even_spending_level(1, alpha=0.05), 5), round(even_spending_level(100, alpha=0.05), 6)
        (0.00238, 7e-05)
    """
    return alpha * _EVEN / ((_EVEN + evaluation - 1) * (_EVEN + evaluation))


def usual_surprise(p_values: Sequence[float]) -> float:
    """Return the logarithm of the factor by which p-values of a run have been smaller than they should be.

    Minus the natural logarithm of a p-value is 1 on average where the hypothesis and the test's assumptions hold. If it
    has been more in the evaluations before, the samples of this run are nearer to training patients than held-out
    patients are for another reason than memorization that began now. Dividing a level by this factor can only make a
    test stricter.

    Args:
        p_values: P-values of the evaluations so far, in (0, 1].

    Returns:
        At least 0, and at most the logarithm of 100; 0 without any.

    Example:
        >>> usual_surprise([0.5, 0.9]), round(usual_surprise([0.01, 0.01]), 3)
        (0.0, 3.605)
    """
    if not p_values:
        return 0.0
    mean = sum(-math.log(max(p_value, sys.float_info.min)) for p_value in p_values) / len(p_values)
    return min(max(mean - 1, 0.0), _LARGEST_SURPRISE)


def copies_to_decide(level: float, *, training_groups: int, heldout_groups: int) -> int | None:
    """Return how many distinct copied patients let the permutation test reach `level`.

    With M training patients among N in all, j samples that copy j distinct training patients have a p-value of
    prod over i < j of (M - i) / (N - i), and not below.

    Returns:
        The number of patients, or None where even copying all of them does not reach the level.

    Example:
        >>> copies_to_decide(0.001, training_groups=100, heldout_groups=100)
        10
    """
    total = training_groups + heldout_groups
    p_value = 1.0
    for copied in range(training_groups):
        p_value *= (training_groups - copied) / (total - copied)
        if p_value <= level:
            return copied + 1
    return None
