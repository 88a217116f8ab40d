"""Whether samples lie closer to the training images than unseen patients do.

- `ct_score`: z-score of samples against held-out images; far below 0 is data copying.
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from relict_lightning.functional.validation import check_not_nan


def ct_score(generated_distances: Float[Tensor, " n"], heldout_distances: Float[Tensor, " m"]) -> float:
    """Return the one-cell data-copying statistic C_T: are samples closer to training than unseen patients are?

    It is the z-score of the Mann-Whitney statistic of the distances to the nearest training image, with the variance
    corrected for ties. Negative: samples lie closer to the training images than held-out images do, which is data
    copying; below -3 it is hard to explain otherwise. Positive: farther, which is underfitting. A generator that
    copies and also makes poor images can score 0, which the multi-cell statistic of the paper is for.

    Args:
        generated_distances: Distance of each sample to its nearest training image.
        heldout_distances: Distance of each held-out image to its nearest training image.

    Returns:
        The z-score, about standard normal if samples are like held-out images; 0 if all distances are equal; NaN if
        either set is empty.

    Raises:
        ConfigurationError: If a distance is NaN.

    Example:
        >>> round(ct_score(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 3.0])), 4)
        -1.964

    References:
        Meehan, Chaudhuri, Dasgupta (2020), A non-parametric test to detect data-copying in generative models,
        arXiv:2004.05675.
    """
    check_not_nan(generated_distances, name="generated_distances")
    check_not_nan(heldout_distances, name="heldout_distances")
    generated, heldout = len(generated_distances), len(heldout_distances)
    if not generated or not heldout:
        return math.nan
    distances = torch.cat([generated_distances.double(), heldout_distances.double()]).detach().cpu().numpy()
    ranks = stats.rankdata(distances)
    total = generated + heldout
    _, ties = np.unique(distances, return_counts=True)
    tie_loss = float((ties.astype(np.float64) ** 3 - ties).sum()) / total / max(total - 1, 1)
    variance = generated * heldout / 12 * (total + 1 - tie_loss)
    if len(ties) == 1:
        return 0.0
    above = float(ranks[:generated].sum()) - generated * (generated + 1) / 2
    return (above - generated * heldout / 2) / math.sqrt(variance)
