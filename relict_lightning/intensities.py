"""Whether samples lie on the training images' intensity scale."""

import warnings

import numpy as np
import torch
from torch import Tensor

from relict_lightning.errors import RelictWarning
from relict_lightning.index import Reference

# A generator's look may stretch intensities; [-1, 1] instead of [0, 1] is another scale.
_ODD_RATIO = 1.6
_IMAGES = 32
_VOXELS = 200_000


def warn_of_other_intensities(images: Tensor, training: Reference) -> None:
    """Warn where samples do not span the range of intensities that training images span.

    Args:
        images: Samples on the training set's unit scale, `[n, c, *spatial]`.
        training: The training images.
    """
    some = np.arange(0, len(training), max(1, len(training) // _IMAGES))
    patients = torch.from_numpy(training.fetch_volumes(some))
    low, high = _range(images)
    expected_low, expected_high = _range(patients)
    span, expected = high - low, expected_high - expected_low
    if not span or not expected:
        return
    ratio = span / expected
    if not 1 / _ODD_RATIO < ratio < _ODD_RATIO or abs(low - expected_low) > expected / 2:
        warnings.warn(
            f"The samples' intensities are not those of the training images: where training images span "
            f"[{expected_low:.2g}, {expected_high:.2g}], samples span [{low:.2g}, {high:.2g}] (1st to 99th percentile, "
            f"in units of the training range). Structural similarity needs one scale, so copies may be missed at voxel "
            f"level. Noise early in training is no cause for concern; otherwise return samples on the training scale.",
            RelictWarning,
            # The user's call of `detect` or `learn_rule`.
            stacklevel=4,
        )


def _range(images: Tensor) -> tuple[float, float]:
    """Return the 1st and 99th percentile of some hundred thousand voxels."""
    voxels = images.flatten()
    low, high = np.percentile(voxels[:: max(1, len(voxels) // _VOXELS)].numpy(), (1, 99))
    return float(low), float(high)
