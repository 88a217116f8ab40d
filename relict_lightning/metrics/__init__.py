"""`torchmetrics.Metric` classes: the measures of `relict_lightning.functional`, added up over batches and processes.

States are counts and sums of fixed size, so epochs of any length and any number of processes fit. Before any update,
`compute()` returns NaN, and torchmetrics warns.
"""

from relict_lightning.metrics.memorization import CloserToTrainingShare, NeighborRatioFraction, ReplicaRate
from relict_lightning.metrics.segmentation import MeanDice
from relict_lightning.metrics.voxel import NormalizedCrossCorrelation, StructuralSimilarity

__all__ = [
    "CloserToTrainingShare",
    "MeanDice",
    "NeighborRatioFraction",
    "NormalizedCrossCorrelation",
    "ReplicaRate",
    "StructuralSimilarity",
]
