"""Whether samples lie closer to the training images than unseen patients do.

- `ct_score`: z-score of samples against held-out images, in one cell or averaged over several; far below 0 is data
  copying.
"""

import math

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Integer
from scipy import stats
from torch import Tensor

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional.validation import check_not_nan, check_same_length


def ct_score(
    generated_distances: Float[Tensor, " n"],
    heldout_distances: Float[Tensor, " m"],
    *,
    generated_cells: Integer[Tensor, " n"] | None = None,
    heldout_cells: Integer[Tensor, " m"] | None = None,
    min_share: float = 0.0,
) -> float:
    """Return the data-copying statistic C_T: are samples closer to training than unseen patients are?

    It is the z-score of the Mann-Whitney statistic of the distances to the nearest training image, with the variance
    corrected for ties. Negative: samples lie closer to the training images than held-out images do, which is data
    copying; below -3 it is hard to explain otherwise. Positive: farther, which is underfitting.

    A generator that copies in some regions and makes poor images in others can score 0. With cells, the z-score is
    taken within each, and C_T is the mean over cells, each weighted by its share of the held-out images. Cells that
    have no held-out or no training images, or not more than `min_share` of the samples, are left out; the authors'
    code stops at the former. It also adds a continuity correction of a half to each statistic, and no correction for
    ties. The mean of z-scores is no z-score: without copying, its standard deviation over k equal cells is 1/√k. It
    can still hide one cell behind another of the same weight; the score of one cell is that of its images alone.

    Args:
        generated_distances: Distance of each sample to its nearest training image; with cells, to the nearest in its
            cell, as `nearest_distances_in_cells` returns it.
        heldout_distances: The same distance of each held-out image.
        generated_cells: Cell of each sample, as `assign_cells` returns it. Both cells are given, or neither.
        heldout_cells: Cell of each held-out image.
        min_share: Share of the samples that a cell must exceed, in [0, 1). In the paper it keeps cells out in which a
            z-score is not yet about normal, such as those with fewer than 20 samples.

    Returns:
        The score, 0 for samples like held-out images. In one cell it is then about standard normal; 0 if all distances
        are equal; NaN if either set is empty. With cells, NaN if no cell is left.

    Raises:
        ConfigurationError: If a distance is NaN, only one of the cells is given, lengths differ, or `min_share` lies
            outside [0, 1) or is given without cells.

    Example:
        >>> import torch
        >>> generated, heldout = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 3.0])
        >>> round(ct_score(generated, heldout), 4)
        -1.964
        >>> cells = {"generated_cells": torch.tensor([0, 0, 1]), "heldout_cells": torch.tensor([0, 1, 1])}
        >>> round(ct_score(generated, heldout, **cells), 4)
        -1.2247

    References:
        Meehan, Chaudhuri, Dasgupta (2020), A non-parametric test to detect data-copying in generative models,
        arXiv:2004.05675.
    """
    check_min_share(min_share)
    check_not_nan(generated_distances, name="generated_distances")
    check_not_nan(heldout_distances, name="heldout_distances")
    generated = generated_distances.detach().cpu().double().numpy()
    heldout = heldout_distances.detach().cpu().double().numpy()
    if generated_cells is None and heldout_cells is None:
        if min_share > 0:
            raise ConfigurationError(
                f"min_share={min_share} tells cells to leave out, but there are none. Give generated_cells and "
                f"heldout_cells."
            )
        return _z_score(generated, heldout)
    if generated_cells is None or heldout_cells is None:
        missing = "generated_cells" if generated_cells is None else "heldout_cells"
        raise ConfigurationError(
            f"generated_cells and heldout_cells belong together, but {missing} is missing. Give both, as "
            f"`assign_cells` returns them."
        )
    check_same_length(generated_distances, generated_cells, names=("generated_distances", "generated_cells"))
    check_same_length(heldout_distances, heldout_cells, names=("heldout_distances", "heldout_cells"))
    in_cell, heldout_in_cell = generated_cells.cpu().numpy(), heldout_cells.cpu().numpy()
    scores, weights = [], []
    for cell in np.intersect1d(in_cell, heldout_in_cell):
        inside, heldout_inside = generated[in_cell == cell], heldout[heldout_in_cell == cell]
        # Distances are infinite in a cell without training images.
        if len(inside) > min_share * len(generated) and np.isfinite([*inside, *heldout_inside]).all():
            scores.append(_z_score(inside, heldout_inside))
            weights.append(len(heldout_inside))
    return float(np.average(scores, weights=weights)) if scores else math.nan


def check_min_share(min_share: float) -> None:
    """Accept a share of the samples that a cell must exceed.

    Args:
        min_share: The share.

    Raises:
        ConfigurationError: If it lies outside [0, 1).

    Example:
        >>> check_min_share(0.1)
    """
    if not 0 <= min_share < 1:
        raise ConfigurationError(
            f"min_share must lie in [0, 1), but is min_share={min_share}. For at least 20 samples per cell, take 20 "
            f"over their number."
        )


def _z_score(generated: npt.NDArray[np.float64], heldout: npt.NDArray[np.float64]) -> float:
    pairs = len(generated) * len(heldout)
    if pairs == 0:
        return math.nan
    distances = np.concatenate([generated, heldout])
    _, ties = np.unique(distances, return_counts=True)
    if len(ties) == 1:
        return 0.0
    total = len(distances)
    tie_loss = float((ties.astype(np.float64) ** 3 - ties).sum()) / total / max(total - 1, 1)
    above = float(stats.rankdata(distances)[: len(generated)].sum()) - len(generated) * (len(generated) + 1) / 2
    return (above - pairs / 2) / math.sqrt(pairs / 12 * (total + 1 - tie_loss))
