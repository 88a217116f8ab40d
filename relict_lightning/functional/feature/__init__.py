"""How close an embedding lies to the training embeddings, and how much closer than to the others."""

from relict_lightning.functional.feature.neighbors import copy_likeness, neighbor_ratio
from relict_lightning.functional.feature.similarity import cosine_similarity

__all__ = ["copy_likeness", "cosine_similarity", "neighbor_ratio"]
