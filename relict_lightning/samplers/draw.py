"""Drawing samples in chunks that do not depend on how many processes share the work, and checking what comes."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from relict_lightning.errors import ConfigurationError, SamplerError
from relict_lightning.interfaces import Sampler
from relict_lightning.samplers.method import FunctionSampler, MethodSampler


def resolve_sampler(sampler: Sampler | Callable[..., Tensor] | str | None) -> Sampler:
    """Return the sampler meant: a `Sampler`, a function of (module, n), a method's name, or None for `sample`.

    Raises:
        ConfigurationError: If it is none of these.
    """
    if sampler is None:
        return MethodSampler()
    if isinstance(sampler, Sampler):
        return sampler
    if isinstance(sampler, str):
        return MethodSampler(sampler)
    if callable(sampler):
        return FunctionSampler(sampler)
    raise ConfigurationError(
        f"sampler must be a Sampler, a function of (module, n), or the name of a method; got {type(sampler).__name__}."
    )


def chunk_seeds(*, num_samples: int, chunk_size: int, seed: int, evaluation: int) -> list[int]:
    """Return one seed per chunk, which depends on run seed, evaluation and chunk only.

    Chunks are numbered over all samples of the evaluation, so that one process and several draw the same ones.
    """
    chunks = -(-num_samples // chunk_size)
    return [
        int(np.random.SeedSequence((seed, evaluation, chunk)).generate_state(1, np.uint32)[0])
        for chunk in range(chunks)
    ]


def draw(
    sampler: Sampler,
    module: Any,
    *,
    seeds: Sequence[int],
    chunk_size: int,
    image_shape: tuple[int, ...],
    before_chunk: Callable[[int], object],
    after_chunk: Callable[[int], object],
) -> Float[Tensor, "n c *spatial"]:
    """Return `len(seeds) * chunk_size` checked samples, float32, on the CPU.

    Every chunk has the same size, also the last one, so that compiled models see one shape.

    Args:
        sampler: Where samples come from.
        module: The model under training.
        seeds: One per chunk.
        chunk_size: Samples per chunk.
        image_shape: Expected `[c, *spatial]`, the training images' shape.
        before_chunk: Called with each chunk's seed before it is drawn.
        after_chunk: Called with the number of samples after each chunk.

    Raises:
        SamplerError: If a chunk is not what was asked for.
    """
    drawn = []
    for seed in seeds:
        before_chunk(seed)
        images = sampler.sample(module, chunk_size, seed=seed)
        drawn.append(check_samples(images, count=chunk_size, image_shape=image_shape).float().cpu())
        after_chunk(chunk_size)
    return torch.cat(drawn) if drawn else torch.empty(0, *image_shape)


def check_samples(images: Any, *, count: int, image_shape: tuple[int, ...]) -> Tensor:
    """Return samples as a plain tensor, after checking type, count, shape, dtype and finiteness.

    Raises:
        SamplerError: Which says what was expected, what came, and what to do.
    """
    expected = (count, *image_shape)
    if not isinstance(images, Tensor):
        raise SamplerError(
            f"The sampler must return a tensor of shape {expected}; got {type(images).__name__}. "
            f"Return the images themselves, for instance `.images` of a pipeline's output."
        )
    # Subclasses such as MONAI's MetaTensor carry file names along.
    plain: Tensor = images.detach().as_subclass(Tensor)
    if plain.ndim == len(expected) and plain.shape[1:] == image_shape and len(plain) != count:
        raise SamplerError(
            f"The sampler was asked for {count} images and returned {len(plain)}. "
            f"Return exactly n images per call; a missing or surplus image would falsify the rate."
        )
    if tuple(plain.shape) != expected:
        raise SamplerError(
            f"The sampler must return images of shape {expected}, as the training images have; got "
            f"{tuple(plain.shape)}. Decode latents, and put channels first."
        )
    if not plain.is_floating_point():
        raise SamplerError(
            f"The sampler must return floating-point images on the training images' intensity scale; got "
            f"{plain.dtype}. Return them before they are converted for display."
        )
    finite = torch.isfinite(plain).flatten(1).all(1)
    if not finite.all():
        bad = (~finite).nonzero().flatten().tolist()
        raise SamplerError(
            f"The sampler returned NaN or infinite values in {len(bad)} of {count} images. "
            f"Look for a diverged model or a half-precision overflow; sample in float32."
        )
    return plain
