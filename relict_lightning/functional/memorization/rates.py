"""Which share of the samples copies, by one criterion or another.

Conventions: scores are larger for samples more like copies; distances and ratios are smaller.

- `replica_rate`: share of the samples at or above a threshold, with its interval; larger is worse.
- `neighbor_ratio_fraction`: f_mem, share of the samples that stand out against their second neighbour; larger is worse.
- `closer_to_training_share`: share of the samples that lie closer to training than to held-out images; 0.5 is chance.
"""

import math

from jaxtyping import Float
from torch import Tensor

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional.statistics import estimate_rate
from relict_lightning.functional.validation import check_not_nan, check_same_length
from relict_lightning.results import RateEstimate


def replica_rate(scores: Float[Tensor, " n"], threshold: float, *, confidence: float = 0.95) -> RateEstimate:
    """Return the share of the samples that score at least the threshold, with its exact interval.

    Args:
        scores: Scores of the samples, larger is more like a copy.
        threshold: Smallest score of a replica.
        confidence: Coverage of the interval, between 0 and 1.

    Returns:
        The replica rate; its value is NaN and its interval [0, 1] without samples.

    Raises:
        ConfigurationError: If a score or the threshold is NaN, or `confidence` lies outside (0, 1).

    Example:
        >>> import torch
        >>> str(replica_rate(torch.tensor([0.2, 0.9, 0.95, 0.3]), 0.9))
        '2/4 = 50.0 % [6.8 %, 93.2 %]'

    References:
        Clopper, Pearson (1934), The use of confidence or fiducial limits illustrated in the case of the binomial,
        doi:10.1093/biomet/26.4.404.
    """
    if math.isnan(threshold):
        raise ConfigurationError("threshold must be a number, but is NaN. Calibrate it on held-out images.")
    check_not_nan(scores, name="scores")
    return estimate_rate(int((scores >= threshold).sum()), scores.numel(), confidence=confidence)


def neighbor_ratio_fraction(ratios: Float[Tensor, " n"], *, threshold: float = 1 / 3) -> float:
    """Return the share of the samples whose neighbour ratio lies below a threshold (f_mem).

    Args:
        ratios: Ratios of first to second distance, as `neighbor_ratio` returns them; NaN entries are left out.
        threshold: Ratio below which a sample counts as memorized; 1/3 in the literature.

    Returns:
        Share in [0, 1], larger is worse; NaN if no ratio is left.

    Raises:
        ConfigurationError: If a ratio is negative, or the threshold is not positive.

    Example:
        >>> import torch
        >>> neighbor_ratio_fraction(torch.tensor([0.1, 0.5, 0.9, float("nan"), 0.2]))
        0.5

    References:
        Yoon, Choi, Kwon, Ryu (2023), Diffusion probabilistic models generalize when they fail to memorize, ICML
        workshop on structured probabilistic inference and generative modeling.
    """
    if not threshold > 0:
        raise ConfigurationError(f"threshold must be positive, but is threshold={threshold}. The usual value is 1/3.")
    if (ratios < 0).any():
        raise ConfigurationError(
            f"ratios must not be negative, but the smallest is {ratios[ratios < 0].min():g}. Compute them with "
            f"`neighbor_ratio`."
        )
    valid = ratios[~ratios.isnan()]
    return float((valid < threshold).double().mean()) if valid.numel() else math.nan


def closer_to_training_share(training_distances: Float[Tensor, " n"], heldout_distances: Float[Tensor, " n"]) -> float:
    """Return the share of the samples that lie closer to their nearest training than to their nearest held-out image.

    Chance is 0.5 only if there are as many training as held-out images: the nearest of many lies closer than the
    nearest of few. Compare with a training subset of the size of the held-out set.

    Args:
        training_distances: Distance of each sample to its nearest training image, for instance the first of what
            `nearest_training_distances` returns.
        heldout_distances: Distance of each sample to its nearest held-out image.

    Returns:
        Share in [0, 1], ties counted one half; larger is worse; NaN without samples.

    Raises:
        ConfigurationError: If lengths differ or a distance is NaN.

    Example:
        >>> import torch
        >>> closer_to_training_share(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([2.0, 2.0, 2.0, 5.0]))
        0.625
    """
    check_same_length(training_distances, heldout_distances, names=("training_distances", "heldout_distances"))
    check_not_nan(training_distances, name="training_distances")
    check_not_nan(heldout_distances, name="heldout_distances")
    if training_distances.numel() == 0:
        return math.nan
    closer = (training_distances < heldout_distances).double()
    tied = (training_distances == heldout_distances).double()
    return float((closer + tied / 2).mean())
