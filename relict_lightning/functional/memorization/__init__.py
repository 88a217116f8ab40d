"""Whether a set of samples, taken together, knows the training set. Groups are patients.

Most functions take what a search gave: distances, scores, positions, groups. Those that are defined on embeddings take
embeddings, `[n, d]`.

- `rates`, `authenticity`, `data_copying`, `split`: how many samples copy, and whether that is more than chance.
- `diversity`: how much of the training set is replicated, and how much samples repeat themselves.
- `frechet`: distance of the two distributions, and what copying makes of it.
- `neighbors`, `cells`: the distances that these take, from embeddings.

The generalisation gap of FLD (Jiralerspong et al. 2023, arXiv:2302.04440) is left out, because no package on PyPI that
is kept up offers it.
"""

from relict_lightning.functional.memorization.authenticity import authenticity
from relict_lightning.functional.memorization.cells import assign_cells, cell_centers, nearest_distances_in_cells
from relict_lightning.functional.memorization.data_copying import ct_score
from relict_lightning.functional.memorization.diversity import (
    coverage,
    self_similarity,
    unique_training_groups,
    unique_training_images,
)
from relict_lightning.functional.memorization.frechet import (
    frechet_distance,
    memorization_distance,
    memorization_informed_frechet_distance,
)
from relict_lightning.functional.memorization.neighbors import nearest_training_distances
from relict_lightning.functional.memorization.rates import (
    closer_to_training_share,
    neighbor_ratio_fraction,
    replica_rate,
)
from relict_lightning.functional.memorization.split import (
    attainable_memorization_p_value,
    leaning_rate,
    memorization_p_value,
)

__all__ = [
    "assign_cells",
    "attainable_memorization_p_value",
    "authenticity",
    "cell_centers",
    "closer_to_training_share",
    "coverage",
    "ct_score",
    "frechet_distance",
    "leaning_rate",
    "memorization_distance",
    "memorization_informed_frechet_distance",
    "memorization_p_value",
    "nearest_distances_in_cells",
    "nearest_training_distances",
    "neighbor_ratio_fraction",
    "replica_rate",
    "self_similarity",
    "unique_training_groups",
    "unique_training_images",
]
