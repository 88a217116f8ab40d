"""Ready samplers: a model and a seed to images."""

from relict_lightning.samplers.draw import check_samples, chunk_seeds, draw, resolve_sampler
from relict_lightning.samplers.method import FunctionSampler, MethodSampler

__all__ = ["FunctionSampler", "MethodSampler", "check_samples", "chunk_seeds", "draw", "resolve_sampler"]
