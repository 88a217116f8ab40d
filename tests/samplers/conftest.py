from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from relict_lightning.interfaces import Sampler
from relict_lightning.samplers import draw_chunk, sample_seeds


@pytest.fixture
def in_chunks() -> Callable[..., Tensor]:
    """Draw samples as an evaluation does, so many at a time."""

    def draw(
        sampler: Sampler,
        module: torch.nn.Module,
        *,
        chunk_size: int,
        num_samples: int = 6,
        image_shape: tuple[int, ...] = (1, 16, 16),
    ) -> Tensor:
        seeds = sample_seeds(num_samples=num_samples + chunk_size, seed=0, evaluation=0)
        module.eval()
        chunks = []
        with torch.no_grad():
            for start in range(0, num_samples, chunk_size):
                # As the drawer does; no ready sampler depends on it.
                torch.manual_seed(start)
                positions = range(start, start + chunk_size)
                own = seeds[start : start + chunk_size]
                chunks.append(draw_chunk(sampler, module, positions=positions, seeds=own, image_shape=image_shape))
        return torch.cat(chunks)[:num_samples]

    return draw


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Networks in these tests begin with the same weights."""
    torch.manual_seed(0)
