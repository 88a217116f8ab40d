"""One of two processes that train together: runs in which something fails in one of them, or their clocks differ.

Run as `python agreed_by_two.py FOLDER` with the environment of `torchrun`; writes what this process saw.
"""

import hashlib
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader

import relict_lightning.callbacks.clock
import relict_lightning.callbacks.monitor
from relict_lightning import ReplicaDetector, ReplicaMonitor
from relict_lightning.index.exact import ExactIndex
from relict_lightning.interfaces import Sampler
from relict_lightning.testing import NoisyModule, simulate_heads

RANK = int(os.environ.get("RANK", "0"))
STAGES = ("sampling", "encoding", "searching", "writing")
STEPS = 8


class Fault(Callback):
    """Makes one stage of the evaluation at step 2 fail in one process; listed before the monitor."""

    # Where all parts that are to fail find what is to fail now.
    stage: str | None = None

    def __init__(self, stage: str | None) -> None:
        # The loggers are written to in the first process only.
        self._planned = stage if (0 if stage == "writing" else 1) == RANK else None

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        Fault.stage = self._planned if trainer.global_step == 2 else None

    def on_exception(self, *_: Any) -> None:
        Fault.stage = None


def fail_if_told(stage: str) -> None:
    if Fault.stage == stage:
        raise ZeroDivisionError("only here")


class Samples(Sampler):
    """The model's own samples."""

    def sample(self, module: Any, n: int, *, seed: int) -> Tensor:
        fail_if_told("sampling")
        return module.sample(n, generator=torch.Generator().manual_seed(seed))


class Coarse(nn.Module):
    """Embeds by coarse voxels."""

    def forward(self, images: Tensor) -> Tensor:
        fail_if_told("encoding")
        return nn.functional.adaptive_avg_pool2d(images, 8).flatten(1)


class Writes(Logger):
    """A logger that keeps nothing; what the module itself logs is not what fails."""

    name = "nothing"
    version = 0

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Take no notice."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if any(name.startswith("relict/") for name in metrics):
            fail_if_told("writing")


class Shown(Callback):
    """Takes down what other callbacks read after each step; listed after the monitor."""

    def __init__(self) -> None:
        self.values: dict[int, list[float]] = {}

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        shown = trainer.callback_metrics
        self.values[trainer.global_step] = [float(shown.get(f"relict/{name}", -1)) for name in ("evaluated", "stale")]


class Clock(Callback):
    """A clock that moves by a second a step in the first process, and by three in the second; listed first."""

    seconds = 0.0

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        Clock.seconds = trainer.global_step * (1 + 2.0 * RANK)


def fit(
    folder: Path, *callbacks: Callback, devices: int, max_steps: int = STEPS, **monitored: Any
) -> tuple[Trainer, ReplicaMonitor, dict[str, Any]]:
    """Train from a fixed seed, watched; return also what all processes must agree on."""
    seed_everything(11, verbose=False)
    images = simulate_heads(80, shape=(16, 16)).images
    arguments = {"num_samples": 8, "sample_batch_size": 2, "every_n_steps": 2, "evaluate_at_end": False, **monitored}
    monitor = ReplicaMonitor(
        ReplicaDetector(Coarse(), transforms="none", top_k=2, cache_dir=folder / "cache"),
        sampler=Samples(), training=images[:40], heldout=images[40:], **arguments,
    )  # fmt: skip
    shown = Shown()
    trainer = Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_steps=max_steps,
        logger=Writes(), enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, callbacks=[*callbacks, monitor, shown],
    )  # fmt: skip
    module = NoisyModule()
    trainer.fit(module, DataLoader(images[:40], batch_size=10 // devices, shuffle=True))
    # The statistics of batch normalisation are each process's own.
    weights = {"parameters": module.parameters(), "buffers": module.buffers()}
    return trainer, monitor, {
        "steps": [evaluation.step for evaluation in monitor.history],
        "shown": shown.values,
        "failures": monitor.failures,
        "is stale": monitor.is_stale,
        "trained": trainer.global_step,
        **{name: _digest(values) for name, values in weights.items()},
    }  # fmt: skip


def _digest(values: Iterator[Tensor]) -> str:
    return hashlib.sha256(b"".join(value.detach().numpy().tobytes() for value in values)).hexdigest()


def timed(folder: Path, *, devices: int) -> dict[str, list[int]]:
    """Return the steps that were evaluated in runs whose schedules hang on clocks that are known."""
    evaluating = iter(range(10**6))
    clocks = {
        relict_lightning.callbacks.clock: lambda: Clock.seconds,
        # Two looks an evaluation: each takes two seconds in the first process and six in the second.
        relict_lightning.callbacks.monitor: lambda: next(evaluating) * 2 * (1 + 2.0 * RANK),
    }
    before = {module: module.time for module in clocks}
    found = {}
    try:
        for module, now in clocks.items():
            module.time = SimpleNamespace(perf_counter=now)
        for name, monitored in (
            ("minutes", {"every_n_steps": None, "every_n_minutes": 0.125}),
            ("overhead", {"every_n_steps": 1, "max_overhead": 0.5}),
        ):
            Clock.seconds = 0.0
            found[name] = fit(folder, Clock(), devices=devices, max_steps=30, **monitored)[2]["steps"]
    finally:
        for module, time_of_module in before.items():
            module.time = time_of_module
    return found


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    # Samples of a model that is hardly trained, and failures, are warned of.
    warnings.simplefilter("ignore")
    report: dict[str, Any] = {"nothing fails": fit(folder, Fault(None), devices=2)[2]}
    for stage in STAGES:
        for on_error in ("warn", "raise"):
            started = time.monotonic()
            try:
                seen = fit(folder, Fault(stage), devices=2, on_error=on_error)[2]
            except Exception as error:  # noqa: BLE001 - told to the test
                seen = {"error": f"{type(error).__name__}: {error}"}
            report[f"{stage}, {on_error}"] = {**seen, "seconds": time.monotonic() - started}
    report["timed"] = timed(folder, devices=2)
    (folder / f"{RANK}.json").write_text(json.dumps(report))
    # Lightning leaves a gloo group to the end of the interpreter, whose threads then end in any order.
    torch.distributed.destroy_process_group()


_search = ExactIndex._search


def _search_or_fail(*arguments: Any, **options: Any) -> Any:
    fail_if_told("searching")
    return _search(*arguments, **options)


ExactIndex._search = _search_or_fail  # type: ignore[method-assign]

if __name__ == "__main__":
    main(Path(sys.argv[1]))
