import numpy as np
import pytest
import torch
from built_references import build

from relict_lightning.comparison import MEASURES, compare_hits
from relict_lightning.encoders import GradientEncoder
from relict_lightning.functional import affine_identity, normalized_cross_correlation, warp_affine
from relict_lightning.population import describe_population
from relict_lightning.retrieval import make_queries, retrieve
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
    queries = make_queries(samples, maps, encoder=GradientEncoder(), mirrors=MIRRORS, device=CPU)
    hits = retrieve(queries, reference, top_k=top_k)
    compared = compare_hits(
        samples,
        maps,
        hits,
        mirrors=MIRRORS,
        align=align,
        reference=reference,
        population=describe_population(reference),
        device=CPU,
    )
    return hits, compared


def _motion(degrees, scale, displacement):
    angle = np.radians(degrees)
    linear = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    return torch.tensor(np.concatenate([linear, [[displacement], [-displacement]]], axis=1)[None], dtype=torch.float32)


@pytest.mark.parametrize(("degrees", "scale", "displacement"), [(6, 1.0, 0.0), (0, 1.1, 0.02), (-4, 0.95, 0.08)])
def test_a_copy_that_was_moved_is_moved_back_and_most_alike_to_its_original(
    heads, reference, degrees, scale, displacement
):
    copies = warp_affine(heads[:4], _motion(degrees, scale, displacement).repeat(4, 1, 1))

    hits, compared = _compared(copies, reference)

    for sample in range(4):
        pairs = np.flatnonzero(hits.sample[compared.pairs] == sample)
        training = hits.training[compared.pairs[pairs]]
        alike = compared.measures["residual_correlation"][pairs]
        assert training[alike.argmax()] == sample
        original = pairs[training == sample][0]
        before = float(normalized_cross_correlation(copies[sample : sample + 1], heads[sample : sample + 1]))
        assert compared.measures["normalized_cross_correlation"][original] > max(0.95, before)
        # Once what all heads have in common is taken out, another patient is hardly alike.
        assert alike.max() > 0.6
        assert np.sort(alike)[-2] < alike.max() - 0.2


def test_a_sample_is_compared_with_the_six_patients_that_fit_best_moved_or_as_they_lie(heads):
    groups = [f"patient {position // 3}" for position in range(30)]
    reference = build(heads[:30], groups=groups)

    hits, compared = _compared(heads[30:34], reference, top_k=8)

    for sample in range(4):
        patients = [groups[hits.training[pair]] for pair in compared.pairs if hits.sample[pair] == sample]
        assert 6 <= len(set(patients)) <= len(patients) <= 12
    assert len(set(compared.pairs.tolist())) == len(compared.pairs)


def test_a_patient_with_several_scans_is_compared_by_the_one_that_was_copied(heads):
    scans = torch.cat([heads[:10], warp_affine(heads[:1], _motion(5, 1, 0.05)), heads[10:20]])
    groups = ["anna", *(f"patient {position}" for position in range(9)), "anna", *(f"more {n}" for n in range(10))]

    hits, compared = _compared(heads[:1], build(scans, groups=groups))

    assert 0 in hits.training
    assert 10 in hits.training
    chosen = hits.training[compared.pairs]
    assert 0 in chosen
    assert (chosen == 0).sum() + (chosen == 10).sum() <= 2


def test_without_alignment_nothing_is_moved(heads, reference):
    _, compared = _compared(heads[:3], reference, align=False)

    np.testing.assert_array_equal(compared.maps, affine_identity(len(compared.pairs), 2))


def test_aligning_never_makes_a_pair_less_alike(heads, reference):
    samples = heads[30:36]
    hits, compared = _compared(samples, reference)
    _, still = _compared(samples, reference, align=False)
    place = {(int(hits.sample[pair]), int(hits.training[pair])): n for n, pair in enumerate(still.pairs)}

    gains = [
        compared.measures["residual_correlation"][n]
        - still.measures["residual_correlation"][place[int(hits.sample[pair]), int(hits.training[pair])]]
        for n, pair in enumerate(compared.pairs)
        if (int(hits.sample[pair]), int(hits.training[pair])) in place
    ]

    assert len(gains) > 5
    # The score of the coarse round may rate a pair's starts otherwise than the fine one, by a little.
    assert min(gains) > -0.2
    assert np.mean(gains) > 0.05


def test_measures_are_finite_and_in_their_range(heads, reference):
    blank = torch.zeros_like(heads[:1])
    noise = torch.rand(heads[:1].shape, generator=torch.Generator().manual_seed(0))

    _, compared = _compared(torch.cat([blank, noise, heads[:1]]), reference)

    assert set(compared.measures) == set(MEASURES)
    for values in compared.measures.values():
        assert np.isfinite(values).all()
        assert (np.abs(values) <= 1 + 1e-5).all()
