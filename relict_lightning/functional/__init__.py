"""Pure functions: every measure and every statistic, without state.

Images are `[n, c, *spatial]` with two or three spatial axes, any floating dtype, computed in float32. Pairs are always
`(generated, training)`, and every pair gets one value.

- `voxel`, `feature`, `segmentation`: how alike a sample and a training image are, at the three levels.
- `alignment`: moving a sample onto a training image first.
- `memorization`: what a set of samples knows of the training set.
- `statistics`: rates with intervals, p-values, discoveries, thresholds.
"""

from relict_lightning.functional.alignment import align_translation, mirror, phase_correlation_shift, shift
from relict_lightning.functional.feature import copy_likeness, cosine_similarity, neighbor_ratio
from relict_lightning.functional.memorization import (
    attainable_memorization_p_value,
    closer_to_training_share,
    ct_score,
    memorization_p_value,
    neighbor_ratio_fraction,
    replica_rate,
)
from relict_lightning.functional.segmentation import dice, mean_dice
from relict_lightning.functional.statistics import (
    balanced_accuracy_at_optimal_threshold,
    benjamini_hochberg,
    clopper_pearson_interval,
    conformal_p_value,
    estimate_rate,
    minimum_discoveries,
    out_of_sample_balanced_accuracy,
    simes_p_value,
    tail_p_value,
)
from relict_lightning.functional.voxel import (
    mean_absolute_error,
    normalized_cross_correlation,
    root_mean_squared_error,
    structural_similarity,
)

__all__ = [
    "align_translation",
    "attainable_memorization_p_value",
    "balanced_accuracy_at_optimal_threshold",
    "benjamini_hochberg",
    "clopper_pearson_interval",
    "closer_to_training_share",
    "conformal_p_value",
    "copy_likeness",
    "cosine_similarity",
    "ct_score",
    "dice",
    "estimate_rate",
    "mean_absolute_error",
    "mean_dice",
    "memorization_p_value",
    "minimum_discoveries",
    "mirror",
    "neighbor_ratio",
    "neighbor_ratio_fraction",
    "normalized_cross_correlation",
    "out_of_sample_balanced_accuracy",
    "phase_correlation_shift",
    "replica_rate",
    "root_mean_squared_error",
    "shift",
    "simes_p_value",
    "structural_similarity",
    "tail_p_value",
]
