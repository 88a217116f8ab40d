"""One of two processes that train together: a watched run, and one whose sampler fails in the second process only.

Run as `python watched_by_two.py FOLDER` with the environment of `torchrun`; writes what this process saw.
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from relict_lightning import MemorizationStopping, ReplicaMonitor
from relict_lightning.interfaces import Sampler
from relict_lightning.testing import CopyingModule, simulate_heads


class SeesSamples(Sampler):
    """The model's own samples; fails in one process if told to."""

    def __init__(self, *, failing_rank: int | None = None) -> None:
        self.failing_rank = failing_rank

    def sample(self, module: Any, n: int, *, seed: int) -> Tensor:
        if module.global_rank == self.failing_rank:
            raise ZeroDivisionError("only here")
        return module.sample(n, generator=torch.Generator().manual_seed(seed))


def watch(folder: Path, *, devices: int, failing_rank: int | None = None) -> tuple[Trainer, ReplicaMonitor]:
    images = simulate_heads(144, shape=(16, 16)).images
    # Seven chunks: an odd number, and the last one is not full.
    monitor = ReplicaMonitor(
        sampler=SeesSamples(failing_rank=failing_rank), num_samples=40, sample_batch_size=6, every_n_steps=2,
        training=images[:40], heldout=images[40:80], cache_dir=folder / "cache",
    )  # fmt: skip
    trainer = Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_epochs=9, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[monitor, MemorizationStopping()],
    )  # fmt: skip
    module = CopyingModule(images[:40], images[80:], schedule=[(3, 1.0)], noise=0.01)
    # Every process reads half of the images, so that one and two processes make as many steps.
    trainer.fit(module, DataLoader(images[:40], batch_size=10 // devices))
    return trainer, monitor


def seen(trainer: Trainer, monitor: ReplicaMonitor) -> dict[str, Any]:
    pairs = torch.stack([pair.generated for pair in monitor.last_pairs])
    return {
        "steps": [evaluation.step for evaluation in monitor.history],
        "measures": [
            {name: value for name, value in evaluation.measures.items() if not name.startswith("seconds")}
            for evaluation in monitor.history
        ],
        "verdicts": [(v.match, v.is_replica, v.p_value, v.score) for v in monitor.last_result.verdicts],
        "samples": hashlib.sha256(pairs.numpy().tobytes()).hexdigest(),
        "onset": monitor.onset.step,
        "stopped at": trainer.global_step,
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    report: dict[str, Any] = seen(*watch(folder, devices=2))
    started = time.monotonic()
    try:
        watch(folder, devices=2, failing_rank=1)
    except Exception as error:  # noqa: BLE001 - told to the test
        report["error"] = f"{type(error).__name__}: {error}"
    report["seconds until error"] = time.monotonic() - started
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(report))
    # Lightning leaves a gloo group to the end of the interpreter, whose threads then end in any order.
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
