"""Ready samplers: a model and seeds to images."""

from relict_lightning.samplers.checking import check_label_maps, check_samples
from relict_lightning.samplers.conditioned import ConditionedSampler
from relict_lightning.samplers.diffusion import DiffusionSampler
from relict_lightning.samplers.draw import draw_chunk, resolve_sampler
from relict_lightning.samplers.latent import LatentSampler
from relict_lightning.samplers.latent_diffusion import LatentDiffusionSampler
from relict_lightning.samplers.memory import is_out_of_memory
from relict_lightning.samplers.method import FunctionSampler, MethodSampler
from relict_lightning.samplers.noise import sample_seeds, seeded_noise
from relict_lightning.samplers.pipeline import PipelineSampler
from relict_lightning.samplers.predict_step import PredictStepSampler

__all__ = [
    "ConditionedSampler",
    "DiffusionSampler",
    "FunctionSampler",
    "LatentDiffusionSampler",
    "LatentSampler",
    "MethodSampler",
    "PipelineSampler",
    "PredictStepSampler",
    "check_label_maps",
    "check_samples",
    "draw_chunk",
    "is_out_of_memory",
    "resolve_sampler",
    "sample_seeds",
    "seeded_noise",
]
