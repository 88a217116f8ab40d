"""What a set of samples knows of the training set: the metrics of `relict_lightning.functional.memorization`.

States are counts, or a few numbers per sample where no count can stand for them: distances, cells, codes of groups.
Nothing else about a patient is kept. There is no class for what needs embeddings of a whole set at once: `coverage`,
`self_similarity`, `frechet_distance`, `memorization_distance`, `memorization_informed_frechet_distance`, and the
distances and cells themselves; nor for `attainable_memorization_p_value`, which plans a run and measures no samples.
"""

from relict_lightning.metrics.memorization.authenticity import Authenticity
from relict_lightning.metrics.memorization.data_copying import CtScore
from relict_lightning.metrics.memorization.diversity import UniqueTrainingGroups, UniqueTrainingImages
from relict_lightning.metrics.memorization.rates import CloserToTrainingShare, NeighborRatioFraction, ReplicaRate
from relict_lightning.metrics.memorization.split import LeaningRate, MemorizationPValue

__all__ = [
    "Authenticity",
    "CloserToTrainingShare",
    "CtScore",
    "LeaningRate",
    "MemorizationPValue",
    "NeighborRatioFraction",
    "ReplicaRate",
    "UniqueTrainingGroups",
    "UniqueTrainingImages",
]
