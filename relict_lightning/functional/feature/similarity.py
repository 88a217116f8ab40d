"""How alike two embeddings are.

Conventions: embeddings are `[n, d]`, pairs are `(generated, training)`, and every pair gets one value.

- `cosine_similarity`: in [-1, 1]; larger is more alike.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from relict_lightning.functional.validation import check_embeddings


def cosine_similarity(generated: Float[Tensor, "n d"], training: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Return the cosine of the angle between each pair of embeddings.

    Args:
        generated: Embeddings of the generated images.
        training: Embeddings of the training images, one for each generated image.

    Returns:
        Similarity in [-1, 1], larger is more alike; 0 where either embedding is all zeros.

    Raises:
        ConfigurationError: If shapes differ or a value is NaN or infinite.

    Example:
        >>> cosine_similarity(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]]))
        tensor([0.6000])
    """
    generated, training = check_embeddings(generated, training)
    unit_generated, unit_training = _unit_vectors(generated), _unit_vectors(training)
    return (unit_generated * unit_training).sum(dim=1).clamp(-1.0, 1.0)


def _unit_vectors(embeddings: Tensor) -> Tensor:
    # Scaling by the largest entry first keeps the squares of very small embeddings from vanishing.
    largest = torch.linalg.vector_norm(embeddings, ord=torch.inf, dim=1, keepdim=True)
    embeddings = embeddings / torch.where(largest > 0, largest, torch.ones_like(largest))
    norm = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True)
    return embeddings / torch.where(norm > 0, norm, torch.ones_like(norm))
