"""How alike two images are, voxel by voxel. Images are compared as they lie: `alignment` moves them first."""

from relict_lightning.functional.voxel.correlation import normalized_cross_correlation
from relict_lightning.functional.voxel.differences import mean_absolute_error, root_mean_squared_error
from relict_lightning.functional.voxel.structure import structural_similarity

__all__ = [
    "mean_absolute_error",
    "normalized_cross_correlation",
    "root_mean_squared_error",
    "structural_similarity",
]
