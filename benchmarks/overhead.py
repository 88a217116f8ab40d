"""Measures what watching costs, beside what it watches: sampling and training.

- `checking`: `ReplicaDetector.detect` of 64 samples of 64 x 64 x 48 voxels against 2,000 training volumes and 200
  held-out ones, beside sampling these 64 in 50 steps of DDIM with a MONAI `DiffusionModelUNet` of 11.5 million weights
  on the same device. Bar: checking takes less time than sampling. On a CPU, the time of sampling is extrapolated from
  two steps of one sample, which is fair: each step of each sample costs the same there. With it stand the parts of
  checking: making queries, searching, comparing, and the rest. Sampling is limited by arithmetic, 239 GFLOP for one
  step of one sample, so its time on another device follows from what that sustains; checking by comparing the 64
  samples with their hits, and it hardly depends on the number of training volumes. Subjects that are simulated take
  0.3 s each, so volumes are blends of two of fewer distinct subjects, displaced; a quarter of the samples are altered
  training volumes. The work is the same as for others.
- `memory`: what one evaluation by `ReplicaMonitor` adds to the peak of the memory of a process that trains, on a GPU to
  that of the GPU's, as it logs it (`relict/memory_sampling_mib`, `relict/memory_checking_mib`), with the same data. The
  generator is a small one (`relict_lightning.testing.HeadGenerator`), whose training leaves a low peak: a larger one
  hides more. On Linux the peak is set back before training, so that fitting the detector does not hide it either. No
  bar.
- `steps`: the time of a training step between evaluations with the monitor attached, after an evaluation, over that of
  a step without, for a generator of slices (`HeadGenerator`) and for a tiny one, whose step costs next to nothing, so
  that whatever the monitor adds shows. Bar: within noise of 1.00. Runs with and without take turns in one process; each
  with is compared with the two without beside it, and noise is the median of what these two differ by.

On a CPU the time of the processor stands beside that on the wall: other work on the machine adds little to it.

Run with `python benchmarks/overhead.py`, or name the parts to run: `python benchmarks/overhead.py steps`. All take
about ten minutes on one free core and 2 GiB; with `--heldout 50`, five. For a quick look,
`python benchmarks/overhead.py --shape 32 32 32 --training 100 --heldout 30 --samples 8 --blocks 4`. Threads are those
of torch: set `OMP_NUM_THREADS`.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final
from unittest import mock

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from monai.networks.nets import DiffusionModelUNet
from monai.networks.schedulers import DDIMScheduler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from relict_lightning import ReplicaDetector, ReplicaMonitor, road
from relict_lightning.testing import HeadDataModule, HeadGenerator, plant_replicas, simulate_heads

CHANNELS = (32, 64, 128, 128)
STEPS = 50
DISTINCT = 120
COPIED = 0.25
# Extrapolated from so many steps, after one to warm up.
STEPS_TIMED = 2
GPU_CHUNK = 8
PARTS_OF_CHECKING = {"queries": "make_queries", "search": "retrieve", "compare": "compare_hits"}
# The first steps of a run warm up.
WARM_UP = 3


@final
class Blends(Dataset[Tensor]):
    """Volumes that are blends of two subjects, displaced; equal positions give equal volumes.

    Args:
        subjects: Distinct subjects `[s, 1, *spatial]`.
        count: Number of volumes.
        seed: Seed of who is blended with whom.
    """

    def __init__(self, subjects: Tensor, count: int, *, seed: int) -> None:
        self._subjects = subjects
        self._count = count
        self._seed = seed

    def __len__(self) -> int:
        """Return the number of volumes."""
        return self._count

    def __getitem__(self, position: int) -> Tensor:
        """Return a volume, float32 in [0, 1]."""
        if not 0 <= position < self._count:
            raise IndexError(position)
        stream = torch.Generator().manual_seed(1_000_003 * self._seed + position)
        first, second = torch.randperm(len(self._subjects), generator=stream)[:2].tolist()
        share = 0.3 + 0.4 * float(torch.rand((), generator=stream))
        blend = share * self._subjects[first].float() + (1 - share) * self._subjects[second].float()
        shifts = torch.randint(-2, 3, (blend.ndim - 1,), generator=stream).tolist()
        return blend.roll(shifts, dims=list(range(1, blend.ndim)))

    def first(self, count: int) -> Tensor:
        """Return the first volumes, `[count, 1, *spatial]`."""
        return torch.stack([self[position] for position in range(count)])


@dataclass(frozen=True)
class Took:
    """Seconds on the wall clock, and of the processor, all threads together."""

    wall: float = 0.0
    processor: float = 0.0

    def __add__(self, other: "Took") -> "Took":
        """Return both added up."""
        return Took(self.wall + other.wall, self.processor + other.processor)

    def __sub__(self, other: "Took") -> "Took":
        """Return the difference."""
        return Took(self.wall - other.wall, self.processor - other.processor)

    def __mul__(self, factor: float) -> "Took":
        """Return so many times as much."""
        return Took(factor * self.wall, factor * self.processor)

    def __str__(self) -> str:
        """Return both in words."""
        return f"{self.wall:.1f} s (of the processor {self.processor:.1f} s)"


@final
class Stopwatch:
    """Takes the time that functions take, device included.

    Args:
        device: What to wait for.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.parts: dict[str, Took] = {}

    def now(self) -> Took:
        """Return the time, once the device has done what it was told to."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return Took(time.perf_counter(), time.process_time())

    def since(self, started: Took) -> Took:
        """Return what it took since then."""
        return self.now() - started

    @contextmanager
    def watching(self, functions: dict[str, str], module: Any) -> Iterator[None]:
        """Time functions of a module, by the name of each, inside the block."""
        with ExitStack() as stack:
            for name, function in functions.items():
                timed = self._timed(name, getattr(module, function))
                stack.enter_context(mock.patch.object(module, function, timed))
            yield

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = self.now()
            try:
                return call(*args, **kwargs)
            finally:
                self.parts[name] = self.parts.get(name, Took()) + self.since(started)

        return timed


def set_back_peak(device: torch.device) -> None:
    """Set the peak of the memory back to what is held now, where that can be done."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif (switch := Path("/proc/self/clear_refs")).exists():
        switch.write_text("5")


# Checking and sampling ----------------------------------------------------------------------------------------------


def volumes(given: argparse.Namespace) -> tuple[Blends, Blends, Tensor]:
    """Return training volumes, held-out volumes and samples."""
    started = time.perf_counter()
    subjects = simulate_heads(2 * DISTINCT, shape=given.shape).images.half()
    training = Blends(subjects[:DISTINCT], given.training, seed=0)
    heldout = Blends(subjects[DISTINCT:], given.heldout, seed=1)
    others = Blends(subjects[DISTINCT:], given.samples, seed=2).first(given.samples)
    copied = round(COPIED * given.samples)
    samples = plant_replicas(training.first(copied), others, rate=copied / given.samples, seed=0).images
    print(f"  {2 * DISTINCT} distinct subjects made in {time.perf_counter() - started:.0f} s", flush=True)
    return training, heldout, samples


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What sampling takes.

    Attributes:
        took: The time.
        is_extrapolated: Whether it was extrapolated from few steps.
        weights: Number of the network's weights.
        operations: Floating-point operations of all steps.
    """

    took: Took
    is_extrapolated: bool
    weights: int
    operations: float


@torch.no_grad()
def sample(given: argparse.Namespace, device: torch.device) -> Sampling:
    """Return what sampling takes."""
    torch.manual_seed(0)
    network = DiffusionModelUNet(
        spatial_dims=len(given.shape),
        in_channels=1,
        out_channels=1,
        channels=CHANNELS,
        num_res_blocks=1,
        attention_levels=(False,) * len(CHANNELS),
        norm_num_groups=32,
        num_head_channels=32,
    )
    network = network.eval().to(device)
    scheduler = DDIMScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(STEPS)
    watch = Stopwatch(device)
    is_extrapolated = device.type == "cpu"
    chunk = 1 if is_extrapolated else min(GPU_CHUNK, given.samples)

    def denoise(images: Tensor, times: Tensor) -> None:
        for moment in times:
            predicted = network(images, moment.expand(len(images)).to(device))
            images, _ = scheduler.step(predicted, moment, images)

    noise = torch.randn((chunk, 1, *given.shape), device=device)
    # What is done once per process must not be charged to the sampling.
    with FlopCounterMode(display=False) as counter:
        denoise(noise, scheduler.timesteps[:1])
    started = watch.now()
    if is_extrapolated:
        denoise(noise, scheduler.timesteps[:STEPS_TIMED])
        took = watch.since(started) * (STEPS / STEPS_TIMED * given.samples)
    else:
        for start in range(0, given.samples, chunk):
            denoise(noise[: given.samples - start], scheduler.timesteps)
        took = watch.since(started)
    return Sampling(
        took=took,
        is_extrapolated=is_extrapolated,
        weights=sum(weights.numel() for weights in network.parameters()),
        operations=counter.get_total_flops() / chunk * STEPS * given.samples,
    )


def checking(given: argparse.Namespace, detector: ReplicaDetector, samples: Tensor) -> dict[str, Any]:
    """Print and return what checking takes beside sampling."""
    device = detector.device
    sampling = sample(given, device)
    # What is done once per process must not be charged to the checking.
    detector.detect(samples[:2])
    watch = Stopwatch(device)
    started = watch.now()
    with watch.watching(PARTS_OF_CHECKING, road):
        result = detector.detect(samples)
    took = watch.since(started)
    parts = {**watch.parts, "rest": took - sum(watch.parts.values(), Took())}
    shape = " x ".join(map(str, given.shape))
    print(
        f"  checking {given.samples} samples of {shape} against {given.training} training and {given.heldout} held-out "
        f"volumes took {took}; found {result.replica_rate}"
    )
    print(f"  in parts: {', '.join(f'{name} {part}' for name, part in parts.items())}")
    print(
        f"  sampling them in {STEPS} steps with {sampling.weights / 1e6:.1f} million weights takes {sampling.took}"
        + (f", extrapolated from {STEPS_TIMED} steps of one sample" if sampling.is_extrapolated else "")
        + f", at {sampling.operations / sampling.took.wall / 1e12:.2g} TFLOP/s"
    )
    ratio, of_processor = took.wall / sampling.took.wall, took.processor / sampling.took.processor
    print(
        f"  checking takes {ratio:.2g} times as long as sampling, of the processor's time {of_processor:.2g} times "
        f"({'meets' if ratio < 1 else 'MISSES'} below 1); sampling would take as long at "
        f"{sampling.operations / took.wall / 1e12:.2g} TFLOP/s",
        flush=True,
    )
    return {
        "checking": asdict(took),
        "parts": {name: asdict(part) for name, part in parts.items()},
        "sampling": asdict(sampling),
        "ratio": ratio,
    }


# Memory -------------------------------------------------------------------------------------------------------------


def memory(given: argparse.Namespace, detector: ReplicaDetector, training: Blends) -> dict[str, float]:
    """Print and return by how much an evaluation raises the peak of the memory of a training process."""
    monitor = ReplicaMonitor(
        detector,
        num_samples=given.samples,
        at_steps=[2],
        evaluate_at_start=False,
        evaluate_at_end=False,
        progress=False,
    )
    set_back_peak(detector.device)
    fit(
        HeadGenerator(tuple(given.shape)),
        [monitor],
        steps=2,
        device=detector.device,
        train_dataloaders=DataLoader(training, batch_size=2),
    )
    measures = monitor.history[-1].measures
    costs = {name: measures[name] for name in measures if name.startswith(("memory_", "seconds_"))}
    whose = "GPU" if detector.device.type == "cuda" else "process"
    print(
        f"  an evaluation of {given.samples} samples raised the peak of the {whose}'s memory by "
        f"{costs['memory_sampling_mib']:.0f} MiB in sampling (by a small generator) and by "
        f"{costs['memory_checking_mib']:.0f} MiB in checking",
        flush=True,
    )
    if detector.device.type == "cuda":
        costs["peak_mib"] = torch.cuda.max_memory_allocated(detector.device) / 2**20
        print(f"  peak of the GPU's memory: {costs['peak_mib']:.0f} MiB")
    return costs


# Steps --------------------------------------------------------------------------------------------------------------


@final
class StepTimes(Callback):
    """Takes the time from the start of one step to the start of the next, evaluations left out."""

    def __init__(self, device: torch.device, monitor: ReplicaMonitor | None) -> None:
        self._watch = Stopwatch(device)
        self._monitor = monitor
        self._before: Took | None = None
        self.steps: list[Took] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Take the time since the step before."""
        now = self._watch.now()
        if self._before is not None:
            self.steps.append(now - self._before)
        self._before = now

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Leave out a step at which the monitor evaluated."""
        if self._monitor is not None and self._monitor.evaluated_now:
            self._before = None


def fit(module: LightningModule, callbacks: list[Callback], *, steps: int, device: torch.device, **data: Any) -> None:
    """Train for so many steps."""
    trainer = Trainer(
        max_steps=steps,
        callbacks=callbacks,
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, **data)


def median_step(
    module: Callable[[], HeadGenerator],
    data: HeadDataModule,
    monitor: ReplicaMonitor | None,
    *,
    steps: int,
    device: torch.device,
) -> Took:
    """Return the median time of a step."""
    seed_everything(0, verbose=False)
    times = StepTimes(device, monitor)
    callbacks: list[Callback] = [times] if monitor is None else [monitor, times]
    fit(module(), callbacks, steps=steps, device=device, datamodule=data)
    timed = times.steps[WARM_UP:]
    return Took(statistics.median(step.wall for step in timed), statistics.median(step.processor for step in timed))


def steps(given: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Print and return the time of a step with the monitor over that without."""
    report = {}
    kinds = {
        "slices of 64 x 64": ((64, 64), HeadGenerator, given.steps),
        "slices of 16 x 16": ((16, 16), lambda: HeadGenerator((16, 16), channels=(16,)), 4 * given.steps),
    }
    for name, (shape, module, count) in kinds.items():
        data = HeadDataModule(24, 30, shape=shape)
        # Fitted once: only steps are timed.
        detector = ReplicaDetector().to(device).fit(data.training, data.heldout)
        measured: dict[str, list[Took]] = {"with": [], "without": [], "again": []}
        for block in range(given.blocks + 1):
            for kind in ("without", "with", "again") if block % 2 else ("again", "with", "without"):
                monitor = None
                if kind == "with":
                    monitor = ReplicaMonitor(
                        detector, num_samples=8, at_steps=[WARM_UP], evaluate_at_end=False, progress=False
                    )
                found = median_step(module, data, monitor, steps=count, device=device)
                # The first block warms up caches and allocators.
                if block:
                    measured[kind].append(found)
        report[name] = {}
        for clock in ("wall", "processor")[: 1 if device.type == "cuda" else 2]:
            times = {kind: [getattr(took, clock) for took in blocks] for kind, blocks in measured.items()}
            sides = zip(times["with"], times["without"], times["again"], strict=True)
            ratios = [2 * watched / (before + after) for watched, before, after in sides]
            noise = [before / after for before, after in zip(times["without"], times["again"], strict=True)]
            report[name][clock] = {"ratios": ratios, "noise": noise, **times}
            said = describe_ratio(ratios, noise, statistics.median(times["without"]))
            print(f"  {name}, time {'on the wall' if clock == 'wall' else 'of the processor'}: {said}", flush=True)
    return report


def describe_ratio(ratios: list[float], noise: list[float], seconds: float) -> str:
    """Return ratios of steps with and without the monitor beside those of steps without, in words."""
    ratio, low, high = statistics.median(ratios), min(ratios), max(ratios)
    spread = statistics.median(abs(other - 1) for other in noise)
    good = abs(ratio - 1) <= spread
    added = 1e6 * seconds * (ratio - 1)
    return (
        f"a step of {1e3 * seconds:.2f} ms takes {ratio:.3f} times as long with the monitor [{low:.3f}, {high:.3f}], "
        f"{added:+.0f} us; without, one run over the other [{min(noise):.3f}, {max(noise):.3f}] "
        f"({'meets' if good else 'MISSES'} within noise of 1.00)"
    )


PARTS = ("checking", "memory", "steps")


def main() -> None:
    """Print each measure, and whether it meets its bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"Of {', '.join(PARTS)}; by default all.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda.")
    parser.add_argument("--shape", type=int, nargs=3, default=[64, 64, 48], help="Sides of the volumes, of 16 or more.")
    parser.add_argument("--training", type=int, default=2000, help="Training volumes.")
    parser.add_argument("--heldout", type=int, default=200, help="Held-out volumes.")
    parser.add_argument("--samples", type=int, default=64, help="Samples.")
    parser.add_argument("--blocks", type=int, default=8, help="Runs with the monitor, and twice as many without.")
    parser.add_argument("--steps", type=int, default=40, help="Steps of a run.")
    parser.add_argument("--json", type=Path, help="File that takes all numbers.")
    given = parser.parse_args()
    parts = given.parts or list(PARTS)
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # What Lightning says about its own internals does not concern the reader.
    for advice in (
        ".*LeafSpec.*",
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*no `val_dataloader`.*",
    ):
        warnings.filterwarnings("ignore", message=advice)
    device = torch.device(given.device)
    print(f"{given.device}, {torch.get_num_threads()} thread(s), torch {torch.__version__}")
    report: dict[str, Any] = {"arguments": {name: str(value) for name, value in vars(given).items()}}
    if "checking" in parts or "memory" in parts:
        print("Checking:", flush=True)
        training, heldout, samples = volumes(given)
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            detector = ReplicaDetector(cache_dir=folder).to(device).fit(training, heldout)
            print(f"  the detector was fitted in {time.perf_counter() - started:.0f} s", flush=True)
            if "checking" in parts:
                report["checking"] = checking(given, detector, samples)
            if "memory" in parts:
                report["memory"] = memory(given, detector, training)
    if "steps" in parts:
        print("Steps:", flush=True)
        report["steps"] = steps(given, device)
    if given.json is not None:
        given.json.write_text(json.dumps(report))


if __name__ == "__main__":
    main()
