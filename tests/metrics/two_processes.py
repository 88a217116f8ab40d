"""One of two processes: updates each metric with its own share of the samples, and writes what it computes.

Run by `run_ranks` as `two_processes.py FOLDER SHARES...`, each of them like `3,7`; writes a file for each.
"""

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from metric_cases import CASES

from relict_lightning.metrics import ReplicaRate


def computed(rank: int, shares: list[int]) -> dict[str, Any]:
    mine = slice(0, shares[0]) if rank == 0 else slice(shares[0], sum(shares))
    values = {}
    for name, case in CASES.items():
        metric = case.metric()
        if shares[rank]:
            metric.update(*(part[mine] for part in case.samples(0, sum(shares))))
        with warnings.catch_warnings():
            # A process without samples is warned, and still takes part.
            warnings.filterwarnings("ignore", message=".*before the ``update``.*")
            value = metric.compute()
        # After a computation every process has its own state back.
        values[name] = {"value": value, "updates": metric._update_count}
        if isinstance(metric, ReplicaRate):
            estimate = metric.estimate()
            values[name] |= {"successes": estimate.successes, "trials": estimate.trials}
    return values


def main(rank: int, folder: Path, splits: list[str]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    for split in splits:
        torch.save(computed(rank, [int(share) for share in split.split(",")]), folder / f"{split}-{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(os.environ["RANK"]), Path(sys.argv[1]), sys.argv[2:])
