"""How far apart the surfaces of the labels of two maps lie.

Conventions: label maps are integers or booleans `[n, *spatial]`, one label per voxel, 0 for background. Pairs are
`(generated, training)`. The surface of a label are its voxels that share a face with a voxel of another label, or lie
on the border of the map. A label that neither map has gets NaN; one that only one map has gets the worst value,
infinity or 0.

Whatever the device of the label maps, these measures run on the CPU, with as many threads as `torch.get_num_threads`
says, and return on that device.

- `surface_distances`: from every surface voxel to the other map's surface, in mm.
- `hausdorff_distance_95`: what 95 % of them do not exceed, in mm, per label; smaller is more alike.
- `surface_dice`: share of them within a tolerance, per label, in [0, 1]; larger is more alike.
- `surface_agreement`: both of these for the time of one.

MONAI's `HausdorffDistanceMetric` and `SurfaceDiceMetric` have the same values, but for a label that only one map has:
MONAI interpolates between infinite distances then, which gives NaN. Each of the two finds both surfaces and searches
them anew. One search for both, of trees that suit surfaces, makes `surface_agreement` about three times as fast or more
(`benchmarks/measures.py`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from relict_lightning.functional.segmentation.label_maps import (
    LabelMaps,
    check_label_maps,
    check_spacing,
    check_tolerance,
)
from relict_lightning.functional.segmentation.nearest_surface import (
    bounding_box,
    nearest_surface_distances,
    surface,
)

_PERCENTILE = 95

_Distances = tuple[Float32[np.ndarray, " a"], Float32[np.ndarray, " b"]]


@dataclass(frozen=True, kw_only=True)
class SurfaceDistances:
    """How far every surface voxel of each label is from the surface of that label in the other map.

    Attributes:
        from_generated: For each pair and each label from 1 on, the distances in mm from the sample's surface to the
            training image's, `[a]`; infinite where the training image lacks the label.
        from_training: The same from the training image's surface to the sample's, `[b]`.
    """

    from_generated: tuple[tuple[Float32[Tensor, " _"], ...], ...]
    from_training: tuple[tuple[Float32[Tensor, " _"], ...], ...]


@dataclass(frozen=True, kw_only=True)
class SurfaceAgreement:
    """How well the surfaces of each pair of label maps agree.

    Attributes:
        hausdorff_distance_95: What `hausdorff_distance_95` returns, in mm.
        surface_dice: What `surface_dice` returns, in [0, 1].
    """

    hausdorff_distance_95: Float32[Tensor, "n l"]
    surface_dice: Float32[Tensor, "n l"]


def surface_distances(
    generated: LabelMaps, training: LabelMaps, *, spacing_mm: float | Sequence[float], num_labels: int | None = None
) -> SurfaceDistances:
    """Return the distance from every surface voxel of each label to the surface of that label in the other map.

    Computed on the CPU, whatever the device of the label maps.

    Args:
        generated: Label maps of the generated images, `[n, *spatial]`, 2-D or 3-D, integer or boolean.
        training: Label maps of the training images, one for each generated image.
        spacing_mm: Size of a voxel in mm: one number for all axes, or one per spatial axis.
        num_labels: Number of labels, background included; labels are `0, ..., num_labels - 1`. None for the largest
            label in this call plus one, and at least 2.

    Returns:
        Distances in mm, at least 0, smaller is more alike, for each pair and each label from 1 on: from the surface of
        the sample's label to that of the training image's, and the other way, in the order of voxels. Where only one
        map has the label, every distance from it is infinite. A map without the label has no distances.

    Raises:
        InvalidImageError: If label maps are neither integers nor boolean, are not 2-D or 3-D, differ in shape, or hold
            a label outside the range.
        ConfigurationError: If `spacing_mm` is not positive and finite or does not fit the axes, or `num_labels` leaves
            no label to compare.

    Example:
        >>> generated, training = torch.tensor([[[1, 1, 0, 2]]]), torch.tensor([[[0, 0, 1, 0]]])
        >>> distances = surface_distances(generated, training, spacing_mm=0.5)
        >>> distances.from_generated[0]
        (tensor([1.0000, 0.5000]), tensor([inf]))
        >>> distances.from_training[0]
        (tensor([0.5000]), tensor([]))
    """
    from_generated, from_training = [], []
    for pair in _distances_of_pairs(generated, training, spacing_mm=spacing_mm, num_labels=num_labels):
        there, back = zip(*pair, strict=True)
        from_generated.append(tuple(torch.from_numpy(each).to(generated.device) for each in there))
        from_training.append(tuple(torch.from_numpy(each).to(generated.device) for each in back))
    return SurfaceDistances(from_generated=tuple(from_generated), from_training=tuple(from_training))


def hausdorff_distance_95(
    generated: LabelMaps, training: LabelMaps, *, spacing_mm: float | Sequence[float], num_labels: int | None = None
) -> Float[Tensor, "n l"]:
    """Return the distance that 95 % of the surface voxels of each label do not exceed, of each pair of label maps.

    It is the larger of two 95th percentiles: of the distances from the sample's surface to the training image's, and of
    those from the training image's surface to the sample's. Unlike the largest distance it does not hang on one stray
    voxel. Computed on the CPU, whatever the device of the label maps.

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
        >>> hausdorff_distance_95(generated, training, spacing_mm=0.5, num_labels=4)
        tensor([[0.9750,    inf,    nan]])

    References:
        Huttenlocher, Klanderman, Rucklidge (1993), Comparing images using the Hausdorff distance,
        doi:10.1109/34.232073; Taha, Hanbury (2015), Metrics for evaluating 3D medical image segmentation: analysis,
        selection, and tool, doi:10.1186/s12880-015-0068-x.
    """
    return _agreement(
        generated, training, spacing_mm=spacing_mm, tolerance_mm=0.0, num_labels=num_labels
    ).hausdorff_distance_95


def surface_dice(
    generated: LabelMaps,
    training: LabelMaps,
    *,
    spacing_mm: float | Sequence[float],
    tolerance_mm: float | Sequence[float],
    num_labels: int | None = None,
) -> Float[Tensor, "n l"]:
    """Return the share of the surface of each label that lies within a tolerance of the other map's surface.

    Every surface voxel counts as one, of both maps together. Computed on the CPU, whatever the device of the label
    maps.

    Args:
        generated: Label maps of the generated images, `[n, *spatial]`, 2-D or 3-D, integer or boolean.
        training: Label maps of the training images, one for each generated image.
        spacing_mm: Size of a voxel in mm: one number for all axes, or one per spatial axis.
        tolerance_mm: Largest distance in mm at which surfaces agree, at least 0: one number for all labels, or one per
            label from 1 on. The usual choice is how far two experts disagree.
        num_labels: Number of labels, background included; labels are `0, ..., num_labels - 1`. None for the largest
            label in this call plus one, and at least 2.

    Returns:
        Share in [0, 1], larger is more alike. A label that only one map has gets 0, a label that neither map has gets
        NaN. Labels run from 1.

    Raises:
        InvalidImageError: If label maps are neither integers nor boolean, are not 2-D or 3-D, differ in shape, or hold
            a label outside the range.
        ConfigurationError: If `spacing_mm` is not positive and finite or does not fit the axes, `tolerance_mm` is
            negative, not finite or does not fit the labels, or `num_labels` leaves no label to compare.

    Example:
        >>> generated, training = torch.tensor([[[1, 1, 0, 2]]]), torch.tensor([[[0, 0, 1, 0]]])
        >>> surface_dice(generated, training, spacing_mm=0.5, tolerance_mm=0.5, num_labels=4)
        tensor([[0.6667, 0.0000,    nan]])

    References:
        Nikolov et al. (2021), Clinically applicable segmentation of head and neck anatomy for radiotherapy,
        doi:10.2196/26151; Seidlitz et al. (2022), Robust deep learning-based semantic organ segmentation in
        hyperspectral images, doi:10.1016/j.media.2022.102488, whose count of voxels is the one used here.
    """
    return _agreement(
        generated, training, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm, num_labels=num_labels
    ).surface_dice


def surface_agreement(
    generated: LabelMaps,
    training: LabelMaps,
    *,
    spacing_mm: float | Sequence[float],
    tolerance_mm: float | Sequence[float],
    num_labels: int | None = None,
) -> SurfaceAgreement:
    """Return `hausdorff_distance_95` and `surface_dice` of each pair of label maps, from one search.

    Computed on the CPU, whatever the device of the label maps.

    Args:
        generated: Label maps of the generated images, `[n, *spatial]`, 2-D or 3-D, integer or boolean.
        training: Label maps of the training images, one for each generated image.
        spacing_mm: Size of a voxel in mm: one number for all axes, or one per spatial axis.
        tolerance_mm: Largest distance in mm at which surfaces agree, at least 0: one number for all labels, or one per
            label from 1 on.
        num_labels: Number of labels, background included; labels are `0, ..., num_labels - 1`. None for the largest
            label in this call plus one, and at least 2.

    Returns:
        Both measures, `[n, l]`, with the ranges and the values for absent labels of the two functions.

    Raises:
        InvalidImageError: If label maps are neither integers nor boolean, are not 2-D or 3-D, differ in shape, or hold
            a label outside the range.
        ConfigurationError: If `spacing_mm` is not positive and finite or does not fit the axes, `tolerance_mm` is
            negative, not finite or does not fit the labels, or `num_labels` leaves no label to compare.

    Example:
        >>> generated, training = torch.tensor([[[1, 1, 0, 2]]]), torch.tensor([[[0, 0, 1, 0]]])
        >>> agreement = surface_agreement(generated, training, spacing_mm=0.5, tolerance_mm=0.5)
        >>> agreement.hausdorff_distance_95, agreement.surface_dice
        (tensor([[0.9750,    inf]]), tensor([[0.6667, 0.0000]]))
    """
    return _agreement(generated, training, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm, num_labels=num_labels)


def _agreement(
    generated: Tensor,
    training: Tensor,
    *,
    spacing_mm: float | Sequence[float],
    tolerance_mm: float | Sequence[float],
    num_labels: int | None,
) -> SurfaceAgreement:
    num_labels = check_label_maps(generated, training, num_labels=num_labels)
    # In float32, as the distances are: three voxels of 0.1 mm are then within 0.3 mm.
    tolerances = np.array(check_tolerance(tolerance_mm, labels=num_labels - 1), dtype=np.float32)
    values = [
        [_summary(*distances, tolerance=tolerance) for distances, tolerance in zip(pair, tolerances, strict=True)]
        for pair in _distances_of_pairs(generated, training, spacing_mm=spacing_mm, num_labels=num_labels)
    ]
    table = torch.tensor(values, dtype=torch.float32, device=generated.device).reshape(-1, num_labels - 1, 2)
    return SurfaceAgreement(hausdorff_distance_95=table[..., 0], surface_dice=table[..., 1])


def _distances_of_pairs(
    generated: Tensor, training: Tensor, *, spacing_mm: float | Sequence[float], num_labels: int | None
) -> Iterator[list[_Distances]]:
    """Yield, for each pair, the distances both ways for each label from 1 on."""
    num_labels = check_label_maps(generated, training, num_labels=num_labels)
    spacing = check_spacing(spacing_mm, axes=generated.ndim - 1)
    # Comparing voxels with a label is bound by memory, and most maps have few labels.
    dtype = np.uint8 if num_labels <= np.iinfo(np.uint8).max + 1 else np.int64
    for pair in zip(generated.cpu().numpy(), training.cpu().numpy(), strict=True):
        maps = [each.astype(dtype) for each in pair]
        yield [_distances(*(each == label for each in maps), spacing_mm=spacing) for label in range(1, num_labels)]


def _distances(
    generated: Bool[np.ndarray, "*spatial"], training: Bool[np.ndarray, "*spatial"], *, spacing_mm: tuple[float, ...]
) -> _Distances:
    first, second = boxes = bounding_box(generated), bounding_box(training)
    if first is not None and second is not None:
        both = tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(first, second, strict=True))
        return nearest_surface_distances(generated[both], training[both], spacing_mm=spacing_mm)
    infinite = [
        np.full(0 if box is None else np.count_nonzero(surface(mask[box])), np.inf, dtype=np.float32)
        for mask, box in zip((generated, training), boxes, strict=True)
    ]
    return infinite[0], infinite[1]


def _summary(
    from_generated: Float32[np.ndarray, " a"], from_training: Float32[np.ndarray, " b"], *, tolerance: np.float32
) -> tuple[float, float]:
    """Return the 95th percentile and the share within the tolerance."""
    voxels = len(from_generated) + len(from_training)
    if not voxels:
        return np.nan, np.nan
    if not (len(from_generated) and len(from_training)):
        return np.inf, 0.0
    within = np.count_nonzero(from_generated <= tolerance) + np.count_nonzero(from_training <= tolerance)
    percentiles = (np.percentile(each, _PERCENTILE) for each in (from_generated, from_training))
    return float(max(percentiles)), within / voxels
