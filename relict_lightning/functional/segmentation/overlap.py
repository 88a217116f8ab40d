"""How much the labels of two maps overlap, and how alike their volumes are.

Conventions: label maps are integers `[n, *spatial]`, one label per voxel, 0 for background. Pairs are
`(generated, training)`.

- `dice`: Dice coefficient per label, in [0, 1]; larger is more alike; NaN for a label that neither map has.
- `mean_dice`: its mean over the labels that either map has; 0 where neither has any.
"""

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from relict_lightning.functional.segmentation.label_maps import check_label_maps, check_num_labels


def dice(
    generated: Integer[Tensor, "n *spatial"],
    training: Integer[Tensor, "n *spatial"],
    *,
    num_labels: int,
    include_background: bool = False,
) -> Float[Tensor, "n l"]:
    """Return the Dice coefficient of each pair of label maps, per label.

    Args:
        generated: Label maps of the generated images.
        training: Label maps of the training images, one for each generated image.
        num_labels: Number of labels, background included; labels are `0, ..., num_labels - 1`.
        include_background: Whether label 0 counts. It fills most of a scan, and so makes everything look alike.

    Returns:
        Twice the overlap over the sum of the sizes, in [0, 1], larger is more alike. A label that only one map has gets
        0. A label that neither map has gets NaN: it is absent, which is neither agreement nor its lack. Labels run from
        0 if `include_background`, else from 1.

    Raises:
        InvalidImageError: If label maps are not integers, differ in shape, or hold a label outside the range.
        ConfigurationError: If `num_labels` leaves no label to compare.

    Example:
        >>> generated, training = torch.tensor([[1, 1, 0, 2]]), torch.tensor([[1, 0, 0, 0]])
        >>> dice(generated, training, num_labels=4)
        tensor([[0.6667, 0.0000,    nan]])

    References:
        Dice (1945), Measures of the amount of ecologic association between species, doi:10.2307/1932409.
    """
    check_num_labels(num_labels, include_background=include_background)
    check_label_maps(generated, training, num_labels=num_labels)
    generated, training = generated.flatten(1).long(), training.flatten(1).long()
    row = torch.arange(len(generated), device=generated.device)[:, None] * num_labels
    sizes = _count(generated + row, like=generated, num_labels=num_labels) + _count(
        training + row, like=training, num_labels=num_labels
    )
    agreed = (generated + row)[generated == training]
    overlap = _count(agreed, like=generated, num_labels=num_labels)
    # 0 / 0 is NaN, which is the value promised for a label that neither map has.
    return (2 * overlap / sizes)[:, 0 if include_background else 1 :]


def mean_dice(
    generated: Integer[Tensor, "n *spatial"],
    training: Integer[Tensor, "n *spatial"],
    *,
    num_labels: int,
    include_background: bool = False,
) -> Float[Tensor, " n"]:
    """Return the Dice coefficient of each pair of label maps, averaged over the labels that either map has.

    Args:
        generated: Label maps of the generated images.
        training: Label maps of the training images, one for each generated image.
        num_labels: Number of labels, background included; labels are `0, ..., num_labels - 1`.
        include_background: Whether label 0 counts.

    Returns:
        Mean Dice in [0, 1], larger is more alike. 0 where neither map has a label: without structure there is no
        evidence that one was copied.

    Raises:
        InvalidImageError: If label maps are not integers, differ in shape, or hold a label outside the range.
        ConfigurationError: If `num_labels` leaves no label to compare.

    Example:
        >>> generated, training = torch.tensor([[1, 1, 0, 2]]), torch.tensor([[1, 0, 0, 0]])
        >>> mean_dice(generated, training, num_labels=4)
        tensor([0.3333])

    References:
        Dice (1945), Measures of the amount of ecologic association between species, doi:10.2307/1932409.
    """
    per_label = dice(generated, training, num_labels=num_labels, include_background=include_background)
    return per_label.nanmean(dim=1).nan_to_num(nan=0.0)


def _count(flat_labels: Tensor, *, like: Tensor, num_labels: int) -> Tensor:
    counts = torch.bincount(flat_labels.flatten(), minlength=len(like) * num_labels)
    return counts.reshape(len(like), num_labels)
