"""How alike two label maps are.

Label maps are integers `[n, *spatial]`, 2-D or 3-D, one label per voxel, 0 for background; a boolean mask is a label
map of the labels 0 and 1. Pairs are `(generated, training)`, and every pair gets one value per label, float32
`[n, l]`, labels from 1 on unless `include_background` adds label 0. `num_labels` counts the background; without it, it
is the largest label of the call plus one, and at least 2.

One rule for absent labels holds for all measures: a label that neither map has gets NaN, because it is absent, which is
neither agreement nor its lack, and the metric classes leave it out; a label that only one map has gets the worst value,
0 for overlaps and infinity for distances.

Measures in mm ask for `spacing_mm`, the size of a voxel: one number for all axes, or one per spatial axis.

- `dice`, `mean_dice`: how much labels overlap.
- `volumetric_similarity`: how alike their volumes are, wherever they lie.
- `centroid_distance`: how far apart they lie.
- `surface_distances`, `hausdorff_distance_95`, `surface_dice`, `surface_agreement`: how far apart their surfaces lie.
- `centerline_dice`: how well the centrelines of vessels agree.
- `matched_lesions`: which lesion of a sample copies which lesion of a patient.
"""

from relict_lightning.functional.segmentation.centerline import centerline_dice
from relict_lightning.functional.segmentation.lesions import matched_lesions
from relict_lightning.functional.segmentation.overlap import dice, mean_dice, volumetric_similarity
from relict_lightning.functional.segmentation.position import centroid_distance
from relict_lightning.functional.segmentation.surface import (
    hausdorff_distance_95,
    surface_agreement,
    surface_dice,
    surface_distances,
)

__all__ = [
    "centerline_dice",
    "centroid_distance",
    "dice",
    "hausdorff_distance_95",
    "matched_lesions",
    "mean_dice",
    "surface_agreement",
    "surface_dice",
    "surface_distances",
    "volumetric_similarity",
]
