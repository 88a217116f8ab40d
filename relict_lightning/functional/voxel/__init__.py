"""How alike two images are, voxel by voxel. Images are compared as they lie: `alignment` moves them first."""

from relict_lightning.functional.voxel.correlation import (
    normalized_cross_correlation,
    pairwise_normalized_cross_correlation,
)
from relict_lightning.functional.voxel.differences import (
    mean_absolute_error,
    peak_signal_noise_ratio,
    root_mean_squared_error,
)
from relict_lightning.functional.voxel.information import normalized_mutual_information
from relict_lightning.functional.voxel.local_correlation import local_normalized_cross_correlation
from relict_lightning.functional.voxel.structure import multiscale_structural_similarity, structural_similarity

__all__ = [
    "local_normalized_cross_correlation",
    "mean_absolute_error",
    "multiscale_structural_similarity",
    "normalized_cross_correlation",
    "normalized_mutual_information",
    "pairwise_normalized_cross_correlation",
    "peak_signal_noise_ratio",
    "root_mean_squared_error",
    "structural_similarity",
]
