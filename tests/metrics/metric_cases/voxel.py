from metric_cases.case import Case, images
from relict_lightning.functional import normalized_cross_correlation, structural_similarity
from relict_lightning.metrics import NormalizedCrossCorrelation, StructuralSimilarity

CASES = {
    "NormalizedCrossCorrelation": Case(
        metric=NormalizedCrossCorrelation,
        samples=images,
        twin=lambda g, t: normalized_cross_correlation(g, t).mean(),
    ),
    "StructuralSimilarity": Case(
        metric=lambda: StructuralSimilarity(data_range=1.0),
        samples=images,
        twin=lambda g, t: structural_similarity(g, t, data_range=1.0).mean(),
        other=lambda: StructuralSimilarity(data_range=2.0),
    ),
}
