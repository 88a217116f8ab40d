"""Ready encoders: images to embeddings."""

from relict_lightning.encoders.gradient import GradientEncoder

__all__ = ["GradientEncoder"]
