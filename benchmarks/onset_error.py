"""Measures how often onset is declared falsely, how soon it is found, and how good its forecasts are.

Patients are random vectors, a block for each level (64, 32 and 16 dimensions), 200 of them, split at random into
training and held-out patients in each run; both sets are the same over all evaluations of the run. Samples are vectors
too. From their distances on, every number comes from the package: likeness, p-values against the control, verdicts,
replica rate, the permutation test in the views of features and voxels, the share that leans, and the decision.

- False alarms, in runs of 100 evaluations of generators that copy nobody: whose samples are new patients (`ordinary`),
  shrunk by half towards the mean (`blurred`) or to the eight leading of 64 components (`smooth`), near three points
  that stay (`collapsed`) or are others at each evaluation (`drifting`), and drawn towards the twenty most typical
  patients of either set (`biased`). Bar: at most 5 % of the runs, with the exact interval beside it. One more kind has
  no bar: samples halfway to any patient of either set (`haunted`). No generator can make them, because it would have to
  know the held-out patients; they show how much the test against held-out patients needs its assumption.
- Delay, in runs whose samples are copies, with noise, at a rate of 5, 10, 20 or 50 % from evaluation 20 on. Bar: in 95
  of 100 runs onset is declared at that evaluation or at the next, so within one period, and not before. Beside it stand
  the share found at the first of the two, and what counting the copies finds (`found_probability`), had every copy been
  seen and every test passed. Last comes the power of the best test of the rate that so many samples allow: the most
  powerful one at 2.5 %, the error of the rate's lower bound.
- Forecasts, in runs whose rate rises, as the forecast's model has it (`logistic`) or in a straight line (`linear`):
  share of the 80 % intervals that held the step of onset, and the median size of the error of the forecast step, as a
  logarithm to base 2. Bars: 70 % and 1, which is a factor of two.

Run with `python benchmarks/onset_error.py`, which takes half an hour on a core that is shared. For a quick look,
`python benchmarks/onset_error.py --null-runs 12 --runs 10 --samples 64`.
"""

import argparse
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import special, stats

from relict_lightning.calibration import Rule, calibrate
from relict_lightning.functional import (
    benjamini_hochberg,
    calibrated_neighbor_ratio,
    copy_likeness,
    estimate_rate,
    leaning_rate,
    memorization_p_value,
    simes_p_value,
)
from relict_lightning.onset import ForecastScore, OnsetDetector, found_probability, samples_to_find, smallest_rate_found
from relict_lightning.results import DetectionResult
from relict_lightning.retrieval import UnionNeighbors

Array = np.ndarray

RULE = Rule(columns=("voxel", "feature", "segmentation"))
BLOCKS = (slice(0, 64), slice(64, 96), slice(96, 112))
# Features and voxels are searched among training and held-out patients together.
VIEWS = (BLOCKS[1], BLOCKS[0])
# A sample's nearest patient, and five others to judge it against.
NEIGHBORS = 6
UNUSUAL = 0.05
SIZE = BLOCKS[-1].stop
PATIENTS, TRAINING, TYPICAL = 200, 100, 20
NULLS = ("ordinary", "blurred", "smooth", "collapsed", "drifting", "biased")
HAUNTED = "haunted"
NULL_EVALUATIONS, START, PERIOD = 100, 20, 100
RATES = (0.05, 0.1, 0.2, 0.5)
FDR, ALPHA = 0.05, 0.05
ALARM_BAR, FOUND_BAR, COVERAGE_BAR, ERROR_BAR = 0.05, 0.95, 0.7, 1.0


class World:
    """One run's patients, their split, and the generator's samples."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        # Few directions hold most of the variance, as in embeddings of images, and some patients are unusual.
        self.scale = np.concatenate([np.arange(1, 1 + block.stop - block.start) ** -0.5 for block in BLOCKS])
        self.leading = np.concatenate(
            [np.arange(block.stop - block.start) < (block.stop - block.start) // 8 for block in BLOCKS]
        )
        self.patients = self.new(PATIENTS)
        self.control = likeness(self.patients[TRAINING:], self.patients[:TRAINING])
        of_patients = union(self.patients, self.patients, own=np.arange(PATIENTS)).likeness[:, TRAINING:]
        self.usual = np.quantile(of_patients, 1 - UNUSUAL / len(VIEWS), axis=1, method="higher")
        self.typical = np.argsort(np.square(self.patients).sum(axis=1))[:TYPICAL]
        self.points = 0.7 * self.new(3)

    def new(self, count: int) -> Array:
        """Return new patients."""
        spread = np.exp(0.2 * self.random.standard_normal((count, 1)))
        return spread * self.scale * self.random.standard_normal((count, SIZE))

    def uncopied(self, kind: str, count: int) -> Array:
        """Return samples of a generator that does not know who was trained on."""
        fresh = self.new(count)
        if kind == "blurred":
            return 0.5 * fresh
        if kind == "smooth":
            return fresh * self.leading
        if kind == "drifting":
            self.points = 0.7 * self.new(3)
        if kind in ("collapsed", "drifting"):
            return self.points[self.random.integers(3, size=count)] + 0.1 * fresh
        if kind == "biased":
            return 0.3 * self.patients[self.random.choice(self.typical, size=count)] + 0.7 * fresh
        if kind == HAUNTED:
            return 0.5 * self.patients[self.random.integers(PATIENTS, size=count)] + 0.6 * fresh
        return fresh

    def copying(self, rate: float, count: int, *, copied: int = TRAINING) -> Array:
        """Return samples of which each is, at a rate, a noisy copy of one of some training patients."""
        fresh = self.new(count)
        copies = self.patients[self.random.integers(copied, size=count)] + 0.25 * self.new(count)
        return np.where(self.random.random((count, 1)) < rate, copies, fresh)

    def result(self, samples: Array) -> DetectionResult:
        """Return what the package finds of samples."""
        calibrated = calibrate(likeness(samples, self.patients[:TRAINING]), self.control, RULE)
        p_values = torch.from_numpy(calibrated.p_values)
        neighbors = union(samples, self.patients)
        weight, hit = torch.from_numpy(neighbors.weight.ravel()), torch.from_numpy(neighbors.group.ravel())
        is_copylike, of_training = map(torch.from_numpy, neighbors.copylike(self.usual))
        split = {"training_groups": TRAINING, "total_groups": PATIENTS}
        replicas = int(benjamini_hochberg(p_values, fdr=FDR).sum())
        return DetectionResult(
            verdicts=(),
            replica_rate=estimate_rate(replicas, len(samples)),
            level_rates={},
            fdr=FDR,
            control_scores=(),
            p_value_model="conformal with tail",
            leaning_rate=leaning_rate(is_copylike, of_training, **split),
            memorization_p_value=memorization_p_value(weight, hit, is_training=hit < TRAINING, **split),
            attainable_p_value=None,
            discovery_p_value=simes_p_value(p_values),
            measures={},
        )


def nearest(samples: Array, patients: Array, *, count: int = 3) -> tuple[Array, Array]:
    """Return distances to the nearest patients, and which these are, `[n, count]` and `[n, count]`."""
    square = np.square(samples).sum(axis=1)[:, None] + np.square(patients).sum(axis=1) - 2 * samples @ patients.T
    found = np.argpartition(square, count - 1, axis=1)[:, :count]
    found = np.take_along_axis(found, np.argsort(np.take_along_axis(square, found, axis=1), axis=1), axis=1)
    return np.sqrt(np.maximum(np.take_along_axis(square, found, axis=1), 0)), found


def union(samples: Array, patients: Array, *, own: Array | None = None) -> UnionNeighbors:
    """Return the nearest patient of each sample in each view, of training and held-out patients together.

    Args:
        samples: The samples `[n, d]`.
        patients: All patients, training patients first.
        own: Where the samples are patients, which ones; they are passed over.
    """
    groups, alike = [], []
    for view in VIEWS:
        distance, group = nearest(samples[:, view], patients[:, view], count=NEIGHBORS + (own is not None))
        if own is not None:
            # Nobody is nearer to a patient than the patient.
            distance, group = distance[:, 1:], group[:, 1:]
        groups.append(group[:, 0])
        alike.append(copy_likeness(torch.from_numpy(distance), torch.from_numpy(group)).clamp(0, 1).numpy())
    group = np.stack(groups)
    return UnionNeighbors(group=group, is_training=group < TRAINING, likeness=np.stack(alike))


def likeness(samples: Array, training: Array) -> Array:
    """Return the copy-likeness at each level, `[n, 3]`, as `relict_lightning.evidence` has it of distances."""
    columns = []
    for block in BLOCKS:
        distance, group = nearest(samples[:, block], training[:, block])
        ratio = calibrated_neighbor_ratio(
            torch.from_numpy(distance), torch.from_numpy(group), num_neighbors=2, alpha=1.0
        )
        columns.append(-np.log(ratio.clamp_min(1 / 20).numpy()))
    return np.stack(columns, axis=1)


def meets(value: float, bar: float, *, at_least: bool) -> str:
    """Return whether a value meets its bar, in words."""
    good = value >= bar if at_least else value <= bar
    return f"{'meets' if good else 'MISSES'} {'at least' if at_least else 'at most'} {bar:g}"


def false_alarms(runs: int, num_samples: int) -> dict[str, Any]:
    """Print and return how many runs without copies had an onset, by kind and in all."""
    alarms: dict[str, dict[str, int]] = {kind: defaultdict(int) for kind in (*NULLS, HAUNTED)}
    counted: dict[str, int] = defaultdict(int)
    # As many of the kind without a bar as of each other.
    for run in range(runs + runs // len(NULLS)):
        kind = NULLS[run % len(NULLS)] if run < runs else HAUNTED
        world = World(run)
        detectors = {tolerance: OnsetDetector(alpha=ALPHA, tolerance=tolerance) for tolerance in (0.01, 0.0)}
        watched = 0
        for evaluation in range(1, NULL_EVALUATIONS + 1):
            result = world.result(world.uncopied(kind, num_samples))
            for detector in detectors.values():
                if detector.onset is None:
                    detector.update(result, step=evaluation * PERIOD, epoch=0)
            watched += detectors[0.01].watch is not None
        counted[kind] += 1
        alarms[kind]["watched"] += watched
        for tolerance, detector in detectors.items():
            if detector.onset is not None:
                alarms[kind][f"tolerance {tolerance:g}"] += 1
                alarms[kind][f"tolerance {tolerance:g}, {detector.onset.evidence.value}"] += 1
    report: dict[str, Any] = {"kinds": {kind: {"runs": counted[kind], **alarms[kind]} for kind in alarms}}
    for kind, found in alarms.items():
        watched_share = found["watched"] / max(1, counted[kind] * NULL_EVALUATIONS)
        print(
            f"  {kind:>9}: {found['tolerance 0.01']} of {counted[kind]} runs, at tolerance 0 {found['tolerance 0']}; "
            f"by the permutation test {found['tolerance 0, permutation']}; watched {watched_share:.0%} of the time"
        )
    for tolerance in ("0.01", "0"):
        rate = estimate_rate(sum(alarms[kind][f"tolerance {tolerance}"] for kind in NULLS), runs)
        report[f"tolerance {tolerance}"] = [rate.successes, rate.trials, rate.low, rate.high]
        bar = meets(rate.value, ALARM_BAR, at_least=False)
        print(f"  false alarms at tolerance {tolerance}, without the last kind: {rate} ({bar})")
    return report


def clean_start(world: World, num_samples: int, *, tolerance: float) -> OnsetDetector:
    """Return a detector that saw evaluations of a generator that copies nobody, up to the start."""
    detector = OnsetDetector(alpha=ALPHA, tolerance=tolerance)
    for evaluation in range(1, START):
        detector.update(world.result(world.uncopied("ordinary", num_samples)), step=evaluation * PERIOD, epoch=0)
    return detector


def delays(runs: int, num_samples: int, *, tolerance: float) -> dict[str, Any]:
    """Print and return in how many runs onset was found within one period, for each rate."""
    found: dict[tuple[float, int], list[int]] = defaultdict(list)
    for run in range(runs):
        world = World(10_000 + run)
        state = clean_start(world, num_samples, tolerance=tolerance).state_dict()
        for rate, copied in (*((rate, TRAINING) for rate in RATES), (0.2, 3)):
            detector = OnsetDetector(alpha=ALPHA, tolerance=tolerance)
            detector.load_state_dict(state)
            for evaluation in (START, START + 1):
                samples = world.copying(rate, num_samples, copied=copied)
                detector.update(world.result(samples), step=evaluation * PERIOD, epoch=0)
            onset = detector.onset
            found[rate, copied].append(-1 if onset is None or onset.evaluation < START else onset.evaluation - START)
    report = {}
    for (rate, copied), looks in found.items():
        within, first = (sum(0 <= look <= last for look in looks) for last in (1, 0))
        best = [found_probability(rate, num_samples=num_samples, tolerance=tolerance, evaluations=n) for n in (2, 1)]
        share, once = estimate_rate(within, runs), estimate_rate(first, runs)
        name = f"{rate:.0%}" + (f" of {copied} patients" if copied < TRAINING else "")
        report[name] = {"within a period": within, "at once": first, "runs": runs, "best": best}
        print(
            f"  {name:>17}: within a period {share} ({meets(share.value, FOUND_BAR, at_least=True)}), counting "
            f"{best[0]:.0%}; at once {once.successes}/{runs}, counting {best[1]:.0%}",
            flush=True,
        )
    return report


def limits(num_samples: int) -> dict[str, Any]:
    """Print and return what any test could do with so many samples at 5 % copies, and which numbers suffice."""
    rate, tolerance, level = RATES[0], 0.01, 0.025
    best = most_powerful(rate, num_samples, tolerance=tolerance, level=level)
    pooled = most_powerful(rate, 2 * num_samples, tolerance=tolerance, level=level)
    any_copy = 1 - (1 - rate) ** num_samples
    smallest = {looks: smallest_rate_found(num_samples, evaluations=looks) for looks in (1, 2)}
    needed = {looks: samples_to_find(rate, evaluations=looks) for looks in (1, 2)}
    print(
        f"  With {num_samples} samples the best test of a rate above {tolerance:g} has power {best:.0%} at {rate:.0%} "
        f"copies, {pooled:.0%} from two evaluations pooled; any copy at all is among them in {any_copy:.1%}.\n"
        f"  With 95 % probability a rate of {smallest[1] or 1:.1%} is found at once, of {smallest[2] or 1:.1%} within "
        f"a period; {rate:.0%} takes {needed[1]} samples, or {needed[2]}."
    )
    return {"best": best, "pooled": pooled, "any copy": any_copy, "smallest": smallest, "samples at 5 %": needed}


def most_powerful(rate: float, num_samples: int, *, tolerance: float, level: float) -> float:
    """Return the power of the most powerful test of a rate above the tolerance, which may toss a coin at its bound."""
    bound = int(stats.binom.isf(level, num_samples, tolerance))
    beyond = stats.binom.sf(bound, num_samples, tolerance)
    coin = (level - beyond) / stats.binom.pmf(bound, num_samples, tolerance)
    return float(stats.binom.sf(bound, num_samples, rate) + coin * stats.binom.pmf(bound, num_samples, rate))


def ramp(kind: str, random: np.random.Generator) -> Callable[[int], float]:
    """Return the rate of copies by evaluation, in a run in which it rises."""
    start = random.uniform(10, 40)
    if kind == "linear":
        length = random.uniform(20, 80)
        return lambda evaluation: float(np.clip((evaluation - start) / length, 0, 0.5))
    slope = random.uniform(1.5, 6)
    return lambda evaluation: float(special.expit(special.logit(0.04) + slope * math.log(evaluation / start)))


def forecasts(runs: int, num_samples: int) -> dict[str, Any]:
    """Print and return how good the forecasts were in runs in which the rate of copies rose."""
    report = {}
    for kind in ("logistic", "linear"):
        scores: list[ForecastScore] = []
        first: list[ForecastScore] = []
        rates = []
        for run in range(runs):
            world = World(20_000 + run)
            rate = ramp(kind, world.random)
            detector, evaluation = OnsetDetector(alpha=ALPHA), 0
            while detector.onset is None and evaluation < NULL_EVALUATIONS:
                evaluation += 1
                samples = world.copying(rate(evaluation), num_samples)
                detector.update(world.result(samples), step=evaluation * PERIOD, epoch=0)
            if detector.onset is not None:
                rates.append(rate(evaluation))
                scores += detector.score_forecasts()
                first += detector.score_forecasts()[:1]
        report[kind] = {"onset": len(rates), "rate at onset": float(np.median(rates)), "with a forecast": len(first)}
        print(f"  {kind}: onset in {len(rates)} of {runs} runs, at a rate of {np.median(rates):.1%} in the median")
        for name, some in (("all", scores), ("the first of each run", first)):
            inside = estimate_rate(sum(score.inside for score in some), len(some))
            error = float(np.median([abs(score.log2_error) for score in some])) if some else math.nan
            report[kind][name] = {"inside": inside.successes, "forecasts": inside.trials, "error": error}
            print(
                f"    {name}: inside {inside} ({meets(inside.value, COVERAGE_BAR, at_least=True)}); error {error:.2f} "
                f"({meets(error, ERROR_BAR, at_least=False)})",
                flush=True,
            )
    return report


def main() -> None:
    """Print each measure, and whether it meets its bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--null-runs", type=int, default=200, help="Runs without copies, of all kinds together.")
    parser.add_argument("--runs", type=int, default=100, help="Runs with copies, at each rate and number of samples.")
    parser.add_argument("--samples", type=int, nargs="+", default=[64, 128, 256], help="Samples per evaluation.")
    parser.add_argument("--json", type=Path, help="File that takes all numbers.")
    given = parser.parse_args()
    started = time.perf_counter()
    print(f"{torch.get_num_threads()} thread(s), torch {torch.__version__}")
    report: dict[str, Any] = {}
    print(f"False alarms, {given.samples[0]} samples, {NULL_EVALUATIONS} evaluations a run:", flush=True)
    report["false alarms"] = false_alarms(given.null_runs, given.samples[0])
    report["found"] = {}
    for num_samples in given.samples:
        for tolerance in (0.01, 0.0) if num_samples == given.samples[0] else (0.01,):
            name = f"{num_samples} samples, tolerance {tolerance:g}"
            print(f"Found, {name}:", flush=True)
            report["found"][name] = delays(given.runs, num_samples, tolerance=tolerance)
    report["limits"] = limits(given.samples[0])
    print(f"Forecasts, {given.samples[0]} samples:", flush=True)
    report["forecasts"] = forecasts(given.runs, given.samples[0])
    print(f"[{time.perf_counter() - started:.0f} s]")
    if given.json is not None:
        given.json.write_text(json.dumps(report))


if __name__ == "__main__":
    main()
