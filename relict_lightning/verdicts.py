"""From evidence to verdicts, and from verdicts to the rates and measures of the whole set."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from relict_lightning.calibration import calibrate, stricter
from relict_lightning.control import Control
from relict_lightning.evidence import Look
from relict_lightning.functional import (
    attainable_memorization_p_value,
    benjamini_hochberg,
    closer_to_training_share,
    ct_score,
    estimate_rate,
    leaning_rate,
    memorization_p_value,
    neighbor_ratio_fraction,
    self_similarity,
    simes_p_value,
    unique_training_images,
)
from relict_lightning.index import Reference
from relict_lightning.results import LEVELS, DetectionResult, Verdict
from relict_lightning.retrieval import balanced_distances, nearest_of_union

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]


def conclude_without_control(look: Look, training: Reference, *, fdr: float) -> DetectionResult:
    """Return matches and evidence; nothing says how alike a new patient would be, so nothing is called a replica."""
    nan = np.full(len(look), np.nan)
    verdicts = _verdicts(
        look,
        training,
        best_pairs=look.likeness.best_pairs(),
        scores=nan,
        p_values=nan,
        is_replica=np.zeros(len(look), bool),
        levels=None,
    )
    return DetectionResult(
        verdicts=verdicts,
        replica_rate=None,
        level_rates={},
        fdr=fdr,
        control_scores=(),
        p_value_model=None,
        leaning_rate=None,
        memorization_p_value=None,
        attainable_p_value=None,
        discovery_p_value=None,
        measures=_measures(look, verdicts),
    )


def conclude(
    look: Look,
    training: Reference,
    *,
    heldout: Reference,
    control: Control,
    fdr: float,
    look_matched: Callable[[], Array] | None = None,
) -> DetectionResult:
    """Return the verdicts on samples, and the rates, p-values and measures of the set.

    Args:
        look: The samples' measurements.
        training: The training set.
        heldout: The held-out images, of other patients.
        control: The held-out patients' measurements.
        fdr: False discovery rate of the verdicts.
        look_matched: Measures the held-out patients once more, given the look of the samples, `[h, c]`; the stricter of
            both controls then decides. Not called where there is nothing to be stricter about, at any level either.
    """
    calibrated = calibrate(look.likeness.by_measure, control.likeness, control.rule)
    said = [calibrated.p_values, *calibrated.level_p_values.T]
    if look_matched is not None and any(_discoveries(p_values, fdr).any() for p_values in said):
        calibrated = stricter(calibrated, calibrate(look.likeness.by_measure, look_matched(), control.rule))
    is_replica = _discoveries(calibrated.p_values, fdr)
    verdicts = _verdicts(
        look,
        training,
        best_pairs=look.likeness.best_pairs(control=control.likeness, rule=control.rule),
        scores=calibrated.scores,
        p_values=calibrated.p_values,
        is_replica=is_replica,
        levels=calibrated.level_p_values,
    )
    union = nearest_of_union(look.queries, training, heldout)
    balanced = balanced_distances(look.queries, training, heldout)
    training_groups, heldout_groups = (int(reference.group_codes.max()) + 1 for reference in (training, heldout))
    split = {"training_groups": training_groups, "total_groups": training_groups + heldout_groups}
    # A sample stands there once for each view, and the sum of all is tested.
    group, weight, is_training = (
        torch.from_numpy(of_views.ravel()) for of_views in (union.group, union.weight, union.is_training)
    )
    is_copylike, of_training = map(torch.from_numpy, union.copylike(control.usual_union_likeness))
    nearer = closer_to_training_share(*(torch.from_numpy(distance) for distance in balanced))
    matches = torch.tensor([verdict.match for verdict in verdicts], dtype=torch.long)
    ct = ct_score(torch.from_numpy(look.distance_to_training), torch.from_numpy(control.distance_to_training))
    return DetectionResult(
        verdicts=verdicts,
        replica_rate=estimate_rate(int(is_replica.sum()), len(look)),
        level_rates={
            level: estimate_rate(int(_discoveries(calibrated.level_p_values[:, column], fdr).sum()), len(look))
            for column, level in enumerate(LEVELS)
        },
        fdr=fdr,
        control_scores=tuple(float(score) for score in calibrated.control_scores),
        p_value_model="conformal with tail" if calibrated.extrapolates else "conformal",
        leaning_rate=leaning_rate(is_copylike, of_training, **split),
        memorization_p_value=memorization_p_value(weight, group, is_training=is_training, **split),
        attainable_p_value=attainable_memorization_p_value(weight, group, **split),
        discovery_p_value=simes_p_value(torch.from_numpy(calibrated.p_values)),
        measures={
            **_measures(look, verdicts),
            "closer_to_training_share": nearer,
            "ct_score": ct,
            "unique_training_images_replicated": float(unique_training_images(matches, torch.from_numpy(is_replica))),
            "heldout_false_positive_rate": control.false_positive_rate(fdr).value,
            **({} if control.self_test is None else {"planted_copy_recall": control.self_test.overall_recall.value}),
        },
    )


def _discoveries(p_values: Array, fdr: float) -> Array:
    discoveries: Array = benjamini_hochberg(torch.from_numpy(p_values), fdr=fdr).numpy()
    return discoveries


def _verdicts(
    look: Look,
    training: Reference,
    *,
    best_pairs: Array,
    scores: Array,
    p_values: Array,
    is_replica: Array,
    levels: Array | None,
) -> tuple[Verdict, ...]:
    verdicts = []
    for sample, pair in enumerate(best_pairs):
        match = int(look.evidence.training[pair])
        verdicts.append(
            Verdict(
                score=float(scores[sample]),
                p_value=float(p_values[sample]),
                is_replica=bool(is_replica[sample]),
                match=match,
                match_id=training.ids[match],
                match_group=training.groups[match],
                transform=look.evidence.transform(int(pair)),
                evidence=look.evidence.describe(int(pair)),
                level_p_values={}
                if levels is None
                else {level: float(levels[sample, column]) for column, level in enumerate(LEVELS)},
            )
        )
    return tuple(verdicts)


def _measures(look: Look, verdicts: tuple[Verdict, ...]) -> Mapping[str, float]:
    """Return the set-level measures that need no control."""
    upright = torch.from_numpy(look.queries.feature[0])
    ratios = torch.from_numpy(look.likeness.neighbor_ratio)
    return {
        "neighbor_ratio_fraction": neighbor_ratio_fraction(ratios),
        "max_similarity": max(verdict.evidence["voxel"]["normalized_cross_correlation"] for verdict in verdicts),
        "self_similarity": self_similarity(upright) if len(look) > 1 else 0.0,
    }
