"""Approximate search, by FAISS, for vectors that do not fit the memory: candidates first, then exact similarities.

A compressed copy of the vectors names `k * oversampling` candidates of each query. Their vectors are then read from
where they lie, and decide by exact similarity, as every index does. So a similarity is never approximate; what can
happen is that a hit is missed. How often is measured when the index is built: `ApproximateSettings.recall`.

- `flat`: an uncompressed copy, all of it compared. No faster than exact search; there to compare with.
- `ivf_flat`: an uncompressed copy in cells, of which the nearest `nprobe` are compared. Takes more memory than the
  vectors themselves.
- `ivf_pq`: the same with each vector compressed to `code_bytes` by product quantization, about a 14th of its size.
"""

import dataclasses
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

import faiss
import numpy as np

from relict_lightning.errors import ConfigurationError, IndexCorruptError, IndexStaleError, RelictWarning
from relict_lightning.index.exact import ExactIndex
from relict_lightning.index.rows import Array, Rows
from relict_lightning.index.search import BestHits, VectorIndex, pair_similarity

ApproximateKind: TypeAlias = Literal["flat", "ivf_flat", "ivf_pq"]
Kind: TypeAlias = Literal["exact", "flat", "ivf_flat", "ivf_pq"]

# Below this many vectors exact search takes milliseconds wherever they lie, and cells cannot be trained well.
_WORTH_APPROXIMATING = 2**16
# How many numbers share a byte of a code, the least compressed first.
_NUMBERS_PER_BYTE = (4, 8, 16, 32)
# FAISS keeps a position with every code, and learns 256 values of each byte.
_POSITION_BYTES, _VALUES = 8, 256
_TRAINING_PER_CELL, _LEAST_TRAINING = 64, 2**16
_BLOCK = 2**15
# A copy that a generative model makes of a training image has about this similarity to it, or more.
_COPY_SIMILARITY = 0.9
_NEIGHBORS = 5
_FIRST_PROBES = 4
# Beyond this share of the cells, exact search is as fast.
_MOST_PROBES = 0.25
# Candidates of a query that lacks hits are multiplied by this, up to so many; then exact search answers it.
_MORE, _MOST_CANDIDATES = 8, 2**13


@dataclass(frozen=True, kw_only=True)
class ApproximateSettings:
    """How an index was built, and what it finds.

    Attributes:
        kind: Which of FAISS's indexes.
        nlist: Number of cells; 1 for `flat`.
        nprobe: Number of cells compared with a query.
        code_bytes: Bytes that a vector takes, without its position.
        oversampling: Candidates read per hit wanted.
        recall: Share of planted copies (a stored vector plus noise, similarity about 0.9) of which the nearest vector
            was found, in [0, 1].
        neighbor_recall: Share of the 5 nearest other vectors of stored vectors that were found, in [0, 1].
        sample_size: Number of stored vectors that both were measured on.
    """

    kind: ApproximateKind
    nlist: int
    nprobe: int
    code_bytes: int
    oversampling: int
    recall: float
    neighbor_recall: float
    sample_size: int


def choose_kind(count: int, dimensions: int, *, memory_budget_bytes: int) -> Kind:
    """Return which index suits vectors that a search may take so much memory for.

    Exact search is right, needs nothing built, and runs at the speed of a matrix product as long as the vectors stay in
    memory, so it is chosen whenever they fit. When they do not, an index of uncompressed vectors does not either, so
    only `ivf_pq` helps, with the largest code that fits. When not even the smallest does, exact search reads the vectors
    block by block from where they lie: slow, and right. `flat` and `ivf_flat` are never chosen.

    Args:
        count: Number of vectors.
        dimensions: Numbers in each.
        memory_budget_bytes: Memory that vectors or index may take.

    Raises:
        ConfigurationError: If an argument is negative, or vectors have no numbers.

    Example:
        >>> choose_kind(1_000_000, 512, memory_budget_bytes=4 * 2**30)
        'exact'
        >>> choose_kind(10_000_000, 512, memory_budget_bytes=4 * 2**30)
        'ivf_pq'
    """
    if count < 0 or dimensions < 1 or memory_budget_bytes < 0:
        raise ConfigurationError(
            f"Expected count >= 0, dimensions >= 1 and memory_budget_bytes >= 0, got {count}, {dimensions} and "
            f"{memory_budget_bytes}."
        )
    if count < _WORTH_APPROXIMATING or 4 * count * dimensions <= memory_budget_bytes:
        return "exact"
    fits = largest_code_bytes(count, dimensions, memory_budget_bytes=memory_budget_bytes) is not None
    return "ivf_pq" if fits else "exact"


def largest_code_bytes(count: int, dimensions: int, *, memory_budget_bytes: int) -> int | None:
    """Return the largest code of `ivf_pq` that fits, in bytes a vector, or `None` if none does.

    Example:
        >>> largest_code_bytes(10_000_000, 256, memory_budget_bytes=2**30)
        64
    """
    learned = 4 * dimensions * (_cells(count) + _VALUES)
    for numbers in _NUMBERS_PER_BYTE:
        code_bytes = math.ceil(dimensions / numbers)
        if count * (code_bytes + _POSITION_BYTES) + learned <= memory_budget_bytes:
            return code_bytes
    return None


@final
class ApproximateIndex(VectorIndex):
    """Compares every query with the vectors that a FAISS index names, exactly.

    A search finds `k` hits, or all there are: a query whose candidates do not suffice (vectors of too few groups, or
    cells with too few vectors) gets more of them, and is answered by exact search in the end. `range_search` does the
    same for a query all of whose candidates lie above the threshold. Both can miss hits that are no candidates.

    Args:
        vectors: `[m, d]`, float32, of length 1 or zero. Candidates are read from here.
        index: FAISS index of the same vectors, by inner product.
        settings: How it was built.

    Raises:
        IndexStaleError: If index and vectors differ in number or dimensions.
        ConfigurationError: If `vectors` does not hold one vector per image.
    """

    def __init__(self, vectors: Rows, index: "faiss.Index", settings: ApproximateSettings) -> None:
        super().__init__(vectors)
        # Product quantization wants a multiple of the code's bytes; zeros fill up.
        if int(index.ntotal) != len(self) or not 0 <= int(index.d) - self.dimensions < max(1, settings.code_bytes):
            raise IndexStaleError(
                f"The index holds {int(index.ntotal)} vectors of {int(index.d)} numbers, but there are {len(self)} of "
                f"{self.dimensions}. Delete its folder and build it again."
            )
        self._index = index
        self.settings = settings
        self._probe(settings.nprobe)

    @classmethod
    def build(
        cls,
        vectors: Rows,
        kind: ApproximateKind,
        *,
        code_bytes: int | None = None,
        oversampling: int = 20,
        target_recall: float = 0.99,
        sample_size: int = 200,
        seed: int = 0,
    ) -> "ApproximateIndex":
        """Return an index of vectors, read block by block.

        Cells and codes are learned from a sample of the vectors. Then planted copies are looked up, and more cells are
        compared with each query until enough of the copies are found, or a quarter of all cells is compared.

        Args:
            vectors: `[m, d]`, float32, of length 1 or zero.
            kind: Which of FAISS's indexes.
            code_bytes: Bytes a vector takes in `ivf_pq`; by default one for every 4 numbers.
            oversampling: Candidates read per hit wanted, at least 1.
            target_recall: Share of planted copies to be found, in [0, 1].
            sample_size: Number of stored vectors to measure on, at least 1.
            seed: What the samples are drawn by.

        Raises:
            ConfigurationError: If an argument lies outside its range, or there are too few vectors.

        Warns:
            RelictWarning: If fewer copies are found than `target_recall` asks for.
        """
        code_bytes = _checked_code_bytes(vectors, kind, code_bytes)
        for name, value in (("oversampling", oversampling), ("sample_size", sample_size)):
            if value < 1:
                raise ConfigurationError(f"Expected {name} of at least 1, got {value}.")
        if not 0 <= target_recall <= 1:
            raise ConfigurationError(f"A recall lies in [0, 1], but target_recall={target_recall}.")
        index = _trained(vectors, kind, code_bytes=code_bytes, seed=seed)
        for _, block in vectors.blocks():
            for begin in range(0, len(block), _BLOCK):
                index.add(_filled_up(block[begin : begin + _BLOCK], int(index.d)))
        settings = ApproximateSettings(
            kind=kind,
            nlist=1 if kind == "flat" else int(index.nlist),
            nprobe=1,
            code_bytes=code_bytes,
            oversampling=oversampling,
            recall=math.nan,
            neighbor_recall=math.nan,
            sample_size=0,
        )
        built = cls(vectors, index, settings)
        built._calibrate(target_recall, sample_size=sample_size, seed=seed)
        return built

    @classmethod
    def read(cls, path: Path, vectors: Rows, settings: ApproximateSettings) -> "ApproximateIndex":
        """Return an index that `write` wrote, mapped into memory.

        FAISS trusts what it reads: verify the file's checksum before.

        Raises:
            IndexCorruptError: If FAISS cannot read the file.
            IndexStaleError: If it holds another number of vectors, or of dimensions.
        """
        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise IndexCorruptError(f"FAISS cannot read {path}. Delete its folder and build it again.") from error
        return cls(vectors, index, settings)

    def write(self, path: Path) -> None:
        """Write the FAISS index; `settings` go elsewhere."""
        faiss.write_index(self._index, str(path))

    def _search(self, queries: Array, best: BestHits) -> None:
        """Add the best hits among the candidates, and exact ones where these do not suffice."""
        count = self.settings.oversampling * best.k
        most = max(count, min(_MOST_CANDIDATES, len(self)))
        pending = np.arange(len(queries))
        while len(pending) and count <= most:
            found = BestHits(len(pending), best.k, codes=best.codes)
            found.add(*self._candidates(queries[pending], count))
            best.replace(pending, found)
            pending = pending[np.isneginf(found.worst)]
            count *= _MORE
        if len(pending):
            found = BestHits(len(pending), best.k, codes=best.codes)
            ExactIndex(self.vectors)._search(queries[pending], found)
            best.replace(pending, found)

    def _range_search(self, queries: Array, threshold: float) -> tuple[Array, Array, Array]:
        """Return query, position and similarity of the hits among the candidates."""
        hits = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))]
        count = self.settings.oversampling * _NEIGHBORS
        pending = np.arange(len(queries))
        while len(pending) and count <= _MOST_CANDIDATES:
            query, position, similarity = self._candidates(queries[pending], count)
            above = similarity >= threshold
            # Where every candidate is a hit, there may be more.
            more = np.bincount(query[~above], minlength=len(pending)) == 0
            kept = above & ~more[query]
            hits.append((pending[query[kept]], position[kept], similarity[kept]))
            pending = pending[more]
            count *= _MORE
        if len(pending):
            query, position, similarity = ExactIndex(self.vectors)._range_search(queries[pending], threshold)
            hits.append((pending[query], position, similarity))
        query, position, similarity = (np.concatenate(part) for part in zip(*hits, strict=True))
        return query, position, similarity

    def _candidates(self, queries: Array, count: int) -> tuple[Array, Array, Array]:
        """Return query, position and exact similarity of at most `count` candidates of each query."""
        _, positions = self._index.search(_filled_up(queries, int(self._index.d)), min(count, len(self)))
        # FAISS fills up with -1 where the cells compared hold too few vectors.
        query, rank = np.nonzero(positions >= 0)
        position = positions[query, rank]
        # In the order in which they lie, so that a disk is read forwards and each vector once.
        order = np.argsort(position, kind="stable")
        query, position = query[order], position[order]
        similarity = np.empty(len(query), dtype=np.float32)
        for begin in range(0, len(query), _BLOCK):
            here = slice(begin, begin + _BLOCK)
            wanted, of_pair = np.unique(position[here], return_inverse=True)
            rows = self.vectors[wanted]
            similarity[here] = pair_similarity(queries, rows, query=query[here], vector=of_pair)
        return query, position, similarity

    def _probe(self, count: int) -> None:
        """Compare so many cells with a query from now on."""
        if self.settings.kind != "flat":
            self._index.nprobe = count

    def _calibrate(self, target_recall: float, *, sample_size: int, seed: int) -> None:
        """Choose `nprobe`, and note what is found with it."""
        generator = np.random.default_rng(seed)
        positions = np.sort(generator.choice(len(self), min(sample_size, len(self)), replace=False))
        stored = self.vectors[positions]
        # A blank image is similar to nothing, and has no copy.
        positions, stored = positions[stored.any(axis=1)], stored[stored.any(axis=1)]
        copies = _noisy(stored, generator)
        exact = ExactIndex(self.vectors)
        similarity, found = exact.search(np.concatenate([copies, stored]), 1 + _NEIGHBORS)
        nearest = similarity[: len(copies), 0]
        most = max(1, int(_MOST_PROBES * self.settings.nlist))
        probes, recall = 0, -1.0
        tried = min(_FIRST_PROBES, most)
        while recall < target_recall and probes < tried:
            self._probe(tried)
            now = _share(self.search(copies, 1)[0][:, 0] >= nearest)
            if now > recall:
                probes, recall = tried, now
            elif tried == most:
                break
            tried = min(2 * tried, most)
        self._probe(probes)
        others = _neighbors(*self.search(stored, 1 + _NEIGHBORS), positions)
        true = _neighbors(similarity[len(copies) :], found[len(copies) :], positions)
        self.settings = dataclasses.replace(
            self.settings,
            nprobe=probes,
            recall=recall,
            neighbor_recall=_share(others >= true[:, -1:]),
            sample_size=len(stored),
        )
        if recall < target_recall:
            warnings.warn(
                f"The approximate index finds {recall:.1%} of planted copies, less than the {target_recall:.1%} wanted, "
                f"although it compares {probes} of {self.settings.nlist} cells. Copies can be missed: search exactly, "
                f"or with a larger code.",
                RelictWarning,
                stacklevel=3,
            )


def _cells(count: int) -> int:
    """Return the number of cells: about the square root of the number of vectors, which balances both searches."""
    return max(1, 2 ** round(math.log2(max(1, count)) / 2))


def _checked_code_bytes(vectors: Rows, kind: ApproximateKind, code_bytes: int | None) -> int:
    """Return how many bytes a vector takes.

    Raises:
        ConfigurationError: If FAISS cannot build such an index.
    """
    if kind not in ("flat", "ivf_flat", "ivf_pq"):
        raise ConfigurationError(f"Expected a kind of flat, ivf_flat or ivf_pq, got {kind!r}.")
    count, dimensions = vectors.shape
    least = _VALUES if kind == "ivf_pq" else 1
    if count < least:
        raise ConfigurationError(
            f"An index {kind} needs at least {least} vectors, but there are {count}. Search exactly."
        )
    if kind != "ivf_pq":
        if code_bytes is not None:
            raise ConfigurationError(f"Only ivf_pq compresses vectors, but code_bytes={code_bytes} for {kind}.")
        return 4 * dimensions
    if code_bytes is None:
        return math.ceil(dimensions / _NUMBERS_PER_BYTE[0])
    if not 1 <= code_bytes <= dimensions:
        raise ConfigurationError(f"A code has 1 to {dimensions} bytes, one per number, but code_bytes={code_bytes}.")
    return code_bytes


def _trained(vectors: Rows, kind: ApproximateKind, *, code_bytes: int, seed: int) -> Any:
    """Return a FAISS index that has learned its cells and codes, and holds nothing yet."""
    count, dimensions = vectors.shape
    if kind == "flat":
        return faiss.IndexFlatIP(dimensions)
    cells = _cells(count)
    if kind == "ivf_flat":
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dimensions), dimensions, cells, faiss.METRIC_INNER_PRODUCT)
    else:
        width = code_bytes * math.ceil(dimensions / code_bytes)
        quantizer = faiss.IndexFlatIP(width)
        index = faiss.IndexIVFPQ(quantizer, width, cells, code_bytes, 8, faiss.METRIC_INNER_PRODUCT)
        index.pq.cp.seed = seed + 1
        # FAISS prints a warning where there are few; recall is measured instead.
        index.pq.cp.min_points_per_centroid = 1
    # The quantizer is Python's; FAISS only points to it.
    index.quantizer_of_python = index.quantizer
    index.cp.seed = seed + 1
    index.cp.min_points_per_centroid = 1
    size = min(count, max(_TRAINING_PER_CELL * cells, _LEAST_TRAINING))
    sample = np.sort(np.random.default_rng(seed).choice(count, size, replace=False))
    index.train(_filled_up(vectors[sample], int(index.d)))
    return index


def _filled_up(rows: Array, width: int) -> Array:
    """Return rows as float32, with zeros up to a width, which change no inner product."""
    if rows.shape[1] == width:
        return np.ascontiguousarray(rows, dtype=np.float32)
    filled = np.zeros((len(rows), width), dtype=np.float32)
    filled[:, : rows.shape[1]] = rows
    return filled


def _noisy(vectors: Array, generator: np.random.Generator) -> Array:
    """Return unit vectors that have about the similarity of a copy to the given ones."""
    noise = generator.standard_normal(vectors.shape)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    copies = _COPY_SIMILARITY * vectors + math.sqrt(1 - _COPY_SIMILARITY**2) * noise
    noisy: Array = (copies / np.linalg.norm(copies, axis=1, keepdims=True)).astype(np.float32)
    return noisy


def _neighbors(similarity: Array, found: Array, own: Array) -> Array:
    """Return the similarity of each stored vector's hits without itself, or without the last one if it is no hit."""
    dropped = found == own[:, None]
    dropped[~dropped.any(axis=1), -1] = True
    return similarity[~dropped].reshape(len(found), -1)


def _share(found: Array) -> float:
    """Return which share was found, in [0, 1]; of nothing, all."""
    return float(found.mean()) if found.size else 1.0
