"""One of two processes: updates each metric with its own share of the samples, and writes what it computes.

Run as `python two_processes.py RANK FOLDER`.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed

from relict_lightning.metrics import (
    CloserToTrainingShare,
    NeighborRatioFraction,
    NormalizedCrossCorrelation,
    ReplicaRate,
)


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    scores, others, images, training = torch.load(folder / "samples.pt", weights_only=True)
    # The shares are unequal: 3 samples and 7.
    mine = slice(0, 3) if rank == 0 else slice(3, 10)
    rate, fraction = ReplicaRate(threshold=0.5), NeighborRatioFraction()
    share, correlation = CloserToTrainingShare(), NormalizedCrossCorrelation()
    rate.update(scores[mine])
    fraction.update(scores[mine])
    share.update(scores[mine], others[mine])
    correlation.update(images[mine], training[mine])
    estimate = rate.estimate()
    values = {
        "rate": rate.compute().item(),
        "successes": estimate.successes,
        "trials": estimate.trials,
        "fraction": fraction.compute().item(),
        "share": share.compute().item(),
        "correlation": correlation.compute().item(),
        "own_samples": int(rate.samples),
    }
    (folder / f"{rank}.json").write_text(json.dumps(values))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
