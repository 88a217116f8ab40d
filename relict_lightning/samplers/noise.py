"""Noise that belongs to a sample, whichever process draws it and whatever is drawn beside it."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def sample_seeds(*, num_samples: int, seed: int, evaluation: int) -> list[int]:
    """Return one seed per sample, which depends on run seed, evaluation and the sample's position only.

    So one process and several draw the same samples.

    Args:
        num_samples: How many samples.
        seed: Seed of the run.
        evaluation: Number of the evaluation.

    Returns:
        Numbers of 32 bits, which every library takes as a seed.
    """
    return [derived_seed(seed, evaluation, position) for position in range(num_samples)]


def derived_seed(*numbers: int) -> int:
    """Return a seed of 32 bits that the numbers decide, and that no simple relation ties to those of others."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint32)[0])


def seeded_noise(
    seeds: Sequence[int], shape: Sequence[int], *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Float[Tensor, "n ..."]:
    """Return standard normal noise, each sample's from its own seed.

    It is drawn on the CPU, so that one seed gives one image on every device.

    Args:
        seeds: One per sample.
        shape: Shape of one sample's noise.
        device: Where to put it.
        dtype: Floating-point type; None leaves float32.
    """
    rows = [
        torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float32) for seed in seeds
    ]
    return torch.stack(rows).to(device=device, dtype=dtype)
