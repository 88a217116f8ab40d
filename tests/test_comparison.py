import dataclasses

import numpy as np
import pytest
import torch
from built_references import build, compared, retrieved

from relict_lightning.comparison import MEASURES
from relict_lightning.encoders import GradientEncoder
from relict_lightning.functional import affine_identity, normalized_cross_correlation, warp_affine
from relict_lightning.segmenters import IntensitySegmenter
from relict_lightning.testing import simulate_heads

CPU = torch.device("cpu")
MIRRORS = ((), (0,), (1,))


@pytest.fixture(scope="module")
def heads():
    return simulate_heads(40, shape=(48, 48)).images


@pytest.fixture(scope="module")
def reference(heads):
    return build(heads[:30])


def _compared(samples, reference, *, align=True, top_k=5):
    maps = IntensitySegmenter()(samples)
    _, hits = retrieved(samples, maps, reference, encoder=GradientEncoder(), mirrors=MIRRORS, top_k=top_k)
    return hits, compared(samples, maps, hits, reference, mirrors=MIRRORS, align=align)


def _motion(degrees, scale, displacement):
    angle = np.radians(degrees)
    linear = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    return torch.tensor(np.concatenate([linear, [[displacement], [-displacement]]], axis=1)[None], dtype=torch.float32)


@pytest.mark.parametrize(("degrees", "scale", "displacement"), [(6, 1.0, 0.0), (0, 1.1, 0.02), (-4, 0.95, 0.08)])
def test_a_copy_that_was_moved_is_moved_back_and_most_alike_to_its_original(
    heads, reference, degrees, scale, displacement
):
    copies = warp_affine(heads[:4], _motion(degrees, scale, displacement).repeat(4, 1, 1))

    hits, found = _compared(copies, reference)

    for sample in range(4):
        pairs = np.flatnonzero(hits.sample[found.pairs] == sample)
        training = hits.training[found.pairs[pairs]]
        alike = found.measures["residual_correlation"][pairs]
        assert training[alike.argmax()] == sample
        original = pairs[training == sample][0]
        before = float(normalized_cross_correlation(copies[sample : sample + 1], heads[sample : sample + 1]))
        assert found.measures["normalized_cross_correlation"][original] > max(0.95, before)
        # Once what all heads have in common is taken out, another patient is hardly alike.
        assert alike.max() > 0.6
        assert np.sort(alike)[-2] < alike.max() - 0.2


def test_a_sample_is_compared_with_the_three_patients_that_fit_best_in_each_of_four_ways(heads):
    groups = [f"patient {position // 3}" for position in range(30)]
    reference = build(heads[:30], groups=groups)

    hits, found = _compared(heads[30:34], reference, top_k=8)

    for sample in range(4):
        patients = [groups[hits.training[pair]] for pair in found.pairs if hits.sample[pair] == sample]
        assert 3 <= len(set(patients)) <= len(patients) <= 12
    assert len(set(found.pairs.tolist())) == len(found.pairs)


def test_a_patient_of_one_patch_is_compared_however_many_patches_others_have(heads, reference):
    samples = heads[30:31]
    maps = IntensitySegmenter()(samples)
    _, hits = retrieved(samples, maps, reference, encoder=GradientEncoder(), mirrors=((),), top_k=5)
    found = compared(samples, maps, hits, reference, mirrors=((),))
    unlikely = int(np.setdiff1d(np.arange(len(hits.sample)), found.pairs)[0])
    likeness = np.zeros_like(hits.patch_likeness)
    # All others have hundreds of patches that are a little alike, and this one has a single one that is so entirely.
    likeness[2], likeness[:2, unlikely], likeness[2, unlikely] = np.linspace(100, 200, len(hits.sample)), 1.0, 1.0

    again = compared(samples, maps, dataclasses.replace(hits, patch_likeness=likeness), reference, mirrors=((),))

    assert unlikely in again.pairs


def test_a_patient_with_several_scans_is_compared_by_the_one_that_was_copied(heads):
    scans = torch.cat([heads[:10], warp_affine(heads[:1], _motion(5, 1, 0.05)), heads[10:20]])
    groups = ["anna", *(f"patient {position}" for position in range(9)), "anna", *(f"more {n}" for n in range(10))]

    hits, found = _compared(heads[:1], build(scans, groups=groups))

    assert 0 in hits.training
    assert 10 in hits.training
    chosen = hits.training[found.pairs]
    assert 0 in chosen
    assert (chosen == 0).sum() + (chosen == 10).sum() <= 2


def test_without_alignment_nothing_is_moved(heads, reference):
    _, found = _compared(heads[:3], reference, align=False)

    np.testing.assert_array_equal(found.maps, affine_identity(len(found.pairs), 2))


def test_aligning_never_makes_a_pair_less_alike(heads, reference):
    samples = heads[30:36]
    hits, found = _compared(samples, reference)
    _, still = _compared(samples, reference, align=False)
    place = {(int(hits.sample[pair]), int(hits.training[pair])): n for n, pair in enumerate(still.pairs)}

    gains = [
        found.measures["residual_correlation"][n]
        - still.measures["residual_correlation"][place[int(hits.sample[pair]), int(hits.training[pair])]]
        for n, pair in enumerate(found.pairs)
        if (int(hits.sample[pair]), int(hits.training[pair])) in place
    ]

    assert len(gains) > 5
    # The score of the coarse round may rate a pair's starts otherwise than the fine one, by a little.
    assert min(gains) > -0.2
    assert np.mean(gains) > 0.03


def test_measures_are_finite_and_in_their_range(heads, reference):
    blank = torch.zeros_like(heads[:1])
    noise = torch.rand(heads[:1].shape, generator=torch.Generator().manual_seed(0))

    _, found = _compared(torch.cat([blank, noise, heads[:1]]), reference)

    assert set(found.measures) == set(MEASURES)
    for values in found.measures.values():
        assert np.isfinite(values).all()
        assert (np.abs(values) <= 1 + 1e-5).all()
