import dataclasses
import math

import numpy as np
import pytest
import torch
from built_references import build, compared, retrieved

from relict_lightning.calibration import Rule
from relict_lightning.control import Control
from relict_lightning.encoders import GradientEncoder
from relict_lightning.evidence import Evidence, Look, judge
from relict_lightning.functional import benjamini_hochberg, simes_p_value, tail_p_value
from relict_lightning.results import LEVELS
from relict_lightning.retrieval import nearest_of_union
from relict_lightning.segmenters import IntensitySegmenter, label_maps
from relict_lightning.testing import simulate_heads
from relict_lightning.verdicts import conclude, conclude_without_control

CPU = torch.device("cpu")
FDR = 0.1


def _reference(images, role, groups):
    return build(images, role=role, groups=groups)


def _look(images, training):
    maps = label_maps(IntensitySegmenter(), images, device=CPU)
    queries, hits = retrieved(images, maps, training, encoder=GradientEncoder(), mirrors=((),), top_k=5)
    measured = compared(images, maps, hits, training, mirrors=((),), align=False)
    evidence = Evidence(hits=hits, mirrors=((),), compared=measured, image_sides=(24, 24), has_label_maps=True)
    return Look(queries=queries, evidence=evidence, likeness=judge(evidence, training, count=len(images)))


@pytest.fixture(scope="module")
def scene():
    """12 training patients with one image each, 40 held-out ones, and samples of which the first three are copies."""
    images = simulate_heads(12 + 40 + 5, shape=(24, 24)).images
    training = _reference(images[:12], "training", [f"patient {position}" for position in range(12)])
    heldout = _reference(images[12:52], "held-out", [f"other {position}" for position in range(40)])
    of_heldout = _look(images[12:52], training)
    union = nearest_of_union(of_heldout.queries, training, heldout, own=heldout.group_codes)
    control = Control(
        likeness=of_heldout.likeness.by_measure,
        distance_to_training=of_heldout.distance_to_training,
        union_likeness=union.likeness,
        leaks=(),
        rule=Rule(columns=of_heldout.likeness.columns),
        self_test=None,
        seconds=0.0,
    )
    look = _look(torch.cat([images[[4, 4, 7]], images[52:]]), training)
    return look, training, heldout, control


@pytest.fixture(scope="module")
def result(scene):
    look, training, heldout, control = scene
    return conclude(look, training, heldout=heldout, control=control, fdr=FDR)


def test_copies_are_replicas_of_their_originals(result):
    assert [verdict.is_replica for verdict in result.verdicts] == [True] * 3 + [False] * 5
    assert [verdict.match for verdict in result.verdicts[:3]] == [4, 4, 7]
    assert [verdict.match_group for verdict in result.verdicts[:3]] == ["patient 4", "patient 4", "patient 7"]
    assert [verdict.match_id for verdict in result.verdicts[:3]] == ["training-4", "training-4", "training-7"]


def test_the_rate_counts_the_replicas(result):
    assert (result.replica_rate.successes, result.replica_rate.trials) == (3, 8)
    assert result.replica_rate.low < 3 / 8 < result.replica_rate.high
    assert result.measures["unique_training_images_replicated"] == 2


def test_copies_lean_and_new_patients_do_not(result):
    assert (result.leaning_rate.successes, result.leaning_rate.trials) == (3, 8)


def test_samples_that_lean_towards_heldout_patients_are_chance_and_take_as_many_off(scene):
    _, training, heldout, control = scene
    # 12 training and 40 held-out patients: two that lean towards the latter take 0.6 off.
    images = torch.from_numpy(heldout.fetch_volumes(np.array([3, 9])))

    towards_heldout = conclude(_look(images, training), training, heldout=heldout, control=control, fdr=FDR)
    originals = torch.from_numpy(training.fetch_volumes(np.array([4, 7])))
    of_both = _look(torch.cat([originals, images]), training)
    mixed = conclude(of_both, training, heldout=heldout, control=control, fdr=FDR)

    assert towards_heldout.leaning_rate.successes == 0
    assert mixed.leaning_rate.successes == 1


def test_verdicts_are_the_discoveries_among_their_p_values(result):
    p_values = torch.tensor([verdict.p_value for verdict in result.verdicts], dtype=torch.float64)

    assert [verdict.is_replica for verdict in result.verdicts] == benjamini_hochberg(p_values, fdr=FDR).tolist()
    assert result.discovery_p_value == simes_p_value(p_values)


@pytest.mark.parametrize("level", LEVELS)
def test_the_rate_of_a_level_counts_the_discoveries_of_that_level(scene, result, level):
    look, _, _, control = scene
    columns = np.array(look.likeness.columns) == level
    location = np.median(control.likeness, axis=0)
    spread = np.maximum(1.48260222 * np.median(np.abs(control.likeness - location), axis=0), 0.01)
    deviations = [
        torch.from_numpy(((values - location) / spread)[:, columns].max(axis=1))
        for values in (look.likeness.by_measure, control.likeness)
    ]
    p_values = tail_p_value(*deviations)

    assert [verdict.level_p_values[level] for verdict in result.verdicts] == pytest.approx(p_values.tolist())
    assert result.level_rates[level].successes == int(benjamini_hochberg(p_values, fdr=FDR).sum())


def test_levels_alone_are_judged_by_the_stricter_control_too(scene):
    look, training, heldout, control = scene
    voxel = np.array(look.likeness.columns) == "voxel"
    blurred = look.likeness.by_measure.copy()
    # Structures lead, and show nothing; by voxels all samples are alike to somebody, and so are held-out images.
    blurred[:, ~voxel], blurred[:, voxel] = control.likeness[:, ~voxel].min(axis=0), 3.0
    look = dataclasses.replace(look, likeness=dataclasses.replace(look.likeness, by_measure=blurred))
    control = dataclasses.replace(control, rule=dataclasses.replace(control.rule, led=True))
    alike = np.where(voxel, 3.0, control.likeness)

    plain, matched = (
        conclude(look, training, heldout=heldout, control=control, fdr=FDR, look_matched=of_look)
        for of_look in (None, lambda: alike)
    )

    assert plain.replica_rate.successes == matched.replica_rate.successes == 0
    assert plain.level_rates["voxel"].successes == len(look)
    assert matched.level_rates["voxel"].successes == 0


def test_control_scores_are_on_the_scale_of_the_scores(result):
    assert len(result.control_scores) == 40
    assert min(verdict.score for verdict in result.verdicts[:3]) > max(result.control_scores)


def test_p_values_of_the_set_lie_between_what_is_attainable_and_one(result):
    assert 0 < result.attainable_p_value <= result.memorization_p_value <= 1
    assert result.memorization_p_value < 0.5


def test_set_level_measures_are_those_of_the_verdicts(scene, result):
    look = scene[0]
    upright = torch.from_numpy(look.queries.feature[0])
    cosine = (upright @ upright.T).fill_diagonal_(-1)

    assert result.measures["max_similarity"] == max(
        verdict.evidence["voxel"]["normalized_cross_correlation"] for verdict in result.verdicts
    )
    # The first two samples are the same image.
    assert cosine[0, 1] == pytest.approx(1, abs=1e-5)
    assert result.measures["self_similarity"] == pytest.approx(
        float(cosine.max(1).values.clamp(-1, 1).mean()), abs=1e-5
    )
    assert result.measures["neighbor_ratio_fraction"] == np.mean(look.likeness.neighbor_ratio < 1 / 3)


def test_without_a_control_there_are_matches_and_no_verdicts(scene):
    look, training, _, _ = scene

    result = conclude_without_control(look, training, fdr=FDR)

    assert [verdict.match for verdict in result.verdicts[:3]] == [4, 4, 7]
    assert all(math.isnan(verdict.p_value) and math.isnan(verdict.score) for verdict in result.verdicts)
    assert not any(verdict.is_replica for verdict in result.verdicts)
    assert (result.replica_rate, result.leaning_rate) == (None, None)
    assert (result.memorization_p_value, result.discovery_p_value) == (None, None)
    assert (result.level_rates, result.control_scores) == ({}, ())
    assert set(result.measures) == {"neighbor_ratio_fraction", "max_similarity", "self_similarity"}


def test_one_sample_is_like_no_other_sample(scene):
    _, training, _, _ = scene

    result = conclude_without_control(_look(simulate_heads(1, shape=(24, 24)).images, training), training, fdr=FDR)

    assert result.measures["self_similarity"] == 0.0
