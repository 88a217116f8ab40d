"""How much closer a sample lies to its nearest training image than to the others.

Conventions: neighbours of a sample are `[n, k]`: a distance (smaller is more alike) and a group (the patient) for each.
A distance of infinity marks a neighbour that an index of fewer than `k` images does not have. Ratios compare the first
neighbour with neighbours of *other* groups, because two scans of one patient lie next to each other and would hide a
copy of either.

- `neighbor_ratio`: first over second distance, in [0, 1]; smaller is more like a copy.
- `calibrated_neighbor_ratio`: first over mean distance of a neighbourhood, at least 0; smaller is more like a copy.
- `copy_likeness`: one minus first over mean distance to the next five, at most 1; larger is more like a copy.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional.validation import check_not_nan, check_same_length

Centre = Literal["sample", "reference"]

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


def calibrated_neighbor_ratio(
    distances: Float[Tensor, "n k"],
    neighbor_groups: Integer[Tensor, "n k"],
    *,
    centre: Centre = "sample",
    reference_distances: Float[Tensor, "n r"] | None = None,
    num_neighbors: int = 50,
    alpha: float = 0.5,
) -> Float[Tensor, " n"]:
    """Return each sample's distance to its nearest neighbour over the mean distance within a neighbourhood.

    The value is `d1 / (alpha * mean(d))`. The literature reads the neighbourhood in two ways. Around the sample, `d`
    are its distances to the nearest images of other groups: few of them are small where samples of this kind have many
    look-alikes, so a blurred sample that is near to everyone is no copy. Around the reference, `d` are the distances
    from the sample's nearest training image to *its* nearest training images: a training image without look-alikes is
    easily recognised, whatever else the sample is near to.

    Args:
        distances: Distances to training images, the neighbour in question in the first column, the others in any
            order; infinity where there is no neighbour.
        neighbor_groups: Group of each of these images.
        centre: "sample" or "reference".
        reference_distances: With "reference", the distances from each sample's nearest training image to other
            training images, of other groups than its own, in any order; infinity where there is none.
        num_neighbors: Largest number of nearest images to average over, at least 1. The paper has 50, of tens of
            millions; fewer are averaged where fewer are given.
        alpha: Positive factor; the paper has 0.5. Samples below 1 are then twice as near as their neighbourhood.

    Returns:
        Ratio, at least 0, smaller is more like a copy: 0 for an exact copy. Infinity where the neighbourhood has no
        extent but the sample lies off it, `1 / alpha` where both distances are 0. NaN where there is no neighbourhood:
        search with a larger `k`.

    Raises:
        ConfigurationError: If shapes differ, a distance is negative or NaN, a first distance is infinite, `centre` is
            unknown or lacks what it needs, or `num_neighbors` or `alpha` is not positive.

    Example:
        >>> distances, groups = torch.tensor([[1.0, 1.1, 3.0, 5.0]]), torch.tensor([[7, 7, 3, 4]])
        >>> calibrated_neighbor_ratio(distances, groups)
        tensor([0.5000])
        >>> of_reference = torch.tensor([[2.0, 6.0]])
        >>> calibrated_neighbor_ratio(distances, groups, centre="reference", reference_distances=of_reference)
        tensor([0.5000])

    References:
        Carlini et al. (2023), Extracting training data from diffusion models, arXiv:2301.13188, section 5.
    """
    check_calibration_settings(centre=centre, num_neighbors=num_neighbors, alpha=alpha)
    distances = _check_neighbors(distances, neighbor_groups)
    if (reference_distances is None) != (centre == "sample"):
        raise ConfigurationError(
            f"reference_distances must be given with centre='reference', and only then, but centre={centre!r} and "
            f"reference_distances are {'missing' if reference_distances is None else 'given'}."
        )
    if reference_distances is None:
        neighborhood = _distances_to_other_groups(distances, neighbor_groups)
    else:
        neighborhood = _check_reference_distances(reference_distances, count=len(distances))
    first, mean = distances[:, 0], _mean_of_nearest(neighborhood, num_neighbors)
    return torch.where((first == 0) & (mean == 0), torch.ones_like(first), first / mean) / alpha


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
    mean = _mean_of_nearest(_distances_to_other_groups(distances, neighbor_groups), _COMPARED_NEIGHBORS)
    return torch.where((first == 0) & (mean == 0), torch.zeros_like(first), 1 - first / mean)


def check_calibration_settings(*, centre: str, num_neighbors: int, alpha: float) -> None:
    """Accept settings that `calibrated_neighbor_ratio` can work with.

    Args:
        centre: What the neighbourhood lies around.
        num_neighbors: Largest number of neighbours to average over.
        alpha: Factor of the mean.

    Raises:
        ConfigurationError: If `centre` is unknown, or `num_neighbors` or `alpha` is not positive.

    Example:
        >>> check_calibration_settings(centre="sample", num_neighbors=50, alpha=0.5)
    """
    if centre not in ("sample", "reference"):
        raise ConfigurationError(f"centre must be 'sample' or 'reference', but is centre={centre!r}.")
    if num_neighbors < 1:
        raise ConfigurationError(f"num_neighbors must be at least 1, but is num_neighbors={num_neighbors}.")
    if not (math.isfinite(alpha) and alpha > 0):
        raise ConfigurationError(f"alpha must be positive and finite, but is alpha={alpha}. The usual value is 0.5.")


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


def _check_reference_distances(reference_distances: Tensor, *, count: int) -> Tensor:
    if reference_distances.ndim != 2 or len(reference_distances) != count:
        raise ConfigurationError(
            f"reference_distances must have shape [{count}, r], one row per sample, but have shape "
            f"{tuple(reference_distances.shape)}."
        )
    check_not_nan(reference_distances, name="reference_distances")
    if (reference_distances < 0).any():
        raise ConfigurationError(
            f"reference_distances must not be negative, but the smallest is {reference_distances.min():g}."
        )
    return reference_distances.float()


def _mean_of_nearest(distances: Tensor, number: int) -> Float[Tensor, " n"]:
    nearest = distances.topk(min(number, distances.shape[1]), dim=1, largest=False).values
    present = nearest.isfinite()
    # 0 / 0 is NaN, which is the value promised where there is no neighbourhood.
    return nearest.masked_fill(~present, 0.0).sum(dim=1) / present.sum(dim=1)


def _distances_to_other_groups(distances: Tensor, neighbor_groups: Tensor) -> Tensor:
    return distances.masked_fill(neighbor_groups == neighbor_groups[:, :1], torch.inf)
