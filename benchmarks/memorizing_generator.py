"""Measures how soon the memorization of a generator is caught, and how clean the checkpoint is that is kept.

A small generator of head slices (`relict_lightning.testing.HeadGenerator`) is trained on 24 subjects until onset is
declared, once for each seed, which is that of subjects, weights, order and sampling. For each seed:

- The share of copies among further samples of the model at the evaluation at which onset is declared, and at the one
  before. Bar: at most 20 % at onset. The limit is the share at which so many samples can show that the rate exceeds the
  tolerance (`relict_lightning.onset`), and how fast the share grows from one evaluation to the next.
- The share of copies among 500 samples that nothing has seen yet, of the checkpoint that `MemorizationCheckpoint` names
  and has verified. Bar: below 2 %, where the truth below calls about 1 % of new subjects copies. Beside it stands what
  the detector finds among the same samples.

The alternative against which the detector is judged is a truth of another kind, which only a simulation can have,
because it takes thousands of further subjects. A sample is a copy if its distance to the nearest training image, whole
images and voxel by voxel, is so small beside the mean distance to the five after it that only 1 % of 2,000 new subjects
come so near. No encoder, alignment, label map, held-out patient or p-value enters it. It is a ratio, because a
generator's samples are smoother than subjects, and smooth images are near to everyone: by distance alone half of the
samples would be copies while they still lie midway between training subjects. It is a low bar: a sample that leans
towards one training subject passes, long before it looks like that subject. So stricter ones stand beside it, and the
bars are told for each:

- `beyond`: nearer, by that ratio, than every one of the 2,000 new subjects.
- `near`: twice as near to one training image as to the five after it. These look like that subject.

And a looser one, without a bar, `first`: of the training images and 2,376 new subjects, the nearest is a training
image. Of a generator that does not know who was trained on, whatever its look, these are 1 %; but whatever lies between
training subjects counts as well.

With `--fresh`, the same generator is trained on ever new subjects for as many steps instead, and watched as before:
it cannot copy anybody, so it shows what truth and detector call copies falsely.

Run with `python benchmarks/memorizing_generator.py`, which takes about six minutes a seed on one free core; one seed
with `--seeds 0`. Evaluations are at every 25 steps, because the share can grow from 5 to 40 % in 100.
"""

import argparse
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor

from relict_lightning import MemorizationCheckpoint, MemorizationStopping, ReplicaDetector, ReplicaMonitor
from relict_lightning.functional import estimate_rate
from relict_lightning.onset import OnsetDetector
from relict_lightning.results import RateEstimate
from relict_lightning.testing import HeadDataModule, HeadGenerator, simulate_heads
from relict_lightning.training_state import untouched

SHARE_BAR, KEPT_BAR = 0.20, 0.02
TRAINING, HELDOUT = 24, 200
FALSE_SHARE, NEXT = 0.01, 5
NEAR = 0.5
# What a copy is; the bars are told for each.
TRUTHS = ("copies", "beyond", "near")
# New subjects set the threshold; others stand beside the training images, 99 for each of them, so that 1 in 100 of the
# nearest are training images by chance.
NEW, BESIDE = 2000, 99 * TRAINING
FIRST_NEW_SUBJECT = 20_000_000
CHUNK = 50
# Seeds of the samples that are judged; the monitor has its own.
JUDGED, KEPT = 10_000_000, 90_000_000


@final
class Truth:
    """Says which samples are copies, from distances of whole images alone.

    Args:
        training: Training images `[m, 1, *spatial]`.
        seed: Seed of their population.
        new: New subjects that set the thresholds.
        beside: New subjects that stand beside the training images.
    """

    def __init__(self, training: Tensor, *, seed: int, new: int = NEW, beside: int = BESIDE) -> None:
        self._training = training.flatten(1)
        subjects = simulate_heads(new + beside, seed=seed, first_subject=FIRST_NEW_SUBJECT).images.flatten(1)
        self._beside = subjects[new:]
        of_new = self._ratio(subjects[:new])
        self.threshold, self.least = float(of_new.quantile(FALSE_SHARE)), float(of_new.min())

    def _ratio(self, rows: Tensor) -> Tensor:
        nearest = torch.cdist(rows, self._training).sort(dim=1).values
        return nearest[:, 0] / nearest[:, 1 : 1 + NEXT].mean(dim=1)

    def shares(self, samples: Tensor) -> dict[str, RateEstimate]:
        """Return the share of samples that are copies, by each name of what a copy is."""
        rows = samples.flatten(1)
        ratio = self._ratio(rows)
        first = torch.cdist(rows, self._training).amin(dim=1) < torch.cdist(rows, self._beside).amin(dim=1)
        counts = {
            "copies": ratio < self.threshold,
            "beyond": ratio < self.least,
            "near": ratio < NEAR,
            "first": first,
        }
        return {name: estimate_rate(int(is_so.sum()), len(rows)) for name, is_so in counts.items()}


def said(shares: Mapping[str, RateEstimate]) -> str:
    """Return shares in words."""
    others = ", ".join(f"{name} {shares[name].value:.1%}" for name in ("beyond", "near", "first"))
    return f"copies {shares['copies']}, {others}"


@dataclass(frozen=True, kw_only=True)
class Look:
    """One evaluation: what the monitor found, and what is true.

    Attributes:
        step: Optimizer step.
        detected: The replica rate that the monitor measured.
        leaning: The share of its samples that leant.
        tests: P-value and level of the permutation test, and of the test against held-out patients.
        shares: What `Truth.shares` says of other samples of the same weights.
        watched: Why the run was watched; empty where it was not.
    """

    step: int
    detected: RateEstimate
    leaning: RateEstimate | None
    tests: dict[str, tuple[float, float]]
    shares: dict[str, RateEstimate]
    watched: str

    def __str__(self) -> str:
        """Return a line of a table."""
        tests = ", ".join(
            f"{name} p {p_value:.1e} (level {level:.1e})" for name, (p_value, level) in self.tests.items()
        )
        return (
            f"step {self.step:4d}: {said(self.shares)}; detected {self.detected}, leaning {self.leaning}, {tests}"
            + (f", watched: {self.watched}" if self.watched else "")
        )


@final
class Judge(Callback):
    """Draws further samples after each evaluation of the monitor, and says which of them are copies.

    Args:
        monitor: The monitor, which comes before this in the trainer's callbacks.
        truth: What is a copy.
        num_samples: Samples to draw.
    """

    def __init__(self, monitor: ReplicaMonitor, truth: Truth, *, num_samples: int) -> None:
        self._monitor = monitor
        self._truth = truth
        self._num_samples = num_samples
        # Sees what the monitor's own sees, and is asked beforehand at which levels it tests.
        self._levels = OnsetDetector(alpha=monitor.alpha, tolerance=monitor.tolerance, patience=monitor.patience)
        self.looks: list[Look] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Judge the weights that the monitor has just seen."""
        result = self._monitor.last_result
        if not self._monitor.evaluated_now or result is None or result.replica_rate is None:
            return
        assert isinstance(pl_module, HeadGenerator)  # noqa: S101 - nothing else is trained here
        tests = {
            "permutation": (float(result.memorization_p_value or 1), self._levels.next_level),
            "held-out": (float(result.discovery_p_value or 1), self._levels.next_conformal_level),
        }
        self._levels.update(result, step=trainer.global_step, epoch=trainer.current_epoch)
        with untouched(pl_module):
            samples = draw(pl_module, self._num_samples, seed=JUDGED + trainer.global_step)
        look = Look(
            step=trainer.global_step,
            detected=result.replica_rate,
            leaning=result.leaning_rate,
            tests=tests,
            shares=self._truth.shares(samples),
            watched="" if self._monitor.watch is None else self._monitor.watch.value,
        )
        self.looks.append(look)
        print(f"  {look}", flush=True)


def draw(generator: HeadGenerator, count: int, *, seed: int) -> Tensor:
    """Return samples `[count, 1, *spatial]`."""
    stream = torch.Generator().manual_seed(seed)
    return torch.cat(
        [generator.sample(min(CHUNK, count - start), generator=stream) for start in range(0, count, CHUNK)]
    )


@dataclass(frozen=True, kw_only=True)
class Caught:
    """How one run ended.

    Attributes:
        looks: Every evaluation.
        onset_step: Step of the onset; None without.
        kept_step: Step of the checkpoint to go back to; None without.
        is_verified: Whether it was verified.
        kept: What `Truth.shares` says of fresh samples of that checkpoint.
        kept_detected: The replica rate that the detector finds in the same samples.
        kept_p_value: The permutation p-value of the same samples.
        candidates: Steps of all checkpoints that were there to choose from.
        seconds: How long everything took.
    """

    looks: list[Look]
    onset_step: int | None
    kept_step: int | None = None
    is_verified: bool = False
    kept: dict[str, RateEstimate] = field(default_factory=dict)
    kept_detected: RateEstimate | None = None
    kept_p_value: float | None = None
    candidates: list[int] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def at_onset(self) -> Look | None:
        """The evaluation at which onset was declared."""
        return next((look for look in self.looks if look.step == self.onset_step), None)

    def is_caught_in_time(self, truth: str = "copies") -> bool:
        """Return whether onset was declared while the share of copies, by a name of it, was within its bar."""
        return self.at_onset is not None and self.at_onset.shares[truth].value <= SHARE_BAR

    def is_kept_clean(self, truth: str = "copies") -> bool:
        """Return whether there is a verified checkpoint to go back to, with a share of copies within its bar."""
        return self.is_verified and self.kept[truth].value < KEPT_BAR


def train_until_caught(
    seed: int,
    *,
    folder: Path,
    num_samples: int = 128,
    every_n_steps: int = 25,
    adaptive: bool = False,
    tolerance: float = 0.01,
    fdr: float = 0.05,
    max_steps: int = 800,
    judged_samples: int = 256,
    kept_samples: int = 500,
    fresh: bool = False,
) -> Caught:
    """Train a generator under watch and return how it ended.

    Args:
        seed: Seed of everything.
        folder: Where index and checkpoints go.
        num_samples: Samples per evaluation of the monitor.
        every_n_steps: Steps between its evaluations.
        adaptive: Whether it leaves out evaluations while nothing happens.
        tolerance: Its tolerance.
        fdr: False discovery rate of the verdicts.
        max_steps: Where training ends if it is not stopped.
        judged_samples: Samples of which the truth is told at each evaluation.
        kept_samples: Samples of which the truth is told for the checkpoint that is kept.
        fresh: Whether to train on ever new subjects.
    """
    started = time.perf_counter()
    seed_everything(seed, verbose=False)
    data = HeadDataModule(TRAINING, HELDOUT, steps_per_epoch=every_n_steps, fresh=fresh, seed=seed)
    truth = Truth(data.training.subjects.images, seed=seed)
    print(
        f"  a copy is less than {truth.threshold:.3f} times as far from one training image as from the next {NEXT}; "
        f"beyond new subjects, {truth.least:.3f}"
    )
    detector = ReplicaDetector(fdr=fdr, cache_dir=folder / "index")
    monitor = ReplicaMonitor(
        detector,
        num_samples=num_samples,
        every_n_steps=every_n_steps,
        adaptive=adaptive,
        tolerance=tolerance,
        training=data.training,
        heldout=data.heldout,
        evaluate_at_start=False,
        seed=seed,
        progress=False,
    )
    judge = Judge(monitor, truth, num_samples=judged_samples)
    keeper = MemorizationCheckpoint(dirpath=folder / "checkpoints")
    trainer = Trainer(
        max_steps=max_steps,
        callbacks=[monitor, judge, MemorizationStopping(verbose=False), keeper],
        limit_val_batches=0,
        logger=False,
        accelerator="cpu",
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(HeadGenerator(), datamodule=data)
    onset_step = None if monitor.onset is None else monitor.onset.step
    candidates = [checkpoint.step for checkpoint in keeper.kept]
    if keeper.best is None:
        seconds = time.perf_counter() - started
        return Caught(looks=judge.looks, onset_step=onset_step, candidates=candidates, seconds=seconds)
    kept = HeadGenerator.load_from_checkpoint(keeper.best.path).eval()
    samples = draw(kept, kept_samples, seed=KEPT + seed)
    result = detector.detect(samples)
    return Caught(
        looks=judge.looks,
        onset_step=onset_step,
        kept_step=keeper.best.step,
        is_verified=keeper.best.is_verified,
        kept=truth.shares(samples),
        kept_detected=result.replica_rate,
        kept_p_value=result.memorization_p_value,
        candidates=candidates,
        seconds=time.perf_counter() - started,
    )


def describe(caught: Caught) -> str:
    """Return how a run ended, in words."""
    lines = []
    in_time, clean = (
        ", ".join(f"{truth}: {'meets' if met(truth) else 'MISSES'}" for truth in TRUTHS)
        for met in (caught.is_caught_in_time, caught.is_kept_clean)
    )
    if caught.at_onset is None:
        lines.append(f"no onset in {len(caught.looks)} evaluations")
    else:
        before = next((look for look in reversed(caught.looks) if look.step < caught.at_onset.step), None)
        lines.append(f"onset at step {caught.onset_step}: {said(caught.at_onset.shares)}")
        lines.append("evaluation before: " + (f"step {before.step}, {said(before.shares)}" if before else "none"))
    lines.append(f"at most {SHARE_BAR:.0%} at onset ({in_time})")
    if caught.kept:
        lines.append(
            f"kept step {caught.kept_step} of {caught.candidates}, {'' if caught.is_verified else 'NOT '}verified: "
            f"{said(caught.kept)}; detected {caught.kept_detected}, permutation p {caught.kept_p_value:.1e}"
        )
    else:
        lines.append(f"no checkpoint to go back to, of {caught.candidates}")
    lines.append(f"verified and below {KEPT_BAR:.0%} ({clean})")
    return "\n".join(f"  {line}" for line in lines)


def to_primitives(caught: Caught) -> dict[str, Any]:
    """Return a run as JSON takes it; a rate is a pair of copies and samples."""

    def pair(rate: RateEstimate) -> list[int]:
        return [rate.successes, rate.trials]

    def pairs(rates: Mapping[str, RateEstimate]) -> dict[str, list[int]]:
        return {name: pair(rate) for name, rate in rates.items()}

    return {
        "looks": [
            {
                "step": look.step,
                "detected": pair(look.detected),
                "tests": {name: list(values) for name, values in look.tests.items()},
                "watched": look.watched,
                **pairs(look.shares),
            }
            for look in caught.looks
        ],
        "onset step": caught.onset_step,
        "kept step": caught.kept_step,
        "verified": caught.is_verified,
        "kept": pairs(caught.kept),
        "candidates": caught.candidates,
        "kept, detected": caught.kept_detected and pair(caught.kept_detected),
        "kept, p-value": caught.kept_p_value,
        "caught in time": {truth: caught.is_caught_in_time(truth) for truth in TRUTHS},
        "kept clean": {truth: caught.is_kept_clean(truth) for truth in TRUTHS},
        "seconds": caught.seconds,
    }


def main() -> None:
    """Print each evaluation of each run, how it ended, and whether that meets the bars."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=128, help="Samples per evaluation of the monitor.")
    parser.add_argument("--every", type=int, default=25, help="Steps between its evaluations.")
    parser.add_argument("--adaptive", action="store_true", help="Leave out evaluations while nothing happens.")
    parser.add_argument("--tolerance", type=float, default=0.01, help="Its tolerance.")
    parser.add_argument("--fdr", type=float, default=0.05, help="False discovery rate of the verdicts.")
    parser.add_argument("--steps", type=int, default=800, help="Where training ends if it is not stopped.")
    parser.add_argument("--fresh", action="store_true", help="Train on ever new subjects.")
    parser.add_argument("--json", type=Path, help="File that takes all numbers.")
    given = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # What Lightning says about its own internals does not concern the reader.
    for advice in (".*LeafSpec.*", ".*does not have many workers.*", ".*smaller than the logging interval.*"):
        warnings.filterwarnings("ignore", message=advice)
    print(f"{torch.get_num_threads()} thread(s), torch {torch.__version__}")
    report = {}
    for seed in given.seeds:
        print(f"Seed {seed}:", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            caught = train_until_caught(
                seed,
                folder=Path(folder),
                num_samples=given.samples,
                every_n_steps=given.every,
                adaptive=given.adaptive,
                tolerance=given.tolerance,
                fdr=given.fdr,
                max_steps=given.steps,
                fresh=given.fresh,
            )
        print(f"{describe(caught)}\n  [{caught.seconds:.0f} s]", flush=True)
        report[seed] = to_primitives(caught)
        if given.json is not None:
            given.json.write_text(json.dumps(report))


if __name__ == "__main__":
    main()
