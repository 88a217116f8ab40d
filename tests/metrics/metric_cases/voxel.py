from metric_cases.case import Case, images
from relict_lightning.functional import (
    local_normalized_cross_correlation,
    mean_absolute_error,
    multiscale_structural_similarity,
    normalized_cross_correlation,
    normalized_mutual_information,
    peak_signal_noise_ratio,
    root_mean_squared_error,
    structural_similarity,
)
from relict_lightning.metrics import (
    LocalNormalizedCrossCorrelation,
    MeanAbsoluteError,
    MultiscaleStructuralSimilarity,
    NormalizedCrossCorrelation,
    NormalizedMutualInformation,
    PeakSignalNoiseRatio,
    RootMeanSquaredError,
    StructuralSimilarity,
)

CASES = {
    "MeanAbsoluteError": Case(
        metric=MeanAbsoluteError, samples=images, twin=lambda g, t: mean_absolute_error(g, t).mean()
    ),
    "RootMeanSquaredError": Case(
        metric=RootMeanSquaredError, samples=images, twin=lambda g, t: root_mean_squared_error(g, t).mean()
    ),
    "PeakSignalNoiseRatio": Case(
        metric=lambda: PeakSignalNoiseRatio(data_range=1.0),
        samples=images,
        twin=lambda g, t: peak_signal_noise_ratio(g, t, data_range=1.0).mean(),
        other=lambda: PeakSignalNoiseRatio(data_range=2.0),
    ),
    "NormalizedCrossCorrelation": Case(
        metric=NormalizedCrossCorrelation,
        samples=images,
        twin=lambda g, t: normalized_cross_correlation(g, t).mean(),
    ),
    "LocalNormalizedCrossCorrelation": Case(
        metric=lambda: LocalNormalizedCrossCorrelation(window=5),
        samples=images,
        twin=lambda g, t: local_normalized_cross_correlation(g, t, window=5).mean(),
        other=lambda: LocalNormalizedCrossCorrelation(window=5, squared=True),
    ),
    "StructuralSimilarity": Case(
        metric=lambda: StructuralSimilarity(data_range=1.0),
        samples=images,
        twin=lambda g, t: structural_similarity(g, t, data_range=1.0).mean(),
        other=lambda: StructuralSimilarity(data_range=2.0),
    ),
    "MultiscaleStructuralSimilarity": Case(
        metric=lambda: MultiscaleStructuralSimilarity(data_range=1.0, window=5),
        samples=images,
        twin=lambda g, t: multiscale_structural_similarity(g, t, data_range=1.0, window=5).mean(),
        other=lambda: MultiscaleStructuralSimilarity(data_range=1.0, window=5, weights=[0.5, 0.5]),
    ),
    "NormalizedMutualInformation": Case(
        metric=lambda: NormalizedMutualInformation(bins=8),
        samples=images,
        twin=lambda g, t: normalized_mutual_information(g, t, bins=8).mean(),
        other=lambda: NormalizedMutualInformation(bins=8, normalization="arithmetic"),
    ),
}
