from metric_cases.case import Case, vectors
from relict_lightning.functional import closer_to_training_share, neighbor_ratio_fraction, replica_rate
from relict_lightning.metrics import CloserToTrainingShare, NeighborRatioFraction, ReplicaRate

CASES = {
    "ReplicaRate": Case(
        metric=lambda: ReplicaRate(threshold=0.5),
        samples=lambda seed, n: vectors(seed, n)[:1],
        twin=lambda scores: replica_rate(scores, 0.5).value,
        other=lambda: ReplicaRate(threshold=0.8),
    ),
    "NeighborRatioFraction": Case(
        metric=NeighborRatioFraction,
        samples=lambda seed, n: vectors(seed, n)[:1],
        twin=neighbor_ratio_fraction,
        other=lambda: NeighborRatioFraction(threshold=0.8),
    ),
    "CloserToTrainingShare": Case(metric=CloserToTrainingShare, samples=vectors, twin=closer_to_training_share),
}
