"""Which sampler is meant, and drawing some samples with it."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from relict_lightning.errors import ConfigurationError
from relict_lightning.interfaces import Sampler
from relict_lightning.samplers.checking import check_samples
from relict_lightning.samplers.method import FunctionSampler, MethodSampler
from relict_lightning.samplers.predict_step import PredictStepSampler


def resolve_sampler(sampler: Sampler | Callable[..., Tensor] | str | None) -> Sampler:
    """Return the sampler meant: a `Sampler`, a function of (module, n), a method's name, or None for `sample`.

    `predict_step` is called as the trainer calls it, by a `PredictStepSampler`.

    Raises:
        ConfigurationError: If it is none of these.
    """
    if sampler is None:
        return MethodSampler()
    if isinstance(sampler, Sampler):
        return sampler
    if isinstance(sampler, str):
        return PredictStepSampler() if sampler == "predict_step" else MethodSampler(sampler)
    if callable(sampler):
        return FunctionSampler(sampler)
    raise ConfigurationError(
        f"sampler must be a Sampler, a function of (module, n), or the name of a method; got {type(sampler).__name__}."
    )


def draw_chunk(
    sampler: Sampler, module: Any, *, positions: Sequence[int], seeds: Sequence[int], image_shape: tuple[int, ...]
) -> Tensor:
    """Return the checked samples at these positions, `[n, c, *spatial]`, float32, on the CPU.

    Args:
        sampler: Where samples come from.
        module: The model under training.
        positions: Positions in the evaluation.
        seeds: One per sample.
        image_shape: Expected `[c, *spatial]`, the training images' shape.

    Raises:
        SamplerError: If they are not what was asked for.
    """
    images = sampler.sample_at(module, positions, seeds, image_shape=image_shape)
    return check_samples(images, count=len(positions), image_shape=image_shape).float().cpu()
