"""How far samples lie from training images, for the measures of this package that are made of such distances.

A detector's index answers the same for its own samples. These functions are for embeddings from elsewhere; the distance
may be to any set of images, so they also measure how far held-out images lie from training, or samples from held-out.

- `nearest_training_distances`: distance of each sample to its nearest training image, and of that to the next one.
"""

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from relict_lightning.errors import EmptyDataError
from relict_lightning.functional.memorization.embedding_sets import (
    check_embedding_sets,
    check_groups,
    nearest_neighbors,
)


def nearest_training_distances(
    generated: Float[Tensor, "n d"],
    training: Float[Tensor, "m d"],
    *,
    training_groups: Integer[Tensor, " m"] | None = None,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Return each sample's distance to its nearest training image, and that image's distance to its own nearest one.

    The two are what `authenticity` compares, and the first alone is what `ct_score` and `closer_to_training_share`
    take. All pairs are compared, in blocks of bounded memory.

    Args:
        generated: Embeddings of the samples, or of held-out images.
        training: Embeddings of the training images, at least two.
        training_groups: Group (patient) of each training image. The second distance is to the nearest image of another
            group, because two scans of one patient lie next to each other. None: every image is a group.

    Returns:
        Two vectors of Euclidean distances, float64, at least 0; 0 for exact duplicates. Both are empty without samples.

    Raises:
        ConfigurationError: If embeddings or groups have a wrong shape or dtype, or values that are not finite.
        EmptyDataError: If there are fewer than two training images, or all are of one group.

    Example:
        >>> generated, training = torch.tensor([[1.0], [9.0]]), torch.tensor([[0.0], [4.0], [10.0]])
        >>> distances, reference_distances = nearest_training_distances(generated, training)
        >>> distances.tolist(), reference_distances.tolist()
        ([1.0, 1.0], [4.0, 6.0])
    """
    check_embedding_sets(generated, training, fewest_training=2)
    if training_groups is None:
        training_groups = torch.arange(len(training), device=training.device)
    check_groups(training_groups, training, name="training_groups")
    if bool((training_groups == training_groups[0]).all()):
        raise EmptyDataError(
            f"training_groups must name at least two groups, but all {len(training)} training images are of group "
            f"{int(training_groups[0])}. Give every patient a group of their own."
        )
    distances, positions = nearest_neighbors(generated, training)
    # Samples share their nearest images, so each is looked up once.
    matched, of_sample = torch.unique(positions[:, 0], return_inverse=True)
    reference_distances, _ = nearest_neighbors(
        training[matched], training, query_groups=training_groups[matched], reference_groups=training_groups
    )
    return distances[:, 0], reference_distances[of_sample, 0]
