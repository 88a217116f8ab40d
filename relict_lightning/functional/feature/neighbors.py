"""How much closer a sample lies to its nearest training image than to the others.

Conventions: neighbours of a sample are `[n, k]`: a distance (smaller is more alike) and a group (the patient) for each.
A distance of infinity marks a neighbour that an index of fewer than `k` images does not have. Ratios compare the first
neighbour with neighbours of *other* groups, because two scans of one patient lie next to each other and would hide a
copy of either.

- `neighbor_ratio`: first over second distance, in [0, 1]; smaller is more like a copy.
- `copy_likeness`: one minus first over mean distance to the next five, at most 1; larger is more like a copy.
"""

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional.validation import check_not_nan, check_same_length

# Carlini et al. normalise by a sample's own neighbourhood as well, with 50 neighbours from tens of millions of images;
# five keeps the neighbourhood local in a training set of a few hundred patients.
_COMPARED_NEIGHBORS = 5


def neighbor_ratio(distances: Float[Tensor, "n k"], neighbor_groups: Integer[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """Return each sample's distance to its nearest neighbour over that to the nearest one of another group.

    Args:
        distances: Distances to the nearest training images, ascending, infinity where there is no neighbour.
        neighbor_groups: Group of each of these images.

    Returns:
        Ratio in [0, 1], smaller is more like a copy: 0 for an exact copy, near 1 where no neighbour stands out. 1 where
        both distances are 0, because the sample then lies on two patients at once. NaN where no neighbour belongs to
        another group: search with a larger `k`.

    Raises:
        ConfigurationError: If shapes differ, a distance is negative or NaN, a first distance is infinite, or
            distances do not ascend.

    Example:
        >>> distances = torch.tensor([[1.0, 1.1, 4.0]])
        >>> neighbor_ratio(distances, torch.tensor([[7, 7, 3]]))
        tensor([0.2500])

    References:
        Carlini et al. (2023), Extracting training data from diffusion models, arXiv:2301.13188, normalise distances by
        the sample's own neighbours; Yoon, Choi, Kwon, Ryu (2023), Diffusion probabilistic models generalize when they
        fail to memorize, use the ratio of the first two.
    """
    distances = _check_neighbors(distances, neighbor_groups)
    descends = distances[:, 1:] < distances[:, :-1]
    if descends.any():
        raise ConfigurationError(
            f"distances must ascend along each row, but {int(descends.any(dim=1).sum())} of {len(distances)} rows do "
            f"not. Sort the neighbours of each sample by distance."
        )
    first = distances[:, 0]
    second = _distances_to_other_groups(distances, neighbor_groups).amin(dim=1)
    ratio = torch.where(second > 0, first / second, torch.ones_like(first))
    return torch.where(second.isinf(), torch.full_like(first, torch.nan), ratio)


def copy_likeness(distances: Float[Tensor, "n k"], neighbor_groups: Integer[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """Return how much closer each sample lies to its first neighbour than to the nearest images of other groups.

    The value is `1 - d1 / mean(d)`, where `d` are the distances to the up to five nearest images of other groups. It
    does not change when all distances are multiplied by a constant, so samples and encoders of any scale compare.

    Args:
        distances: Distances to training images, the neighbour in question in the first column, the others in any
            order; infinity where there is no neighbour.
        neighbor_groups: Group of each of these images.

    Returns:
        At most 1, larger is more like a copy: 1 for an exact copy, 0 where the first neighbour is as far as the others
        or all distances are 0, negative where it is farther (never, if distances ascend). NaN where no neighbour
        belongs to another group: search with a larger `k`.

    Raises:
        ConfigurationError: If shapes differ, a distance is negative or NaN, or a first distance is infinite.

    Example:
        >>> distances = torch.tensor([[1.0, 1.1, 3.0, 5.0]])
        >>> copy_likeness(distances, torch.tensor([[7, 7, 3, 4]]))
        tensor([0.7500])

    References:
        Carlini et al. (2023), Extracting training data from diffusion models, arXiv:2301.13188.
    """
    distances = _check_neighbors(distances, neighbor_groups)
    first = distances[:, 0]
    others = _distances_to_other_groups(distances, neighbor_groups)
    nearest = others.topk(min(_COMPARED_NEIGHBORS, others.shape[1]), dim=1, largest=False).values
    present = nearest.isfinite()
    mean = nearest.masked_fill(~present, 0.0).sum(dim=1) / present.sum(dim=1)
    likeness = 1 - first / mean
    likeness = torch.where((first == 0) & (mean == 0), torch.zeros_like(first), likeness)
    return torch.where(present.any(dim=1), likeness, torch.full_like(first, torch.nan))


def _check_neighbors(distances: Tensor, neighbor_groups: Tensor) -> Tensor:
    check_same_length(distances, neighbor_groups, names=("distances", "neighbor_groups"))
    if distances.ndim != 2 or distances.shape[1] < 1:
        raise ConfigurationError(
            f"distances must have shape [n, k] with k of at least 1, but have shape {tuple(distances.shape)}."
        )
    check_not_nan(distances, name="distances")
    if (distances < 0).any():
        raise ConfigurationError(
            f"distances must not be negative, but the smallest is {distances.min():g}. "
            f"Turn similarities into distances first, as in `1 - similarity`."
        )
    if distances[:, 0].isinf().any():
        raise ConfigurationError(
            f"Every sample must have a first neighbour, but {int(distances[:, 0].isinf().sum())} of {len(distances)} "
            f"have an infinite first distance. Search an index that holds images, with finite embeddings."
        )
    return distances.float()


def _distances_to_other_groups(distances: Tensor, neighbor_groups: Tensor) -> Tensor:
    return distances.masked_fill(neighbor_groups == neighbor_groups[:, :1], torch.inf)
