"""Exact search: a blocked matrix product that selects, and a dot product in double precision that decides.

The product in single precision costs nearly all of the time, and is off by rounding. So it only selects: whatever it
cannot exclude is looked at again in double precision. A sum of `d` products in single precision, in any order, is off
by at most `d u / (1 - d u)` times the lengths of the two vectors, with `u = 2^-24`; call that bound `e`.

- Once a query has `k` hits, the last one with similarity `s`, a later vector takes its place only with a larger
  similarity, because at equal ones the lower position wins. A product `p <= s - e` excludes that, and nothing else
  does. So many identical vectors cost nothing after the first `k`, except for those within `e` of `s`.
- Where a block brings too many candidates (the first block, vectors sorted by similarity, images of one patient side by
  side), products alone exclude more: below the k-th largest product of the block, less `2 e`, there is no hit.
- Where too many are left even then (copies of one image by the thousand), a product in double precision excludes those
  that are equal to the last hit. The memory is bounded by the block in every case, and no tie is cut off.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from relict_lightning.index.rows import Array, Rows
from relict_lightning.index.search import BestHits, VectorIndex, pair_similarity

# Columns of the product at once: on a CPU, product and vectors stay in the cache; a GPU wants fewer, larger steps.
_WIDTH, _WIDTH_ON_GPU = 2**13, 2**16
# The first columns have nothing to be compared with, so there are few of them, and twice as many each time.
_FIRST_WIDTH = 2**9
_QUERIES, _QUERIES_ON_GPU = 128, 512
# Products are compared with the bar by the largest of so many.
_SEGMENT = 64
# MKL multiplies a multiple of four rows about a fifth faster.
_ROWS = 4
# Candidates of a block, per hit wanted, above which products are compared with each other.
_PER_HIT = 2
# Vectors in double precision at once.
_DOUBLES = 2**10
# Vectors may be a little longer than 1, as rounding makes them.
_LENGTH = 1.001
# Covers that similarities are rounded to single precision, and so are the bars.
_ROUNDING = 2.0**-22
# A share of the free memory of a GPU: a model is being trained there.
_SHARE_ON_GPU = 0.25


@final
class ExactIndex(VectorIndex):
    """Compares every query with every vector.

    Args:
        vectors: `[m, d]`, float32, of length 1 or zero.
        device: Where to multiply. On a GPU, vectors stay there between searches if they take at most a quarter of the
            memory that is free at the first one.

    Raises:
        ConfigurationError: If `vectors` does not hold one vector per image.

    Example:
        >>> import numpy as np
        >>> from relict_lightning.index.rows import MemoryRows
        >>> index = ExactIndex(MemoryRows(np.eye(3, dtype=np.float32)))
        >>> similarity, positions = index.search(np.array([[0.0, 0.6, 0.8]]), 2)
        >>> positions
        array([[2, 1]])
    """

    def __init__(self, vectors: Rows, *, device: torch.device | str = "cpu") -> None:
        super().__init__(vectors)
        self.device = torch.device(device)
        self._resident: dict[tuple[int, int], Tensor] | None = None

    def _search(self, queries: Array, best: BestHits) -> None:
        """Add the best hits of all vectors."""
        with _full_precision(self.device):
            tiles = self._tiles(queries)
            for start, rows, columns in self._columns():
                for tile in tiles:
                    query, column = tile.candidates(rows, columns, start=start, best=best)
                    similarity = pair_similarity(queries, rows, query=query, vector=column)
                    best.add(query, start + column, similarity)

    def _range_search(self, queries: Array, threshold: float) -> tuple[Array, Array, Array]:
        """Return query, position and similarity of the hits."""
        query, position = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        similarity = [np.empty(0, np.float32)]
        with _full_precision(self.device):
            tiles = self._tiles(queries)
            for start, rows, columns in self._columns():
                for tile in tiles:
                    found, column = tile.above(rows, columns, threshold=threshold)
                    values = pair_similarity(queries, rows, query=found, vector=column)
                    kept = values >= threshold
                    query.append(found[kept])
                    position.append(start + column[kept])
                    similarity.append(values[kept])
        return np.concatenate(query), np.concatenate(position), np.concatenate(similarity)

    def _tiles(self, queries: Array) -> list["_Tile"]:
        """Return the queries in groups that are multiplied at once; they share the memory of the product."""
        on_gpu = self.device.type != "cpu"
        size = _QUERIES_ON_GPU if on_gpu else _QUERIES
        longest = -(-min(size, len(queries)) // _ROWS) * _ROWS
        width = -(-min(self._width, len(self)) // _SEGMENT) * _SEGMENT
        memory = torch.empty(width * longest, dtype=torch.float32, device=self.device)
        return [
            _Tile(queries, first, min(first + size, len(queries)), memory=memory)
            for first in range(0, len(queries), size)
        ]

    @property
    def _width(self) -> int:
        """Columns of the product at once."""
        return _WIDTH if self.device.type == "cpu" else _WIDTH_ON_GPU

    def _columns(self) -> Iterator[tuple[int, Array, Tensor]]:
        """Return all vectors in pieces: the position of the first one, the rows, and the rows on the device."""
        resident = self._memory_on_device()
        width = _FIRST_WIDTH
        for first, block in self.vectors.blocks():
            begin = 0
            while begin < len(block):
                rows = np.ascontiguousarray(block[begin : begin + width], dtype=np.float32)
                key = (first + begin, len(rows))
                columns = None if resident is None else resident.get(key)
                if columns is None:
                    columns = _as_tensor(rows).to(self.device)
                    if resident is not None:
                        resident[key] = columns
                yield first + begin, rows, columns
                begin += len(rows)
                width = min(2 * width, self._width)

    def _memory_on_device(self) -> dict[tuple[int, int], Tensor] | None:
        """Return the pieces that stay on the GPU, or `None` where pieces do not stay."""
        if self.device.type != "cuda":
            return None
        if self._resident is None:
            free, _ = torch.cuda.mem_get_info(self.device)
            if 4 * len(self) * self.dimensions > _SHARE_ON_GPU * free:
                return None
            self._resident = {}
        return self._resident


@final
class _Tile:
    """Queries that are multiplied at once, and what their products exclude.

    Args:
        queries: All queries, `[n, d]`, float32.
        first: Position of the first one of the tile.
        last: Position after the last one.
        memory: Room for the product, on the device.
    """

    def __init__(self, queries: Array, first: int, last: int, *, memory: Tensor) -> None:
        self.first, self.count = first, last - first
        self.queries = queries[first:last]
        padded = np.zeros((-(-self.count // _ROWS) * _ROWS, queries.shape[1]), dtype=np.float32)
        padded[: self.count] = self.queries
        self._factor = torch.from_numpy(padded).to(memory.device).T
        self._memory = memory
        self._lengths = _LENGTH * np.linalg.norm(self.queries.astype(np.float64), axis=1)
        # Two more than the number of terms, for second-order terms and the double precision of the decision.
        self.error = self._lengths * (queries.shape[1] + 2) * 2.0**-24

    def candidates(self, rows: Array, columns: Tensor, *, start: int, best: BestHits) -> tuple[Array, Array]:
        """Return query and column of every pair that can be among the best hits.

        Args:
            rows: Vectors that follow those that `best` has seen, `[c, d]`.
            columns: The same on the device.
            start: Position of the first one.
            best: The best hits so far.
        """
        worst = best.worst[self.first : self.first + self.count].astype(np.float64)
        # No similarity is larger than 1, so a last hit of 1 stays.
        bar = self._padded(np.where(worst >= 1.0, np.inf, worst - self.error))
        product = self._multiply(columns)
        query, column = self._above(product, bar)
        limit = _PER_HIT * best.k * self.count + _FIRST_WIDTH
        if len(query) > limit:
            codes = None if best.codes is None else best.codes[start : start + len(rows)]
            can = self._can_lead(product[: len(rows)], query, column, k=best.k, codes=codes)
            query, column = query[can], column[can]
        found, offset = query.cpu().numpy(), column.cpu().numpy()
        if len(found) > limit:
            may = self._exceeds(worst, rows, found, offset)
            found, offset = found[may], offset[may]
        return self.first + found, offset

    def above(self, rows: Array, columns: Tensor, *, threshold: float) -> tuple[Array, Array]:
        """Return query and column of every pair that can be at least so similar."""
        bar = np.full(self.count, -np.inf) if threshold <= -1.0 else threshold - self.error - _ROUNDING
        query, column = self._above(self._multiply(columns), self._padded(bar))
        return self.first + query.cpu().numpy(), column.cpu().numpy()

    def _padded(self, bar: Array) -> Tensor:
        """Return bars of the queries, and of the empty ones that fill the tile, rounded down to single precision."""
        rounded = np.full(self._factor.shape[1], np.inf, dtype=np.float32)
        rounded[: self.count] = bar
        up = np.flatnonzero(rounded[: self.count] > bar)
        rounded[up] = np.nextafter(rounded[up], np.float32(-np.inf))
        return torch.from_numpy(rounded).to(self._memory.device)

    def _multiply(self, columns: Tensor) -> Tensor:
        """Return the product, vectors by queries, with rows of -inf up to a whole number of segments."""
        count, width = len(columns), self._factor.shape[1]
        full = -(-count // _SEGMENT) * _SEGMENT
        product = self._memory[: full * width].view(full, width)
        torch.mm(columns, self._factor, out=product[:count])
        product[count:] = -torch.inf
        return product

    def _above(self, product: Tensor, bar: Tensor) -> tuple[Tensor, Tensor]:
        """Return query and column of all products above the bar of their query, or NaN."""
        segments = product.view(-1, _SEGMENT, product.shape[1])
        peaks = segments.amax(dim=1)
        segment, query = (~(peaks <= bar))[:, : self.count].nonzero(as_tuple=True)
        hit, offset = (~(segments[segment, :, query] <= bar[query, None])).nonzero(as_tuple=True)
        return query[hit], segment[hit] * _SEGMENT + offset

    def _can_lead(self, product: Tensor, query: Tensor, column: Tensor, *, k: int, codes: Array | None) -> Tensor:
        """Return which pairs the other products of the block do not exclude, bool `[p]`."""
        values = product[column, query]
        if codes is None:
            peaks = product
        else:
            names, of_column = np.unique(codes, return_inverse=True)
            group = torch.from_numpy(of_column).to(product.device)
            peaks = torch.full((len(names), product.shape[1]), -torch.inf, device=product.device)
            peaks.scatter_reduce_(0, group[:, None].expand_as(product), product, "amax")
        can = torch.ones_like(query, dtype=torch.bool)
        slack = torch.from_numpy((2 * self.error + _ROUNDING).astype(np.float32)).to(product.device)
        if len(peaks) >= k:
            can &= ~(values <= _surely_below(peaks.topk(k, dim=0).values[-1][query], slack[query]))
        if codes is not None:
            can &= ~(values <= _surely_below(peaks[group[column], query], slack[query]))
        return can

    def _exceeds(self, worst: Array, rows: Array, query: Array, column: Array) -> Array:
        """Return which pairs may be more similar than the query's last hit, by double precision, bool `[p]`."""
        may = np.empty(len(query), dtype=bool)
        columns, of_pair = np.unique(column, return_inverse=True)
        factor = self.queries.astype(np.float64).T
        for start in range(0, len(columns), _DOUBLES):
            vectors = rows[columns[start : start + _DOUBLES]].astype(np.float64)
            pairs = np.flatnonzero((of_pair >= start) & (of_pair < start + _DOUBLES))
            row, of_query = of_pair[pairs] - start, query[pairs]
            # Twice the bound of a sum in double precision, for this one and for the one that decides.
            error = 4 * factor.shape[0] * 2.0**-53 * np.linalg.norm(vectors, axis=1)[row] * self._lengths[of_query]
            largest = ((vectors @ factor)[row, of_query] + error).astype(np.float32)
            may[pairs] = ~(largest <= worst[of_query])
        return may


def _surely_below(product: Tensor, slack: Tensor) -> Tensor:
    """Return the largest product that has surely a smaller similarity than another product.

    Args:
        product: The other product.
        slack: What both can be off by, together.
    """
    bar = product.clamp(max=1.0) - slack
    # Similarities of -1 and less are equal.
    return bar.masked_fill(bar <= -1.0, -torch.inf)


class _Writable:
    """Memory of a read-only array, which torch takes only with a warning; nothing writes to it."""

    def __init__(self, values: Array) -> None:
        address, _ = values.__array_interface__["data"]
        self.__array_interface__ = {**values.__array_interface__, "data": (address, False)}


def _as_tensor(values: Array) -> Tensor:
    """Return an array's memory as a tensor; it lives as long as the array does."""
    return torch.from_numpy(values if values.flags.writeable else np.asarray(_Writable(values)))


@contextlib.contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Multiply in single precision, whatever training allows itself; the bounds hold for nothing less."""
    if not hasattr(torch.backends, "fp32_precision"):
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
        return
    backends: Any = torch.backends.mkldnn if device.type == "cpu" else torch.backends.cuda
    backend = backends.matmul
    before = backend.fp32_precision
    backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        backend.fp32_precision = before
