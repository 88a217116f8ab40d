"""Looking up the most similar vectors: the contract that every index keeps, and the numbers that it returns.

A similarity is the dot product of two rows of float32 numbers, added up in double precision, rounded to float32 and
clipped to [-1, 1]. Its bits depend on the two rows alone, not on what else is looked up or on how the vectors are cut
into blocks. Hits are sorted by similarity, the largest first, and equal ones by position, the lowest first. So the
answers of several indexes, each over a part of the vectors, merge to those of one index over all of them, to the bit.
"""

from abc import ABC, abstractmethod
from typing import final

import numpy as np

from relict_lightning.errors import ConfigurationError, IndexCorruptError, IndexStaleError, InvalidImageError
from relict_lightning.index.rows import Array, Rows

# Numbers held in double precision at once while similarities are added up: 1 MiB, what a core's cache holds.
_NUMBERS = 2**17


class VectorIndex(ABC):
    """Searches unit vectors by cosine similarity.

    Args:
        vectors: `[m, d]`, float32. Each has length 1, or is zero, which is similar to nothing.

    Raises:
        ConfigurationError: If `vectors` does not hold one vector per image.
    """

    def __init__(self, vectors: Rows) -> None:
        if len(vectors.shape) != 2:
            raise ConfigurationError(f"An index needs vectors [m, d], but got shape {list(vectors.shape)}.")
        self.vectors = vectors

    def __len__(self) -> int:
        """Return the number of vectors."""
        return len(self.vectors)

    @property
    def dimensions(self) -> int:
        """Number of numbers `d` in a vector."""
        return self.vectors.shape[1]

    @final
    def search(self, queries: Array, k: int, *, codes: Array | None = None) -> tuple[Array, Array]:
        """Return the `k` most similar vectors of each query, or the best vectors of its `k` most similar groups.

        Args:
            queries: `[n, d]`, unit vectors or zero.
            k: Number of hits, at least 1. Fewer come back when there are fewer vectors, or fewer groups.
            codes: The group of each vector, integers `[m]`. A hit is then the best vector of its group.

        Returns:
            Similarity `[n, k]`, float32 in [-1, 1], and position `[n, k]`, int64. The most similar come first, and
            equally similar ones by position.

        Raises:
            InvalidImageError: If a query is not finite.
            IndexStaleError: If queries have another number of dimensions than the vectors.
            ConfigurationError: If `k` is below 1, or `codes` has another length than the vectors.
            IndexCorruptError: If vectors are not finite, and too few others are left.
        """
        queries = self._checked(queries)
        if k < 1:
            raise ConfigurationError(f"A search returns at least 1 hit, but k={k}.")
        if codes is not None:
            codes = np.asarray(codes)
            if codes.shape != (len(self),):
                raise ConfigurationError(
                    f"Every vector needs the code of its group: expected codes of shape [{len(self)}], "
                    f"got {list(codes.shape)}."
                )
        k = min(k, len(self))
        if not len(queries) or not k:
            # Without a query there is nothing to count groups for.
            k = k if codes is None else min(k, len(np.unique(codes)))
            return np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        best = BestHits(len(queries), k, codes=codes)
        self._search(queries, best)
        return best.result()

    @final
    def range_search(self, queries: Array, threshold: float) -> tuple[Array, Array, Array]:
        """Return every vector that is at least so similar to a query.

        The memory that it takes grows with the number of hits.

        Args:
            queries: `[n, d]`, unit vectors or zero.
            threshold: Smallest similarity of a hit.

        Returns:
            Query `[p]` and position `[p]`, int64, and similarity `[p]`, float32 in [-1, 1]: sorted by query, then by
            similarity, the largest first, then by position.

        Raises:
            InvalidImageError: If a query is not finite.
            IndexStaleError: If queries have another number of dimensions than the vectors.
            ConfigurationError: If `threshold` is NaN.
        """
        queries = self._checked(queries)
        if np.isnan(threshold):
            raise ConfigurationError("The smallest similarity of a hit is a number, but threshold=nan.")
        query, position, similarity = self._range_search(queries, float(threshold))
        order = np.lexsort((position, -similarity, query))
        return query[order], position[order], similarity[order]

    @abstractmethod
    def _search(self, queries: Array, best: "BestHits") -> None:
        """Add to `best` at least every hit that belongs there; queries are checked, at least one, and float32."""

    @abstractmethod
    def _range_search(self, queries: Array, threshold: float) -> tuple[Array, Array, Array]:
        """Return query, position and similarity of the hits, in any order."""

    def _checked(self, queries: Array) -> Array:
        """Return queries as float32 rows.

        Raises:
            InvalidImageError: If a query is not finite.
            IndexStaleError: If queries have another number of dimensions than the vectors.
        """
        if queries.ndim != 2 or queries.shape[1] != self.dimensions:
            raise IndexStaleError(
                f"The index holds vectors of {self.dimensions} numbers, but the encoder returned "
                f"{queries.shape[-1] if queries.ndim == 2 else list(queries.shape)} for the images looked up. Use the "
                f"encoder that the index was built with, one whose output size does not depend on the images, or fit "
                f"again with an empty cache folder."
            )
        if not np.isfinite(queries).all():
            bad = np.flatnonzero(~np.isfinite(queries).all(axis=1)).tolist()
            raise InvalidImageError(
                f"Embeddings must be finite; those of images {bad[:10]} are not. "
                f"Check the encoder on these images, and its precision."
            )
        return np.ascontiguousarray(queries, dtype=np.float32)


def pair_similarity(queries: Array, vectors: Array, *, query: Array, vector: Array) -> Array:
    """Return the similarity of pairs, `[p]`, float32 in [-1, 1].

    Args:
        queries: `[n, d]`, float32.
        vectors: `[m, d]`, float32.
        query: Position of each pair's query, `[p]`.
        vector: Position of each pair's vector, `[p]`.

    Example:
        >>> import numpy as np
        >>> rows = np.eye(2, dtype=np.float32)
        >>> pair_similarity(rows, rows, query=np.array([0, 0]), vector=np.array([0, 1]))
        array([1., 0.], dtype=float32)
    """
    similarity = np.empty(len(query), dtype=np.float32)
    step = max(1, _NUMBERS // max(1, queries.shape[1]))
    for start in range(0, len(query), step):
        here = slice(start, start + step)
        # A product of float32 numbers is exact in double precision, and NumPy adds each row up in an order that
        # depends on its length alone. A matrix product or `einsum` would not promise that.
        products = queries[query[here]].astype(np.float64)
        # Vectors that are not finite give NaN, which is no hit.
        with np.errstate(invalid="ignore"):
            products *= vectors[vector[here]]
            similarity[here] = products.sum(axis=1)
    return np.clip(similarity, -1.0, 1.0)


def merge_hits(
    similarity: Array,
    positions: Array,
    k: int,
    *,
    codes: Array | None = None,
) -> tuple[Array, Array]:
    """Return the best of the hits that several indexes found for the same queries.

    Args:
        similarity: `[n, s]`, the hits of all indexes side by side.
        positions: `[n, s]`, counted through all indexes.
        k: Number of hits wanted, at least 1; fewer come back when there are fewer.
        codes: The group of each vector of all indexes, `[m]`, if hits are the best vectors of groups.

    Returns:
        Similarity and position, each `[n, k]`, as `VectorIndex.search` returns them.
    """
    count, given = similarity.shape
    best = BestHits(count, min(k, given), codes=codes)
    best.add(np.repeat(np.arange(count), given), positions.ravel(), similarity.ravel())
    return best.result()


@final
class BestHits:
    """The best hits of each query among those seen so far.

    Args:
        count: Number of queries `n`.
        k: Number of hits to keep of each, at least 1.
        codes: The group of each vector, `[m]`, if at most one hit of a group is kept.
    """

    def __init__(self, count: int, k: int, *, codes: Array | None = None) -> None:
        self.codes = codes
        # Unfilled places come last: -inf lies below every similarity.
        self._similarity = np.full((count, k), -np.inf, dtype=np.float32)
        self._positions = np.full((count, k), -1, dtype=np.int64)

    @property
    def k(self) -> int:
        """Number of hits kept of each query."""
        return self._similarity.shape[1]

    @property
    def worst(self) -> Array:
        """Similarity of each query's last hit, float32 `[n]`; -inf while there are fewer than `k`."""
        return self._similarity[:, -1]

    def add(self, query: Array, position: Array, similarity: Array) -> None:
        """Take hits in: query, position and similarity of each, `[p]`. No hit may come twice."""
        # NaN, of a vector that is not finite, is not a hit.
        better = similarity > self.worst[query]
        ties = similarity == self.worst[query]
        ties &= position < self._positions[query, -1]
        better |= ties
        query, position, similarity = query[better], position[better], similarity[better]
        if not len(query):
            return
        touched = np.unique(query)
        row, column = np.nonzero(self._positions[touched] >= 0)
        row = touched[row]
        query = np.concatenate([row, query])
        position = np.concatenate([self._positions[row, column], position])
        similarity = np.concatenate([self._similarity[row, column], similarity])
        order = np.lexsort((position, -similarity, query))
        query, position, similarity = query[order], position[order], similarity[order]
        if self.codes is not None:
            code = self.codes[position]
            # Sorted stably, the hits of one query and group stand together, the best one first.
            together = np.lexsort((code, query))
            kept = np.sort(together[_begins(query[together]) | _begins(code[together])])
            query, position, similarity = query[kept], position[kept], similarity[kept]
        starts = np.flatnonzero(_begins(query))
        rank = np.arange(len(query)) - np.repeat(starts, np.diff(np.append(starts, len(query))))
        kept = np.flatnonzero(rank < self.k)
        self._similarity[query[kept], rank[kept]] = similarity[kept]
        self._positions[query[kept], rank[kept]] = position[kept]

    def result(self) -> tuple[Array, Array]:
        """Return similarity and position of the hits, each `[n, k]`, with fewer columns where there are fewer groups.

        Raises:
            IndexCorruptError: If queries have different numbers of hits, as only vectors that are not finite cause.
        """
        filled = (self._positions >= 0).sum(axis=1)
        columns = int(filled.max(initial=0))
        if (filled < columns).any():
            raise IndexCorruptError(
                f"Some queries have {columns} hits, and some only {int(filled.min())}, so vectors of the index are not "
                f"finite. Delete its folder and build it again."
            )
        return self._similarity[:, :columns], self._positions[:, :columns]


def _begins(values: Array) -> Array:
    """Return where a run of equal values begins, bool `[p]`."""
    begins = np.ones(len(values), dtype=bool)
    begins[1:] = values[1:] != values[:-1]
    return begins
