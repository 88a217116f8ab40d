"""`torchmetrics.Metric` classes: the measures of `relict_lightning.functional`, added up over batches and processes.

States are counts and sums of fixed size, or a few numbers per sample where ranks are asked for; never an image.
Before any update, `compute()` returns NaN, and torchmetrics warns.
"""

from relict_lightning.metrics.feature import (
    CalibratedNeighborRatio,
    CosineSimilarity,
    EmbeddingCorrelation,
    EuclideanSimilarity,
    NeighborRatio,
    SplitProductSimilarity,
)
from relict_lightning.metrics.memorization import (
    Authenticity,
    CloserToTrainingShare,
    CtScore,
    LeaningRate,
    MemorizationPValue,
    NeighborRatioFraction,
    ReplicaRate,
    UniqueTrainingGroups,
    UniqueTrainingImages,
)
from relict_lightning.metrics.segmentation import (
    CenterlineDice,
    CentroidDistance,
    Dice,
    HausdorffDistance95,
    MatchedLesions,
    MeanDice,
    SurfaceDice,
    VolumetricSimilarity,
)
from relict_lightning.metrics.statistics import (
    AreaUnderRoc,
    BalancedAccuracyAtOptimalThreshold,
    BenjaminiHochberg,
    ClopperPearsonInterval,
    ConformalPValue,
)
from relict_lightning.metrics.voxel import (
    LocalNormalizedCrossCorrelation,
    MeanAbsoluteError,
    MultiscaleStructuralSimilarity,
    NormalizedCrossCorrelation,
    NormalizedMutualInformation,
    PeakSignalNoiseRatio,
    RootMeanSquaredError,
    StructuralSimilarity,
)

__all__ = [
    "AreaUnderRoc",
    "Authenticity",
    "BalancedAccuracyAtOptimalThreshold",
    "BenjaminiHochberg",
    "CalibratedNeighborRatio",
    "CenterlineDice",
    "CentroidDistance",
    "ClopperPearsonInterval",
    "CloserToTrainingShare",
    "ConformalPValue",
    "CosineSimilarity",
    "CtScore",
    "Dice",
    "EmbeddingCorrelation",
    "EuclideanSimilarity",
    "HausdorffDistance95",
    "LeaningRate",
    "LocalNormalizedCrossCorrelation",
    "MatchedLesions",
    "MeanAbsoluteError",
    "MeanDice",
    "MemorizationPValue",
    "MultiscaleStructuralSimilarity",
    "NeighborRatio",
    "NeighborRatioFraction",
    "NormalizedCrossCorrelation",
    "NormalizedMutualInformation",
    "PeakSignalNoiseRatio",
    "ReplicaRate",
    "RootMeanSquaredError",
    "SplitProductSimilarity",
    "StructuralSimilarity",
    "SurfaceDice",
    "UniqueTrainingGroups",
    "UniqueTrainingImages",
    "VolumetricSimilarity",
]
