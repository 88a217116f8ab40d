import numpy as np
import pytest
import torch
from built_references import build, retrieved
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from relict_lightning.index import coarse_view, feature_view, label_view
from relict_lightning.retrieval import (
    UnionNeighbors,
    _likely_mirrorings,
    balanced_distances,
    make_queries,
    nearest_of_union,
)
from relict_lightning.usual import describe_usual

CPU = torch.device("cpu")
MIRRORS = ((), (0,), (1,))


def _images(count, seed):
    return torch.randn((count, 1, 6, 5), generator=torch.Generator().manual_seed(seed))


def _sign(images):
    return (images[:, 0] > 0).long()


def _reference(images, groups, role="training"):
    return build(images, role=role, groups=groups, encoder=nn.Flatten(), segment=_sign)


def _queries(images, usual=None, mirrors=MIRRORS):
    usual = usual or describe_usual(_reference(_images(8, 1), range(8)))
    return make_queries(images, _sign(images), encoder=nn.Flatten(), usual=usual, mirrors=mirrors, device=CPU)


def _retrieved(samples, reference, *, top_k, mirrors=MIRRORS):
    return retrieved(samples, _sign(samples), reference, encoder=nn.Flatten(), mirrors=mirrors, top_k=top_k)[1]


def _features(images):
    return feature_view(nn.Flatten(), images)


def _labels(images):
    return label_view(_sign(images))


def _stored(images):
    return torch.from_numpy(_reference(images, range(len(images))).volumes(np.arange(len(images))))


def _groups(seed, count, patients):
    return [f"patient {number}" for number in np.random.default_rng(seed).integers(0, patients, count)]


def test_queries_are_the_views_of_every_mirrored_sample():
    images = _images(70, 0)

    usual = describe_usual(_reference(_images(8, 1), range(8)))
    saliency = usual.saliency

    queries = _queries(images, usual)

    assert len(queries) == 70
    for position, axes in enumerate(((), (2,), (3,))):
        mirrored = images.flip(axes)
        np.testing.assert_allclose(queries.feature[position], feature_view(nn.Flatten(), mirrored), atol=1e-6)
        np.testing.assert_allclose(queries.coarse[position], coarse_view(mirrored), atol=1e-6)
        np.testing.assert_allclose(queries.labels[position], label_view(_sign(mirrored)), atol=1e-6)
        maps = saliency.maps(mirrored)
        np.testing.assert_allclose(queries.salient[position], saliency.to_vectors(maps), atol=1e-6)
        of_patches = usual.patches.queries(mirrored, maps, saliency.peaks(maps))
        np.testing.assert_array_equal(queries.patches[position].grids, of_patches.grids)
        np.testing.assert_array_equal(queries.patches[position].weights, of_patches.weights)


def _best(rankings, groups, top_k):
    """Returns pairs of each sample and its nearest images and groups, given its similarity to each image."""
    pairs = set()
    for sample, row in rankings:
        seen = []
        for rank, position in enumerate((-row).argsort(kind="stable")):
            is_new = groups[position] not in seen
            seen += [groups[position]] * is_new
            if rank < top_k or (is_new and len(seen) <= top_k):
                pairs.add((sample, int(position)))
    return pairs


@settings(max_examples=25)
@given(m=st.integers(2, 30), patients=st.integers(2, 12), top_k=st.integers(2, 6), seed=st.integers(0, 999))
def test_hits_are_those_of_a_full_ranking(m, patients, top_k, seed):
    groups = _groups(seed, m, patients)
    # One patient alone is refused by `ReplicaDetector.fit`.
    assume(len(set(groups)) > 1)
    training, samples = _images(m, seed), _images(4, seed + 1)
    expected = set()
    reference = _reference(training, groups)
    usual = describe_usual(reference)
    saliency = usual.saliency
    for view, by_what_stands_out in (
        (lambda images: feature_view(nn.Flatten(), images), False),
        (coarse_view, False),
        (lambda images: label_view(_sign(images)), False),
        (lambda images: torch.from_numpy(saliency.to_vectors(saliency.maps(images))), True),
    ):
        # Stored images are in half precision.
        stored = view(_stored(training)).double().T
        by_mirroring = [(view(samples.flip(axes)).double() @ stored).float().numpy() for axes in ((), (2,), (3,))]
        rankings = [*enumerate(np.max(by_mirroring, axis=0))]
        # What stands out is looked up without any mirroring, too.
        rankings += enumerate(by_mirroring[0]) if by_what_stands_out else []
        expected |= _best(rankings, groups, top_k)
    by_patches = usual.patches.likeness(_queries(samples, usual).patches, np.arange(4), codes=reference.group_codes)
    expected |= set(map(tuple, by_patches.nearest(top_k, codes=reference.group_codes).tolist()))

    hits = _retrieved(samples, reference, top_k=top_k)

    pairs = list(zip(hits.sample.tolist(), hits.training.tolist(), strict=True))
    assert sorted(set(pairs)) == sorted(expected)
    # A pair occurs at most twice, under different mirrorings, and pairs are in order.
    assert pairs == sorted(pairs)
    assert max(pairs.count(pair) for pair in pairs) <= 2
    assert len({*zip(pairs, hits.mirroring.tolist(), strict=True)}) == len(pairs)


def test_a_second_mirroring_is_tried_where_it_is_at_most_half_as_far_again():
    # Distances from 2: the first pair 0.4, 0.6, 0.5; the second 0.4, 0.7, 1.0; the third is equal to rounding.
    similarity = np.array([[1.6, 1.6, 2.0 + 1e-7], [1.4, 1.3, 0.5], [1.5, 1.0, 0.4]])

    pair, mirroring = _likely_mirrorings(similarity)

    assert list(zip(pair.tolist(), mirroring.tolist(), strict=True)) == [(0, 0), (0, 2), (1, 0), (2, 0)]


def test_a_patient_with_many_images_does_not_hide_the_others():
    one = _images(1, 0)
    training = torch.cat([one + 0.01 * _images(20, 1), _images(6, 2)])
    groups = ["anna"] * 20 + [f"patient {position}" for position in range(6)]

    hits = _retrieved(one, _reference(training, groups), top_k=3, mirrors=((),))

    assert len({groups[position] for position in hits.training}) >= 3


@pytest.mark.parametrize(("mirroring", "axes"), [(0, ()), (1, (2,)), (2, (3,))])
def test_a_hit_tells_under_which_mirroring_it_is_alike(mirroring, axes):
    training = _images(8, 0)

    hits = _retrieved(training[:3].flip(axes), _reference(training, range(8)), top_k=2)

    copies = hits.sample == hits.training
    assert copies.sum() == 3
    assert hits.mirroring[copies].tolist() == [mirroring] * 3
    np.testing.assert_allclose(hits.feature_similarity[copies], 1, atol=1e-5)
    assert hits.feature_similarity.max() <= 1


def test_a_hit_tells_how_alike_it_is_patch_by_patch():
    training, samples = _images(8, 0), _images(4, 1)
    reference = _reference(training, range(8))
    usual = describe_usual(reference)

    hits = _retrieved(samples, reference, top_k=3)

    by_patches = usual.patches.likeness(_queries(samples, usual).patches, np.arange(4), codes=np.arange(8))
    np.testing.assert_array_equal(hits.patch_likeness, by_patches.of_pairs(hits.sample, hits.training))
    assert hits.patch_likeness.any(axis=1).all()


def test_samples_do_not_influence_each_others_hits():
    training, samples = _reference(_images(12, 0), range(12)), _images(5, 1)
    together = _retrieved(samples, training, top_k=3)

    alone = _retrieved(samples[3:4], training, top_k=3)

    assert alone.training.tolist() == together.training[together.sample == 3].tolist()


def _brute_force(view, samples, images, groups, own=None):
    """Name of the nearest group and the weight of each sample, over the best image and mirroring of each group."""
    unit = view(images).double()
    nearest, weights = [], []
    for position, sample in enumerate(samples):
        entries = []
        for axes in ((), (1,), (2,)):
            vector = view(sample.flip(axes)[None]).double()[0]
            entries += [(float((vector - other).norm()), group) for other, group in zip(unit, groups, strict=True)]
        entries = sorted(entry for entry in entries if own is None or entry[1] != own[position])
        others = list({group: distance for distance, group in reversed(entries) if group != entries[0][1]}.values())
        others = sorted(others)[:5]
        nearest.append(entries[0][1])
        weights.append(max(0.0, 1 - entries[0][0] / np.mean(others)) ** 2)
    return nearest, weights


@settings(max_examples=25)
@given(
    m=st.integers(1, 25),
    h=st.integers(1, 25),
    training_patients=st.integers(1, 9),
    heldout_patients=st.integers(1, 9),
    seed=st.integers(0, 999),
)
def test_the_nearest_of_the_union_is_that_of_all_pairs(m, h, training_patients, heldout_patients, seed):
    training, heldout, samples = _images(m, seed), _images(h, seed + 1), _images(4, seed + 2)
    samples[0] = training[-1] + 0.1 * samples[0]
    groups = _groups(seed, m, training_patients)
    heldout_groups = [f"held-out {group}" for group in _groups(seed + 1, h, heldout_patients)]
    stored = torch.cat([_stored(training), _stored(heldout)])
    references = _reference(training, groups), _reference(heldout, heldout_groups, "held-out")
    names = list(dict.fromkeys(groups)) + list(dict.fromkeys(heldout_groups))

    union = nearest_of_union(_queries(samples), *references)

    for row, view in enumerate((_features, coarse_view)):
        nearest, weights = _brute_force(view, samples, stored, groups + heldout_groups)
        assert [names[code] for code in union.group[row]] == nearest
        assert union.is_training[row].tolist() == [name in groups for name in nearest]
        np.testing.assert_allclose(union.weight[row], weights, atol=1e-4)


def test_a_heldout_image_passes_over_all_images_of_its_own_patient():
    training, heldout = _images(20, 0), _images(30, 1)
    heldout[5] = heldout[4] + 0.01 * heldout[5]
    groups = [f"patient {number}" for number in range(20)]
    heldout_groups = [f"held-out {number // 2}" for number in range(30)]
    references = _reference(training, groups), _reference(heldout, heldout_groups, "held-out")

    union = nearest_of_union(_queries(heldout), *references, own=references[1].group_codes)

    stored = torch.cat([_stored(training), _stored(heldout)])
    for row, view in enumerate((_features, coarse_view)):
        nearest, weights = _brute_force(view, heldout, stored, groups + heldout_groups, own=heldout_groups)
        names = list(dict.fromkeys(groups)) + list(dict.fromkeys(heldout_groups))
        assert [names[code] for code in union.group[row]] == nearest
        np.testing.assert_allclose(union.weight[row], weights, atol=1e-4)


def test_the_view_that_exceeds_what_is_usual_more_tells_the_patient():
    union = UnionNeighbors(
        group=np.array([[0, 0, 0, 0], [9, 9, 9, 9]]),
        is_training=np.array([[True] * 4, [False] * 4]),
        likeness=np.array([[0.5, 0.3, 0.4, 0.3], [0.2, 0.2, 0.3, 0.2]]),
    )

    is_copylike, is_training = union.copylike(np.array([0.3, 0.1]))

    assert is_copylike.tolist() == [True, True, True, True]
    assert is_training.tolist() == [True, False, False, False]
    assert not union.copylike(np.array([0.5, 0.3]))[0].any()


def test_weights_and_neighbours_are_blind_to_which_set_is_the_training_set():
    first, second = _images(20, 0), _images(9, 1)
    first_groups, second_groups = _groups(0, 20, 6), [f"other {group}" for group in _groups(1, 9, 6)]
    samples = torch.cat([first[:3] + 0.2 * _images(3, 2), second[:3] + 0.2 * _images(3, 3), _images(6, 4)])
    a, b = _reference(first, first_groups), _reference(second, second_groups, "held-out")
    names, swapped_names = (
        list(dict.fromkeys(first_groups)) + list(dict.fromkeys(second_groups)),
        list(dict.fromkeys(second_groups)) + list(dict.fromkeys(first_groups)),
    )

    union, swapped = nearest_of_union(_queries(samples), a, b), nearest_of_union(_queries(samples), b, a)

    for row in range(2):
        assert [names[code] for code in union.group[row]] == [swapped_names[code] for code in swapped.group[row]]
    np.testing.assert_array_equal(union.weight, swapped.weight)
    np.testing.assert_array_equal(union.is_training, ~swapped.is_training)


def test_distances_to_both_sets_are_to_equally_many_patients():
    # 30 groups against 3: with all of them, every random sample would be nearer to the first set.
    training, heldout = (
        _reference(_images(60, 0), _groups(0, 60, 30)),
        _reference(_images(3, 1), range(30, 33), "held-out"),
    )

    to_training, to_heldout = balanced_distances(_queries(_images(400, 2)), training, heldout)

    assert 0.3 < (to_training < to_heldout).mean() < 0.7


def test_distances_to_sets_of_single_images_are_those_to_the_nearest_image():
    training, heldout = _images(8, 0), _images(8, 1)
    samples = torch.cat([training[:2], heldout[:2]])

    to_training, to_heldout = balanced_distances(
        _queries(samples), _reference(training, range(8)), _reference(heldout, range(8, 16), "held-out")
    )

    np.testing.assert_allclose(to_training[:2], 0, atol=1e-3)
    np.testing.assert_allclose(to_heldout[2:], 0, atol=1e-3)
    assert (to_heldout[:2] > 0.1).all()
    assert (to_training[2:] > 0.1).all()


def test_a_sample_that_is_near_to_everyone_or_to_no_one_has_no_weight():
    training, heldout = _images(10, 0), _images(10, 1)
    references = _reference(training, range(10)), _reference(heldout, range(10, 20), "held-out")

    union = nearest_of_union(_queries(torch.zeros(2, 1, 6, 5)), *references)

    assert union.weight.tolist() == [[0, 0], [0, 0]]
