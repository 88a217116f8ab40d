"""Rates, p-values and thresholds: what the numbers promise.

Conventions: rates and p-values are fractions in [0, 1]. Scores are larger for images that are more like copies, and an
image is called a replica where its score is *at least* a threshold. P-values are computed in float64.

- `clopper_pearson_interval`, `estimate_rate`: a rate, with its exact interval.
- `conformal_p_value`: how unusual a score is among held-out images.
- `benjamini_hochberg`: which samples are discoveries at a false discovery rate.
- `simes_p_value`: whether any sample is.
- `minimum_discoveries`: how many discoveries it takes, given the size of the control.
- `balanced_accuracy_at_optimal_threshold`, `out_of_sample_balanced_accuracy`: agreement with expert ratings.
"""

import math

import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor

from relict_lightning.errors import ConfigurationError, EmptyDataError, MissingControlError
from relict_lightning.functional.validation import check_not_nan, check_same_length
from relict_lightning.results import RateEstimate

# P-values that equal their bound as fractions may exceed it as floats, in float32 by 1e-7 of their size. Bounds give
# way by this share, so that such ties are discoveries on every machine.
_TIE_TOLERANCE = 1e-6


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
        ConfigurationError: If `successes` lies outside `[0, trials]` or `confidence` outside (0, 1).

    Example:
        >>> low, high = clopper_pearson_interval(0, 50)
        >>> low, round(high, 4)
        (0.0, 0.0711)

    References:
        Clopper, Pearson (1934), The use of confidence or fiducial limits illustrated in the case of the binomial,
        doi:10.1093/biomet/26.4.404.
    """
    if not 0 <= successes <= trials:
        raise ConfigurationError(
            f"successes must lie between 0 and trials, but successes={successes} and trials={trials}."
        )
    if not 0 < confidence < 1:
        raise ConfigurationError(f"confidence must lie between 0 and 1, but is confidence={confidence}.")
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
        ConfigurationError: If `successes` lies outside `[0, trials]` or `confidence` outside (0, 1).

    Example:
        >>> str(estimate_rate(12, 64))
        '12/64 = 18.8 % [10.1 %, 30.5 %]'

    References:
        Clopper, Pearson (1934), The use of confidence or fiducial limits illustrated in the case of the binomial,
        doi:10.1093/biomet/26.4.404.
    """
    low, high = clopper_pearson_interval(successes, trials, confidence=confidence)
    value = successes / trials if trials else math.nan
    return RateEstimate(value=value, low=low, high=high, successes=successes, trials=trials, confidence=confidence)


def conformal_p_value(scores: Float[Tensor, " n"], control_scores: Float[Tensor, " m"]) -> Float[Tensor, " n"]:
    """Return the share of the control that scores at least as high as each sample, plus-one corrected.

    The value is `(1 + #{control >= score}) / (1 + m)`. For a sample that is exchangeable with the control, it is at
    most `p` with probability at most `p`. It cannot be smaller than `1 / (1 + m)`.

    Args:
        scores: Scores of the samples.
        control_scores: Scores of held-out images, one per group; at least one.

    Returns:
        P-values in (0, 1], float64; smaller is more unusual.

    Raises:
        MissingControlError: If there are no control scores.
        ConfigurationError: If a score is NaN.

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
    check_not_nan(scores, name="scores")
    check_not_nan(control_scores, name="control_scores")
    ordered = control_scores.double().sort().values
    below = torch.searchsorted(ordered, scores.double().contiguous())
    return (1 + len(ordered) - below).double() / (1 + len(ordered))


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
    _check_p_values(p_values)
    ordered = p_values.double().sort().values
    ranks = torch.arange(1, len(ordered) + 1, device=p_values.device)
    passing = ordered * len(ordered) <= fdr * ranks * (1 + _TIE_TOLERANCE)
    if not passing.any():
        return torch.zeros_like(p_values, dtype=torch.bool)
    return p_values.double() <= ordered[passing].amax()


def simes_p_value(p_values: Float[Tensor, " n"]) -> float:
    """Return the p-value of the hypothesis that every one of the hypotheses is true.

    The value is the smallest `n * p_k / k` over the k-th smallest p-values. It is at most `fdr` exactly where
    `benjamini_hochberg` makes a discovery, and valid under the same dependence.

    Args:
        p_values: P-values in [0, 1].

    Returns:
        P-value in [0, 1]; 1 for no p-values.

    Raises:
        ConfigurationError: If a p-value lies outside [0, 1] or is NaN.

    Example:
        >>> simes_p_value(torch.tensor([0.5, 0.01, 0.25, 0.75], dtype=torch.float64))
        0.04

    References:
        Simes (1986), An improved Bonferroni procedure for multiple tests of significance,
        doi:10.1093/biomet/73.3.751.
    """
    _check_p_values(p_values)
    if p_values.numel() == 0:
        return 1.0
    ordered = p_values.double().sort().values
    ranks = torch.arange(1, len(ordered) + 1, device=p_values.device)
    return float((ordered * len(ordered) / ranks).amin())


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


def balanced_accuracy_at_optimal_threshold(
    scores: Float[Tensor, " n"], labels: Bool[Tensor, " n"]
) -> tuple[float, float]:
    """Return the largest balanced accuracy that any threshold reaches, and that threshold.

    This is the protocol of RELICT. The threshold is chosen on the very images that are scored, so the value is never
    below 0.5 and flatters; `out_of_sample_balanced_accuracy` does not.

    Args:
        scores: Scores, larger is more like a copy.
        labels: Expert ratings, True for a copy; at least one of each.

    Returns:
        Mean of sensitivity and specificity, in [0.5, 1], and the threshold, which calls scores at or above it replicas.
        It lies midway between two neighbouring scores. Of several that do equally well it is the highest, which calls
        the fewest replicas; infinity if calling none does as well as any.

    Raises:
        EmptyDataError: If either rating does not occur.
        ConfigurationError: If lengths differ or a score is NaN.

    Example:
        >>> scores, labels = torch.tensor([0.25, 0.5, 0.75, 1.0]), torch.tensor([False, False, True, True])
        >>> balanced_accuracy_at_optimal_threshold(scores, labels)
        (1.0, 0.625)

    References:
        RELICT (2025), arXiv:2502.17360.
    """
    _check_ratings(scores, labels, minimum=1)
    levels, level_of_score = torch.unique(scores.double(), return_inverse=True)
    copies = torch.bincount(level_of_score[labels], minlength=len(levels)).flip(0).cumsum(0)
    others = torch.bincount(level_of_score[~labels], minlength=len(levels)).flip(0).cumsum(0)
    # Entry i belongs to calling the i + 1 highest levels replicas: sensitivity plus specificity minus 1, times the
    # product of both counts, so that it is an integer and ties are ties.
    gain = copies * others[-1] - others * copies[-1]
    best = int(gain.argmax())
    if gain[best] <= 0:
        return 0.5, math.inf
    upper = float(levels[-1 - best])
    # Calling every level gains nothing, so there is a level below.
    lower = float(levels[-2 - best])
    midway = lower + (upper - lower) / 2
    return 0.5 + int(gain[best]) / (2 * int(copies[-1] * others[-1])), midway if midway > lower else upper


def out_of_sample_balanced_accuracy(scores: Float[Tensor, " n"], labels: Bool[Tensor, " n"]) -> float:
    """Return the balanced accuracy of thresholds that were chosen without the image they decide on.

    Every image is left out in turn, the threshold is chosen on the others as in
    `balanced_accuracy_at_optimal_threshold`, and the image is called by it.

    Args:
        scores: Scores, larger is more like a copy.
        labels: Expert ratings, True for a copy; at least two of each.

    Returns:
        Mean of sensitivity and specificity, in [0, 1]. Scores that know nothing of the ratings often give less than
        0.5, because leaving an image out tilts the choice against it.

    Raises:
        EmptyDataError: If either rating occurs less than twice.
        ConfigurationError: If lengths differ or a score is NaN.

    Example:
        >>> scores, labels = torch.tensor([0.1, 0.2, 0.8, 0.9]), torch.tensor([False, False, True, True])
        >>> out_of_sample_balanced_accuracy(scores, labels)
        1.0
    """
    _check_ratings(scores, labels, minimum=2)
    kept = torch.ones_like(labels)
    called = torch.zeros_like(labels)
    for position in range(len(scores)):
        kept[position] = False
        _, threshold = balanced_accuracy_at_optimal_threshold(scores[kept], labels[kept])
        called[position] = bool(scores[position].double() >= threshold)
        kept[position] = True
    sensitivity = called[labels].double().mean()
    specificity = (~called[~labels]).double().mean()
    return float((sensitivity + specificity) / 2)


def _check_fdr(fdr: float) -> None:
    if not 0 < fdr < 1:
        raise ConfigurationError(f"fdr must lie between 0 and 1, but is fdr={fdr}. The usual value is 0.05.")


def _check_p_values(p_values: Tensor) -> None:
    check_not_nan(p_values, name="p_values")
    if ((p_values < 0) | (p_values > 1)).any():
        raise ConfigurationError(f"p_values must lie in [0, 1], but lie in [{p_values.min():g}, {p_values.max():g}].")


def _check_ratings(scores: Tensor, labels: Tensor, *, minimum: int) -> None:
    check_same_length(scores, labels, names=("scores", "labels"))
    check_not_nan(scores, name="scores")
    if labels.dtype != torch.bool:
        raise ConfigurationError(f"labels must be boolean, but have dtype {labels.dtype}. True stands for a copy.")
    copies = int(labels.sum())
    if min(copies, len(labels) - copies) < minimum:
        raise EmptyDataError(
            f"Balanced accuracy needs at least {minimum} images of each rating, but {copies} are rated copies and "
            f"{len(labels) - copies} are not. Rate more images."
        )
