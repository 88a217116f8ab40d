"""Measures how well the detector finds replicas, on data of which the truth is known, beside other detectors.

The data are the sets of `relict_lightning.testing.make_detection_set`, which says what each kind of sample is. Sets of
one family (`tof`, `tof_hard`) share training and held-out images, and so the fitted detector. Per set, over seeds:

- Balanced accuracy by the detector's own flags at a false discovery rate of 5 %, and at the threshold that is best for
  each seed's samples. Bars: 0.98 by its flags for `ncct`; for `tof` 0.90 by its flags and 0.95 at the best threshold,
  with label maps 0.95 and 0.98.
- Area under the ROC curve, replicas against all negatives, and against fresh patients only, which alone are
  exchangeable with held-out patients. Bars: 0.995 for `ncct`, 0.97 for `ncct_hard`, 0.95 for `tof_hard`, `t1` and
  `slices`.
- The same area for each alteration alone, against all negatives. Bar: 0.90.
- Share of the replicas flagged whose match is the right patient. Bar: 0.95.
- Share of false ones among all discoveries of all seeds, with its exact interval: fresh patients only, and all
  negatives. Bar: the upper end is at most 0.08. It takes 45 discoveries to get there with none false.
- Flags of each kind of negative, and of rescans and copied backgrounds, which are neither replica nor negative. One
  more area under the ROC curve counts copied backgrounds as negatives; rescans enter no other number.
- Share of each alteration that is found at 5 % false positives, beside other detectors
  (`benchmarks/detection_baselines.py` describes them). It is given at two thresholds. One is exceeded by 5 % of the
  held-out images; a measure that takes the blur of a generator for likeness flags far more of the fresh samples there,
  so the share of these stands beside it. The other is exceeded by 5 % of further fresh samples, and is fair to all.
  Bar: for no alteration is the best of the others better by more than 0.02. At the first threshold only those are
  compared that flag fresh samples at a rate whose exact interval reaches down to 5 %. Dice, which is given the true
  label maps, is compared only with the detector that is given them as well.

Bars hold for the mean over seeds; the worst seed stands beside it. With `--null`, discoveries among samples that copy
nothing, whose false discovery rate is the probability of any, for generators of every kind: with the usual look, one
that is 10 % and one that is 50 % stronger, with samples that are blurred, and with samples that lie near a few
patients. With `--match-look`, the stricter of two controls decides, one of which has the look of the samples. With
`--scans`, training patients have several images; with `--leaked`, some held-out images are of training patients. With
`--cost`, seconds:

- `detect` of 100 samples against 400 training volumes. Bars: 120 s, and 1/20 of what MONAI's SSIM and Dice of all
  pairs would take, extrapolated from some pairs.
- The same against twice as many training volumes.

Run with `python benchmarks/detection.py`, which takes hours: about one second for each sample and held-out image, and
0.1 s to make any image. For a quick look,
`python benchmarks/detection.py --sets tof_hard --seeds 0 --training 60 --heldout 40 --generated 40`. `--sets` without a
name scores no set, as in `--sets --cost`.
"""

import argparse
import json
import math
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detection_baselines import DICE, LEVEL, PERCENTILE_RULE, Images, score_baselines
from monai.metrics import DiceMetric, SSIMMetric
from torch import Tensor

from relict_lightning import ReplicaDetector
from relict_lightning.errors import EmptyDataError
from relict_lightning.functional import (
    area_under_roc,
    balanced_accuracy_at_optimal_threshold,
    estimate_rate,
)
from relict_lightning.results import DetectionResult, RateEstimate
from relict_lightning.testing import APART, GENERATORS, DetectionSet, make_detection_set

FAMILIES = {"ncct": ("ncct", "ncct_hard"), "tof": ("tof", "tof_hard"), "t1": ("t1",), "slices": ("slices",)}
SETS = ("ncct", "tof", "ncct_hard", "tof_hard", "t1", "slices")
MODES = {"none": ("none",), "given": ("given",), "both": ("none", "given")}
FRESH, COPIED = "fresh", "copied_background"

ACCURACY_BARS = {("ncct", "none"): 0.98, ("ncct", "given"): 0.98, ("tof", "none"): 0.90, ("tof", "given"): 0.95}
OPTIMAL_BARS = {("tof", "none"): 0.95, ("tof", "given"): 0.98}
AREA_BARS = {"ncct": 0.995, "ncct_hard": 0.97, "tof_hard": 0.95, "t1": 0.95, "slices": 0.95}
ALTERATION_BAR = 0.90
PATIENT_BAR = 0.95
DISCOVERY_BAR = 0.08
GAP_BAR = 0.02
NULLS = {
    "usual look": (1.0, "ordinary"),
    "10 % stronger look": (1.1, "ordinary"),
    "50 % stronger look": (1.5, "ordinary"),
    "blurred": (1.0, "blurred"),
    "collapsed": (1.0, "collapsed"),
}
SECONDS_BAR, COST_BAR = 120.0, 1 / 20
COST_SET, COST_PAIRS = "tof_hard", 12


def verdict(value: float, bar: float, *, at_least: bool = True) -> str:
    """Return a value beside its bar, in words."""
    met = value >= bar if at_least else value <= bar
    return f"{value:.3g} ({'meets' if met else 'MISSES'} {'at least' if at_least else 'at most'} {bar:.3g})"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the detector said of the samples of one set and seed, beside the truth.

    Attributes:
        kinds: What each sample is.
        is_replica: Whether it is a replica.
        scores: What the detector said.
        p_values: What the detector said.
        flagged: What the detector said.
        is_right_patient: Whether the match is of the patient that the sample was made of.
        level_p_values: The p-values of each level alone.
        seconds: How long `detect` took.
    """

    kinds: np.ndarray[Any, Any]
    is_replica: Tensor
    scores: Tensor
    p_values: Tensor
    flagged: Tensor
    is_right_patient: Tensor
    level_p_values: Mapping[str, list[float]]
    seconds: float

    def is_kind(self, kind: str) -> Tensor:
        """Return which samples are of a kind."""
        return torch.from_numpy(self.kinds == kind)

    @property
    def is_negative(self) -> Tensor:
        """Which samples are no replica and show no training patient otherwise."""
        return ~self.is_replica & torch.from_numpy(~np.isin(self.kinds, APART))


@dataclass(frozen=True, kw_only=True)
class Recall:
    """What one detector, of any sort, said of the samples of one set and seed, as far as thresholds go.

    Attributes:
        scores: Of the samples.
        fresh: Of further fresh samples.
        threshold: Exceeded by 5 % of the held-out images, or by the detector's own rule.
    """

    scores: Tensor
    fresh: Tensor
    threshold: float

    def found(self, *, fair: bool) -> Tensor:
        """Return which samples exceed the threshold, or with `fair` that of the fresh samples."""
        return self.scores > (float(self.fresh.double().quantile(1 - LEVEL)) if fair else self.threshold)


def examine(detector: ReplicaDetector, made: DetectionSet, *, with_labels: bool) -> tuple[Outcome, DetectionResult]:
    """Return what a detector says of the samples of a set."""
    started = time.perf_counter()
    result = detector.detect(
        made.generated_images, generated_segmentations=made.generated_labels if with_labels else None
    )
    seconds = time.perf_counter() - started
    right = [
        source >= 0 and verdict.match_group == made.training_groups[source]
        for source, verdict in zip(made.source.tolist(), result.verdicts, strict=True)
    ]
    level_p_values: dict[str, list[float]] = defaultdict(list)
    for each in result.verdicts:
        for level, p_value in each.level_p_values.items():
            level_p_values[str(level)].append(p_value)
    outcome = Outcome(
        kinds=np.array(made.kind),
        is_replica=made.is_replica,
        scores=torch.tensor([each.score for each in result.verdicts], dtype=torch.float64),
        p_values=torch.tensor([each.p_value for each in result.verdicts], dtype=torch.float64),
        flagged=torch.tensor([each.is_replica for each in result.verdicts], dtype=torch.bool),
        is_right_patient=torch.tensor(right, dtype=torch.bool),
        level_p_values=level_p_values,
        seconds=seconds,
    )
    return outcome, result


def fitted(made: DetectionSet, *, with_labels: bool, match_look: bool = False) -> tuple[ReplicaDetector, float]:
    """Return a detector fitted to a set, and how many seconds that took."""
    started = time.perf_counter()
    detector = ReplicaDetector(match_look=match_look).fit(
        made.training_images,
        made.heldout_images,
        training_groups=made.training_groups,
        heldout_groups=made.heldout_groups,
        training_segmentations=made.training_labels if with_labels else None,
        heldout_segmentations=made.heldout_labels if with_labels else None,
    )
    return detector, time.perf_counter() - started


def without_copies(family: str, seed: int, count: int, *, look: float, generator: str) -> DetectionSet:
    """Return fresh samples of a family; what comes with them of training images is not that of the family's sets."""
    null = f"{family}_null"
    name, factor = (null, 1) if family in ("ncct", "tof") else (family, 2)
    made = make_detection_set(
        name,
        seed=seed,
        training=2,
        heldout=0,
        generated=factor * count,
        look=look,
        generator=generator,
    )
    kept = ~made.is_replica
    return replace(
        made,
        generated_images=made.generated_images[kept],
        generated_labels=made.generated_labels[kept],
        is_replica=made.is_replica[kept],
        source=made.source[kept],
        kind=tuple(kind for kind, keep in zip(made.kind, kept.tolist(), strict=True) if keep),
    )


def value_or_nan(measure: Callable[[], float]) -> float:
    """Return a measure, or NaN where a set this small lacks what it needs."""
    try:
        return measure()
    except EmptyDataError:
        return math.nan


def quality(outcome: Outcome) -> dict[str, float]:
    """Return the measures of one seed by name."""
    is_replica, negative = outcome.is_replica, outcome.is_negative
    fresh = is_replica | outcome.is_kind(FRESH)
    counted = is_replica | negative
    with_copied = counted | outcome.is_kind(COPIED)
    hits = outcome.flagged & is_replica
    return {
        "balanced accuracy, own flags": float(
            (outcome.flagged[is_replica].double().mean() + (~outcome.flagged[negative]).double().mean()) / 2
        ),
        "balanced accuracy, best threshold": value_or_nan(
            lambda: balanced_accuracy_at_optimal_threshold(outcome.scores[counted], is_replica[counted])[0]
        ),
        "AUROC, all negatives": value_or_nan(
            lambda: area_under_roc(outcome.scores[counted], is_replica[counted]).value
        ),
        "AUROC, copied backgrounds as negatives too": value_or_nan(
            lambda: area_under_roc(outcome.scores[with_copied], is_replica[with_copied]).value
        ),
        "AUROC, fresh patients": value_or_nan(lambda: area_under_roc(outcome.scores[fresh], is_replica[fresh]).value),
        "right patient": float(outcome.is_right_patient[hits].double().mean()),
    }


def bars_of(name: str, mode: str) -> dict[str, float]:
    """Return the bar of each measure of a set, where there is one."""
    bars = {
        "balanced accuracy, own flags": ACCURACY_BARS.get((name, mode)),
        "balanced accuracy, best threshold": OPTIMAL_BARS.get((name, mode)),
        "AUROC, all negatives": AREA_BARS.get(name),
        "AUROC, fresh patients": AREA_BARS.get(name),
        "right patient": PATIENT_BAR,
    }
    return {measure: bar for measure, bar in bars.items() if bar is not None}


def report_alterations(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Print and return the area under the ROC curve of each alteration against all negatives, mean over seeds."""
    areas: dict[str, list[float]] = defaultdict(list)
    for outcome in outcomes:
        for kind in sorted(set(outcome.kinds[outcome.is_replica.numpy()].tolist())):
            positive = outcome.is_replica & outcome.is_kind(kind)
            counted = positive | outcome.is_negative
            if outcome.is_negative.any():
                areas[kind].append(area_under_roc(outcome.scores[counted], positive[counted]).value)
    means = {kind: float(np.mean(values)) for kind, values in sorted(areas.items())}
    for kind, mean in means.items():
        print(f"  AUROC of {kind}: mean {verdict(mean, ALTERATION_BAR)}")
    return means


def pooled(flagged: Sequence[Tensor], chosen: Sequence[Tensor]) -> RateEstimate:
    """Return how many of the chosen samples of all seeds are flagged."""
    return estimate_rate(
        sum(int((flags & which).sum()) for flags, which in zip(flagged, chosen, strict=True)),
        sum(int(which.sum()) for which in chosen),
    )


def discovery_line(title: str, rate: RateEstimate, *, of: str = "discoveries") -> str:
    """Return a rate of false discoveries beside its bar, and whether so few could ever meet it."""
    line = f"  {title}: {rate}, upper end {verdict(rate.high, DISCOVERY_BAR, at_least=False)}"
    best = estimate_rate(0, rate.trials).high
    return line if best <= DISCOVERY_BAR else f"{line}; too few {of} to tell: 0/{rate.trials} would give {best:.2g}"


def report_quality(name: str, mode: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Print and return what the detector achieved on a set, over seeds."""
    print(f"{name}, segmentations {mode}, {len(outcomes)} seed(s)")
    seeds = [quality(outcome) for outcome in outcomes]
    summary: dict[str, Any] = {"seeds": seeds}
    bars = bars_of(name, mode)
    for measure in seeds[0]:
        values = [seed[measure] for seed in seeds if not math.isnan(seed[measure])]
        if not values:
            print(f"  {measure}: no such samples")
            continue
        mean, worst = float(np.mean(values)), min(values)
        said = verdict(mean, bars[measure]) if measure in bars else f"{mean:.3g}"
        print(f"  {measure}: mean {said}, worst {worst:.3g}")
        summary[measure] = {"mean": mean, "worst": worst, "bar": bars.get(measure)}
    summary["alterations"] = report_alterations(outcomes)
    flags = [outcome.flagged for outcome in outcomes]
    for title, negatives in (
        ("false discoveries, fresh patients", [outcome.is_kind(FRESH) for outcome in outcomes]),
        ("false discoveries, all negatives", [outcome.is_negative for outcome in outcomes]),
    ):
        discoveries = [
            flag & (outcome.is_replica | negative)
            for flag, outcome, negative in zip(flags, outcomes, negatives, strict=True)
        ]
        rate = pooled(negatives, discoveries)
        print(discovery_line(title, rate))
        summary[title] = vars(rate)
    kinds = sorted({kind for outcome in outcomes for kind in outcome.kinds[~outcome.is_replica.numpy()].tolist()})
    summary["flagged"] = {}
    for kind in kinds:
        rate = pooled(flags, [outcome.is_kind(kind) & ~outcome.is_replica for outcome in outcomes])
        print(f"  flagged of {kind}: {rate}")
        summary["flagged"][kind] = vars(rate)
    return summary


Recalls = Mapping[str, Sequence[Recall]]


def report_recall(name: str, outcomes: Sequence[Outcome], recalls: Recalls) -> dict[str, Any]:
    """Print and return which share of each alteration each detector finds, over seeds.

    Args:
        name: The set.
        outcomes: Per seed, of which the truth alone counts here.
        recalls: By detector, per seed.
    """
    alterations = sorted({kind for outcome in outcomes for kind in outcome.kinds[outcome.is_replica.numpy()].tolist()})
    width = 2 + max(len(method) for method in recalls)
    summary: dict[str, Any] = {}
    for fair in (False, True):
        images = "further fresh samples" if fair else "held-out images"
        print(f"{name}, share found at the threshold that 5 % of the {images} exceed")
        # The alteration of a replica and the kind of a negative never have one name.
        found = {
            method: [recall.found(fair=fair) for recall in seeds]
            for method, seeds in recalls.items()
            # At another threshold than its own the rule is NCC.
            if not (fair and method == PERCENTILE_RULE)
        }
        shares = {
            method: {kind: pooled(flags, [outcome.is_kind(kind) for outcome in outcomes]) for kind in alterations}
            for method, flags in found.items()
        }
        fresh = {
            method: pooled(
                [recall.fresh > recall.threshold for recall in seeds],
                [torch.ones(len(recall.fresh), dtype=torch.bool) for recall in seeds],
            )
            for method, seeds in recalls.items()
        }
        columns = [*alterations, *([] if fair else ["of fresh"])]
        print(" " * width + "".join(f"{column:>{max(10, len(column) + 2)}}" for column in columns))
        for method, rates in shares.items():
            values = [rates[kind].value for kind in alterations] + ([] if fair else [fresh[method].value])
            cells = (f"{v:>{max(10, len(c) + 2)}.3f}" for v, c in zip(values, columns, strict=True))
            print(f"  {method:<{width - 2}}" + "".join(cells))
        honest = {method for method in shares if fair or fresh[method].low <= LEVEL}
        title = f"threshold of {images}"
        summary[title] = {
            "recall": {method: {kind: vars(rate) for kind, rate in rates.items()} for method, rates in shares.items()},
            "fresh above": {method: vars(rate) for method, rate in fresh.items()},
            "gaps": dict(report_gaps(shares, honest)),
        }
    return summary


def report_gaps(
    shares: Mapping[str, Mapping[str, RateEstimate]], honest: set[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Print and yield by how much the best of the others is better than the detector where it is so most."""
    for method in shares:
        if not method.startswith("detector"):
            continue
        others = [
            other
            for other in shares
            if other in honest and not other.startswith("detector") and (other != DICE or method.endswith("given"))
        ]
        if not others:
            print(f"  {method}: no other keeps to 5 % of the fresh samples")
            continue
        gap, other, kind = max(
            (shares[other][kind].value - shares[method][kind].value, other, kind)
            for other in others
            for kind in shares[method]
        )
        print(
            f"  {method}: worst gap to the best of {len(others)} others {verdict(gap, GAP_BAR, at_least=False)}, "
            f"to {other} in {kind}"
        )
        yield method, {"gap": gap, "to": other, "alteration": kind, "compared": others}


def report_null(family: str, mode: str, kind: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Print and return the discoveries among samples that copy nothing."""
    print(f"{family}, samples that copy nothing, {kind}, segmentations {mode}")
    everything = [torch.ones_like(outcome.flagged) for outcome in outcomes]
    any_discovery = estimate_rate(sum(bool(outcome.flagged.any()) for outcome in outcomes), len(outcomes))
    flagged = pooled([outcome.flagged for outcome in outcomes], everything)
    small = pooled([outcome.p_values <= LEVEL for outcome in outcomes], everything)
    print(discovery_line("seeds with a discovery, all of which are false", any_discovery, of="seeds"))
    print(f"  samples flagged: {flagged}")
    # Samples of a seed share their control, so the interval is a guide only.
    print(f"  samples with a p-value of at most {LEVEL}: {small}")
    return {
        "seeds with a discovery": vars(any_discovery),
        "samples flagged": vars(flagged),
        "p-value of at most 0.05": vars(small),
    }


def samples_as_lists(outcome: Outcome) -> dict[str, Any]:
    """Return what is known of each sample, for the JSON file."""
    return {
        "kind": outcome.kinds.tolist(),
        "is_replica": outcome.is_replica.tolist(),
        "score": outcome.scores.tolist(),
        "p_value": outcome.p_values.tolist(),
        "level_p_values": dict(outcome.level_p_values),
        "flagged": outcome.flagged.tolist(),
        "is_right_patient": outcome.is_right_patient.tolist(),
        "seconds": outcome.seconds,
    }


@dataclass(frozen=True)
class Collected:
    """What came out for the sets of a family, one entry per seed in each list.

    Attributes:
        outcomes: By set and mode.
        recalls: By set, then by detector.
        nulls: On samples that copy nothing, by mode and kind of generator.
    """

    outcomes: dict[tuple[str, str], list[Outcome]] = field(default_factory=lambda: defaultdict(list))
    recalls: dict[str, dict[str, list[Recall]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    nulls: dict[tuple[str, str], list[Outcome]] = field(default_factory=lambda: defaultdict(list))


def make_sets(names: Sequence[str], seed: int, given: argparse.Namespace) -> dict[str, DetectionSet]:
    """Return the sets of a family, which have the same training and held-out images."""
    return {
        name: make_detection_set(
            name,
            seed=seed,
            training=given.training,
            heldout=given.heldout,
            generated=given.generated,
            look=given.look,
            generator=given.generator,
            scans_per_patient=given.scans,
            leaked=given.leaked,
        )
        for name in names
    }


def run_detector(
    sets: Mapping[str, DetectionSet],
    fresh: DetectionSet | None,
    nulls: Mapping[str, DetectionSet],
    mode: str,
    collected: Collected,
    *,
    match_look: bool,
) -> Iterator[str]:
    """Score the sets of a seed by the detector, and yield what took how long."""
    with_labels = mode == "given"
    detector, seconds = fitted(next(iter(sets.values())), with_labels=with_labels, match_look=match_look)
    yield f"fit {seconds:.0f} s"
    further = None if fresh is None else examine(detector, fresh, with_labels=with_labels)[0]
    for kind, null in nulls.items():
        of_null = further if null is fresh else None
        collected.nulls[mode, kind].append(of_null or examine(detector, null, with_labels=with_labels)[0])
    for name, made in sets.items():
        outcome, result = examine(detector, made, with_labels=with_labels)
        collected.outcomes[name, mode].append(outcome)
        yield f"detect {outcome.seconds:.0f} s"
        if further is not None:
            recall = Recall(
                scores=outcome.scores,
                fresh=further.scores,
                threshold=float(np.quantile(result.control_scores, 1 - LEVEL)),
            )
            collected.recalls[name][f"detector, {mode}"].append(recall)


def run_baselines(
    sets: Mapping[str, DetectionSet], fresh: DetectionSet, collected: Collected, *, learned: bool
) -> Iterator[str]:
    """Score the sets of a seed by the others, and yield how long that took."""
    parts = {
        name: Images(images=made.generated_images, labels=made.generated_labels)
        for name, made in {**sets, FRESH: fresh}.items()
    }
    scored = score_baselines(next(iter(sets.values())), parts, learned=learned)
    yield f"others {sum(each.seconds for each in scored.values()):.0f} s"
    for method, each in scored.items():
        for name in sets:
            recall = Recall(scores=each.scores[name], fresh=each.scores[FRESH], threshold=each.threshold)
            collected.recalls[name][method].append(recall)


def run_family(family: str, names: Sequence[str], given: argparse.Namespace) -> dict[str, Any]:
    """Score the sets of a family on all seeds, print what came out, and return it."""
    collected, modes = Collected(), MODES[given.segmentations]
    for seed in given.seeds:
        started = time.perf_counter()
        sets = make_sets(names, seed, given)
        fresh, nulls = None, {}
        if given.null:
            nulls = {
                kind: without_copies(family, seed, given.generated, look=look, generator=generator)
                for kind, (look, generator) in NULLS.items()
            }
        if given.baselines:
            settings = given.look, given.generator
            same = [null for kind, null in nulls.items() if NULLS[kind] == settings]
            fresh = (
                same[0]
                if same
                else without_copies(family, seed, given.generated, look=given.look, generator=given.generator)
            )
        spent = [f"data {time.perf_counter() - started:.0f} s"]
        for mode in modes:
            spent += run_detector(sets, fresh, nulls, mode, collected, match_look=given.match_look)
        if given.baselines and fresh is not None:
            spent += run_baselines(sets, fresh, collected, learned=given.learned)
        print(f"[{family}, seed {seed}: {', '.join(spent)}]", flush=True)
    report: dict[str, Any] = {}
    for name in names:
        report[name] = {}
        for mode in modes:
            outcomes = collected.outcomes[name, mode]
            report[name][mode] = report_quality(name, mode, outcomes)
            report[name][mode]["samples"] = [samples_as_lists(outcome) for outcome in outcomes]
        if given.baselines:
            report[name]["recall"] = report_recall(name, collected.outcomes[name, modes[0]], collected.recalls[name])
    if given.null:
        report[f"{family}, nothing copied"] = {
            mode: {kind: report_null(family, mode, kind, collected.nulls[mode, kind]) for kind in NULLS}
            for mode in modes
        }
    return report


def seconds_of_all_pairs(made: DetectionSet) -> float:
    """Return how long MONAI's SSIM and Dice of all pairs would take, from the time of some of them."""
    generated, training = made.generated_images[:COST_PAIRS], made.training_images[:COST_PAIRS]
    count = min(len(generated), len(training))
    labels = int(max(made.training_labels.max(), made.generated_labels.max())) + 1
    maps = [
        torch.nn.functional.one_hot(each[:count].long(), labels).movedim(-1, 1).float()
        for each in (made.generated_labels, made.training_labels)
    ]
    structure = SSIMMetric(spatial_dims=generated.ndim - 2, data_range=1.0, win_size=11, kernel_sigma=1.5)
    overlap = DiceMetric(include_background=False)
    seconds = []
    with warnings.catch_warnings():
        # MONAI warns of labels that a map lacks.
        warnings.simplefilter("ignore")
        for pair in range(count):
            here = slice(pair, pair + 1)
            started = time.perf_counter()
            structure(generated[here], training[here])
            overlap(maps[0][here], maps[1][here])
            seconds.append(time.perf_counter() - started)
    # The smallest time of a pair: other work on the machine can only add to it, and the ratio must not gain by that.
    return min(seconds) * len(made.generated_images) * len(made.training_images)


def report_cost(given: argparse.Namespace) -> dict[str, float]:
    """Print and return what detection costs."""
    seconds = []
    found: dict[str, float] = {}
    for factor in (1, 2):
        made = make_detection_set(
            COST_SET, seed=0, training=factor * given.training, heldout=given.heldout, generated=given.generated
        )
        detector, fit = fitted(made, with_labels=False)
        seconds.append(examine(detector, made, with_labels=False)[0].seconds)
        size = f"{given.generated} samples against {factor * given.training} volumes"
        print(f"cost of {size}: fit {fit:.0f} s with {given.heldout} held-out, detect {seconds[-1]:.1f} s", flush=True)
        if factor == 1:
            all_pairs = seconds_of_all_pairs(made)
            print(f"  detect: {verdict(seconds[0], SECONDS_BAR, at_least=False)} s")
            print(f"  MONAI's SSIM and Dice of all pairs: {all_pairs:.0f} s, extrapolated from {COST_PAIRS} pairs")
            print(f"  share of that: {verdict(seconds[0] / all_pairs, COST_BAR, at_least=False)}")
            found |= {"fit": fit, "detect": seconds[0], "all pairs": all_pairs}
        del detector, made
    print(f"  detect with twice as many training volumes: {seconds[1] / seconds[0]:.2f} times", flush=True)
    return {**found, "detect, twice the training volumes": seconds[1]}


def parsed() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="*", choices=SETS, default=list(SETS), help="Sets; none with the flag alone.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="Seeds of the sets.")
    parser.add_argument("--training", type=int, default=400, help="Training images.")
    parser.add_argument("--heldout", type=int, default=200, help="Held-out images.")
    parser.add_argument("--generated", type=int, default=100, help="Samples of a set, and further fresh samples.")
    parser.add_argument("--segmentations", choices=list(MODES), default="none", help="Whether label maps are given.")
    parser.add_argument("--look", type=float, default=1.0, help="Strength of the generator's look.")
    parser.add_argument("--generator", choices=GENERATORS, default="ordinary", help="Kind of the generator.")
    parser.add_argument("--scans", type=int, default=1, help="Training images of each patient.")
    parser.add_argument("--leaked", type=int, default=0, help="Held-out images that are of training patients.")
    parser.add_argument("--match-look", action="store_true", help="Measure a control that has the samples' look, too.")
    parser.add_argument(
        "--baselines", action=argparse.BooleanOptionalAction, default=True, help="Whether to score others beside it."
    )
    parser.add_argument("--learned", action="store_true", help="Score others that are trained, too: minutes per set.")
    parser.add_argument("--null", action="store_true", help="Count discoveries among samples that copy nothing.")
    parser.add_argument("--cost", action="store_true", help="Measure seconds.")
    parser.add_argument("--json", type=Path, help="File that takes all numbers, down to each sample's.")
    return parser.parse_args()


def main() -> None:
    """Print each measure, and whether it meets its bar."""
    given = parsed()
    print(
        f"{torch.get_num_threads()} thread(s), torch {torch.__version__}; {given.training} training, {given.heldout} "
        f"held-out images, {given.generated} samples, look {given.look:g}, {given.generator} generator"
    )
    arguments = {name: str(value) if isinstance(value, Path) else value for name, value in vars(given).items()}
    report: dict[str, Any] = {"arguments": arguments, "threads": torch.get_num_threads()}
    for family, members in FAMILIES.items():
        names = [name for name in members if name in given.sets]
        if names:
            report |= run_family(family, names, given)
        # After each family, because a full run takes hours.
        if given.json is not None:
            given.json.write_text(json.dumps(report))
    if given.cost:
        report["cost"] = report_cost(given)
        if given.json is not None:
            given.json.write_text(json.dumps(report))


if __name__ == "__main__":
    main()
