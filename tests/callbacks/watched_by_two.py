"""One of two processes that train together: a watched run, and runs in which something fails in one process only.

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
from lightning.pytorch.loggers import Logger
from torch import Tensor
from torch.utils.data import DataLoader

from relict_lightning import MemorizationCheckpoint, MemorizationStopping, ReplicaDetector, ReplicaMonitor
from relict_lightning.interfaces import Sampler
from relict_lightning.results import DetectionResult
from relict_lightning.testing import CopyingModule, simulate_heads


class SeesSamples(Sampler):
    """The model's own samples; fails in one process if told to."""

    def __init__(self, *, failing_rank: int | None = None) -> None:
        self.failing_rank = failing_rank

    def sample(self, module: Any, n: int, *, seed: int) -> Tensor:
        if module.global_rank == self.failing_rank:
            raise ZeroDivisionError("only here")
        return module.sample(n, generator=torch.Generator().manual_seed(seed))


class FailsToCheck(ReplicaDetector):
    """A detector that fails in the second process."""

    def detect(self, *arguments: Any, **options: Any) -> DetectionResult:
        if os.environ["RANK"] == "1":
            raise ZeroDivisionError("only here")
        return super().detect(*arguments, **options)


class FailsToWrite(Logger):
    """A logger that fails, which is only written to in the first process."""

    name = "failing"
    version = 0

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Take no notice."""

    def log_metrics(self, *_: Any, **__: Any) -> None:
        raise ZeroDivisionError("only here")


def watch(
    folder: Path,
    *,
    devices: int,
    failing_rank: int | None = None,
    detector: ReplicaDetector | None = None,
    logger: Logger | None = None,
    keeper: MemorizationCheckpoint | None = None,
    onset: int = 3,
) -> tuple[Trainer, ReplicaMonitor]:
    images = simulate_heads(144, shape=(16, 16)).images
    # Seven chunks: an odd number, and the last one is not full.
    monitor = ReplicaMonitor(
        detector,
        sampler=SeesSamples(failing_rank=failing_rank), num_samples=40, sample_batch_size=6, every_n_steps=2,
        training=images[:40], heldout=images[40:80], cache_dir=folder / "cache",
    )  # fmt: skip
    trainer = Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_epochs=9,
        logger=logger or False, enable_checkpointing=keeper is not None, enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder, callbacks=[monitor, MemorizationStopping(), *([keeper] if keeper else [])],
    )  # fmt: skip
    module = CopyingModule(images[:40], images[80:], schedule=[(onset, 1.0)], noise=0.01)
    # Every process reads half of the images, so that one and two processes make as many steps.
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
    for name, keeper in (
        ("went back", MemorizationCheckpoint(folder / "kept", restore=True)),
        ("went back without space", FailsToSave(folder / "no space", restore=True)),
    ):
        report[name] = went_back(watch(folder, devices=2, keeper=keeper, onset=5)[0], keeper)
    failing: dict[str, dict[str, Any]] = {
        "sampling": {"failing_rank": 1},
        "checking": {"detector": FailsToCheck(cache_dir=folder / "cache")},
        "writing": {"logger": FailsToWrite()},
    }
    for doing, arguments in failing.items():
        started = time.monotonic()
        try:
            watch(folder, devices=2, **arguments)
        except Exception as error:  # noqa: BLE001 - told to the test
            report[f"error in {doing}"] = f"{type(error).__name__}: {error}"
        report[f"seconds until error in {doing}"] = time.monotonic() - started
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(report))
    # Lightning leaves a gloo group to the end of the interpreter, whose threads then end in any order.
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
