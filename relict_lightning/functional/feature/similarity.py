"""How alike two embeddings are.

Conventions: embeddings are `[n, d]`, any floating dtype, computed in float32. Pairs are `(generated, training)`, and
every pair gets one value; larger is more alike.

- `cosine_similarity`: cosine of the angle between them, in [-1, 1].
- `euclidean_similarity`: minus their distance, at most 0.
- `embedding_correlation`: Pearson correlation over their entries, in [-1, 1].
- `split_product_similarity`: the largest similarity of any of their parts, in [-1, 1].

torchmetrics' pairwise functions compare everything with everything, and torch's own cosine similarity vanishes for
embeddings that are very small.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional.validation import check_embedding_pairs


def cosine_similarity(generated: Float[Tensor, "n d"], training: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Return the cosine of the angle between each pair of embeddings.

    Args:
        generated: Embeddings of the generated images.
        training: Embeddings of the training images, one for each generated image.

    Returns:
        Similarity in [-1, 1], larger is more alike; 0 where either embedding is all zeros.

    Raises:
        ConfigurationError: If shapes differ or a value is NaN or infinite.

    Example:
        >>> cosine_similarity(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]]))
        tensor([0.6000])
    """
    generated, training = check_embedding_pairs(generated, training)
    return (_unit_vectors(generated) * _unit_vectors(training)).sum(dim=-1).clamp(-1.0, 1.0)


def euclidean_similarity(generated: Float[Tensor, "n d"], training: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Return minus the Euclidean (L2) distance between each pair of embeddings.

    Unlike the angle it takes the length of embeddings into account. For unit vectors with cosine `s` it is
    `-sqrt(2 - 2 * s)`, so both order pairs alike.

    Args:
        generated: Embeddings of the generated images.
        training: Embeddings of the training images, one for each generated image.

    Returns:
        Similarity, at most 0, larger is more alike; 0 for identical embeddings only.

    Raises:
        ConfigurationError: If shapes differ or a value is NaN or infinite.

    Example:
        >>> euclidean_similarity(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 0.0]]))
        tensor([-5.])
    """
    generated, training = check_embedding_pairs(generated, training)
    difference = generated - training
    # Scaling by the largest entry keeps the squares of very small and of very large differences inside float32.
    largest = torch.linalg.vector_norm(difference, ord=torch.inf, dim=1, keepdim=True)
    scaled = difference / torch.where(largest > 0, largest, torch.ones_like(largest))
    similarity: Tensor = -torch.linalg.vector_norm(scaled, dim=1) * largest[:, 0]
    return similarity


def embedding_correlation(generated: Float[Tensor, "n d"], training: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Return the Pearson correlation of each pair of embeddings, over their entries.

    It is the cosine after each embedding lost its mean, so an offset that all entries share does not count.

    Args:
        generated: Embeddings of the generated images.
        training: Embeddings of the training images, one for each generated image.

    Returns:
        Correlation in [-1, 1], larger is more alike; 0 where all entries of either embedding are equal.

    Raises:
        ConfigurationError: If shapes differ or a value is NaN or infinite.

    Example:
        >>> embedding_correlation(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 2.0, 6.0]]))
        tensor([0.9449])

    References:
        Dar et al. (2024), Unconditional latent diffusion models memorize patient imaging data, arXiv:2402.01054, flag
        copies by the correlation of contrastive embeddings.
    """
    generated, training = check_embedding_pairs(generated, training)
    return (_unit_vectors(_centred(generated)) * _unit_vectors(_centred(training))).sum(dim=-1).clamp(-1.0, 1.0)


def split_product_similarity(
    generated: Float[Tensor, "n d"],
    training: Float[Tensor, "n d"],
    *,
    chunks: int,
    normalization: Literal["chunk", "embedding"] = "chunk",
    any_position: bool = False,
) -> Float[Tensor, " n"]:
    """Return the largest similarity of any chunk of each pair of embeddings.

    An embedding of `d` numbers is read as `chunks` consecutive parts, such as the tokens of a vision transformer. A
    copied part of an image shows in its own chunk, where the similarity of the whole averages it away.

    Args:
        generated: Embeddings of the generated images.
        training: Embeddings of the training images, one for each generated image.
        chunks: Number of parts; it divides `d`.
        normalization: With "chunk", the cosine of each chunk, so that a chunk that is alike has 1 however small it is.
            With "embedding", the inner product of the chunks of unit vectors, as in the paper: small chunks have small
            products, and the chunks of one pair add up to `cosine_similarity`.
        any_position: Whether a chunk of the sample may match any chunk of the training image, rather than the one at
            its own position only.

    Returns:
        Similarity in [-1, 1], larger is more alike; 1 for identical embeddings with "chunk". A chunk of zeros has
        similarity 0 to any.

    Raises:
        ConfigurationError: If shapes differ, a value is NaN or infinite, `chunks` does not divide `d`, or
            `normalization` is unknown.

    Example:
        >>> generated, training = torch.tensor([[3.0, 4.0, 1.0, 0.0]]), torch.tensor([[6.0, 8.0, 0.0, 1.0]])
        >>> split_product_similarity(generated, training, chunks=2)
        tensor([1.])

    References:
        Somepalli, Singla, Goldblum, Geiping, Goldstein (2023), Diffusion art or digital forgery? Investigating data
        replication in diffusion models, arXiv:2212.03860.
    """
    check_split_settings(chunks=chunks, normalization=normalization)
    generated, training = check_embedding_pairs(generated, training)
    if generated.shape[1] % chunks:
        raise ConfigurationError(
            f"chunks must divide the {generated.shape[1]} numbers of an embedding, but is chunks={chunks}."
        )
    if normalization == "embedding":
        generated, training = _unit_vectors(generated), _unit_vectors(training)
    shape = (len(generated), chunks, generated.shape[1] // chunks)
    parts = [embeddings.reshape(shape) for embeddings in (generated, training)]
    if normalization == "chunk":
        parts = [_unit_vectors(part) for part in parts]
    products: Tensor = (parts[0] @ parts[1].mT).flatten(1) if any_position else (parts[0] * parts[1]).sum(dim=2)
    return products.amax(dim=1).clamp(-1.0, 1.0)


def check_split_settings(*, chunks: int, normalization: str) -> None:
    """Accept settings that `split_product_similarity` can work with, if embeddings have the right size.

    Args:
        chunks: Number of parts.
        normalization: Name of the normalisation.

    Raises:
        ConfigurationError: If `chunks` is less than 1 or `normalization` is unknown.

    Example:
        >>> check_split_settings(chunks=4, normalization="chunk")
    """
    if chunks < 1:
        raise ConfigurationError(f"chunks must be at least 1, but is chunks={chunks}.")
    if normalization not in ("chunk", "embedding"):
        raise ConfigurationError(
            f"normalization must be 'chunk' or 'embedding', but is normalization={normalization!r}."
        )


def _centred(embeddings: Tensor) -> Tensor:
    # Subtracting the first entry first makes an embedding of equal entries exactly 0, which a rounded mean would not.
    shifted = embeddings - embeddings[:, :1]
    return shifted - shifted.mean(dim=1, keepdim=True)


def _unit_vectors(vectors: Tensor) -> Tensor:
    # Scaling by the largest entry first keeps the squares of very small embeddings from vanishing.
    largest = torch.linalg.vector_norm(vectors, ord=torch.inf, dim=-1, keepdim=True)
    vectors = vectors / torch.where(largest > 0, largest, torch.ones_like(largest))
    norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / torch.where(norm > 0, norm, torch.ones_like(norm))
