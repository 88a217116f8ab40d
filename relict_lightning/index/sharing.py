"""Rows and searches over a set that several processes hold, a share each.

Every process asks the same question, searches its own share, and all merge what they found. A similarity is computed
from its two vectors alone and ties go to the lower position, so the answer is that of one process, to the bit.
"""

from collections.abc import Iterator
from typing import final

import numpy as np

from relict_lightning.index.exact import ExactIndex
from relict_lightning.index.rows import Array, Rows
from relict_lightning.index.search import VectorIndex, merge_hits
from relict_lightning.processes import Processes


@final
class HeldRows(Rows):
    """The rows that this process holds, addressed by their positions in the whole set.

    Args:
        rows: The rows held here.
        positions: Position of each in the whole set.
        count: Number of images in the whole set.
    """

    def __init__(self, rows: Rows, positions: Array, count: int) -> None:
        self.rows = rows
        self.positions = positions
        self._local = np.full(count, -1, dtype=np.int64)
        self._local[positions] = np.arange(len(positions))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape `(m, *row)` over the whole set."""
        return (len(self._local), *self.rows.shape[1:])

    def holds(self, positions: Array) -> Array:
        """Return which rows are here, `[p]`."""
        held: Array = self._local[np.asarray(positions, dtype=np.int64)] >= 0
        return held

    def __getitem__(self, positions: Array) -> Array:
        """Return copies of rows that are here, `[p, *row]`.

        Raises:
            IndexError: If another process holds one of them.
        """
        local = self._local[np.asarray(positions, dtype=np.int64)]
        if (local < 0).any():
            raise IndexError(f"{int((local < 0).sum())} of {len(local)} rows are held by other processes.")
        return self.rows[local]

    def blocks(self) -> Iterator[tuple[int, Array]]:
        """Return the rows that are here, in pieces; positions count those that are here."""
        return self.rows.blocks()


@final
class SelectedRows(Rows):
    """Some rows of others, in an order of their own.

    Args:
        rows: The others.
        positions: Which, `[m]`.
    """

    _BLOCK = 1024

    def __init__(self, rows: Rows, positions: Array) -> None:
        self._rows = rows
        self._positions = np.asarray(positions, dtype=np.int64)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape `(m, *row)`."""
        return (len(self._positions), *self._rows.shape[1:])

    def __getitem__(self, positions: Array) -> Array:
        """Return copies of the rows at some positions, `[p, *row]`."""
        return self._rows[self._positions[np.asarray(positions, dtype=np.int64)]]

    def blocks(self) -> Iterator[tuple[int, Array]]:
        """Return all rows in order, in pieces."""
        for start in range(0, len(self), self._BLOCK):
            yield start, self._rows[self._positions[start : start + self._BLOCK]]


@final
class SharedIndex:
    """Searches the vectors of all processes, which all call its methods with the same arguments.

    Args:
        index: Searches the vectors held here.
        vectors: The vectors held here, addressed by their positions in the whole set.
        processes: Who shares the set.
    """

    def __init__(self, index: VectorIndex, vectors: HeldRows, processes: Processes) -> None:
        self.index = index
        self.vectors = vectors
        self._processes = processes

    def __len__(self) -> int:
        """Return the number of vectors in the whole set."""
        return len(self.vectors)

    def selected(self, positions: Array) -> "SharedIndex":
        """Return an index of some of the vectors, whose positions count these; it reads from this one's."""
        chosen = np.asarray(positions, dtype=np.int64)
        here = np.flatnonzero(self.vectors.holds(chosen))
        rows = SelectedRows(self.vectors, chosen[here])
        return SharedIndex(ExactIndex(rows), HeldRows(rows, here, len(chosen)), self._processes)

    def search(self, queries: Array, k: int, *, codes: Array | None = None) -> tuple[Array, Array]:
        """Return the `k` most similar vectors of each query, most similar first.

        Args:
            queries: `[n, d]` unit vectors.
            k: Number of hits, at least 1; fewer come back when there are fewer vectors or groups.
            codes: Group of every vector, `[m]`; with it the hits are the nearest vectors of `k` different groups.

        Returns:
            Cosine similarity `[n, k]` in [-1, 1], and positions `[n, k]`.

        Raises:
            InvalidImageError: If a query is not finite.
            IndexStaleError: If queries have another number of dimensions than the vectors.
        """
        positions = self.vectors.positions

        def act() -> tuple[Array, Array]:
            similarity, local = self.index.search(queries, k, codes=None if codes is None else codes[positions])
            return similarity, positions[local]

        found = self._processes.gather(act, doing="Searching the reference")
        if len(found) == 1:
            return found[0]
        similarity, position = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        return merge_hits(similarity, position, k, codes=codes)

    def range_search(self, queries: Array, threshold: float) -> tuple[Array, Array, Array]:
        """Return everything at least this similar: query, position and similarity, by query, most similar first."""
        positions = self.vectors.positions

        def act() -> tuple[Array, Array, Array]:
            query, local, similarity = self.index.range_search(queries, threshold)
            return query, positions[local], similarity

        found = self._processes.gather(act, doing="Searching the reference")
        query, position, similarity = (np.concatenate(parts) for parts in zip(*found, strict=True))
        order = np.lexsort((position, -similarity, query))
        return query[order], position[order], similarity[order]
