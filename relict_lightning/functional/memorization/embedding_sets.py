"""Sets of embeddings of any two sizes: what is accepted, and which lie nearest to which.

Conventions: embeddings are `[n, d]`, of any floating dtype, finite in float32. Distances are Euclidean and float64,
because two of them are compared here, and float32 would make ties of copies of copies. All pairs are compared, in
blocks, so memory does not grow with the product of the two sizes.

- `check_embedding_sets`: two sets of one dimension.
- `check_groups`: the patient of each embedding.
- `nearest_neighbors`: the nearest embeddings of another set.
- `largest_cosines`: the cosine to the embedding of another set with the smallest angle.
- `unit_vectors`: embeddings without their length.
"""

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from relict_lightning.errors import ConfigurationError, EmptyDataError
from relict_lightning.functional.validation import check_embeddings

# A block of float64 products of this size takes 32 MiB.
_ROWS = 1024
_COLUMNS = 4096

# The position of a neighbour that is not there.
_NONE = -1


def check_embedding_sets(generated: Tensor, training: Tensor, *, fewest_training: int = 1) -> None:
    """Accept two sets of embeddings of one dimension.

    Args:
        generated: Embeddings of the samples, `[n, d]`; there may be none.
        training: Embeddings of the training images, `[m, d]`.
        fewest_training: How many training images there must be.

    Raises:
        ConfigurationError: If embeddings are not floating point, not `[n, d]`, or not finite, or if dimensions differ.
        EmptyDataError: If there are too few training images.

    Example:
        >>> check_embedding_sets(torch.zeros(2, 3), torch.zeros(5, 3))
    """
    for name, embeddings in (("generated", generated), ("training", training)):
        check_embeddings(embeddings, name=name)
    if generated.shape[1] != training.shape[1]:
        raise ConfigurationError(
            f"generated and training must have one dimension, but have {generated.shape[1]} and {training.shape[1]}. "
            f"Embed both with one encoder."
        )
    if len(training) < fewest_training:
        raise EmptyDataError(
            f"training must hold at least {fewest_training} embeddings, but holds {len(training)}. Give the "
            f"embeddings of the whole training set."
        )


def check_groups(groups: Tensor, embeddings: Tensor, *, name: str) -> None:
    """Accept one group per embedding.

    Args:
        groups: Group of each embedding, `[n]`.
        embeddings: The embeddings, `[n, d]`.
        name: What the caller calls the groups, for the message.

    Raises:
        ConfigurationError: If there is not one group per embedding, or groups are not integers.

    Example:
        >>> check_groups(torch.tensor([0, 0, 1]), torch.zeros(3, 8), name="training_groups")
    """
    if groups.is_floating_point() or groups.dtype == torch.bool:
        raise ConfigurationError(f"{name} must be integers, but has dtype {groups.dtype}. Number them from 0.")
    if groups.shape != embeddings.shape[:1]:
        raise ConfigurationError(
            f"{name} must have one entry for each of the {len(embeddings)} embeddings, but has shape "
            f"{tuple(groups.shape)}."
        )


def nearest_neighbors(
    queries: Float[Tensor, "n d"],
    references: Float[Tensor, "m d"],
    *,
    count: int = 1,
    query_groups: Integer[Tensor, " n"] | None = None,
    reference_groups: Integer[Tensor, " m"] | None = None,
) -> tuple[Float[Tensor, "n k"], Integer[Tensor, "n k"]]:
    """Return the distances to the nearest references, in order, and their positions.

    Neighbours are found by a float64 matrix product, and the distances are then lengths of differences, so that of a
    copy is exactly 0. With `torch.cdist`, the float32 product puts copies of length 23 at up to 0.02, and differences
    take ten times as long (500 x 5,000 embeddings of length 512, one core).

    Args:
        queries: Embeddings to search for.
        references: Embeddings to search in, at least one.
        count: Number of neighbours.
        query_groups: Group of each query; its own group is left out of the search. Both groups are given, or neither.
        reference_groups: Group of each reference.

    Returns:
        Distances, float64, and positions; infinity and -1 where fewer than `count` references are left.

    Example:
        >>> nearest_neighbors(torch.tensor([[0.0]]), torch.tensor([[3.0], [2.0], [5.0]]), count=2)
        (tensor([[2., 3.]], dtype=torch.float64), tensor([[1, 0]]))
    """
    found = []
    for start in range(0, len(queries), _ROWS):
        rows = queries[start : start + _ROWS]
        own = None if query_groups is None else query_groups[start : start + _ROWS]
        positions = _nearest_positions(rows, references, count=count, own=own, groups=reference_groups)
        found.append(_in_order(rows, references, positions))
    if not found:
        empty = queries.new_zeros((0, count), dtype=torch.float64)
        return empty, empty.long()
    distances, positions = (torch.cat(parts) for parts in zip(*found, strict=True))
    return distances, positions


def largest_cosines(
    queries: Float[Tensor, "n d"],
    references: Float[Tensor, "m d"],
    *,
    query_groups: Integer[Tensor, " n"] | None = None,
    reference_groups: Integer[Tensor, " m"] | None = None,
) -> Float[Tensor, " n"]:
    """Return the largest cosine of each query to a reference.

    Args:
        queries: Embeddings to search for.
        references: Embeddings to search in.
        query_groups: Group of each query; its own group is left out of the search. Both groups are given, or neither.
        reference_groups: Group of each reference.

    Returns:
        Cosines in [-1, 1], float64; 0 where an embedding is all zeros, -1 where no reference is left.

    Example:
        >>> largest_cosines(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor([0.8000], dtype=torch.float64)
    """
    largest = [queries.new_zeros(0, dtype=torch.float64)]
    for start in range(0, len(queries), _ROWS):
        rows = unit_vectors(queries[start : start + _ROWS])
        best = rows.new_full((len(rows),), -1.0)
        for offset in range(0, len(references), _COLUMNS):
            cosines = rows @ unit_vectors(references[offset : offset + _COLUMNS]).T
            if query_groups is not None and reference_groups is not None:
                own, others = query_groups[start : start + _ROWS], reference_groups[offset : offset + _COLUMNS]
                cosines.masked_fill_(own[:, None] == others, -1.0)
            best = torch.maximum(best, cosines.amax(dim=1))
        largest.append(best)
    return torch.cat(largest).clamp(-1.0, 1.0)


def unit_vectors(embeddings: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Return the embeddings scaled to length 1, float64; zeros stay zeros.

    Args:
        embeddings: Embeddings.

    Example:
        >>> unit_vectors(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]], dtype=torch.float64)
    """
    embeddings = embeddings.double()
    norm = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True)
    return embeddings / torch.where(norm > 0, norm, torch.ones_like(norm))


def _nearest_positions(
    rows: Tensor, references: Tensor, *, count: int, own: Tensor | None, groups: Tensor | None
) -> Integer[Tensor, "n k"]:
    # Products cancel less when lengths are taken from a point amid the references.
    origin = references.double().mean(dim=0)
    rows = rows.double() - origin
    nearest = rows.new_full((len(rows), count), torch.inf)
    positions = rows.new_full((len(rows), count), _NONE, dtype=torch.long)
    for offset in range(0, len(references), _COLUMNS):
        columns = references[offset : offset + _COLUMNS].double() - origin
        # The square of a row's own length is the same for all columns.
        squares = torch.addmm(columns.square().sum(dim=1).expand(len(rows), -1), rows, columns.T, alpha=-2)
        here = torch.arange(len(columns), device=rows.device).add(offset).expand(len(rows), -1)
        if own is not None and groups is not None:
            in_own_group = own[:, None] == groups[offset : offset + _COLUMNS]
            squares.masked_fill_(in_own_group, torch.inf)
            here = here.masked_fill(in_own_group, _NONE)
        nearest, chosen = torch.cat([nearest, squares], dim=1).topk(count, dim=1, largest=False)
        positions = torch.cat([positions, here], dim=1).gather(1, chosen)
    return positions


def _in_order(rows: Tensor, references: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    rows = rows.double()
    columns = [torch.linalg.vector_norm(rows - references[column].double(), dim=1) for column in positions.T]
    distances = torch.stack(columns, dim=1).masked_fill(positions == _NONE, torch.inf)
    order = distances.argsort(dim=1, stable=True)
    return distances.gather(1, order), positions.gather(1, order)
