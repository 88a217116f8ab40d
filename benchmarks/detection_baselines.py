"""What `benchmarks/detection.py` sets beside the detector: the largest similarity to any training image.

| name | similarity |
| --- | --- |
| `NCC` | normalized cross-correlation of all voxels |
| `RMSE` | minus root mean squared error; its nearest are found by a matrix product |
| `SSIM` | structural similarity, of the 10 nearest by NCC |
| `NMI` | normalized mutual information, of the 10 nearest by NCC |
| `PCA` | cosine of the coefficients on 64 principal components of the training images |
| `random features` | cosine of the features of a convolutional network with random weights |
| `l2 ratio` | minus the l2 distance to the nearest over half the mean distance to the 50 nearest (Carlini et al.) |
| `neighbour ratio` | minus the l2 distance to the nearest over that to the second (Yoon et al.) |
| `Dice` | mean Dice of the true label maps; its best are found by a matrix product |
| `percentile rule` | NCC, above the 95th percentile of training images' largest NCC to held-out images (Dar et al.) |
| `contrastive features` | cosine of the features of a small network trained on pairs of altered training images |
| `SSIM regression` | cosine of the features of the same network, trained to be the SSIM of pairs (as in DeepSSIM) |

The last two are trained for about a minute per set, and only where asked for. PCA and networks see volumes at half
their resolution, and slices at full; all others see full resolution. Nothing aligns or mirrors images first.

Each takes a `Comparison` and returns a score per image, larger for what is more like a copy.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional

from relict_lightning.alterations import alter
from relict_lightning.functional import (
    calibrated_neighbor_ratio,
    mean_dice,
    neighbor_ratio,
    normalized_mutual_information,
    pairwise_normalized_cross_correlation,
    root_mean_squared_error,
    structural_similarity,
)
from relict_lightning.testing import DetectionSet

NEAREST = 10
LEVEL = 0.05
COMPONENTS = 64
# Nearest training images that a distance is compared with, as in the paper.
NEIGHBORHOOD = 50
STEPS, BATCH, LEARNING_RATE = 150, 16, 1e-3
TEMPERATURE = 0.2
# Views of the contrastive task; alterations of single voxels are half as large at half resolution.
VIEWS = ("intensity", "shift", "rotation", "mirror", "elastic", "crop")


@dataclass(frozen=True, kw_only=True)
class Images:
    """Images `[n, 1, *spatial]` with their true label maps `[n, *spatial]`."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Comparison:
    """Images that are scored, and the training images of the set that they are scored against."""

    scored: Images
    made: DetectionSet

    @property
    def images(self) -> Tensor:
        """The images that are scored."""
        return self.scored.images

    @cached_property
    def groups(self) -> Tensor:
        """A number for the patient of each training image, `[m]`."""
        numbers = {name: number for number, name in enumerate(sorted(set(self.made.training_groups)))}
        return torch.tensor([numbers[name] for name in self.made.training_groups])

    @cached_property
    def correlation(self) -> Tensor:
        """NCC of every image with every training image, `[n, m]`."""
        return pairwise_normalized_cross_correlation(self.images, self.made.training_images)

    @cached_property
    def distances(self) -> Tensor:
        """Root mean squared difference of every image and every training image, `[n, m]`."""
        # Without the mean image the squares are small, so that their difference keeps its digits.
        mean = self.made.training_images.mean(dim=0)
        rows, columns = ((images - mean).flatten(1) for images in (self.images, self.made.training_images))
        squares = rows.square().sum(dim=1)[:, None] + columns.square().sum(dim=1) - 2 * rows @ columns.T
        return (squares.clamp(min=0) / rows.shape[1]).sqrt()

    @cached_property
    def small(self) -> tuple[Tensor, Tensor]:
        """Images and training images as PCA and networks see them, each in units of its own spread."""
        return standardized(self.images), standardized(self.made.training_images)


@dataclass(frozen=True, kw_only=True)
class BaselineScores:
    """What a baseline says: scores by the name of the part, and the threshold that it takes from held-out images."""

    scores: Mapping[str, Tensor]
    threshold: float
    seconds: float


def standardized(images: Tensor) -> Tensor:
    """Return volumes at half their resolution, or slices at full, with mean 0 and standard deviation 1 each."""
    small = functional.avg_pool3d(images, 2) if images.ndim == 5 else images
    axes = tuple(range(1, small.ndim))
    return (small - small.mean(axes, keepdim=True)) / small.std(axes, keepdim=True).clamp(min=1e-6)


def largest_of_nearest(
    measure: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    training: Tensor,
    similarity: Tensor,
    *,
    nearest: int = NEAREST,
) -> Tensor:
    """Return each image's largest value of a measure, among the training images that are nearest by a similarity."""
    positions = similarity.topk(min(nearest, len(training)), dim=1).indices
    return torch.stack(
        [
            measure(image.expand(len(near), *image.shape), training[near]).max()
            for image, near in zip(images, positions, strict=True)
        ]
    )


def largest_cosine(images: Tensor, training: Tensor) -> Tensor:
    """Return each embedding's largest cosine to a training embedding, about the mean of these."""
    mean = training.mean(dim=0)
    rows, columns = (functional.normalize(embeddings - mean) for embeddings in (images, training))
    return (rows @ columns.T).amax(dim=1)


def by_correlation(comparison: Comparison) -> Tensor:
    """Score by NCC."""
    return comparison.correlation.amax(dim=1)


def by_error(comparison: Comparison) -> Tensor:
    """Score by minus RMSE."""
    images, training = comparison.images, comparison.made.training_images
    return largest_of_nearest(lambda a, b: -root_mean_squared_error(a, b), images, training, -comparison.distances)


def by_structure(comparison: Comparison) -> Tensor:
    """Score by SSIM."""
    return largest_of_nearest(
        lambda a, b: structural_similarity(a, b, data_range=1.0),
        comparison.images,
        comparison.made.training_images,
        comparison.correlation,
    )


def by_information(comparison: Comparison) -> Tensor:
    """Score by NMI."""
    images, training = comparison.images, comparison.made.training_images
    return largest_of_nearest(normalized_mutual_information, images, training, comparison.correlation)


def by_components(comparison: Comparison) -> Tensor:
    """Score by PCA."""
    images, training = (images.flatten(1) for images in comparison.small)
    mean = training.mean(dim=0)
    # The components come from the products of the training images, of which there are fewer than voxels.
    values, vectors = torch.linalg.eigh((training - mean) @ (training - mean).T)
    # Centred images span one dimension less than there are of them.
    kept = min(COMPONENTS, len(training) - 1)
    axes = (training - mean).T @ (vectors[:, -kept:] / values[-kept:].clamp(min=1e-12).sqrt())
    return largest_cosine((images - mean) @ axes, (training - mean) @ axes)


@torch.no_grad()
def by_random_features(comparison: Comparison) -> Tensor:
    """Score by a network that nobody trained."""
    images, training = comparison.small
    network = convolutions(images.ndim - 2, seed=0)
    return largest_cosine(embed(network, images), embed(network, training))


def by_l2_ratio(comparison: Comparison) -> Tensor:
    """Score by the distance to the nearest relative to its neighbourhood."""
    distances, positions = comparison.distances.sort(dim=1)
    return -calibrated_neighbor_ratio(distances, comparison.groups[positions], num_neighbors=NEIGHBORHOOD)


def by_neighbor_ratio(comparison: Comparison) -> Tensor:
    """Score by the distance to the nearest relative to the second."""
    distances, positions = comparison.distances.sort(dim=1)
    return -neighbor_ratio(distances, comparison.groups[positions])


def by_dice(comparison: Comparison) -> Tensor:
    """Score by the label maps, as they truly are."""
    labels, training = comparison.scored.labels, comparison.made.training_labels
    total, present = torch.zeros(len(labels), len(training)), torch.zeros(len(labels), len(training))
    for label in range(1, int(max(labels.max(), training.max())) + 1):
        rows, columns = ((maps == label).flatten(1) for maps in (labels, training))
        sizes = rows.sum(dim=1)[:, None] + columns.sum(dim=1)
        # Where no training image has the label, nothing overlaps.
        somewhere = columns.any(dim=0)
        total += 2 * rows[:, somewhere].float() @ columns[:, somewhere].float().T / sizes.clamp(min=1)
        present += sizes > 0
    return largest_of_nearest(mean_dice, labels, training, total / present.clamp(min=1), nearest=1).float()


def convolutions(dims: int, *, seed: int) -> nn.Sequential:
    """Return a small network of random weights that makes 64 features at an eighth of the resolution."""
    layer = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            *(
                part
                for inputs, outputs in ((1, 16), (16, 32), (32, 64))
                for part in (layer(inputs, outputs, 3, stride=2, padding=1), nn.LeakyReLU(0.1))
            ),
            nn.Flatten(),
        )


def embed(network: nn.Module, images: Tensor) -> Tensor:
    """Return the embedding of each image, in batches that fit a cache."""
    return torch.cat([network(batch) for batch in images.split(BATCH)])


def view(image: Tensor, stream: torch.Generator) -> Tensor:
    """Return an image altered in two ways, and noisy, as the contrastive task shows it."""
    for choice in torch.randperm(len(VIEWS), generator=stream)[:2].tolist():
        image = alter(image, VIEWS[choice], stream=stream, strength=0.5 if image.ndim == 4 else 1.0)
    return image + 0.1 * torch.randn(image.shape, generator=stream)


def contrastive_loss(first: Tensor, second: Tensor) -> Tensor:
    """Return the normalized, temperature-scaled cross-entropy (NT-Xent) of two views of each image."""
    both = functional.normalize(torch.cat([first, second]))
    similarity = (both @ both.T / TEMPERATURE).fill_diagonal_(-math.inf)
    count = len(first)
    return functional.cross_entropy(similarity, torch.arange(2 * count).roll(count))


def regression_loss(first: Tensor, second: Tensor, images: Tensor) -> Tensor:
    """Return how far the cosine of two views is from the structural similarity of the images that were viewed."""
    cosine = functional.normalize(first) @ functional.normalize(second).T
    row, column = torch.triu_indices(len(images), len(images))
    data_range = float(images.max() - images.min())
    truth = structural_similarity(images[row], images[column], data_range=data_range)
    return functional.mse_loss(cosine[row, column], truth)


def trained(training: Tensor, loss: Callable[[Tensor, Tensor, Tensor], Tensor], *, seed: int = 0) -> nn.Module:
    """Return a small network trained on pairs of altered training images.

    Args:
        training: Training images, standardised.
        loss: Of the embeddings of first and second views, and of the images that were viewed.
        seed: Seed of weights, images and views.
    """
    stream = torch.Generator().manual_seed(seed)
    base = convolutions(training.ndim - 2, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(base(training[:1]).shape[1], COMPONENTS)
    network = nn.Sequential(base, head)
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    for _ in range(STEPS):
        images = training[torch.randperm(len(training), generator=stream)[:BATCH]]
        first, second = (network(torch.stack([view(image, stream) for image in images])) for _ in range(2))
        value = loss(first, second, images)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return network


def by_contrastive_features(comparison: Comparison) -> Tensor:
    """Score by a network that learned to tell training images apart, however they are altered."""
    images, training = comparison.small
    network = trained(training, lambda first, second, _: contrastive_loss(first, second))
    with torch.no_grad():
        return largest_cosine(embed(network, images), embed(network, training))


def by_structure_regression(comparison: Comparison) -> Tensor:
    """Score by a network that learned to predict SSIM."""
    images, training = comparison.small
    network = trained(training, regression_loss)
    with torch.no_grad():
        rows, columns = (functional.normalize(embed(network, part)) for part in (images, training))
        return (rows @ columns.T).amax(dim=1)


DICE, PERCENTILE_RULE = "Dice", "percentile rule"
BASELINES: dict[str, Callable[[Comparison], Tensor]] = {
    "NCC": by_correlation,
    "RMSE": by_error,
    "SSIM": by_structure,
    "NMI": by_information,
    "PCA": by_components,
    "random features": by_random_features,
    "l2 ratio": by_l2_ratio,
    "neighbour ratio": by_neighbor_ratio,
    DICE: by_dice,
    PERCENTILE_RULE: by_correlation,
}
LEARNED: dict[str, Callable[[Comparison], Tensor]] = {
    "contrastive features": by_contrastive_features,
    "SSIM regression": by_structure_regression,
}


def score_baselines(made: DetectionSet, parts: Mapping[str, Images], *, learned: bool) -> dict[str, BaselineScores]:
    """Return what each baseline says of several sets of samples.

    Args:
        made: The set whose training images count, and whose held-out images give each threshold.
        parts: Samples by name.
        learned: Whether to train the networks as well.
    """
    pooled = [*parts.values(), Images(images=made.heldout_images, labels=made.heldout_labels)]
    comparison = Comparison(
        Images(
            images=torch.cat([part.images for part in pooled]),
            labels=torch.cat([part.labels for part in pooled]),
        ),
        made,
    )
    sizes = [len(part.images) for part in pooled]
    found = {}
    for name, score in {**BASELINES, **(LEARNED if learned else {})}.items():
        started = time.perf_counter()
        *scores, control = score(comparison).split(sizes)
        if name == PERCENTILE_RULE:
            # From training to held-out images: the way that the rule looks, though samples are looked up the other way.
            control = comparison.correlation[-sizes[-1] :].amax(dim=0)
        found[name] = BaselineScores(
            scores=dict(zip(parts, scores, strict=True)),
            threshold=float(control.double().quantile(1 - LEVEL)),
            seconds=time.perf_counter() - started,
        )
    return found
