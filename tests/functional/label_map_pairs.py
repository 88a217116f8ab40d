"""Pairs of label maps that the tests of several measures share, and what MONAI takes."""

import numpy as np
import torch
from scipy import ndimage

SHAPES = [(3, 14, 17), (2, 9, 12, 11)]


def random_label_maps(
    seed: int, shape: tuple[int, ...] = (4, 6, 5), labels: int = 5
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return label maps of independent voxels."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, labels, shape, generator=generator), torch.randint(0, labels, shape, generator=generator)


def structured_label_maps(
    seed: int, shape: tuple[int, ...] = (2, 9, 12, 11), labels: int = 4
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return label maps of smooth regions, the first of which are the second with their borders moved."""
    generator = np.random.default_rng(seed)
    pairs = []
    for _ in range(shape[0]):
        training, other = (ndimage.gaussian_filter(generator.standard_normal(shape[1:]), 1.5) for _ in range(2))
        edges = np.quantile(training, np.linspace(0, 1, labels + 1)[1:-1])
        pairs.append([np.digitize(smooth, edges) for smooth in (0.8 * training + 0.3 * other, training)])
    generated, training = torch.from_numpy(np.array(pairs)).unbind(dim=1)
    return generated, training


def one_hot(label_maps: torch.Tensor, labels: int) -> torch.Tensor:
    """Return label maps the way MONAI's metrics take them."""
    return torch.nn.functional.one_hot(label_maps, labels).movedim(-1, 1).float()
