"""One evaluation: samples drawn, checked against the reference, and what that took."""

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from lightning.pytorch import LightningModule, Trainer

from relict_lightning.callbacks.agreement import together
from relict_lightning.callbacks.drawing import SampleDrawer
from relict_lightning.data import random_state_kept
from relict_lightning.detector import ReplicaDetector
from relict_lightning.results import DetectionResult, MatchedPair

if sys.platform != "win32":
    import resource

_TINY = 4
_PAIRS_KEPT = 8


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was found of the samples of one evaluation.

    Attributes:
        result: What the detector found.
        pairs: The samples most like a copy, with their matches.
        costs: Seconds that sampling and checking took, and MiB by which each raised the peak of the process's memory,
            on the GPU where there is one.
    """

    result: DetectionResult
    pairs: list[MatchedPair]
    costs: Mapping[str, float]


def measure(
    trainer: Trainer,
    module: LightningModule,
    *,
    drawer: SampleDrawer,
    detector: ReplicaDetector,
    num_samples: int,
    evaluation: int,
    progress: bool,
) -> Measured:
    """Draw samples and check them; all processes call this together.

    Args:
        trainer: The trainer, while it fits.
        module: The model under training, which is left as it was.
        drawer: Draws the samples.
        detector: Checks them.
        num_samples: How many samples.
        evaluation: Number of the evaluation; each has seeds of its own.
        progress: Whether to show a progress bar, on the first process.

    Raises:
        SamplerError: If the samples are not what was asked for.
        OtherProcessError: If it failed on another process.
    """
    readings = [_reading(module.device)]
    samples = drawer.draw(
        trainer,
        module,
        num_samples=min(num_samples, _TINY) if is_dry_run(trainer) else num_samples,
        evaluation=evaluation,
        image_shape=detector.image_shape,
        progress=progress and trainer.is_global_zero,
    )
    readings.append(_reading(module.device))

    def check() -> tuple[DetectionResult, list[MatchedPair]]:
        with random_state_kept():
            label_maps = samples.label_maps if detector.takes_label_maps else None
            result = detector.detect(samples.images, generated_segmentations=label_maps)
            return result, detector.matched_pairs(samples.images, result, _most_alike(result))

    checking = "Checking the samples"
    # Processes that share the reference wait for each other while they check.
    share = partial(detector.processes.together, check, doing=checking)
    result, pairs = together(trainer, share, doing=checking)
    readings.append(_reading(module.device))
    costs = {}
    for name, before, after in zip(("sampling", "checking"), readings, readings[1:], strict=False):
        costs[f"seconds_{name}"] = after[0] - before[0]
        costs[f"memory_{name}_mib"] = after[1] - before[1]
    return Measured(result=result, pairs=pairs, costs=costs)


def is_dry_run(trainer: Trainer) -> bool:
    """Return whether this is a `fast_dev_run`."""
    return bool(getattr(trainer, "fast_dev_run", False))


def _reading(device: torch.device) -> tuple[float, float]:
    """Return the time in seconds, and the peak of the memory in MiB; no counter is reset, since others read them."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter(), torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        # There is no such counter, and values that are not finite are not logged.
        return time.perf_counter(), math.nan
    # In kilobytes, but for macOS.
    per_mib = 2**20 if sys.platform == "darwin" else 2**10
    return time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / per_mib


def _most_alike(result: DetectionResult) -> list[int]:
    """Return the samples most like a copy, and of those that match one training image the best first."""

    def order(sample: int) -> tuple[bool, float]:
        verdict = result.verdicts[sample]
        alike = verdict.evidence["voxel"]["normalized_cross_correlation"]
        return not verdict.is_replica, -(alike if math.isnan(verdict.score) else verdict.score)

    ranked = sorted(range(len(result.verdicts)), key=order)
    best_of_match: dict[int, int] = {}
    for sample in ranked:
        best_of_match.setdefault(result.verdicts[sample].match, sample)
    first = set(best_of_match.values())
    return sorted(ranked, key=lambda sample: (not result.verdicts[sample].is_replica, sample not in first))[
        :_PAIRS_KEPT
    ]
