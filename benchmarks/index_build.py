"""Measures what building the reference, opening it and searching it cost beside what cannot be avoided.

Building: against reading the images and the forward passes of the encoder and the segmenter, in the same process and
batches. What comes on top is hashing, the coarse views, storing in half precision and flushing to the disk, some ten
milliseconds a volume, and once the description of the population, some seconds. Bar: at most 1.1 times with a 3-D
ResNet-10, the smallest that has public weights; `--encoder small` shows the ratio where encoding costs next to nothing.
Memory: the peak of a process that builds; bar: 2 GiB for 10,000 volumes of 64 x 64 x 64.

Opening: an index of 1,000,000 vectors of 512 numbers, from the folder to the first answer; the bar of 1 s is for
opening, because vectors are verified when they are first gone through. The limit is the checksum, a core's SHA-256.
Searching it memory-mapped takes at most 1 GiB; bar.

Run with `python benchmarks/index_build.py`; `--volumes` and `--vectors` set the sizes, `--folder` the disk.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import monai
import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from relict_lightning import ReplicaDetector
from relict_lightning.data import images_per_batch
from relict_lightning.index.chunks import Chunk, ChunkedRows, chunk_name, chunks_in
from relict_lightning.index.durable import write_array
from relict_lightning.index.exact import ExactIndex
from relict_lightning.segmenters import IntensitySegmenter

BUILD_BAR, OPEN_BAR_SECONDS, GIB = 1.1, 1.0, 2**30
ROWS = 4096


class Volumes(Dataset[torch.Tensor]):
    """Volumes that are made when they are read, so that none is held."""

    def __init__(self, count: int, side: int) -> None:
        self.count, self.side = count, side
        self.pattern = torch.rand((1, side, side, side), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.pattern.roll((index % self.side, index // self.side), (1, 2)) * (1 - index / (2 * self.count))


class SmallResNet(nn.Sequential):
    """An encoder a tenth as expensive as the smallest that people use: for peaks of memory, and the worst ratio."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        widths = (1, 32, 64, 128, 256)
        blocks = [
            layer
            for a, b in pairwise(widths)
            for layer in (
                nn.Conv3d(a, b, 3, stride=2, padding=1),
                nn.BatchNorm3d(b),
                nn.ReLU(),
                nn.Conv3d(b, b, 3, padding=1),
                nn.ReLU(),
            )
        ]
        super().__init__(*blocks, nn.AdaptiveAvgPool3d(1), nn.Flatten())


def resnet10() -> nn.Module:
    """Return the smallest of the 3-D ResNets that MedicalNet has weights for (Chen et al. 2019, arXiv:1904.00625)."""
    torch.manual_seed(0)
    return monai.networks.nets.resnet10(
        spatial_dims=3, n_input_channels=1, feed_forward=False, shortcut_type="B", bias_downsample=False
    )


ENCODERS = {"resnet10": resnet10, "small": SmallResNet}


def peak_gib() -> float:
    """Return the largest memory that this process has taken."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


@torch.no_grad()
def seconds_unavoidable(volumes: Volumes, encoder: nn.Module) -> float:
    """Return how long reading, encoding and segmenting takes."""
    size = images_per_batch((1, volumes.side, volumes.side, volumes.side))
    segmenter = IntensitySegmenter()
    started = time.perf_counter()
    for start in range(0, len(volumes), size):
        batch = torch.stack([volumes[index] for index in range(start, min(start + size, len(volumes)))])
        encoder(batch)
        segmenter(batch)
    return time.perf_counter() - started


def build(folder: Path, count: int, side: int, name: str) -> None:
    """Build twice and print the ratios."""
    volumes, encoder = Volumes(count, side), ENCODERS[name]().eval()
    # What is computed once per process is charged to neither.
    seconds_unavoidable(Volumes(16, side), encoder)
    started = time.perf_counter()
    ReplicaDetector(encoder, cache_dir=folder).fit(volumes)
    seconds = time.perf_counter() - started
    peak = peak_gib()
    bare = seconds_unavoidable(volumes, encoder)
    print(
        f"build, {name}: {count} volumes of {side}^3 in {seconds:.1f} s, reading and forward passes {bare:.1f} s: "
        f"ratio {seconds / bare:.2f} (bar {BUILD_BAR}); peak {peak:.2f} GiB (bar 2)"
    )
    started = time.perf_counter()
    ReplicaDetector(encoder, cache_dir=folder, check="sampled").fit(volumes)
    ReplicaDetector(encoder, cache_dir=folder, check="sampled").fit(volumes)
    print(f"       recognised by a sample, twice, in {time.perf_counter() - started:.1f} s")


def write_vectors(folder: Path, count: int, dimensions: int) -> None:
    """Write unit vectors in chunks."""
    generator = np.random.default_rng(0)
    for start in range(0, count, ROWS):
        rows = generator.standard_normal((min(ROWS, count - start), dimensions), dtype=np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        write_array(folder, rows, name=lambda checksum, key=f"{start:08d}": chunk_name("feature", key, checksum))


def search(folder: Path, count: int, dimensions: int, *, resident: bool) -> None:
    """Open an index, search it twice, and print what that took."""
    generator = np.random.default_rng(1)
    queries = generator.standard_normal((64, dimensions), dtype=np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    before = peak_gib()
    started = time.perf_counter()
    files = sorted((key, path) for _, key, path in chunks_in(folder))
    chunks = [Chunk(path, min(ROWS, count - int(key))) for key, path in files]
    index = ExactIndex(ChunkedRows(chunks, (dimensions,), resident_bytes=2**60 if resident else 0))
    opened = time.perf_counter() - started
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        index.search(queries, 5)
        seconds.append(time.perf_counter() - started)
    size = 4 * count * dimensions / GIB
    where = "in memory" if resident else "memory-mapped"
    bar = f"1.2 times the vectors is {1.2 * size:.2f}" if resident else "bar 1"
    print(
        f"search {where}: {count} x {dimensions} ({size:.2f} GiB) opened in {opened:.3f} s (bar {OPEN_BAR_SECONDS:g}), "
        f"first search with all checksums {seconds[0]:.2f} s, then {min(seconds[1:]):.2f} s; "
        f"peak {peak_gib() - before:.2f} GiB above {before:.2f} ({bar})"
    )


def main() -> None:
    """Run each part in a process of its own, because peaks of memory do not come down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=400)
    parser.add_argument("--encoder", choices=sorted(ENCODERS), default="resnet10")
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--part", choices=["build", "memory", "mapped"], default=None)
    arguments = parser.parse_args()
    if arguments.part == "build":
        build(arguments.folder, arguments.volumes, arguments.side, arguments.encoder)
        return
    if arguments.part is not None:
        search(arguments.folder, arguments.vectors, arguments.dimensions, resident=arguments.part == "memory")
        return
    print(f"{torch.get_num_threads()} thread(s), torch {torch.__version__}, {os.cpu_count()} cores", flush=True)
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        (folder / "vectors").mkdir()
        write_vectors(folder / "vectors", arguments.vectors, arguments.dimensions)
        sizes = [
            f"--{name}={getattr(arguments, name)}" for name in ("volumes", "side", "vectors", "dimensions", "encoder")
        ]
        for part, place in (("build", "cache"), ("memory", "vectors"), ("mapped", "vectors")):
            command = [sys.executable, __file__, *sizes, "--folder", str(folder / place), "--part", part]
            subprocess.run(command, check=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
