"""How unusual scores are among those of held-out images.

Scores are larger for images that are more like copies. P-values are computed in float64.

- `conformal_p_value`: of each score, against a control.
- `simes_p_value`: of all of them together.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from relict_lightning.errors import ConfigurationError, MissingControlError
from relict_lightning.functional.validation import check_not_nan


def conformal_p_value(scores: Float[Tensor, " n"], control_scores: Float[Tensor, " m"]) -> Float[Tensor, " n"]:
    """Return the share of the control that scores at least as high as each sample, plus-one corrected.

    The value is `(1 + #{control >= score}) / (1 + m)`. For a sample that is exchangeable with the control, it is at
    most `p` with probability at most `p`. It cannot be smaller than `1 / (1 + m)`.

    Args:
        scores: Scores of the samples.
        control_scores: Scores of held-out images, one per group; at least one.

    Returns:
        P-values in (0, 1], float64; smaller is more unusual; empty for no samples.

    Raises:
        MissingControlError: If there are no control scores.
        ConfigurationError: If a score is NaN, or the scores are no vector.

    Example:
        >>> conformal_p_value(torch.tensor([0.9, 0.5]), torch.tensor([0.1, 0.5, 0.6]))
        tensor([0.2500, 0.7500], dtype=torch.float64)

    References:
        Bates, Candès, Lei, Romano, Sesia (2023), Testing for outliers with conformal p-values,
        doi:10.1214/22-AOS2244.
    """
    if control_scores.numel() == 0:
        raise MissingControlError(
            "A conformal p-value needs the scores of held-out images, but control_scores is empty. Hold patients out "
            "of training."
        )
    for name, values in (("scores", scores), ("control_scores", control_scores)):
        check_vector(values, name=name)
        check_not_nan(values, name=name)
    ordered = control_scores.double().sort().values
    below = torch.searchsorted(ordered, scores.double().contiguous())
    return (1 + len(ordered) - below).double() / (1 + len(ordered))


def simes_p_value(p_values: Float[Tensor, " n"]) -> float:
    """Return the p-value of the hypothesis that every one of the hypotheses is true.

    The value is the smallest `n * p_k / k` over the k-th smallest p-values. It is at most `fdr` exactly where
    `benjamini_hochberg` makes a discovery, and valid under the same dependence.

    Args:
        p_values: P-values in [0, 1].

    Returns:
        P-value in [0, 1], smaller is more unusual; 1 for no p-values.

    Raises:
        ConfigurationError: If a p-value lies outside [0, 1] or is NaN, or they are no vector.

    Example:
        >>> simes_p_value(torch.tensor([0.5, 0.01, 0.25, 0.75], dtype=torch.float64))
        0.04

    References:
        Simes (1986), An improved Bonferroni procedure for multiple tests of significance,
        doi:10.1093/biomet/73.3.751.
    """
    check_p_values(p_values)
    if p_values.numel() == 0:
        return 1.0
    ordered = p_values.double().sort().values
    ranks = torch.arange(1, len(ordered) + 1, device=p_values.device)
    return float((ordered * len(ordered) / ranks).amin())


def check_p_values(p_values: Tensor) -> None:
    """Accept p-values that lie in [0, 1].

    Args:
        p_values: P-values.

    Raises:
        ConfigurationError: If a p-value lies outside [0, 1] or is NaN, or they are no vector.
    """
    check_vector(p_values, name="p_values")
    check_not_nan(p_values, name="p_values")
    if ((p_values < 0) | (p_values > 1)).any():
        raise ConfigurationError(f"p_values must lie in [0, 1], but lie in [{p_values.min():g}, {p_values.max():g}].")


def check_vector(values: Tensor, *, name: str) -> None:
    """Accept values that lie along one axis.

    Args:
        values: Scores or p-values.
        name: What the caller calls them, for the message.

    Raises:
        ConfigurationError: If there is no axis, or more than one.
    """
    if values.ndim != 1:
        raise ConfigurationError(
            f"{name} must have one axis, but have shape {tuple(values.shape)}. Give one number per image."
        )
