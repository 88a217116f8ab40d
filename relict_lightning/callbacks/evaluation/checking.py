"""Checking an evaluation's samples against the reference, and what that takes."""

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from relict_lightning.detector import ReplicaDetector
from relict_lightning.results import DetectionResult, MatchedPair

if sys.platform != "win32":
    import resource

_PAIRS_KEPT = 8


@final
@dataclass(frozen=True, kw_only=True)
class Checked:
    """What was found of the samples of one evaluation.

    Attributes:
        result: What the detector found.
        pairs: The samples most like a copy, with their matches.
        costs: Seconds that it took, and MiB by which it raised the peak of the process's memory, on the GPU where there
            is one, by their logged names.
    """

    result: DetectionResult
    pairs: list[MatchedPair]
    costs: Mapping[str, float]


def check(detector: ReplicaDetector, images: Tensor, label_maps: Tensor | None) -> Checked:
    """Return what a detector finds of samples; it draws from the global random state.

    Args:
        detector: The fitted detector.
        images: The samples, `[n, c, *spatial]`.
        label_maps: The label maps that they were made from, `[n, *spatial]`, if any; not every detector takes them.
    """
    before = reading(detector.device)
    result = detector.detect(images, generated_segmentations=label_maps if detector.takes_label_maps else None)
    pairs = detector.matched_pairs(images, result, _most_alike(result))
    return Checked(result=result, pairs=pairs, costs=costs_of("checking", before, reading(detector.device)))


def reading(device: torch.device) -> tuple[float, float]:
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


def costs_of(name: str, before: tuple[float, float], after: tuple[float, float]) -> dict[str, float]:
    """Return by their logged names the seconds and the MiB that lie between two readings."""
    return {f"seconds_{name}": after[0] - before[0], f"memory_{name}_mib": after[1] - before[1]}


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
