"""Which samples are discoveries, and how many a control allows.

- `benjamini_hochberg`: which samples are discoveries at a false discovery rate.
- `minimum_discoveries`: how many discoveries it takes, given the size of the control.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from relict_lightning.errors import ConfigurationError, EmptyDataError, MissingControlError
from relict_lightning.functional.statistics.p_values import check_p_values

# P-values that equal their bound as fractions may exceed it as floats, in float32 by 1e-7 of their size. Bounds give
# way by this share, so that such ties are discoveries on every machine.
_TIE_TOLERANCE = 1e-6


def benjamini_hochberg(p_values: Float[Tensor, " n"], *, fdr: float = 0.05) -> Bool[Tensor, " n"]:
    """Return which p-values are discoveries at a false discovery rate.

    With `k` the largest number such that the k-th smallest p-value is at most `fdr * k / n`, the `k` smallest are
    discoveries. The expected share of false ones among them is at most `fdr` for independent p-values, and for
    conformal p-values that share one control, which depend on each other positively (PRDS).

    Args:
        p_values: P-values in [0, 1].
        fdr: False discovery rate, between 0 and 1.

    Returns:
        True for each discovery; empty for no p-values.

    Raises:
        ConfigurationError: If a p-value lies outside [0, 1] or is NaN, or `fdr` lies outside (0, 1).

    Example:
        >>> benjamini_hochberg(torch.tensor([0.01, 0.5, 0.03, 0.9]), fdr=0.1)
        tensor([ True, False,  True, False])

    References:
        Benjamini, Hochberg (1995), Controlling the false discovery rate,
        doi:10.1111/j.2517-6161.1995.tb02031.x; Bates et al. (2023), Testing for outliers with conformal p-values,
        doi:10.1214/22-AOS2244.
    """
    _check_fdr(fdr)
    check_p_values(p_values)
    ordered = p_values.double().sort().values
    ranks = torch.arange(1, len(ordered) + 1, device=p_values.device)
    passing = ordered * len(ordered) <= fdr * ranks * (1 + _TIE_TOLERANCE)
    if not passing.any():
        return torch.zeros_like(p_values, dtype=torch.bool)
    return p_values.double() <= ordered[passing].amax()


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
        ConfigurationError: If `fdr` lies outside (0, 1).

    Example:
        >>> minimum_discoveries(99, 64, fdr=0.05)
        13
        >>> minimum_discoveries(10, 64, fdr=0.05)
        117
    """
    _check_fdr(fdr)
    if control_size < 1:
        raise MissingControlError(
            f"Discoveries need held-out images, but control_size={control_size}. Hold patients out of training."
        )
    if num_samples < 1:
        raise EmptyDataError(f"Discoveries need samples, but num_samples={num_samples}. Draw at least one.")
    return max(1, math.ceil(num_samples / (fdr * (1 + control_size) * (1 + _TIE_TOLERANCE))))


def _check_fdr(fdr: float) -> None:
    if not 0 < fdr < 1:
        raise ConfigurationError(f"fdr must lie between 0 and 1, but is fdr={fdr}. The usual value is 0.05.")
