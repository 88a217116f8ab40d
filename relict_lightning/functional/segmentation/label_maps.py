"""What the measures of label maps accept.

Label maps are integers `[n, *spatial]`, one label per voxel, 0 for background.

- `check_num_labels`: a number of labels of which at least one is compared.
- `check_label_maps`: two sets of label maps of one shape, paired by position.
"""

import torch
from torch import Tensor

from relict_lightning.errors import ConfigurationError, InvalidImageError


def check_num_labels(num_labels: int, *, include_background: bool) -> None:
    """Accept a number of labels of which at least one is compared.

    Args:
        num_labels: Number of labels, background included.
        include_background: Whether label 0 counts.

    Raises:
        ConfigurationError: If `num_labels` leaves no label to compare.

    Example:
        >>> check_num_labels(2, include_background=False)
    """
    first_label = 0 if include_background else 1
    if num_labels <= first_label:
        raise ConfigurationError(
            f"num_labels must be at least {first_label + 1} with include_background={include_background}, but is "
            f"num_labels={num_labels}. Count the background as one label."
        )


def check_label_maps(generated: Tensor, training: Tensor, *, num_labels: int) -> None:
    """Accept two sets of label maps of one shape.

    Args:
        generated: Label maps of the generated images.
        training: Label maps of the training images, one for each generated image.
        num_labels: Number of labels, background included.

    Raises:
        InvalidImageError: If label maps are not integers, differ in shape, or hold a label outside the range.
    """
    if generated.shape != training.shape:
        raise InvalidImageError(
            f"generated and training label maps must have one shape, but have {tuple(generated.shape)} and "
            f"{tuple(training.shape)}. Pair every sample with one training image of its size."
        )
    for name, label_map in (("generated", generated), ("training", training)):
        if label_map.is_floating_point() or label_map.is_complex() or label_map.dtype == torch.bool:
            raise InvalidImageError(
                f"{name} label maps must hold integers, but have dtype {label_map.dtype}. Take the argmax of scores "
                f"over labels, or call `.long()` on a binary map."
            )
        if label_map.numel() and (label_map.min() < 0 or label_map.max() >= num_labels):
            raise InvalidImageError(
                f"{name} label maps must hold labels from 0 to {num_labels - 1}, but hold {int(label_map.min())} to "
                f"{int(label_map.max())}. Raise num_labels, or map the labels to consecutive numbers."
            )
