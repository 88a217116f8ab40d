"""How close an embedding lies to the training embeddings, and how much closer than to the others."""

from relict_lightning.functional.feature.neighbors import calibrated_neighbor_ratio, copy_likeness, neighbor_ratio
from relict_lightning.functional.feature.similarity import (
    cosine_similarity,
    embedding_correlation,
    euclidean_similarity,
    split_product_similarity,
)

__all__ = [
    "calibrated_neighbor_ratio",
    "copy_likeness",
    "cosine_similarity",
    "embedding_correlation",
    "euclidean_similarity",
    "neighbor_ratio",
    "split_product_similarity",
]
