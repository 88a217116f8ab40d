"""Which samples are discoveries.

- `benjamini_hochberg`: which samples are discoveries at a false discovery rate.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional.statistics.p_values import check_p_values

# P-values that equal their bound as fractions may exceed it as floats, in float32 by 1e-7 of their size. Bounds give
# way by this share, so that such ties are discoveries on every machine; planning counts on it.
TIE_TOLERANCE = 1e-6


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
        ConfigurationError: If a p-value lies outside [0, 1] or is NaN, they are no vector, or `fdr` lies outside
            (0, 1).

    Example:
        >>> benjamini_hochberg(torch.tensor([0.01, 0.5, 0.03, 0.9]), fdr=0.1)
        tensor([ True, False,  True, False])

    References:
        Benjamini, Hochberg (1995), Controlling the false discovery rate,
        doi:10.1111/j.2517-6161.1995.tb02031.x; Bates et al. (2023), Testing for outliers with conformal p-values,
        doi:10.1214/22-AOS2244.
    """
    check_fdr(fdr)
    check_p_values(p_values)
    ordered = p_values.double().sort().values
    ranks = torch.arange(1, len(ordered) + 1, dtype=torch.float64, device=p_values.device)
    passing = ordered * len(ordered) <= fdr * ranks * (1 + TIE_TOLERANCE)
    if not passing.any():
        return torch.zeros_like(p_values, dtype=torch.bool)
    return p_values.double() <= ordered[passing].amax()


def check_fdr(fdr: float) -> None:
    """Accept a false discovery rate.

    Args:
        fdr: False discovery rate.

    Raises:
        ConfigurationError: If it lies outside (0, 1).
    """
    if not 0 < fdr < 1:
        raise ConfigurationError(f"fdr must lie between 0 and 1, but is fdr={fdr}. The usual value is 0.05.")
