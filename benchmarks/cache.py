"""Measures what the cache saves: fits one detector twice with one cache folder.

The second fit reads every image once and hashes it, because only that shows that the data are the ones that were
indexed; it hashes every file of the cache as well, before any of them is parsed. So it can be no faster than reading
and hashing, whatever the encoder costs, and its share of the first fit falls as the encoder grows. The default encoder
is the least favourable case. Bar: the second fit takes less than 5 % of the first.

Run with `python benchmarks/cache.py`.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from relict_lightning import ReplicaDetector

BAR = 0.05


def seconds_to_fit(training: torch.Tensor, heldout: torch.Tensor, *, cache_dir: Path) -> float:
    """Return how long one fit of a new detector takes."""
    started = time.perf_counter()
    ReplicaDetector(cache_dir=cache_dir).fit(training, heldout)
    return time.perf_counter() - started


def main() -> None:
    """Print the seconds of the first and of the second fit, and their ratio, for two sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=64, help="Side of the square slices, in pixels.")
    side = parser.parse_args().side
    generator = torch.Generator().manual_seed(0)
    # What is computed once per process must not be charged to the first fit.
    warm_up = torch.rand((40, 1, side, side), generator=generator)
    ReplicaDetector().fit(warm_up[:8], warm_up[8:])
    print(f"{torch.get_num_threads()} thread(s), slices of {side} x {side}, default encoder and segmenter")
    for name, training, heldout in (("demo", 24, 200), ("large", 1000, 200)):
        images = torch.rand((training + heldout, 1, side, side), generator=generator)
        with tempfile.TemporaryDirectory() as folder:
            first, second = (
                seconds_to_fit(images[:training], images[training:], cache_dir=Path(folder)) for _ in range(2)
            )
        verdict = "below" if second < BAR * first else "NOT below"
        print(
            f"{name:>5}: {training} training + {heldout} held-out slices: first {first:.2f} s, second {second:.3f} s, "
            f"ratio {second / first:.1%} ({verdict} {BAR:.0%})"
        )


if __name__ == "__main__":
    main()
