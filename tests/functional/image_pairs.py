"""Pairs of images that the tests of several measures share."""

import torch

SHAPES = [(3, 1, 24, 20), (2, 2, 16, 18, 14)]


def random_pair(shape: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images of independent voxels in [0, 1], the first of which are noisy versions of the second."""
    generator = torch.Generator().manual_seed(seed)
    training = torch.rand(shape, generator=generator)
    return 0.6 * training + 0.4 * torch.rand(shape, generator=generator), training


def structured_pair(shape: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return bodies in empty air, in [0, 1], the first of which are the second, moved, brightened and shaded."""
    generator = torch.Generator().manual_seed(seed)
    spatial = shape[2:]
    grid = torch.stack(torch.meshgrid(*(torch.linspace(-1, 1, side) for side in spatial), indexing="ij"))
    centres = torch.rand(4, *shape[:2], len(spatial), *(1 for _ in spatial), generator=generator) - 0.5
    body = (grid.square().sum(dim=0) < 0.8).float()

    def bodies(moved: float) -> torch.Tensor:
        spots = torch.exp(-(grid - centres - moved).square().sum(dim=3) / 0.05).sum(dim=0)
        return body * (0.4 + 0.15 * spots)

    return (bodies(0.1) * (1.1 + 0.2 * grid[0])).clamp(0, 1), bodies(0.0)
