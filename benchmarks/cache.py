"""Measures what the cache saves: fits one detector twice with one cache folder.

The second fit reads every image once and hashes it, because only that shows that the data are the ones that were
indexed; it verifies the vectors as well. So it can be no faster than reading and hashing, whatever the encoder costs,
and its share of the first fit falls as the encoder grows. The default encoder is the least favourable case. Bar: the
second fit takes less than 5 % of the first.

The bar is for images in memory. For data that are slow to read, the second fit is bounded by reading and hashing them
once, which the first fit does as well: the ratio is then the share of reading in the first fit, and the cache saves
the encoding only. The case "slow" shows it: its items take 2 ms each to read.

Run with `python benchmarks/cache.py`.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.data import Dataset

from relict_lightning import ReplicaDetector

BAR = 0.05
READ_SECONDS = 0.002

Images = torch.Tensor | Dataset[torch.Tensor]


class SlowImages(Dataset[torch.Tensor]):
    """Images that take as long to read as small files on a disk."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(READ_SECONDS)
        return self.images[index]


def seconds_to_fit(training: Images, heldout: Images, *, cache_dir: Path) -> float:
    """Return how long one fit of a new detector takes."""
    started = time.perf_counter()
    ReplicaDetector(cache_dir=cache_dir).fit(training, heldout)
    return time.perf_counter() - started


def main() -> None:
    """Print the seconds of the first and of the second fit, and their ratio, for two sizes, and for slow data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=64, help="Side of the square slices, in pixels.")
    side = parser.parse_args().side
    generator = torch.Generator().manual_seed(0)
    # What is computed once per process must not be charged to the first fit.
    warm_up = torch.rand((40, 1, side, side), generator=generator)
    ReplicaDetector().fit(warm_up[:8], warm_up[8:])
    print(f"{torch.get_num_threads()} thread(s), slices of {side} x {side}, default encoder and segmenter")
    for name, training, heldout in (("demo", 24, 200), ("large", 1000, 200), ("slow", 1000, 200)):
        images = torch.rand((training + heldout, 1, side, side), generator=generator)
        sets: tuple[Images, Images] = images[:training], images[training:]
        if name == "slow":
            sets = SlowImages(sets[0]), SlowImages(sets[1])
        with tempfile.TemporaryDirectory() as folder:
            first, second = (seconds_to_fit(*sets, cache_dir=Path(folder)) for _ in range(2))
        verdict = "below" if second < BAR * first else "NOT below"
        if name == "slow":
            verdict = f"reading once takes at least {(training + heldout) * READ_SECONDS:.1f} s; no bar"
        else:
            verdict += f" {BAR:.0%}"
        print(
            f"{name:>5}: {training} training + {heldout} held-out slices: first {first:.2f} s, second {second:.3f} s, "
            f"ratio {second / first:.1%} ({verdict})"
        )


if __name__ == "__main__":
    main()
