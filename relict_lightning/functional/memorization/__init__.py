"""Whether a set of samples, taken together, knows the training set. Groups are patients."""

from relict_lightning.functional.memorization.data_copying import ct_score
from relict_lightning.functional.memorization.rates import (
    closer_to_training_share,
    neighbor_ratio_fraction,
    replica_rate,
)
from relict_lightning.functional.memorization.split import attainable_memorization_p_value, memorization_p_value

__all__ = [
    "attainable_memorization_p_value",
    "closer_to_training_share",
    "ct_score",
    "memorization_p_value",
    "neighbor_ratio_fraction",
    "replica_rate",
]
