import dataclasses

import numpy as np
import pytest
import torch
from built_references import build, compared, retrieved
from torch import nn

from relict_lightning.calibration import Rule
from relict_lightning.comparison import MEASURES
from relict_lightning.encoders import GradientEncoder
from relict_lightning.evidence import Evidence, Likeness, Look, judge
from relict_lightning.functional import mean_dice, structural_similarity
from relict_lightning.segmenters import IntensitySegmenter, label_maps

CPU = torch.device("cpu")
SEGMENTER = IntensitySegmenter()


def _smooth(count, *spatial, channels=1, seed=0, border=4):
    """Smooth random anatomy in the middle of an empty field, so that a small displacement loses nothing."""
    wide = [side + 8 for side in spatial]
    images = torch.rand((count, channels, *wide), generator=torch.Generator().manual_seed(seed))
    pool = nn.functional.avg_pool2d if len(spatial) == 2 else nn.functional.avg_pool3d
    images = pool(pool(images, 5, stride=1), 5, stride=1)
    images = (images - images.amin()) / (images.amax() - images.amin()) + 0.2
    inside = torch.zeros(spatial)
    inside[tuple(slice(border, side - border) for side in spatial)] = 1
    return images * inside


def _reference(images, groups=None):
    return build(images, groups=groups)


def _hits(samples, reference, mirrors, *, top_k=3):
    maps = label_maps(SEGMENTER, samples, device=CPU)
    return retrieved(samples, maps, reference, encoder=GradientEncoder(), mirrors=mirrors, top_k=top_k)[1]


def _evidence(samples, maps, hits, reference, *, mirrors, align=True):
    measured = compared(samples, maps, hits, reference, mirrors=mirrors, align=align)
    sides = tuple(samples.shape[2:])
    return Evidence(hits=hits, mirrors=mirrors, compared=measured, image_sides=sides, has_label_maps=True)


def _look(samples, reference, *, align=True, top_k=3):
    mirrors = ((), *((axis,) for axis in range(samples.ndim - 2)))
    hits = _hits(samples, reference, mirrors, top_k=top_k)
    maps = label_maps(SEGMENTER, samples, device=CPU)
    evidence = _evidence(samples, maps, hits, reference, mirrors=mirrors, align=align)
    return evidence, judge(evidence, reference, count=len(samples))


def _of_levels(likeness):
    """Returns the largest likeness of each level, `[n, 3]`."""
    levels = np.array(likeness.columns)
    columns = [likeness.by_measure[:, levels == level] for level in ("voxel", "feature", "segmentation")]
    return np.stack([of_level.max(axis=1) for of_level in columns], axis=1)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("spatial", [(32, 32), (24, 24, 24)], ids=["2-D", "3-D"])
@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("displaced", [False, True])
def test_altered_copies_are_matched_moved_back_and_called_alike(spatial, channels, axis, displaced):
    training = _smooth(6, *spatial, channels=channels)
    still = (0,) * len(spatial)
    moves = ((2, -1) if len(spatial) == 2 else (1, -1, 0)) if displaced else still
    dims = tuple(range(2, 2 + len(spatial)))
    samples = training[:3].roll([-move for move in moves], dims)
    samples = samples if axis is None else samples.flip(axis + 2)

    evidence, likeness = _look(samples, _reference(training), top_k=6)

    for sample, pair in enumerate(likeness.best_pairs()):
        measures = evidence.describe(int(pair))
        assert evidence.training[pair] == sample
        assert evidence.transform(int(pair)).mirrored_axes == (() if axis is None else (axis,))
        assert evidence.transform(int(pair)).shift_voxels == pytest.approx(moves, abs=0.2)
        # What is left of a displacement, a tenth of a voxel, blurs images as rough as these a little.
        assert measures["voxel"]["normalized_cross_correlation"] > 0.98
        assert measures["voxel"]["structural_similarity"] > 0.95
        assert measures["segmentation"]["mean_dice"] > 0.98
    # As it lies, a displaced copy is alike to nobody.
    assert (_of_levels(likeness)[:, [0, 2]] > np.log(5)).all()


def test_a_new_patient_is_less_alike_than_any_copy():
    training, fresh = _smooth(20, 24, 24).split(10)
    reference = _reference(training)

    _, copies = _look(training, reference)
    _, others = _look(fresh, reference)

    assert (_of_levels(copies).min(axis=0) > _of_levels(others).max(axis=0)).all()
    assert copies.neighbor_ratio.max() < 0.1 < others.neighbor_ratio.min()


def test_gain_and_offset_do_not_hide_a_copy():
    training = _smooth(8, 24, 24)

    evidence, likeness = _look(0.7 * training[:4] + 0.1, _reference(training))

    assert evidence.training[likeness.best_pairs()].tolist() == [0, 1, 2, 3]
    assert (_of_levels(likeness) > np.log(2)).all()


def test_measures_are_those_of_the_functions_without_transforms():
    training, samples = _smooth(6, 20, 20), _smooth(3, 20, 20, seed=1)
    reference = _reference(training)

    evidence, _ = _look(samples, reference, align=False)

    upright = evidence.hits.mirroring[evidence.compared.pairs] == 0
    sample, patient = evidence.sample[upright], evidence.training[upright]
    measures = {name: values[upright] for name, values in evidence.compared.measures.items()}
    stored = torch.from_numpy(reference.volumes(patient))
    labels = SEGMENTER(samples[sample]), torch.from_numpy(reference.label_maps[patient].astype(np.int64))
    pairs = torch.stack([samples[sample].flatten(1), stored.flatten(1)], dim=1).numpy()
    correlation = [np.corrcoef(pair)[0, 1] for pair in pairs]
    assert upright.sum() >= 3
    assert set(measures) == set(MEASURES)
    np.testing.assert_allclose(measures["normalized_cross_correlation"], correlation, atol=1e-5)
    np.testing.assert_allclose(
        measures["structural_similarity"],
        structural_similarity(samples[sample], stored, data_range=1.0),
        atol=1e-5,
    )
    np.testing.assert_allclose(measures["mean_dice"], mean_dice(*labels, num_labels=4), atol=1e-6)
    assert all(evidence.transform(pair).shift_voxels == (0.0, 0.0) for pair in range(len(evidence.sample)))


def test_likeness_is_the_logarithm_of_how_much_further_off_the_two_next_patients_are():
    training = _smooth(9, 20, 20)
    groups = ["anna", "anna", "ben", "ben", "cleo", "dora", "eve", "fay", "gil"]
    reference = _reference(training, groups)

    evidence, likeness = _look(_smooth(4, 20, 20, seed=1), reference, top_k=7)

    named = [(level, one) for level in ("voxel", "feature", "segmentation") for one in evidence.similarities(level)]
    assert likeness.columns == (*(level for level, _ in named), *["segmentation"] * 3)
    for column, (_, similarity) in enumerate(named):
        for sample in range(4):
            nearest = {}
            for pair in np.flatnonzero(evidence.sample == sample):
                group = groups[evidence.training[pair]]
                nearest[group] = min(nearest.get(group, 2.0), 1 - float(similarity[pair]))
            first, second, third = sorted(nearest.values())[:3]
            expected = -np.log(max(2 * first / (second + third), 1 / 20)) if second + third > 0 else 0.0
            assert likeness.by_measure[sample, column] == pytest.approx(expected, abs=1e-3)
    for sample in range(4):
        *best, alike = evidence.hits.patch_likeness[:, evidence.hits.sample == sample].max(axis=1)
        expected = [*(-np.log(1 - of_patch) for of_patch in best), np.log(0.1 + alike)]
        assert likeness.by_measure[sample, len(named) :].tolist() == pytest.approx(expected, abs=1e-6)


def test_a_sample_that_is_alike_in_no_patch_is_not_the_least_like_a_copy_for_it():
    training = _smooth(6, 20, 20)
    reference = _reference(training)
    evidence, _ = _look(training[:2], reference)
    hits = dataclasses.replace(evidence.hits, patch_likeness=np.zeros_like(evidence.hits.patch_likeness))

    likeness = judge(dataclasses.replace(evidence, hits=hits), reference, count=2)

    np.testing.assert_allclose(likeness.by_measure[:, -3:], [[0, 0, np.log(0.1)]] * 2)


def test_the_match_is_the_pair_that_exceeds_the_usual_most():
    # The first sample has three pairs, the second two. By the second measure everybody is alike.
    by_pair = np.array([[0.1, 2.0], [0.9, 1.0], [0.2, 1.5], [0.1, 0.9], [0.0, 0.7]])
    likeness = Likeness(
        columns=("voxel", "segmentation"),
        by_measure=np.array([[0.9, 2.0], [0.1, 0.9]]),
        by_pair=by_pair,
        sample=np.array([0, 0, 0, 1, 1]),
        neighbor_ratio=np.ones(2),
    )
    control = np.array([[0.0, 0.0], [0.1, 1.0], [0.2, 2.0]])

    assert likeness.best_pairs().tolist() == [0, 3]
    # The second sample has nothing beyond the usual, and matches the nearest.
    assert likeness.best_pairs(control=control, rule=Rule(columns=likeness.columns)).tolist() == [1, 3]


def test_a_sample_between_two_patients_is_less_like_a_copy_than_one_with_a_twin_in_the_training_set():
    training = _smooth(9, 24, 24)
    between = (training[:1] + training[1:2]) / 2
    twin = training[2:3] + 0.01 * _smooth(1, 24, 24, seed=5)

    _, likeness = _look(torch.cat([between, training[2:3]]), _reference(torch.cat([training, twin])))

    assert (_of_levels(likeness)[0] < _of_levels(likeness)[1] - 0.2).all()


def test_a_second_scan_of_the_copied_patient_does_not_hide_the_copy():
    training = _smooth(8, 24, 24)
    rescan = training[:1] + 0.01 * _smooth(1, 24, 24, seed=5)
    together = torch.cat([training, rescan])
    groups = [f"patient {position}" for position in range(8)] + ["patient 0"]

    _, likeness = _look(training[:1], _reference(together, groups))
    _, fooled = _look(training[:1], _reference(together))

    assert (_of_levels(likeness) > np.log(10)).all()
    assert likeness.neighbor_ratio[0] < 0.1
    assert fooled.by_measure.mean() < likeness.by_measure.mean() - 0.1


@pytest.mark.parametrize("value", [0.0, 0.2])
@pytest.mark.parametrize("position", [0, 3])
def test_a_blank_sample_is_no_copy_of_a_blank_training_image(value, position):
    training = _smooth(8, 24, 24)
    training[position] = value

    _, likeness = _look(torch.full((2, 1, 24, 24), value), _reference(training))

    assert (likeness.by_measure <= 0).all()


def test_a_segmenter_that_finds_nothing_gives_no_evidence():
    training = _smooth(6, 20, 20)
    reference = build(training, segment=lambda images: torch.zeros_like(images[:, 0]).long())
    hits = _hits(training[:2], reference, ((),))

    nothing = torch.zeros(2, 20, 20, dtype=torch.long)
    evidence = _evidence(training[:2], nothing, hits, reference, mirrors=((),))

    assert not evidence.compared.measures["mean_dice"].any()
    dice = slice(-5, -3)
    assert not judge(evidence, reference, count=2).by_measure[:, dice].any()


def test_classes_of_intensity_are_evidence_of_voxels_and_label_maps_of_structures():
    training = _smooth(6, 20, 20)
    evidence, likeness = _look(training[:2], _reference(training))
    by_intensity = dataclasses.replace(evidence, has_label_maps=False)

    dice = [evidence.compared.measures[name] for name in ("mean_dice", "unmoved_dice")]
    for with_dice, level in ((evidence, "segmentation"), (by_intensity, "voxel")):
        for expected, found in zip(dice, with_dice.similarities(level)[-2:], strict=True):
            np.testing.assert_array_equal(found, expected)
    assert likeness.columns == ("voxel",) * 2 + ("feature",) + ("segmentation",) * 6
    columns = judge(by_intensity, _reference(training), count=2).columns
    assert columns == ("voxel",) * 4 + ("feature",) + ("segmentation",) * 4


def test_chunks_of_pairs_change_no_number(monkeypatch):
    training, samples = _smooth(6, 20, 20), _smooth(4, 20, 20, seed=1)
    reference = _reference(training)
    evidence, _ = _look(samples, reference)

    monkeypatch.setattr("relict_lightning.comparison._VOXELS_AT_ONCE", 3 * 400)
    chunked, _ = _look(samples, reference)

    np.testing.assert_array_equal(chunked.compared.maps, evidence.compared.maps)
    for name in MEASURES:
        np.testing.assert_array_equal(chunked.compared.measures[name], evidence.compared.measures[name])


def test_the_distance_to_training_is_that_to_the_nearest_hit():
    training, samples = _smooth(6, 20, 20), _smooth(3, 20, 20, seed=1)
    reference = _reference(training)
    evidence, likeness = _look(samples, reference)
    maps = label_maps(SEGMENTER, samples, device=CPU)
    queries, _ = retrieved(samples, maps, reference, encoder=GradientEncoder(), mirrors=((), (0,), (1,)), top_k=3)
    vectors = reference.feature.vectors[np.arange(6)]
    cosine = np.einsum("vnd,md->vnm", queries.feature, vectors)

    look = Look(queries=queries, evidence=evidence, likeness=likeness)

    assert len(look) == 3
    # A hit's similarity is that under the mirroring which suits both views, so it may lie below the best.
    nearest = np.sqrt(2 - 2 * cosine.max(axis=(0, 2)))
    assert (look.distance_to_training >= nearest - 1e-5).all()
    np.testing.assert_allclose(
        look.distance_to_training,
        [
            np.linalg.norm(
                queries.feature[evidence.hits.mirroring[pairs], sample] - vectors[evidence.hits.training[pairs]],
                axis=1,
            ).min()
            for sample in range(3)
            for pairs in [np.flatnonzero(evidence.hits.sample == sample)]
        ],
        atol=1e-4,
    )
