"""P-values beyond the largest control score.

A conformal p-value cannot be smaller than 1 / (1 + number of controls). With 128 samples, 200 controls and a false
discovery rate of 5 %, thirteen samples must be copies before any of them can be called one. Where a sample lies beyond
every control, the tail of the control says how far beyond.

- `tail_p_value`: conformal within the control, a generalised Pareto tail beyond it.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from relict_lightning.functional.statistics.p_values import conformal_p_value

TAIL_CONTROLS = 20
"""Fewest control scores that a tail is fitted to."""

# The tail is the upper tenth of the control, and ten scores at least.
_TAIL_SHARE = 0.1
_FEWEST_EXCESSES = 10


def tail_p_value(scores: Float[Tensor, " n"], control_scores: Float[Tensor, " m"]) -> Float[Tensor, " n"]:
    """Return p-values that are conformal within the control, and extrapolated beyond its largest score.

    Over a threshold u, the (k + 1)-th largest of the m control scores, let the k larger ones exceed u by e_1 ... e_k
    with sum E. If excesses are exponential, a new one is larger than y with probability (1 + y / E)^-k exactly,
    whatever their scale and however small k is, because y / E does not depend on the scale. That is a generalised
    Pareto tail of shape 1 / k. Scores with lighter tails, such as normal ones, get p-values that are too large, which
    is the safe side; where the moments of the excesses ask for a heavier tail, their shape is taken, which is always
    below 0.5. The result is (k + 1) / (m + 1) times this probability, and never larger than the conformal p-value.

    In simulation with 128 samples and 50 to 500 controls of one distribution, Benjamini-Hochberg at 5 % made any
    discovery in 1 % of sets for normal scores, in 5 % for exponential, in 4 % for gamma of shape 2, in 6 to 8 % for
    log-normal and in 7 to 10 % for Student's t with 5 degrees of freedom.

    Args:
        scores: Scores of the samples, larger for more like a copy.
        control_scores: Scores of held-out images, at least 1. Below 20 no tail is fitted.

    Returns:
        P-values in (0, 1], float64; smaller is more unusual; empty for no samples.

    Raises:
        MissingControlError: If there are no control scores.
        ConfigurationError: If a score is NaN, or the scores are no vector.

    Example:
        >>> control = torch.arange(20.0)
        >>> tail_p_value(torch.tensor([5.0, 100.0]), control).lt(torch.tensor([0.8, 0.0001])).tolist()
        [True, True]

    References:
        Pickands (1975), doi:10.1214/aos/1176343003 (generalised Pareto tails); Bates et al. (2023),
        doi:10.1214/22-AOS2244 (conformal p-values).
    """
    p_values = conformal_p_value(scores, control_scores)
    count = len(control_scores)
    if count < TAIL_CONTROLS:
        return p_values
    ranked = control_scores.double().sort(descending=True).values
    excess_count = max(_FEWEST_EXCESSES, round(_TAIL_SHARE * count))
    threshold = ranked[excess_count]
    excesses = ranked[:excess_count] - threshold
    mean = float(excesses.mean())
    # No excess has no tail, and neither has an infinite one, of a control score that is infinite.
    if not (math.isfinite(mean) and mean > 0):
        return p_values
    beyond = (scores.double() - threshold).clamp_min(0)
    lightest = 1 / excess_count
    # A generalised Pareto variable of shape xi has mean^2 / variance = 1 - 2 xi. Equal excesses have the lightest tail.
    # The variance is that of excesses in units of their mean, because the square of a large one overflows.
    variance = float((excesses / mean).var())
    shape = (1 - 1 / variance) / 2 if variance > 0 else lightest
    if shape > lightest:
        tail = (1 + shape / (mean * (1 - shape)) * beyond) ** (-1 / shape)
    else:
        tail = (1 + beyond / (excess_count * mean)) ** -excess_count
    extrapolated = torch.minimum((excess_count + 1) / (count + 1) * tail, p_values)
    # A float64 underflow must not become a p-value of zero.
    extrapolated = extrapolated.clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where(scores.double() > ranked[0], extrapolated, p_values)
