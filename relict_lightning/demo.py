"""The main job on a small scale: a generator of head images is trained until it is caught memorizing."""

import logging
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger

from relict_lightning.callbacks import MemorizationCheckpoint, MemorizationStopping, ReplicaMonitor
from relict_lightning.callbacks.rollback.kept import KeptCheckpoint
from relict_lightning.onset import Onset
from relict_lightning.testing import HeadDataModule, HeadGenerator


@dataclass(frozen=True, kw_only=True)
class DemoOutcome:
    """How the demo ended.

    Attributes:
        onset: When memorization was established; None if it was not.
        checkpoint: The checkpoint to go back to; None without onset.
        report: The HTML report, a local file.
        steps: Optimizer steps that were trained.
        seconds: How long everything took.
    """

    onset: Onset | None
    checkpoint: KeptCheckpoint | None
    report: Path
    steps: int
    seconds: float


class _EvaluationLines(Callback):
    """Prints one line per evaluation."""

    def __init__(self, monitor: ReplicaMonitor) -> None:
        self._monitor = monitor
        self._printed = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print_new(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print_new(trainer)

    def _print_new(self, trainer: Trainer) -> None:
        loss = trainer.callback_metrics.get("train_loss")
        for evaluation in self._monitor.history[self._printed :]:
            shown = "      -" if loss is None else f"{float(loss):7.4f}"
            p_value = evaluation.measures["memorization_p_value"]
            print(  # noqa: T201 - the demo talks to the person who started it
                f"step {evaluation.step:5d}   loss {shown}   replica rate {evaluation.replica_rate}   p {p_value:.2g}"
            )
        self._printed = len(self._monitor.history)


def run_demo(
    *,
    subjects: Literal["few", "fresh"] = "few",
    output: Path = Path("relict_demo"),
    num_training: int = 24,
    num_heldout: int = 200,
    num_samples: int = 128,
    max_steps: int = 1000,
    steps_per_epoch: int = 100,
    seed: int = 0,
) -> DemoOutcome:
    """Train a generator of simulated head slices under watch, and return how it ended.

    Args:
        subjects: "few" trains on `num_training` subjects again and again, "fresh" on new subjects all the time. In
            both cases samples are checked against the same `num_training` subjects, so the second is the control.
        output: Folder for index, checkpoints, numbers and report; created when missing.
        num_training: Number of training subjects.
        num_heldout: Number of held-out subjects.
        num_samples: Samples per evaluation.
        max_steps: Where training ends if it is not stopped.
        steps_per_epoch: Steps between evaluations.
        seed: Seed of subjects, weights, training and sampling.
    """
    started = time.perf_counter()
    # The network is too small to gain much from more, and threads that wait for each other lose all of it on a busy
    # machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # What Lightning says about hardware, workers and its own internals does not concern the reader of the demo.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for advice in (".*LeafSpec.*", ".*does not have many workers.*"):
        warnings.filterwarnings("ignore", message=advice)
    seed_everything(seed, verbose=False)
    data = HeadDataModule(
        num_training, num_heldout, steps_per_epoch=steps_per_epoch, fresh=subjects == "fresh", seed=seed
    )
    monitor = ReplicaMonitor(
        num_samples=num_samples,
        # Just above what 0 of 128 samples leaves open: onset is then clearly worse than a checkpoint without replicas.
        tolerance=0.03,
        training=data.training,
        heldout=data.heldout,
        cache_dir=output / "index",
        seed=seed,
        report_path=output / "report.html",
        progress=sys.stderr.isatty(),
    )
    keeper = MemorizationCheckpoint(dirpath=output / "checkpoints")
    trainer = Trainer(
        max_steps=max_steps,
        callbacks=[monitor, _EvaluationLines(monitor), MemorizationStopping(verbose=False), keeper],
        logger=CSVLogger(output, name="numbers"),
        default_root_dir=output,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=steps_per_epoch,
    )
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.INFO)
    try:
        trainer.fit(HeadGenerator(), datamodule=data)
    finally:
        torch.set_num_threads(threads)
    return DemoOutcome(
        onset=monitor.onset,
        checkpoint=keeper.best,
        report=output / "report.html",
        steps=trainer.global_step,
        seconds=time.perf_counter() - started,
    )
