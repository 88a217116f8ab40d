"""What the measures of label maps accept.

Label maps are integers `[n, *spatial]` with two or three spatial axes, one label per voxel, 0 for background. A boolean
mask is a label map of the labels 0 and 1.

- `check_num_labels`: a number of labels of which at least one is compared.
- `check_label_maps`: two sets of label maps of one shape, paired by position.
- `check_spacing`: the size of a voxel.
- `check_tolerance`: how far apart two surfaces may lie.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool, Integer
from torch import Tensor

from relict_lightning.errors import ConfigurationError, InvalidImageError

LabelMaps = Integer[Tensor, "n *spatial"] | Bool[Tensor, "n *spatial"]

_SPATIAL_AXES = (2, 3)

# Torch finds the extremes of these; it has other integers for storage only.
_COMPARABLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


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


def check_label_maps(
    generated: Tensor, training: Tensor, *, num_labels: int | None, include_background: bool = False
) -> int:
    """Return the number of labels of two sets of label maps, background included.

    Args:
        generated: Label maps of the generated images.
        training: Label maps of the training images, one for each generated image.
        num_labels: Number of labels, background included; None for the largest label plus one, and at least 2.
        include_background: Whether label 0 is compared.

    Raises:
        InvalidImageError: If label maps are neither integers nor boolean, are not 2-D or 3-D, have no voxels, differ in
            shape or device, or hold a label outside the range.
        ConfigurationError: If `num_labels` leaves no label to compare.

    Example:
        >>> check_label_maps(torch.zeros(1, 2, 2).long(), torch.full((1, 2, 2), 4), num_labels=None)
        5
    """
    if num_labels is not None:
        check_num_labels(num_labels, include_background=include_background)
    if generated.shape != training.shape or generated.device != training.device:
        raise InvalidImageError(
            f"generated and training label maps must have one shape and lie on one device, but have "
            f"{tuple(generated.shape)} and {tuple(training.shape)}, on {generated.device} and {training.device}. Pair "
            f"every sample with one training image of its size."
        )
    largest = 1
    for name, label_map in (("generated", generated), ("training", training)):
        largest = max(largest, _largest_label(label_map, name=name, num_labels=num_labels))
    return largest + 1 if num_labels is None else num_labels


def check_spacing(spacing_mm: float | Sequence[float], *, axes: int | None) -> tuple[float, ...]:
    """Return the size of a voxel in mm, one number per spatial axis.

    Args:
        spacing_mm: One number for all axes, or one per axis.
        axes: Number of spatial axes; None where it is not known yet, and one number then stays one.

    Raises:
        ConfigurationError: If a number is not positive and finite in float32, or there are not as many as axes.

    Example:
        >>> check_spacing(0.5, axes=3)
        (0.5, 0.5, 0.5)
    """
    one_for_all = not isinstance(spacing_mm, Iterable)
    given = tuple(map(float, spacing_mm)) if isinstance(spacing_mm, Iterable) else (float(spacing_mm),)
    expected = _SPATIAL_AXES if axes is None else (axes,)
    # Squares of what float32 holds neither overflow nor vanish in float64, in which distances are computed.
    rounded = torch.tensor(given, dtype=torch.float32)
    if not ((rounded > 0) & rounded.isfinite()).all() or not (one_for_all or len(given) in expected):
        raise ConfigurationError(
            f"spacing_mm must be one positive, finite number or one for each of the "
            f"{' or '.join(map(str, expected))} spatial axes, but is spacing_mm={spacing_mm}. Give the size of a voxel "
            f"in mm."
        )
    return given * axes if one_for_all and axes is not None else given


def check_tolerance(tolerance_mm: float | Sequence[float], *, labels: int) -> tuple[float, ...]:
    """Return how far apart two surfaces may lie, one number per label.

    Args:
        tolerance_mm: One number for all labels, or one per label, background excluded.
        labels: Number of labels, background excluded.

    Raises:
        ConfigurationError: If a number is negative or not finite, or there are not as many as labels.

    Example:
        >>> check_tolerance(1.5, labels=2)
        (1.5, 1.5)
    """
    given = tuple(map(float, tolerance_mm)) if isinstance(tolerance_mm, Iterable) else (float(tolerance_mm),) * labels
    if not all(math.isfinite(each) and each >= 0 for each in given) or len(given) != labels:
        raise ConfigurationError(
            f"tolerance_mm must be one finite number of at least 0 or one for each of the {labels} labels without the "
            f"background, but is tolerance_mm={tolerance_mm}."
        )
    return given


def _largest_label(label_map: Tensor, *, name: str, num_labels: int | None) -> int:
    if label_map.is_floating_point() or label_map.is_complex():
        raise InvalidImageError(
            f"{name} label maps must hold integers or booleans, but have dtype {label_map.dtype}. Take the argmax of "
            f"scores over labels, or call `.long()` on labels stored as numbers."
        )
    if label_map.ndim - 1 not in _SPATIAL_AXES or 0 in label_map.shape[1:]:
        raise InvalidImageError(
            f"{name} label maps must have shape [n, *spatial] with 2 or 3 spatial axes and at least one voxel, but "
            f"have shape {tuple(label_map.shape)}. Take a channel axis of length 1 out with `.squeeze(1)`."
        )
    if not label_map.numel():
        return 0
    lowest, highest = _extremes(label_map)
    if lowest < 0 or (num_labels is not None and highest >= num_labels):
        expected = "labels of at least 0" if num_labels is None else f"labels from 0 to {num_labels - 1}"
        raise InvalidImageError(
            f"{name} label maps must hold {expected}, but hold {lowest} to {highest}. Raise num_labels, or "
            f"map the labels to consecutive numbers."
        )
    return highest


def _extremes(label_map: Tensor) -> tuple[int, int]:
    if label_map.device.type == "cpu":
        # NumPy takes one thread and as long as torch; torch's threads wait for each other where processors are busy.
        array = label_map.numpy()
        return int(array.min()), int(array.max())
    lowest, highest = (label_map if label_map.dtype in _COMPARABLE else label_map.long()).aminmax()
    return int(lowest), int(highest)
