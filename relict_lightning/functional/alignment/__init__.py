"""Moving a generated image onto the training image that it may have been made from.

Images are `[n, c, *spatial]`; spatial axes count from 0. An alignment always finds something, also for unlike images.
So whatever is aligned before it is compared must be compared with a control that was aligned in the same way.

- `mirroring`: mirror images along some axes.
- `translation`: displacements by whole voxels, from the phase correlation.
- `affine`: affine maps between voxels, from the gradients of the images.
"""

from relict_lightning.functional.alignment.affine import (
    AffineAlignment,
    affine_coverage,
    affine_identity,
    align_affine,
    compose_affine,
    invert_affine,
    warp_affine,
)
from relict_lightning.functional.alignment.mirroring import mirror
from relict_lightning.functional.alignment.translation import align_translation, phase_correlation_shift, shift

__all__ = [
    "AffineAlignment",
    "affine_coverage",
    "affine_identity",
    "align_affine",
    "align_translation",
    "compose_affine",
    "invert_affine",
    "mirror",
    "phase_correlation_shift",
    "shift",
    "warp_affine",
]
