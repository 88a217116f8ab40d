"""Measures the search of the index, each against a named alternative in the same run.

- Exact search of 64 queries, 5 hits each, among 100,000 and 1,000,000 vectors of 512 numbers in memory. Bars: at most
  1.2 times the time of a bare blocked product with `torch.topk` and a running merge, the faster of its two orders of
  factors; at least 2.5 times faster than `faiss.IndexFlatIP`; memory beyond the vectors at most 20 % of theirs, at
  100,000. The limit is the matrix product, 2 * 64 * 512 floating-point operations a vector, and its time is printed;
  at few queries it is memory bandwidth, because every vector is read once. Beside it the search for the best vector of
  each of 5 groups.
- With `--large`: search of 64 planted copies (a stored vector plus noise, similarity about 0.9) among 10,000,000
  clustered vectors of 256 numbers on disk, by IVF-PQ with exact re-ranking, against exact search of the same vectors.
  Bars: it finds at least 99 % of the nearest vectors, at least 10 times faster. Exact search is limited by the product
  and by how fast 10 GB are read, so the share of them that the page cache holds decides its time; IVF-PQ by table
  look-ups and by one page read per candidate. It writes the vectors, 10 GB, into a temporary folder, deleted at the
  end, and takes about ten minutes on two cores.

The sides of each ratio take turns, and medians are compared: other work on the machine meets all of them.

Run with `python benchmarks/index_search.py`, for a quick look with `--sizes 20000`, and at full size with
`--sizes --large --folder /some/disk`. It reads peak memory from `/proc`, so it needs Linux.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import faiss
import numpy as np
import torch

from relict_lightning.index.approximate import ApproximateIndex, choose_kind
from relict_lightning.index.exact import ExactIndex
from relict_lightning.index.rows import Array, MemoryRows, Rows

BARE_BAR = 1.2
FAISS_BAR = 2.5
MEMORY_BAR = 0.2
RECALL_BAR = 0.99
APPROXIMATE_BAR = 10.0
QUERIES, HITS = 64, 5


def median_seconds(*calls: Callable[[], object], repeats: int) -> list[float]:
    """Return the median time of each call; the calls take turns, so that all meet the same machine."""
    seconds = np.empty((repeats, len(calls)))
    # The first round warms up caches, threads and allocators.
    for call in calls:
        call()
    for row in seconds:
        for position, call in enumerate(calls):
            started = time.perf_counter()
            call()
            row[position] = time.perf_counter() - started
    return np.median(seconds, axis=0).tolist()


def verdict(value: float, bar: float, *, at_least: bool = True) -> str:
    """Return a value beside its bar, in words."""
    met = value >= bar if at_least else value <= bar
    return f"{value:.3g} ({'meets' if met else 'MISSES'} {'at least' if at_least else 'at most'} {bar:g})"


def unit_rows(count: int, dimensions: int, *, seed: int) -> Array:
    """Return unit vectors in all directions, `[count, dimensions]`, float32."""
    vectors = np.random.default_rng(seed).standard_normal((count, dimensions), dtype=np.float32)
    for start in range(0, count, 2**16):
        vectors[start : start + 2**16] /= np.linalg.norm(vectors[start : start + 2**16], axis=1, keepdims=True)
    return vectors


def peak_memory_of(call: Callable[[], object]) -> int:
    """Return by how many bytes the resident memory grew while a call ran."""

    def resident(name: str) -> int:
        status = Path("/proc/self/status").read_text()
        return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name))

    # This sets the peak back to what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    call()
    return resident("VmHWM") - before


def bare_search(queries: torch.Tensor, vectors: torch.Tensor, *, width: int, vectors_first: bool) -> torch.Tensor:
    """Return the positions that a blocked product and `torch.topk` find, merged as it goes, `[n, k]`."""
    dim = 0 if vectors_first else 1
    best = positions = None
    memory = torch.empty(width * len(queries))
    for start in range(0, len(vectors), width):
        block = vectors[start : start + width]
        shape = (len(block), len(queries)) if vectors_first else (len(queries), len(block))
        product = memory[: len(block) * len(queries)].view(shape)
        torch.mm(*((block, queries.T) if vectors_first else (queries, block.T)), out=product)
        similarity, found = product.topk(min(HITS, len(block)), dim=dim)
        found = found + start
        if best is not None:
            similarity, found = torch.cat([best, similarity], dim), torch.cat([positions, found], dim)
            similarity, order = similarity.topk(HITS, dim=dim)
            found = found.gather(dim, order)
        best, positions = similarity, found
    return positions.T if vectors_first else positions


def exact(size: int, *, repeats: int) -> None:
    """Print what exact search costs beside a bare product and FAISS."""
    dimensions = 512
    vectors, queries = unit_rows(size, dimensions, seed=0), unit_rows(QUERIES, dimensions, seed=1)
    index = ExactIndex(MemoryRows(vectors))
    codes = np.random.default_rng(2).permutation(size) // 7
    index.search(unit_rows(QUERIES, dimensions, seed=3)[:4], HITS)
    memory = peak_memory_of(lambda: index.search(queries, HITS))
    flat = faiss.IndexFlatIP(dimensions)
    flat.add(vectors)
    rows, block_rows = torch.from_numpy(queries), torch.from_numpy(vectors)
    ours, grouped, queries_first, vectors_first, product, by_faiss = median_seconds(
        lambda: index.search(queries, HITS),
        lambda: index.search(queries, HITS, codes=codes),
        lambda: bare_search(rows, block_rows, width=2**13, vectors_first=False),
        lambda: bare_search(rows, block_rows, width=2**13, vectors_first=True),
        lambda: [block @ rows.T for block in block_rows.split(2**13)],
        lambda: flat.search(queries, HITS),
        repeats=repeats,
    )
    bare = min(queries_first, vectors_first)
    agree = (index.search(queries, HITS)[1] == flat.search(queries, HITS)[1]).mean()
    print(
        f"exact, {size:,} x {dimensions}: {1e3 * ours:.0f} ms, by group {1e3 * grouped:.0f} ms; product and topk "
        f"{1e3 * queries_first:.0f} ms, factors exchanged {1e3 * vectors_first:.0f} ms; product alone "
        f"{1e3 * product:.0f} ms ({2 * QUERIES * dimensions * size / product / 1e9:.0f} GFLOP/s); "
        f"IndexFlatIP {1e3 * by_faiss:.0f} ms, {agree:.1%} of positions equal"
    )
    print(f"  time over product and topk: {verdict(ours / bare, BARE_BAR, at_least=False)}")
    print(f"  by group, over product and topk: {verdict(grouped / bare, BARE_BAR, at_least=False)}")
    print(f"  times faster than IndexFlatIP: {verdict(by_faiss / ours, FAISS_BAR)}")
    share = memory / vectors.nbytes
    print(
        f"  peak memory, share of the vectors: {verdict(share, MEMORY_BAR, at_least=False)}, {memory / 2**20:.0f} MiB"
    )


class FileRows(Rows):
    """Rows in files of equal length, mapped into memory one after the other.

    Args:
        paths: One `.npy` file per block.
        length: Rows in each, but for the last.
    """

    def __init__(self, paths: list[Path], length: int) -> None:
        self.paths, self.length = paths, length
        last = np.load(paths[-1], mmap_mode="r")
        self._shape = (length * (len(paths) - 1) + len(last), last.shape[1])

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape `(m, d)`."""
        return self._shape

    def __getitem__(self, positions: Array) -> Array:
        """Return copies of some rows."""
        rows = np.empty((len(positions), self._shape[1]), dtype=np.float32)
        file = positions // self.length
        for number in np.unique(file):
            here = np.flatnonzero(file == number)
            rows[here] = np.load(self.paths[number], mmap_mode="r")[positions[here] - number * self.length]
        return rows

    def blocks(self) -> Iterator[tuple[int, Array]]:
        """Return the files; the memory of each is given back before the next one."""
        for number, path in enumerate(self.paths):
            yield number * self.length, np.load(path, mmap_mode="r")


def write_clusters(folder: Path, *, size: int, dimensions: int) -> FileRows:
    """Write unit vectors around 2,000 centres, at a similarity of about 0.7 to their own, in files of 2^17."""
    length = 2**17
    generator = np.random.default_rng(0)
    centers = unit_rows(2_000, dimensions, seed=1)
    paths = []
    for start in range(0, size, length):
        count = min(length, size - start)
        vectors = generator.standard_normal((count, dimensions), dtype=np.float32)
        vectors /= np.float32(np.sqrt(dimensions))
        vectors += centers[generator.integers(0, len(centers), count)]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        paths.append(folder / f"{start:010d}.npy")
        np.save(paths[-1], vectors)
    return FileRows(paths, length)


def planted_copies(rows: Rows, *, count: int, seed: int) -> tuple[Array, Array]:
    """Return stored vectors plus noise, at a similarity of about 0.9, and their positions."""
    positions = np.sort(np.random.default_rng(seed).choice(len(rows), count, replace=False))
    stored = rows[positions]
    noise = unit_rows(count, stored.shape[1], seed=seed + 1)
    queries = 0.9 * stored + np.sqrt(1 - 0.9**2) * noise
    return (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32), positions


def large(folder: Path | None, *, size: int, dimensions: int, repeats: int) -> None:
    """Print recall and speed of IVF-PQ beside exact search."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        started = time.perf_counter()
        rows = write_clusters(Path(temporary), size=size, dimensions=dimensions)
        print(f"large, {size:,} x {dimensions}: vectors written in {time.perf_counter() - started:.0f} s", flush=True)
        budget = 4 * size * dimensions // 10
        print(f"  within {budget / 2**20:.0f} MiB: {choose_kind(size, dimensions, memory_bytes=budget)}")
        started = time.perf_counter()
        built: list[ApproximateIndex] = []
        memory = peak_memory_of(lambda: built.append(ApproximateIndex.build(rows, "ivf_pq")))
        index = built.pop()
        seconds = time.perf_counter() - started
        print(f"  built in {seconds:.0f} s, peak memory {memory / 2**20:.0f} MiB; {index.report}", flush=True)
        # What is searched from here on lies on the disk, as it does when an index comes from a cache.
        path = Path(temporary) / "index.faiss"
        index.write(path)
        index = ApproximateIndex.read(path, rows, index.report)
        written = path.stat().st_size
        print(f"  the file takes {written / 2**20:.0f} MiB, {written / size:.0f} bytes a vector")
        queries, _ = planted_copies(rows, count=QUERIES, seed=5)
        whole = ExactIndex(rows)
        ours, exactly = median_seconds(
            lambda: index.search(queries, HITS), lambda: whole.search(queries, HITS), repeats=repeats
        )
        print(f"  64 queries: {1e3 * ours:.0f} ms, exact search {1e3 * exactly:.0f} ms")
        print(f"  times faster than exact search: {verdict(exactly / ours, APPROXIMATE_BAR)}")
        queries, positions = planted_copies(rows, count=1_000, seed=7)
        nearest, truth = whole.search(queries, HITS)
        similarity, found = index.search(queries, HITS)
        print(f"  the vector copied is the nearest of {(truth[:, 0] == positions).mean():.1%} of 1,000 copies")
        print(f"  recall of the nearest: {verdict(float((similarity[:, 0] == nearest[:, 0]).mean()), RECALL_BAR)}")
        overlap = (found[:, :, None] == truth[:, None, :]).any(axis=1).mean()
        print(f"  recall of the {HITS} nearest: {overlap:.3f}", flush=True)


def main() -> None:
    """Print each ratio, and whether it meets its bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[100_000, 1_000_000], help="Vectors, exact search.")
    parser.add_argument("--repeats", type=int, default=9, help="Repetitions, of which the median counts.")
    parser.add_argument("--large", action="store_true", help="Measure approximate search as well.")
    parser.add_argument("--large-size", type=int, default=10_000_000, help="Vectors, approximate search.")
    parser.add_argument("--large-dimensions", type=int, default=256, help="Numbers in each of these vectors.")
    parser.add_argument("--folder", type=Path, help="Where the vectors on disk go; by default the system's place.")
    given = parser.parse_args()
    print(f"{torch.get_num_threads()} thread(s), torch {torch.__version__}, faiss {faiss.__version__}")
    for size in given.sizes:
        exact(size, repeats=given.repeats)
    if given.large:
        large(given.folder, size=given.large_size, dimensions=given.large_dimensions, repeats=min(3, given.repeats))


if __name__ == "__main__":
    main()
