"""One of two or four processes that train together: a watched run, and with two also runs that go back.

Run as `python watched_by_two.py FOLDER` with the environment of `torchrun`; writes what this process saw.
"""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from relict_lightning import MemorizationCheckpoint, MemorizationStopping, ReplicaDetector, ReplicaMonitor
from relict_lightning.interfaces import Sampler
from relict_lightning.testing import CopyingModule, simulate_heads


class SeesSamples(Sampler):
    """The model's own samples."""

    def sample(self, module: Any, n: int, *, seed: int) -> Tensor:
        return module.sample(n, generator=torch.Generator().manual_seed(seed))


def watch(
    folder: Path,
    *,
    devices: int,
    keeper: MemorizationCheckpoint | None = None,
    onset: int = 3,
) -> tuple[Trainer, ReplicaMonitor]:
    images = simulate_heads(144, shape=(16, 16)).images
    # Seven chunks: an odd number, and the last one is not full.
    monitor = ReplicaMonitor(
        ReplicaDetector(transforms="none", top_k=2, cache_dir=folder / "cache"),
        sampler=SeesSamples(), num_samples=40, sample_batch_size=6, every_n_steps=2,
        training=images[:40], heldout=images[40:80],
    )  # fmt: skip
    trainer = Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_epochs=9,
        logger=False, enable_checkpointing=keeper is not None, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, callbacks=[monitor, MemorizationStopping(), *([keeper] if keeper else [])],
    )  # fmt: skip
    module = CopyingModule(images[:40], images[80:], schedule=[(onset, 1.0)], noise=0.01)
    # Every process reads a share of the images, so that any number of processes makes the steps that are evaluated.
    trainer.fit(module, DataLoader(images[:40], batch_size=10 // devices))
    return trainer, monitor


class FailsToSave(MemorizationCheckpoint):
    """A keeper whose first process cannot write its second checkpoint."""

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
        if trainer.global_step == 4 and trainer.is_global_zero:
            raise OSError("No space left on device")


def went_back(trainer: Trainer, keeper: MemorizationCheckpoint) -> dict[str, Any]:
    """Return what a keeper did, which must be the same in every process."""
    return {
        "kept": [checkpoint.step for checkpoint in keeper.kept],
        "rates": [keeper.best.verification.fresh.trials, keeper.best.verification.pooled.trials],
        "verified": keeper.best.is_verified,
        "restored": keeper.restored,
        "steps in the weights": int(trainer.lightning_module.steps_taken),
        "weight": float(trainer.lightning_module.weight),
    }


def seen(trainer: Trainer, monitor: ReplicaMonitor) -> dict[str, Any]:
    pairs = torch.stack([pair.generated for pair in monitor.last_pairs])
    return {
        "steps": [evaluation.step for evaluation in monitor.history],
        "measures": [
            {name: value for name, value in evaluation.measures.items() if not name.startswith(("seconds", "memory"))}
            for evaluation in monitor.history
        ],
        "verdicts": [(v.match, v.is_replica, v.p_value, v.score) for v in monitor.last_result.verdicts],
        "samples": hashlib.sha256(pairs.numpy().tobytes()).hexdigest(),
        "onset": monitor.onset.step,
        "stopped at": trainer.global_step,
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    count = int(os.environ["WORLD_SIZE"])
    report: dict[str, Any] = seen(*watch(folder, devices=count))
    if count == 2:
        for name, keeper in (
            ("went back", MemorizationCheckpoint(folder / "kept", restore=True)),
            ("went back without space", FailsToSave(folder / "no space", restore=True)),
        ):
            report[name] = went_back(watch(folder, devices=2, keeper=keeper, onset=5)[0], keeper)
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(report))
    # Lightning leaves a gloo group to the end of the interpreter, whose threads then end in any order.
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
