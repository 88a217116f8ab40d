"""How well the centrelines of tubes agree, such as those of vessels.

Conventions: label maps are integers or booleans `[n, *spatial]`, one label per voxel, 0 for background. Pairs are
`(generated, training)`. A label that neither map has gets NaN, one that only one map has gets 0.

- `centerline_dice`: clDice per label, in [0, 1]; larger is more alike.

MONAI has it as a loss only, with a soft skeleton that depends on a number of iterations. Computed on the CPU.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor

from relict_lightning.extras import optional_module
from relict_lightning.functional.segmentation.label_maps import LabelMaps, check_label_maps
from relict_lightning.functional.segmentation.nearest_surface import bounding_box


def centerline_dice(
    generated: LabelMaps, training: LabelMaps, *, num_labels: int | None = None
) -> Float[Tensor, "n l"]:
    """Return the centreline Dice (clDice) of each pair of label maps, per label.

    Thick and thin vessels weigh the same by their length, where `dice` sees the thick ones only. Centrelines are found
    by thinning (`skimage.morphology.skeletonize`), on the CPU, whatever the device of the label maps. Its 3-D form
    deletes whole tubes and balls of even width along the axes (scikit-image issue 3757), so a component without a
    centreline is thinned once more, after one layer of voxels was taken off one of its sides along each axis.

    Args:
        generated: Label maps of the generated images, `[n, *spatial]`, 2-D or 3-D, integer or boolean.
        training: Label maps of the training images, one for each generated image.
        num_labels: Number of labels, background included; labels are `0, ..., num_labels - 1`. None for the largest
            label in this call plus one, and at least 2.

    Returns:
        The harmonic mean of the topology precision (the share of the sample's centreline inside the training label) and
        the topology sensitivity (the share of the training centreline inside the sample's label), in [0, 1], larger is
        more alike. 0 where either share is 0, and so for a label that only one map has. A label that neither map has
        gets NaN. Labels run from 1.

    Raises:
        InvalidImageError: If label maps are neither integers nor boolean, are not 2-D or 3-D, differ in shape, or hold
            a label outside the range.
        ConfigurationError: If `num_labels` leaves no label to compare.
        MissingDependencyError: If scikit-image, which the extra `vessels` brings, is not installed.

    Example:
        >>> generated, training = torch.zeros(1, 5, 8).bool(), torch.zeros(1, 5, 8).bool()
        >>> generated[0, 2, :4], training[0, 2] = True, True
        >>> centerline_dice(generated, training)
        tensor([[0.6667]])

    References:
        Shit et al. (2021), clDice: a novel topology-preserving loss function for tubular structure segmentation,
        arXiv:2003.07311.
    """
    check_thinning()
    num_labels = check_label_maps(generated, training, num_labels=num_labels)
    pairs = zip(generated.cpu().numpy(), training.cpu().numpy(), strict=True)
    values = [[_centerline_dice(*(each == label for each in pair)) for label in range(1, num_labels)] for pair in pairs]
    return torch.tensor(values, dtype=torch.float32, device=generated.device).reshape(-1, num_labels - 1)


def check_thinning() -> None:
    """Accept an installation that can thin masks to their centreline.

    Raises:
        MissingDependencyError: If scikit-image is not installed.

    Example:
        >>> check_thinning()
    """
    optional_module("skimage.morphology")


def centerline(mask: Bool[np.ndarray, "*spatial"]) -> Bool[np.ndarray, "*spatial"]:
    """Return the centreline of a mask, at least one voxel in each of its connected components.

    Args:
        mask: The mask, 2-D or 3-D.

    Raises:
        MissingDependencyError: If scikit-image is not installed.

    Example:
        >>> int(centerline(np.ones((4, 4, 20), dtype=bool)).sum())
        17
    """
    thin = _thinned(mask)
    components, count = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    lost = np.setdiff1d(np.arange(1, count + 1), components[thin])
    boxes = ndimage.find_objects(components) if len(lost) else []
    for number in lost:
        box = boxes[number - 1]
        thin[box] |= _centerline_of_even_component(components[box] == number)
    return thin


def _centerline_dice(generated: Bool[np.ndarray, "*spatial"], training: Bool[np.ndarray, "*spatial"]) -> float:
    box = bounding_box(generated | training)
    if box is None:
        return np.nan
    generated, training = generated[box], training[box]
    if not (generated & training).any():
        return 0.0
    lines = centerline(generated), centerline(training)
    precision = np.count_nonzero(lines[0] & training) / np.count_nonzero(lines[0])
    sensitivity = np.count_nonzero(lines[1] & generated) / np.count_nonzero(lines[1])
    # Where both are 0, so is the harmonic mean.
    return 2 * precision * sensitivity / ((precision + sensitivity) or 1.0)


def _centerline_of_even_component(component: Bool[np.ndarray, "*spatial"]) -> Bool[np.ndarray, "*spatial"]:
    """Return the centreline of a component that thinning deletes as it is."""
    shaved = component.copy()
    for axis in range(component.ndim):
        layer = np.moveaxis(shaved, axis, 0).copy()
        layer[1:] &= layer[:-1].copy()
        layer[0] = False
        if layer.any():
            shaved = np.moveaxis(layer, 0, axis)
    thin = _thinned(shaved)
    if thin.any():
        return thin
    # What is left is a point, and the voxel next to the middle stands for it.
    voxels = np.argwhere(component)
    middle = voxels[((voxels - voxels.mean(axis=0)) ** 2).sum(axis=1).argmin()]
    thin[tuple(middle)] = True
    return thin


def _thinned(mask: Bool[np.ndarray, "*spatial"]) -> Bool[np.ndarray, "*spatial"]:
    morphology = optional_module("skimage.morphology")
    thin: Bool[np.ndarray, "*spatial"] = morphology.skeletonize(mask).astype(bool)
    return thin
