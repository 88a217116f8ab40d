"""Approximate search: FAISS proposes, a dot product in double precision decides. The only module that knows FAISS.

An index of FAISS returns some candidates per query, from compressed vectors or from a part of them. Their similarities
are then computed from the vectors themselves, as `pair_similarity` defines them. So every similarity that comes back is
exact, to the bit, and approximate is one thing alone: a hit can be missed. How often that happens is measured when an
index is built, and kept in its `SearchReport`.
"""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, final, get_args

import faiss
import numpy as np

from relict_lightning.errors import CacheWriteError, ConfigurationError, IndexCorruptError, RelictWarning
from relict_lightning.index.exact import ExactIndex
from relict_lightning.index.rows import Array, Rows
from relict_lightning.index.search import BestHits, VectorIndex, pair_similarity

Kind: TypeAlias = Literal["flat", "ivf_flat", "ivf_pq"]
"""What FAISS holds: all vectors; all vectors, in lists; or the vectors in lists, compressed to a sixteenth."""

# Candidates per hit wanted. Compressed vectors order near neighbours roughly, but seldom push one behind so many.
_OVERSAMPLING = 20
# Above this share of all vectors, reading candidates one by one costs more than reading everything in order.
_LARGEST_SHARE = 8
# Vectors read at once to compute similarities, and to be added.
_GATHERED, _ADDED = 2**14, 2**15
# A product quantiser tells 256 values of each part of a vector apart, and cannot be trained on fewer vectors.
_BITS, _FEWEST = 8, 2**8
# FAISS asks for 39 training vectors per centre; both kinds of centres get a few more.
_PER_LIST, _PER_QUANTIZER = 50, 2**14
# At most so many numbers of a vector share a byte, and fewer where a vector would get fewer bytes than this.
_PART, _FEWEST_BYTES = 4, 32
# By the tenth iteration of k-means on 4 numbers the error falls by less than 1 % each.
_ITERATIONS = 10
# Queries that recall is measured with, at most, and their similarity to the vectors that they are copies of.
_SAMPLED, _CLOSENESS = 128, 0.9
# Vectors whose random sums are the noise of those queries.
_SPREAD = 1024


def choose_kind(count: int, dimensions: int, *, memory_bytes: int) -> Literal["exact", "flat", "ivf_flat", "ivf_pq"]:
    """Return how vectors should be searched: exactly while they fit into memory, compressed beyond.

    "flat" and "ivf_flat" are never chosen, only built for who asks for them. Both hold every vector in full, so they
    need the memory that exact search needs; "flat" is slower than exact search, and "ivf_flat" trades hits for speed
    where speed is no trouble yet.

    Args:
        count: Number of vectors.
        dimensions: Numbers in each.
        memory_bytes: What float32 vectors may take.

    Returns:
        "exact" or "ivf_pq". It is "exact" as well for vectors too few to be compressed.

    Example:
        >>> choose_kind(100_000, 512, memory_bytes=2**32), choose_kind(10_000_000, 256, memory_bytes=2**32)
        ('exact', 'ivf_pq')
    """
    fits = 4 * count * dimensions <= memory_bytes
    return "exact" if fits or count < _FEWEST else "ivf_pq"


@dataclass(frozen=True, kw_only=True)
class SearchReport:
    """How an approximate index was set up, and what it finds.

    Attributes:
        kind: What FAISS holds.
        lists: Number of lists that the vectors are divided into; 0 without lists.
        probes: Number of lists that are looked through for each query; 0 without lists.
        code_bytes: Bytes that a vector takes, beside the 8 of its position in a list.
        recall: Share of sampled queries whose most similar vector was found, in [0, 1].
        sampled: Number of these queries: copies of stored vectors, with noise, at a similarity of 0.9.
    """

    kind: Kind
    lists: int
    probes: int
    code_bytes: int
    recall: float
    sampled: int


@final
class ApproximateIndex(VectorIndex):
    """Compares every query exactly with the vectors that FAISS proposes; made by `build` or `read`.

    Args:
        vectors: `[m, d]`, float32, of length 1 or zero.
        proposer: The index of FAISS over the same vectors.
        report: How it was set up.

    Raises:
        ConfigurationError: If `vectors` does not hold one vector per image.
        IndexCorruptError: If the index of FAISS does not belong to the vectors, or to the report.

    Example:
        >>> import numpy as np
        >>> from relict_lightning.index.rows import MemoryRows
        >>> index = ApproximateIndex.build(MemoryRows(np.eye(3, dtype=np.float32)), "ivf_flat")
        >>> similarity, positions = index.search(np.array([[0.0, 0.6, 0.8]]), 2)
        >>> positions, index.report.recall
        (array([[2, 1]]), 1.0)
    """

    def __init__(self, vectors: Rows, proposer: Any, report: SearchReport) -> None:
        super().__init__(vectors)
        found = (proposer.ntotal, proposer.d, _lists(proposer), _code_bytes(proposer))
        expected = (len(self), self.dimensions, report.lists, report.code_bytes)
        if found != expected or proposer.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise IndexCorruptError(
                f"The search index holds {found[0]} vectors of {found[1]} numbers, in {found[2]} lists and {found[3]} "
                f"bytes each, but {expected[0]} of {expected[1]}, in {expected[2]} lists and {expected[3]} bytes, are "
                f"expected. Delete its folder and build it again."
            )
        self.report = report
        self._proposer = proposer
        if report.lists:
            proposer.nprobe = report.probes
        self._exact = ExactIndex(vectors)

    @classmethod
    def build(cls, vectors: Rows, kind: Kind, *, seed: int = 0, target_recall: float = 0.99) -> "ApproximateIndex":
        """Return an index of vectors, which are read block by block.

        As many lists are looked through as the target asks for: one at first, then twice as many each time, up to all.
        If even that misses the target, a warning says so; the report holds what was reached.

        Args:
            vectors: `[m, d]`, float32, of length 1 or zero.
            kind: What FAISS holds. "flat" and "ivf_flat" take as much memory as the vectors; "ivf_pq" takes about a
                sixteenth, and while it is built a bounded sample of the vectors more.
            seed: Chooses the vectors to train on, those to measure recall with, and their noise.
            target_recall: Share of planted copies whose most similar vector shall be found, above 0, at most 1.

        Raises:
            ConfigurationError: If `vectors` does not hold one vector per image, or too few to train with; if there is
                no such `kind`; or if `target_recall` lies outside (0, 1].
        """
        if kind not in get_args(Kind):
            raise ConfigurationError(f"An index is one of {', '.join(get_args(Kind))}, but kind={kind!r}.")
        if not 0.0 < target_recall <= 1.0:
            raise ConfigurationError(f"target_recall is a share above 0, at most 1, but got {target_recall}.")
        if len(vectors.shape) != 2:
            raise ConfigurationError(f"An index needs vectors [m, d], but got shape {list(vectors.shape)}.")
        generator = np.random.default_rng(seed)
        proposer = _trained(vectors, kind, generator)
        for block in _pieces(vectors):
            proposer.add(block)
        report = SearchReport(
            kind=kind,
            lists=_lists(proposer),
            probes=min(1, _lists(proposer)),
            code_bytes=_code_bytes(proposer),
            recall=1.0,
            sampled=0,
        )
        queries = _planted_copies(vectors, generator)
        largest = ExactIndex(vectors).search(queries, 1)[0]
        while True:
            index = cls(vectors, proposer, report)
            # Equally similar vectors are equally right, wherever they stand.
            found = index.search(queries, 1)[0] == largest
            report = replace(report, recall=float(found.mean()) if found.size else 1.0, sampled=len(queries))
            if report.recall >= target_recall or report.probes == report.lists:
                break
            report = replace(report, probes=min(2 * report.probes, report.lists))
        index = cls(vectors, proposer, report)
        if index.report.recall < target_recall:
            warnings.warn(
                f"The search index of kind {kind!r} finds the most similar vector of {index.report.recall:.1%} of "
                f"{len(queries)} planted copies, and not of {target_recall:.1%}, whatever part of it is looked "
                f"through. What it finds is right, but it misses some. Search exactly if memory allows.",
                RelictWarning,
                stacklevel=2,
            )
        return index

    @classmethod
    def read(cls, path: Path, vectors: Rows, report: SearchReport) -> "ApproximateIndex":
        """Return an index that `write` wrote; compressed vectors stay on the disk until a search needs them.

        FAISS trusts the files that it reads, so verify the checksum before.

        Args:
            path: The file.
            vectors: The vectors that it was built from, `[m, d]`.
            report: The report of the index that was written.

        Raises:
            ConfigurationError: If `vectors` does not hold one vector per image.
            IndexCorruptError: If the file cannot be read, or does not belong to the vectors and the report.
        """
        try:
            proposer = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise IndexCorruptError(
                f"The search index {path} cannot be read. Delete its folder and build it again. FAISS says: {error}"
            ) from error
        return cls(vectors, proposer, report)

    def write(self, path: Path) -> None:
        """Write what FAISS holds to a file; the vectors and the report are the caller's to keep.

        Raises:
            CacheWriteError: If the file cannot be written.
        """
        try:
            faiss.write_index(self._proposer, str(path))
        except RuntimeError as error:
            raise CacheWriteError(
                f"The search index {path} cannot be written. Free some space, or choose a folder that this user may "
                f"write to. FAISS says: {error}"
            ) from error

    def _search(self, queries: Array, best: BestHits) -> None:
        """Add the best hits among the candidates of each query, asking for more where they lie in too few groups."""
        open_queries, left = np.arange(len(queries)), []
        wanted, count = best.k, _OVERSAMPLING * best.k
        while len(open_queries):
            asked = min(count, len(self))
            query, position, similarity = self._candidates(queries[open_queries], asked)
            distinct = _distinct(query, position, similarity, len(open_queries), codes=best.codes)
            if best.codes is not None and wanted == best.k and (distinct < wanted).any():
                # Groups may be fewer than hits wanted. Counting them takes long, so it waits for this.
                wanted = min(wanted, len(np.unique(best.codes)))
            done = distinct >= wanted
            kept = done[query]
            best.add(open_queries[query[kept]], position[kept], similarity[kept])
            count *= 2
            more = ~done & (np.bincount(query, minlength=len(open_queries)) == asked)
            if best.codes is None or _LARGEST_SHARE * count > len(self):
                more[:] = False
            left.append(open_queries[~done & ~more])
            open_queries = open_queries[more]
        rest = np.concatenate(left)
        if len(rest):
            # Every query gets the same number of hits, and only all vectors can tell which the missing ones are.
            similarity, position = self._exact.search(queries[rest], best.k, codes=best.codes)
            best.add(np.repeat(rest, position.shape[1]), position.ravel(), similarity.ravel())

    def _candidates(self, queries: Array, count: int) -> tuple[Array, Array, Array]:
        """Return query, position and similarity of what FAISS proposes, each `[p]`, at most `count` per query."""
        _, proposed = self._proposer.search(queries, count)
        # FAISS fills up with -1 where it has no more.
        query, rank = np.nonzero(proposed >= 0)
        position = proposed[query, rank]
        order = np.argsort(position, kind="stable")
        query, position = query[order], position[order]
        similarity = np.empty(len(query), dtype=np.float32)
        for start in range(0, len(query), _GATHERED):
            here = slice(start, start + _GATHERED)
            needed, vector = np.unique(position[here], return_inverse=True)
            rows = self.vectors[needed].astype(np.float32, copy=False)
            similarity[here] = pair_similarity(queries, rows, query=query[here], vector=vector)
        return query, position, similarity

    def _range_search(self, queries: Array, threshold: float) -> tuple[Array, Array, Array]:
        """Return query, position and similarity of the hits, by exact search.

        All vectors above a threshold can be any number, and lie in any list, so no number of candidates is enough; and
        whoever counts them relies on the count.
        """
        return self._exact.range_search(queries, threshold)


def _lists(proposer: Any) -> int:
    """Return the number of lists of an index of FAISS, 0 if it has none."""
    return int(getattr(proposer, "nlist", 0))


def _code_bytes(proposer: Any) -> int:
    """Return the bytes that an index of FAISS holds of a vector."""
    return int(proposer.code_size)


def _trained(vectors: Rows, kind: Kind, generator: np.random.Generator) -> Any:
    """Return an empty index of FAISS, trained on a sample of the vectors.

    Raises:
        ConfigurationError: If too few vectors are finite.
    """
    count, dimensions = vectors.shape
    quantizer = faiss.IndexFlatIP(dimensions)
    if kind == "flat":
        return quantizer
    # About as many lists as vectors in each: finding the nearest centres takes no longer than looking through lists.
    lists = max(1, min(2 ** int(math.log2(max(1, count)) / 2), count // _PER_LIST))
    sample = _sample(vectors, max(_PER_LIST * lists, _PER_QUANTIZER), generator)
    fewest = _FEWEST if kind == "ivf_pq" else 1
    if len(sample) < fewest:
        raise ConfigurationError(
            f"An index of kind {kind!r} is trained on at least {fewest} vectors, but {len(sample)} of {count} are "
            f"there and finite. Search so few exactly."
        )
    lists = min(lists, len(sample))
    seed = int(generator.integers(2**31))
    index: Any
    if kind == "ivf_flat":
        index = faiss.IndexIVFFlat(quantizer, dimensions, lists, faiss.METRIC_INNER_PRODUCT)
    else:
        index = faiss.IndexIVFPQ(quantizer, dimensions, lists, _parts(dimensions), _BITS, faiss.METRIC_INNER_PRODUCT)
        index.pq.cp.niter = _ITERATIONS
        index.pq.cp.max_points_per_centroid = _PER_QUANTIZER // 2**_BITS
        _prepare(index.pq.cp, seed=seed)
    _prepare(index.cp, seed=seed)
    index.train(sample)
    return index


def _prepare(clustering: Any, *, seed: int) -> None:
    """Seed a clustering of FAISS, and keep it from writing advice on small sets to the standard error."""
    clustering.seed = seed
    clustering.min_points_per_centroid = 1


def _parts(dimensions: int) -> int:
    """Return into how many parts of equal length vectors are cut, each of which becomes a byte."""
    fewest = max(1, -(-dimensions // _PART), min(dimensions, _FEWEST_BYTES))
    return next(parts for parts in range(fewest, dimensions + 1) if dimensions % parts == 0)


def _pieces(vectors: Rows) -> Iterator[Array]:
    """Return all vectors in pieces of bounded size, float32."""
    for _, block in vectors.blocks():
        for start in range(0, len(block), _ADDED):
            yield np.ascontiguousarray(block[start : start + _ADDED], dtype=np.float32)


def _sample(vectors: Rows, size: int, generator: np.random.Generator) -> Array:
    """Return some vectors, those of them that are finite, `[s, d]`, float32."""
    positions = generator.choice(len(vectors), min(size, len(vectors)), replace=False, shuffle=False)
    rows = vectors[np.sort(positions)].astype(np.float32, copy=False)
    return np.ascontiguousarray(rows[np.isfinite(rows).all(axis=1)])


def _planted_copies(vectors: Rows, generator: np.random.Generator) -> Array:
    """Return some stored vectors plus noise, unit vectors `[q, d]`, float32.

    The noise is spread as the vectors are. Noise in directions that no vector takes would be easy to see through.
    """
    if not len(vectors):
        return np.empty(vectors.shape, dtype=np.float32)
    stored = _sample(vectors, _SAMPLED, generator).astype(np.float64)
    others = _sample(vectors, _SPREAD, generator).astype(np.float64)
    noise = generator.standard_normal((len(stored), len(others))) @ (others - others.mean(axis=0))
    noise -= (noise * stored).sum(axis=1, keepdims=True) * stored
    copies = _CLOSENESS * stored + math.sqrt(1 - _CLOSENESS**2) * _normalized(noise)
    return _normalized(copies).astype(np.float32)


def _normalized(rows: Array) -> Array:
    """Return rows at length 1, and zero where they are zero."""
    scaled: Array = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return scaled


def _distinct(query: Array, position: Array, similarity: Array, count: int, *, codes: Array | None) -> Array:
    """Return how many hits, or groups of hits, each query has, `[count]`; vectors that are not finite are no hits."""
    finite = ~np.isnan(similarity)
    query, position = query[finite], position[finite]
    if codes is not None:
        query = np.unique(np.stack([query, codes[position]], axis=1), axis=0)[:, 0]
    return np.bincount(query, minlength=count)
