"""Which lesion of a sample copies which lesion of a patient.

Conventions: label maps are integers or booleans `[n, *spatial]`, one label per voxel, 0 for background. Pairs are
`(generated, training)`. A lesion is a connected component; voxels that share a face, an edge or a corner are connected.
Lesions are numbered from 1 in the order of `scipy.ndimage.label`, that is by their first voxel.

- `matched_lesions`: the lesions of each pair that overlap enough to be the same one.

Measures of whole labels miss a single copied lesion among many others. MONAI and torchmetrics match components for
panoptic quality only, and return neither which components match nor by how much. Computed on the CPU.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage, sparse
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional.segmentation.label_maps import LabelMaps, check_label_maps, check_spacing
from relict_lightning.results import LesionMatch, LesionMatching

SAME_LESION_DICE = 2 / 3


def matched_lesions(
    generated: LabelMaps,
    training: LabelMaps,
    *,
    spacing_mm: float | Sequence[float],
    label: int | None = None,
    min_dice: float = SAME_LESION_DICE,
) -> tuple[LesionMatching, ...]:
    """Return which lesions of each sample copy which lesions of the training image that it is paired with.

    Lesions are matched one to one, such that the sum of the Dice coefficients of the matches is largest. Computed on
    the CPU, whatever the device of the label maps.

    Args:
        generated: Label maps of the generated images, `[n, *spatial]`, 2-D or 3-D, integer or boolean.
        training: Label maps of the training images, one for each generated image.
        spacing_mm: Size of a voxel in mm: one number for all axes, or one per spatial axis.
        label: The label of lesions, at least 1; None where every label but 0 is one, and lesions of several labels that
            touch are then one lesion.
        min_dice: Smallest Dice coefficient of a match, above 0 and at most 1. The default, 2/3, is an intersection over
            union of 1/2, the bar of panoptic quality: above it no lesion has two candidates. A lesion of a few voxels
            falls below it when it moves by one voxel, so lower it for small lesions.

    Returns:
        One `LesionMatching` per pair: the matches in the order of the sample's lesions, and the number of lesions on
        both sides; its `matched_share` is the share of the sample's lesions that are matched, in [0, 1], larger is more
        alike, and NaN where the sample has no lesion. Empty for no pairs.

    Raises:
        InvalidImageError: If label maps are neither integers nor boolean, are not 2-D or 3-D, differ in shape, or hold
            a negative label.
        ConfigurationError: If `spacing_mm` is not positive and finite or does not fit the axes, `label` is less than 1,
            or `min_dice` lies outside (0, 1].

    Example:
        >>> import torch
        >>> generated = torch.tensor([[[1, 1, 0, 0, 1, 0, 1]]])
        >>> training = torch.tensor([[[0, 0, 0, 0, 1, 0, 1]]])
        >>> [matching] = matched_lesions(generated, training, spacing_mm=0.5)
        >>> [(match.generated_lesion, match.training_lesion) for match in matching.matches]
        [(2, 1), (3, 2)]
        >>> matching.generated_lesions, matching.training_lesions, round(matching.matched_share, 4)
        (3, 2, 0.6667)

    References:
        Kirillov et al. (2019), Panoptic segmentation, arXiv:1801.00868, for the bar and its uniqueness; Maier-Hein et
        al. (2024), Metrics reloaded: recommendations for image analysis validation, doi:10.1038/s41592-023-02151-z, for
        matching by assignment and for lower bars.
    """
    check_matching_settings(label=label, min_dice=min_dice)
    check_label_maps(generated, training, num_labels=None)
    spacing = check_spacing(spacing_mm, axes=generated.ndim - 1)
    return tuple(
        _matching(_lesions(sample, label=label), _lesions(patient, label=label), spacing_mm=spacing, min_dice=min_dice)
        for sample, patient in zip(generated, training, strict=True)
    )


def check_matching_settings(*, label: int | None, min_dice: float) -> None:
    """Accept settings that `matched_lesions` can work with.

    Args:
        label: The label of lesions, or None.
        min_dice: Smallest Dice coefficient of a match.

    Raises:
        ConfigurationError: If `label` is less than 1 or `min_dice` lies outside (0, 1].

    Example:
        >>> check_matching_settings(label=None, min_dice=0.5)
    """
    if label is not None and label < 1:
        raise ConfigurationError(
            f"label must be at least 1, because 0 is the background, but is label={label}. Give None for all labels."
        )
    if not 0 < min_dice <= 1:
        raise ConfigurationError(
            f"min_dice must lie above 0 and be at most 1, but is min_dice={min_dice}. Lesions that do not overlap "
            f"cannot be matched."
        )


@dataclass(frozen=True, kw_only=True)
class _Lesions:
    """The lesions of one map: the number of the lesion at each voxel, and size and middle of each, in voxels."""

    numbers: Int[np.ndarray, "*spatial"]
    sizes: Int[np.ndarray, " lesions"]
    centroids: Float[np.ndarray, "lesions axes"]


def _lesions(label_map: Tensor, *, label: int | None) -> _Lesions:
    array = label_map.cpu().numpy()
    mask: Bool[np.ndarray, "*spatial"] = array != 0 if label is None else array == label
    numbers, count = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    voxels = np.nonzero(mask)
    lesion_of_voxel = numbers[voxels] - 1
    sizes = np.bincount(lesion_of_voxel, minlength=count)
    sums = [np.bincount(lesion_of_voxel, weights=positions, minlength=count) for positions in voxels]
    return _Lesions(numbers=numbers, sizes=sizes, centroids=np.stack(sums, axis=1) / sizes[:, None])


def _matching(
    generated: _Lesions, training: _Lesions, *, spacing_mm: tuple[float, ...], min_dice: float
) -> LesionMatching:
    both = (generated.numbers > 0) & (training.numbers > 0)
    pairs = generated.numbers[both] - 1, training.numbers[both] - 1
    # A sparse table adds up what falls into one cell, and does not grow with the product of two large numbers.
    overlap = sparse.coo_array((np.ones(len(pairs[0])), pairs), shape=(len(generated.sizes), len(training.sizes)))
    overlap.sum_duplicates()
    rows, columns = overlap.row, overlap.col
    dice = 2 * overlap.data / (generated.sizes[rows] + training.sizes[columns])
    enough = dice >= min_dice
    rows, columns, dice = rows[enough], columns[enough], dice[enough]
    chosen = _best_assignment(rows, columns, dice)
    apart = (generated.centroids[rows] - training.centroids[columns]) * spacing_mm
    distances, voxel_mm3 = np.sqrt((apart**2).sum(axis=1)), math.prod(spacing_mm)
    return LesionMatching(
        matches=tuple(
            LesionMatch(
                generated_lesion=int(rows[edge]) + 1,
                training_lesion=int(columns[edge]) + 1,
                dice=float(dice[edge]),
                centroid_distance_mm=float(distances[edge]),
                generated_volume_mm3=float(generated.sizes[rows[edge]] * voxel_mm3),
                training_volume_mm3=float(training.sizes[columns[edge]] * voxel_mm3),
            )
            for edge in chosen
        ),
        generated_lesions=len(generated.sizes),
        training_lesions=len(training.sizes),
    )


def _best_assignment(
    rows: Int[np.ndarray, " edges"], columns: Int[np.ndarray, " edges"], weights: Float[np.ndarray, " edges"]
) -> list[int]:
    """Return which edges make up the one-to-one assignment of largest weight, in the order of their rows."""
    if not len(rows):
        return []
    nodes = rows.max() + 1, columns.max() + 1
    graph = sparse.coo_array((weights, (rows, nodes[0] + columns)), shape=(sum(nodes), sum(nodes)))
    _, group_of_node = connected_components(graph, directed=False)
    # Groups that share no lesion are assigned apart: most are single pairs, and one table of all would be large.
    group = group_of_node[rows]
    shared = np.bincount(group)[group] > 1
    chosen = np.flatnonzero(~shared).tolist()
    order = np.flatnonzero(shared)[np.argsort(group[shared], kind="stable")]
    for edges in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        row_names, row = np.unique(rows[edges], return_inverse=True)
        column_names, column = np.unique(columns[edges], return_inverse=True)
        table = np.zeros((len(row_names), len(column_names)))
        table[row, column] = weights[edges]
        partner = dict(zip(*linear_sum_assignment(table, maximize=True), strict=True))
        chosen += [int(edge) for edge, r, c in zip(edges, row, column, strict=True) if partner.get(r) == c]
    return sorted(chosen, key=lambda edge: int(rows[edge]))
