"""How far apart the labels of two maps lie.

Conventions: label maps are integers or booleans `[n, *spatial]`, one label per voxel, 0 for background. Pairs are
`(generated, training)`. A label that neither map has gets NaN, one that only one map has gets infinity.

- `centroid_distance`: between the centres of mass, in mm, per label; smaller is more alike.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from relict_lightning.functional.segmentation.label_maps import LabelMaps, check_label_maps, check_spacing


def centroid_distance(
    generated: LabelMaps, training: LabelMaps, *, spacing_mm: float | Sequence[float], num_labels: int | None = None
) -> Float[Tensor, "n l"]:
    """Return the distance between the centres of mass of each label, of each pair of label maps.

    Args:
        generated: Label maps of the generated images, `[n, *spatial]`, 2-D or 3-D, integer or boolean.
        training: Label maps of the training images, one for each generated image.
        spacing_mm: Size of a voxel in mm: one number for all axes, or one per spatial axis.
        num_labels: Number of labels, background included; labels are `0, ..., num_labels - 1`. None for the largest
            label in this call plus one, and at least 2.

    Returns:
        Distance in mm, at least 0, smaller is more alike. A label that only one map has gets infinity, a label that
        neither map has gets NaN. Labels run from 1.

    Raises:
        InvalidImageError: If label maps are neither integers nor boolean, are not 2-D or 3-D, differ in shape, or hold
            a label outside the range.
        ConfigurationError: If `spacing_mm` is not positive and finite or does not fit the axes, or `num_labels` leaves
            no label to compare.

    Example:
        >>> generated, training = torch.tensor([[[1, 1, 0, 2]]]), torch.tensor([[[0, 0, 1, 0]]])
        >>> centroid_distance(generated, training, spacing_mm=0.5, num_labels=4)
        tensor([[0.7500,    inf,    nan]])
    """
    num_labels = check_label_maps(generated, training, num_labels=num_labels)
    spacing = check_spacing(spacing_mm, axes=generated.ndim - 1)
    centroids = _centroids(generated, num_labels=num_labels), _centroids(training, num_labels=num_labels)
    apart = (centroids[0] - centroids[1]) * torch.tensor(spacing, dtype=torch.float64, device=generated.device)
    missing_in_one = centroids[0].isnan().any(dim=-1) ^ centroids[1].isnan().any(dim=-1)
    distance = torch.linalg.vector_norm(apart, dim=-1).masked_fill(missing_in_one, torch.inf)
    per_label: Tensor = distance[:, 1:].float()
    return per_label


def _centroids(label_maps: Tensor, *, num_labels: int) -> Float[Tensor, "n l axes"]:
    """Return the centre of mass of each label in voxels, NaN for a label that the map does not have."""
    spatial = label_maps.shape[1:]
    row = torch.arange(len(label_maps), device=label_maps.device).reshape(-1, *(1 for _ in spatial)) * num_labels
    labels = label_maps.long() + row
    centroids = []
    for axis, side in enumerate(spatial):
        positions = torch.arange(side, device=label_maps.device)
        cells = labels * side + positions.reshape(-1, *(1 for _ in spatial[axis + 1 :]))
        # Whole numbers are added up, so the value depends neither on the order of voxels nor on the device.
        counts = torch.bincount(cells.flatten(), minlength=len(label_maps) * num_labels * side)
        counts = counts.reshape(len(label_maps), num_labels, side)
        centroids.append((counts * positions).sum(dim=-1).double() / counts.sum(dim=-1))
    return torch.stack(centroids, dim=-1)
