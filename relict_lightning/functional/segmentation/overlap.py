"""How much the labels of two maps overlap, and how alike their volumes are.

Conventions: label maps are integers or booleans `[n, *spatial]`, one label per voxel, 0 for background. Pairs are
`(generated, training)`. A label that neither map has gets NaN, one that only one map has gets 0.

- `dice`: Dice coefficient per label, in [0, 1]; larger is more alike.
- `mean_dice`: its mean over the labels that either map has; 0 where neither has any.
- `volumetric_similarity`: how alike the volumes are, wherever they lie, per label, in [0, 1]; larger is more alike.

MONAI's `DiceMetric` has the same values, pair by pair and label by label, in more than three times the time. Neither
MONAI nor torchmetrics has the volumetric similarity.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from relict_lightning.functional.segmentation.label_maps import LabelMaps, check_label_maps


def dice(
    generated: LabelMaps, training: LabelMaps, *, num_labels: int | None = None, include_background: bool = False
) -> Float[Tensor, "n l"]:
    """Return the Dice coefficient of each pair of label maps, per label.

    Args:
        generated: Label maps of the generated images, `[n, *spatial]`, 2-D or 3-D, integer or boolean.
        training: Label maps of the training images, one for each generated image.
        num_labels: Number of labels, background included; labels are `0, ..., num_labels - 1`. None for the largest
            label in this call plus one, and at least 2.
        include_background: Whether label 0 counts. It fills most of a scan, and so makes everything look alike.

    Returns:
        Twice the overlap over the sum of the sizes, in [0, 1], larger is more alike. A label that only one map has gets
        0. A label that neither map has gets NaN: it is absent, which is neither agreement nor its lack. Labels run from
        0 if `include_background`, else from 1.

    Raises:
        InvalidImageError: If label maps are neither integers nor boolean, are not 2-D or 3-D, differ in shape, or hold
            a label outside the range.
        ConfigurationError: If `num_labels` leaves no label to compare.

    Example:
        >>> generated, training = torch.tensor([[[1, 1, 0, 2]]]), torch.tensor([[[1, 0, 0, 0]]])
        >>> dice(generated, training, num_labels=4)
        tensor([[0.6667, 0.0000,    nan]])

    References:
        Dice (1945), Measures of the amount of ecologic association between species, doi:10.2307/1932409.
    """
    return _dice(generated, training, num_labels=num_labels, include_background=include_background)


def mean_dice(
    generated: LabelMaps, training: LabelMaps, *, num_labels: int | None = None, include_background: bool = False
) -> Float[Tensor, " n"]:
    """Return the Dice coefficient of each pair of label maps, averaged over the labels that either map has.

    Args:
        generated: Label maps of the generated images, `[n, *spatial]`, 2-D or 3-D, integer or boolean.
        training: Label maps of the training images, one for each generated image.
        num_labels: Number of labels, background included; labels are `0, ..., num_labels - 1`. None for the largest
            label in this call plus one, and at least 2.
        include_background: Whether label 0 counts.

    Returns:
        Mean Dice in [0, 1], larger is more alike. 0 where neither map has a label: without structure there is no
        evidence that one was copied.

    Raises:
        InvalidImageError: If label maps are neither integers nor boolean, are not 2-D or 3-D, differ in shape, or hold
            a label outside the range.
        ConfigurationError: If `num_labels` leaves no label to compare.

    Example:
        >>> generated, training = torch.tensor([[[1, 1, 0, 2]]]), torch.tensor([[[1, 0, 0, 0]]])
        >>> mean_dice(generated, training, num_labels=4)
        tensor([0.3333])

    References:
        Dice (1945), Measures of the amount of ecologic association between species, doi:10.2307/1932409.
    """
    per_label = _dice(generated, training, num_labels=num_labels, include_background=include_background)
    return per_label.nanmean(dim=1).nan_to_num(nan=0.0)


def volumetric_similarity(
    generated: LabelMaps, training: LabelMaps, *, num_labels: int | None = None, include_background: bool = False
) -> Float[Tensor, "n l"]:
    """Return how alike the volumes of each label are in each pair of label maps, wherever the labels lie.

    Structures of one size that do not touch have similarity 1, so this is evidence beside `dice`, not instead of it: it
    finds a copied lesion load after the lesions were moved.

    Args:
        generated: Label maps of the generated images, `[n, *spatial]`, 2-D or 3-D, integer or boolean.
        training: Label maps of the training images, one for each generated image.
        num_labels: Number of labels, background included; labels are `0, ..., num_labels - 1`. None for the largest
            label in this call plus one, and at least 2.
        include_background: Whether label 0 counts.

    Returns:
        One minus the difference of the volumes over their sum, in [0, 1], larger is more alike. A label that only one
        map has gets 0, a label that neither map has gets NaN. Labels run from 0 if `include_background`, else from 1.

    Raises:
        InvalidImageError: If label maps are neither integers nor boolean, are not 2-D or 3-D, differ in shape, or hold
            a label outside the range.
        ConfigurationError: If `num_labels` leaves no label to compare.

    Example:
        >>> generated, training = torch.tensor([[[1, 1, 0, 2]]]), torch.tensor([[[0, 0, 1, 0]]])
        >>> volumetric_similarity(generated, training, num_labels=4)
        tensor([[0.6667, 0.0000,    nan]])

    References:
        Taha, Hanbury (2015), Metrics for evaluating 3D medical image segmentation: analysis, selection, and tool,
        doi:10.1186/s12880-015-0068-x.
    """
    num_labels = check_label_maps(generated, training, num_labels=num_labels, include_background=include_background)
    sizes = _sizes(generated, num_labels=num_labels), _sizes(training, num_labels=num_labels)
    # The same as one minus the difference over the sum, without cancellation.
    similarity = 2 * torch.minimum(*sizes) / (sizes[0] + sizes[1])
    return similarity[:, 0 if include_background else 1 :]


def _dice(
    generated: Tensor, training: Tensor, *, num_labels: int | None, include_background: bool
) -> Float[Tensor, "n l"]:
    num_labels = check_label_maps(generated, training, num_labels=num_labels, include_background=include_background)
    agreed = generated == training
    sizes = _sizes(generated, num_labels=num_labels) + _sizes(training, num_labels=num_labels)
    overlap = _sizes(generated, num_labels=num_labels, where=agreed)
    # 0 / 0 is NaN, which is the value promised for a label that neither map has.
    return (2 * overlap / sizes)[:, 0 if include_background else 1 :]


def _sizes(label_maps: Tensor, *, num_labels: int, where: Tensor | None = None) -> Int[Tensor, "n l"]:
    """Return how many voxels each map has of each label."""
    row = torch.arange(len(label_maps), device=label_maps.device) * num_labels
    labels = label_maps.flatten(1).long() + row[:, None]
    counted = labels.flatten() if where is None else labels[where.flatten(1)]
    return torch.bincount(counted, minlength=len(label_maps) * num_labels).reshape(len(label_maps), num_labels)
