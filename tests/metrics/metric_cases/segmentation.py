import torch

from metric_cases.case import Case, label_maps
from relict_lightning.functional import (
    centerline_dice,
    centroid_distance,
    dice,
    hausdorff_distance_95,
    matched_lesions,
    mean_dice,
    surface_dice,
    volumetric_similarity,
)
from relict_lightning.metrics import (
    CenterlineDice,
    CentroidDistance,
    Dice,
    HausdorffDistance95,
    MatchedLesions,
    MeanDice,
    SurfaceDice,
    VolumetricSimilarity,
)

SPACING_MM = (1.5, 0.5)


def with_absent_labels(seed: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pairs of label maps, of which every other pair has no label 2, and none has label 4."""
    generated, training = label_maps(seed, n)
    for pair in (generated, training):
        # Every label that one map has, the other has as well, so that no distance is infinite.
        pair.view(n, 36)[:, :3] = torch.tensor([1, 2, 3])
        pair[::2][pair[::2] == 2] = 0
    return generated, training


def matched_share(generated: torch.Tensor, training: torch.Tensor) -> float:
    pairs = matched_lesions(generated, training, spacing_mm=1.0, label=3, min_dice=0.5)
    return sum(len(pair.matches) for pair in pairs) / sum(pair.generated_lesions for pair in pairs)


CASES = {
    "Dice": Case(
        metric=lambda: Dice(num_labels=5),
        samples=with_absent_labels,
        twin=lambda g, t: dice(g, t, num_labels=5).nanmean(dim=0),
        other=lambda: Dice(num_labels=5, include_background=True),
    ),
    "MeanDice": Case(
        metric=lambda: MeanDice(num_labels=4),
        samples=label_maps,
        twin=lambda g, t: mean_dice(g, t, num_labels=4).mean(),
        other=lambda: MeanDice(num_labels=4, include_background=True),
    ),
    "VolumetricSimilarity": Case(
        metric=lambda: VolumetricSimilarity(num_labels=5),
        samples=with_absent_labels,
        twin=lambda g, t: volumetric_similarity(g, t, num_labels=5).nanmean(dim=0),
        other=lambda: VolumetricSimilarity(num_labels=5, include_background=True),
    ),
    "HausdorffDistance95": Case(
        metric=lambda: HausdorffDistance95(num_labels=5, spacing_mm=SPACING_MM),
        samples=with_absent_labels,
        twin=lambda g, t: hausdorff_distance_95(g, t, spacing_mm=SPACING_MM, num_labels=5).nanmean(dim=0),
        other=lambda: HausdorffDistance95(num_labels=5, spacing_mm=1.5),
    ),
    "SurfaceDice": Case(
        metric=lambda: SurfaceDice(num_labels=5, spacing_mm=SPACING_MM, tolerance_mm=0.5),
        samples=with_absent_labels,
        twin=lambda g, t: surface_dice(g, t, spacing_mm=SPACING_MM, tolerance_mm=0.5, num_labels=5).nanmean(dim=0),
        other=lambda: SurfaceDice(num_labels=5, spacing_mm=SPACING_MM, tolerance_mm=(0.5, 0.5, 1.0, 0.5)),
    ),
    "CentroidDistance": Case(
        metric=lambda: CentroidDistance(num_labels=5, spacing_mm=SPACING_MM),
        samples=with_absent_labels,
        twin=lambda g, t: centroid_distance(g, t, spacing_mm=SPACING_MM, num_labels=5).nanmean(dim=0),
        other=lambda: CentroidDistance(num_labels=5, spacing_mm=0.5),
    ),
    "CenterlineDice": Case(
        metric=lambda: CenterlineDice(num_labels=5),
        samples=with_absent_labels,
        twin=lambda g, t: centerline_dice(g, t, num_labels=5).nanmean(dim=0),
        other=lambda: CenterlineDice(num_labels=6),
    ),
    "MatchedLesions": Case(
        metric=lambda: MatchedLesions(label=3, min_dice=0.5),
        samples=label_maps,
        twin=matched_share,
        other=lambda: MatchedLesions(label=3, min_dice=0.6),
    ),
}
