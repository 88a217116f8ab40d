"""How far the distribution of the samples lies from that of the training images, and what copying does to it.

A Fréchet distance near 0 is what a perfect generator and a perfect copier have in common. The memorization distance
tells them apart, and divides the other in one number.

- `frechet_distance`: distance of two normal distributions (FID, on any embeddings); smaller is more alike.
- `memorization_distance`: mean cosine distance of the samples to their nearest training images; smaller is worse.
- `memorization_informed_frechet_distance`: the first, divided by the second where that is small (MiFID).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional.memorization.embedding_sets import check_embedding_sets, largest_cosines

# Keeps the quotient finite for exact copies; torchmetrics takes the same.
_EPSILON = 1e-14


def frechet_distance(generated: Float[Tensor, "n d"], training: Float[Tensor, "m d"]) -> float:
    """Return the squared Fréchet distance between normal distributions fitted to two sets of embeddings (FID).

    It is `|mean difference|² + trace(A) + trace(B) - 2 trace((A B)^½)`, with covariances A and B. The last trace is
    the sum of the square roots of the eigenvalues of A B, taken here as the singular values of a product of factors of
    A and B: that stays exact where there are fewer images than dimensions, as in medical data. torchmetrics ties the
    same formula to images and an Inception network (its general form is private); MONAI's takes a matrix square root
    with an argument that SciPy removes in 1.18.

    Args:
        generated: Embeddings of the samples.
        training: Embeddings of the training images, at least two.

    Returns:
        Distance, at least 0, smaller is more alike; 0 for sets of equal mean and covariance, within rounding. NaN for
        fewer than two samples, which have no covariance. The value falls as sets grow, so compare sets of one size.

    Raises:
        ConfigurationError: If embeddings have a wrong shape or dtype, or values that are not finite.
        EmptyDataError: If there are fewer than two training images.

    Example:
        >>> training = torch.tensor([[0.0, 1.0], [2.0, 1.0], [1.0, 0.0], [1.0, 2.0]])
        >>> round(frechet_distance(training + torch.tensor([3.0, 4.0]), training), 6)
        25.0

    References:
        Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter (2017), GANs trained by a two time-scale update rule converge
        to a local Nash equilibrium, arXiv:1706.08500.
    """
    check_embedding_sets(generated, training, fewest_training=2)
    if len(generated) < 2:
        return math.nan
    factors, means = [], []
    for embeddings in (generated.double(), training.double()):
        mean = embeddings.mean(dim=0)
        # R of a QR decomposition has R^T R equal to the covariance, and no more rows than dimensions.
        factors.append(torch.linalg.qr((embeddings - mean) / math.sqrt(len(embeddings) - 1), mode="r").R)
        means.append(mean)
    spread = sum(float(factor.square().sum()) for factor in factors)
    shift = float((means[0] - means[1]).square().sum())
    overlap = float(torch.linalg.svdvals(factors[0] @ factors[1].T).sum())
    distance = shift + spread - 2 * overlap
    # What is left of numbers of this size is rounding, and a quotient would blow it up.
    precision = torch.finfo(torch.float64).eps * training.shape[1]
    rounding = precision * spread + precision**2 * sum(float(mean.square().sum()) for mean in means)
    return distance if distance > rounding else 0.0


def memorization_distance(generated: Float[Tensor, "n d"], training: Float[Tensor, "m d"]) -> float:
    """Return the mean cosine distance of the samples to their nearest training images.

    The distance of a pair is `1 - |cosine|`. The mean is over samples. torchmetrics takes it over training images
    instead (`MemorizationInformedFrechetInceptionDistance`), where copies of a few of them vanish among the others,
    and leaves out every embedding that happens to sum to 0.

    Args:
        generated: Embeddings of the samples.
        training: Embeddings of the training images.

    Returns:
        Distance in [0, 1], smaller is worse: 0 if every sample is a multiple of a training embedding. An embedding of
        zeros has no direction and lies at distance 1. NaN without samples. Compare with that of held-out images.

    Raises:
        ConfigurationError: If embeddings have a wrong shape or dtype, or values that are not finite.
        EmptyDataError: If there are no training images.

    Example:
        >>> generated, training = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> round(memorization_distance(generated, training), 6)
        0.1

    References:
        Bai, Lin, Raffel, Kan (2021), On training sample memorization: lessons from benchmarking generative modeling
        with a large-scale competition, arXiv:2106.03062.
    """
    check_embedding_sets(generated, training)
    if len(generated) == 0:
        return math.nan
    cosines = torch.maximum(largest_cosines(generated, training), largest_cosines(-generated, training))
    return float((1 - cosines).mean())


def memorization_informed_frechet_distance(
    generated: Float[Tensor, "n d"], training: Float[Tensor, "m d"], *, threshold: float
) -> float:
    """Return the Fréchet distance, divided by the memorization distance where that lies below a threshold (MiFID).

    Args:
        generated: Embeddings of the samples.
        training: Embeddings of the training images, at least two.
        threshold: Memorization distance below which a set is punished, in (0, 1]. It depends on the encoder:
            `memorization_distance` of held-out images tells what copies nothing. torchmetrics takes 0.1.

    Returns:
        At least 0, smaller is better. Copies are punished by a factor up to 1e14. 0 where the Fréchet distance is 0, so
        a generator that hands out the whole training set once goes unpunished: read `memorization_distance` beside it.
        NaN for fewer than two samples.

    Raises:
        ConfigurationError: If `threshold` lies outside (0, 1], or embeddings have a wrong shape or dtype, or values
            that are not finite.
        EmptyDataError: If there are fewer than two training images.

    Example:
        >>> training = torch.tensor([[0.0, 1.0], [2.0, 1.0], [1.0, 0.0], [1.0, 2.0]])
        >>> generated = torch.tensor([[0.1, 1.0], [0.2, 1.0]])
        >>> plain = frechet_distance(generated, training)
        >>> memorization_informed_frechet_distance(generated, training, threshold=0.1) > 50 * plain
        True

    References:
        Bai, Lin, Raffel, Kan (2021), On training sample memorization: lessons from benchmarking generative modeling
        with a large-scale competition, arXiv:2106.03062.
    """
    if not 0 < threshold <= 1:
        raise ConfigurationError(
            f"threshold must lie in (0, 1], but is threshold={threshold}. Take a value below the memorization distance "
            f"of held-out images."
        )
    check_embedding_sets(generated, training, fewest_training=2)
    distance = frechet_distance(generated, training)
    memorized = memorization_distance(generated, training)
    return distance / (memorized + _EPSILON) if memorized < threshold else distance
