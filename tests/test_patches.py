import itertools
import math

import numpy as np
import pytest
import torch
from built_references import build

from relict_lightning.index import Entry, writing
from relict_lightning.patches import LocalLikeness, PatchQueries, describe_patches, read_patches, write_patches


def _textures(count, *spatial, channels=1, seed=0):
    """Returns images of smooth random texture, in which no two places are alike."""
    stream = torch.Generator().manual_seed(seed)
    coarse = torch.rand((count, channels, *[max(2, side // 3) for side in spatial]), generator=stream)
    mode = "bilinear" if len(spatial) == 2 else "trilinear"
    return torch.nn.functional.interpolate(coarse, spatial, mode=mode, align_corners=True)


def _queries(patches, images, stands_out=None):
    """Returns queries of images all of which stands out, or as much as maps of their size say."""
    stands_out = torch.ones_like(images) if stands_out is None else stands_out
    return patches.queries(images, stands_out, stands_out)


def _values(patches, mirrorings, *, codes=None, samples=None):
    """Returns the values of all pairs, `[3, n, m]`."""
    codes = np.arange(len(patches.grids)) if codes is None else codes
    samples = np.arange(len(mirrorings[0])) if samples is None else samples
    found = patches.likeness(mirrorings, samples, codes=codes)
    values = np.zeros((3, len(mirrorings[0]), len(patches.grids)), dtype=np.float32)
    values[:, found.sample, found.training] = found.values
    return values


def _table(patches, mirrorings, *, codes=None):
    """Returns how alike the likest patch of all pairs is, by both weights, `[2, n, m]`."""
    return _values(patches, mirrorings, codes=codes)[:2]


def _unlike(training, samples, corner, side):
    """Returns one minus the correlation of a block of all pairs, were there noise of a hundredth in each of the two."""
    cut = [
        each[(..., *(slice(at, at + side) for at in corner))].flatten(1).double().numpy()
        for each in (samples, training)
    ]
    ours, theirs = ((each - each.mean(1, keepdims=True)) for each in cut)
    lengths = [np.sqrt(np.square(each).mean(1) + 1e-4) for each in (ours, theirs)]
    return 1 - (ours @ theirs.T / ours.shape[1]) / np.outer(*lengths)


@pytest.mark.parametrize(
    ("spatial", "sides", "blocks"),
    [
        ((64, 64), (11, 11), 9 * 9),
        ((300, 310), (10, 10), 11 * 11),
        ((24, 32, 32), (5, 5, 5), 7 * 10 * 10),
        ((48, 64, 64), (5, 5, 5), 7 * 10 * 10),
        ((4, 40), (2, 2), 3 * 39),
        ((8, 8, 8), (2, 2, 2), 7 * 7 * 7),
        # Thin slabs have blocks that are as thin, and wider.
        ((1, 128, 128), (1, 9, 9), 24 * 24),
        ((4, 256, 256), (2, 9, 9), 24 * 24),
    ],
)
def test_images_are_cut_into_blocks_of_a_sixth_of_their_side_that_overlap_by_half(spatial, sides, blocks):
    patches = describe_patches(build(_textures(3, *spatial)))

    assert patches.sides == sides
    assert math.prod(len(starts) for starts in patches.starts) == blocks
    assert patches.grids.dtype == np.float16
    for starts, side, grid in zip(patches.starts, sides, patches.grids.shape[2:], strict=True):
        assert (starts[0], starts[-1]) == (0, grid - side)
        assert (np.diff(starts) <= math.ceil(side / 2) + 1).all()


@pytest.mark.parametrize("patients", [2, 3, 7])
def test_a_block_is_judged_against_the_two_next_patients_at_its_own_place(patients):
    training = _textures(patients, 16, 20)
    patches = describe_patches(build(training))
    samples = training[:2] + 0.4 * _textures(2, 16, 20, seed=1)

    found = _values(patches, [_queries(patches, samples)])

    assert patches.sides == (3, 3)
    expected, alike = np.zeros((2, patients)), np.zeros((2, patients))
    for corner in itertools.product(*patches.starts):
        distance = _unlike(training, samples, corner, 3)
        for sample, of_sample in enumerate(distance):
            best, *others = np.argsort(of_sample)[:3]
            likeness = max(0.0, 1 - of_sample[best] / of_sample[others].mean())
            expected[sample, best] = max(expected[sample, best], likeness)
            alike[sample, best] += likeness**2
    np.testing.assert_allclose(found[:2], [expected, expected], atol=0.01)
    np.testing.assert_allclose(found[2], alike, atol=0.05)


def test_images_of_one_patient_are_not_judged_against_each_other():
    training = _textures(4, 24, 24)
    again = torch.cat([training, training[:1] + 0.02 * _textures(1, 24, 24, seed=2)])
    patches = describe_patches(build(again, groups=["a", "b", "c", "d", "a"]))
    codes = np.array([0, 1, 2, 3, 0])
    samples = training[:1] + 0.1 * _textures(1, 24, 24, seed=3)

    as_patients = _table(patches, [_queries(patches, samples)], codes=codes)
    as_images = _table(patches, [_queries(patches, samples)])

    alone = describe_patches(build(training))
    expected = _table(alone, [_queries(alone, samples)])
    np.testing.assert_allclose(as_patients.max(axis=2), expected.max(axis=2), atol=0.01)
    assert (as_images.max(axis=2) < as_patients.max(axis=2)).all()


def test_a_part_in_front_of_another_background_is_found_where_it_stands_out():
    training, hosts = _textures(30, 24, 32, 32), _textures(30, 24, 32, 32, seed=1)
    patches = describe_patches(build(training))
    samples, stands_out = hosts.clone(), torch.full_like(hosts, 0.02)
    samples[..., 6:14, 8:20, 8:20] = training[..., 6:14, 8:20, 8:20]
    stands_out[..., 6:14, 8:20, 8:20] = 1.0

    of_copies = _table(patches, [_queries(patches, samples, stands_out)])
    of_hosts = _table(patches, [_queries(patches, hosts, stands_out)])

    for copies, others in zip(of_copies, of_hosts, strict=True):
        assert (copies.argmax(axis=1) == np.arange(30)).all()
        assert copies.diagonal().min() > 0.95 > others.max()


def test_many_blocks_of_one_patient_are_counted_whether_anything_stands_out_or_not():
    training, hosts = _textures(30, 24, 32, 32), _textures(10, 24, 32, 32, seed=1)
    patches = describe_patches(build(training))
    samples, nothing = hosts.clone(), torch.zeros_like(hosts)
    samples[..., :12, :16, :] = training[:10, :, :12, :16, :]

    found = _values(patches, [_queries(patches, samples, nothing)])

    assert not found[:2].any()
    # Of 7 * 10 * 10 blocks, 3 * 5 * 10 are copied whole.
    copied = found[2].diagonal()
    assert copied.min() > 0.75 * 150 > 10 * _values(patches, [_queries(patches, hosts, nothing)])[2].max()


def test_blocks_of_all_images_of_a_patient_are_counted_together():
    training = _textures(6, 24, 24)
    codes = np.array([0, 1, 2, 3, 4, 0])
    sample = torch.cat([training[:1, :, :12], training[5:, :, 12:]], dim=2)
    patches = describe_patches(build(training))

    found = _values(patches, [_queries(patches, sample)], codes=codes)[2, 0]

    assert found[0] == found[5] > 1.5 * _values(patches, [_queries(patches, sample)])[2].max()


def test_blocks_count_by_how_much_stands_out_there():
    training = _textures(5, 24, 24)
    patches = describe_patches(build(training))
    stands_out = torch.zeros(1, 1, 24, 24)
    stands_out[..., 4:8, 4:8], stands_out[..., 16:20, 16:20] = 1.0, 0.3

    whole, peaks = patches.queries(training[:1], stands_out, stands_out).weights[:, 0]

    mean = torch.nn.functional.avg_pool2d(stands_out, patches.sides, stride=1)[0, 0]
    of_blocks = np.array([float(mean[corner]) for corner in itertools.product(*patches.starts)])
    np.testing.assert_array_equal(whole, of_blocks >= 0.1 * of_blocks.max())
    np.testing.assert_allclose(peaks, (of_blocks / of_blocks.max()) ** 0.25, rtol=1e-5)
    assert 0 < whole.sum() < len(whole)


def test_where_everybody_is_alike_nobody_is_copied():
    background = _textures(1, 64, 64)
    training = background + 0.4 * _textures(20, 64, 64, seed=1)
    samples = background + 0.4 * _textures(6, 64, 64, seed=2)
    patches = describe_patches(build(training))

    of_others, of_copies = (_table(patches, [_queries(patches, some)]) for some in (samples, training[:6]))

    assert of_others.max() < 0.8 < of_copies.diagonal(axis1=1, axis2=2).min()


def test_gain_and_offset_change_little_and_noise_alone_is_not_alike():
    stream = torch.Generator().manual_seed(0)
    training = _textures(6, 24, 24)
    patches = describe_patches(build(training))

    found = _table(patches, [_queries(patches, 0.6 * training + 0.2)])
    flat = 0.5 + 0.003 * torch.randn(6, 1, 24, 24, generator=stream)
    of_noise = describe_patches(build(flat))

    assert found.diagonal(axis1=1, axis2=2).min() > 0.9
    assert _table(of_noise, [_queries(of_noise, flat)]).max() < 0.3


def test_nothing_is_like_a_sample_out_of_which_nothing_stands():
    training = _textures(4, 16, 16)
    patches = describe_patches(build(training))

    found = _table(patches, [_queries(patches, training, torch.zeros(4, 1, 16, 16))])

    assert not found.any()


@pytest.mark.parametrize("value", [0.0, 1e6, -3e4])
def test_blank_and_outsized_samples_are_like_nobody(value):
    patches = describe_patches(build(_textures(4, 16, 16)))

    found = _values(patches, [_queries(patches, torch.full((2, 1, 16, 16), value))])

    assert not found.any()


def test_no_number_depends_on_the_batch(monkeypatch):
    training, samples = _textures(7, 20, 20, channels=2), _textures(5, 20, 20, channels=2, seed=1)
    patches = describe_patches(build(training))
    mirrorings = [_queries(patches, some) for some in (samples, samples.flip(2))]
    together = _values(patches, mirrorings)

    # Two samples at once.
    monkeypatch.setattr("relict_lightning.patches._BYTES_AT_ONCE", 16 * 7 * 2)
    in_portions = _values(patches, mirrorings)

    np.testing.assert_array_equal(in_portions, together)
    alone = [_values(patches, mirrorings, samples=np.array([number])) for number in range(5)]
    np.testing.assert_array_equal(np.sum(alone, axis=0), together)


@pytest.mark.parametrize("codes", [np.arange(12), np.arange(12) // 2])
def test_of_patients_whose_blocks_are_equal_the_first_counts_in_batches_of_any_size(codes):
    images = _textures(12, 64, 64)
    images[1, ..., :32] = images[0, ..., :32]
    patches = describe_patches(build(images))
    queries = _queries(patches, images[:1] + 0.02 * _textures(16, 64, 64, seed=1))

    together = _values(patches, [queries], codes=codes)
    alone = sum(_values(patches, [queries], codes=codes, samples=np.array([one])) for one in range(16))

    assert together[:, :, 0].any()
    assert (together == alone).all()


def test_the_mirroring_that_shows_a_block_best_counts():
    training, samples = _textures(7, 20, 20), _textures(3, 20, 20, seed=1)
    samples[0] = training[2].flip(1)
    patches = describe_patches(build(training))
    straight, mirrored = (_queries(patches, some) for some in (samples, samples.flip(2)))

    both = _values(patches, [straight, mirrored])

    np.testing.assert_array_equal(both, np.maximum(_values(patches, [straight]), _values(patches, [mirrored])))
    assert both[:, 0].argmax(axis=1).tolist() == [2, 2, 2]


def _found(sample, training, whole, peaks, alike=None):
    values = np.array([whole, peaks, np.zeros(len(sample)) if alike is None else alike], dtype=np.float32)
    return LocalLikeness(sample=np.array(sample), training=np.array(training), values=values)


def test_the_likest_image_of_each_of_the_likest_groups_is_a_hit():
    # Images 0 and 1 are of one patient.
    found = _found(
        [0, 0, 0, 0, 2, 2, 3, 3, 3],
        [0, 1, 2, 3, 1, 2, 1, 2, 3],
        [0.5, 0.6, 0.1, 0.4, 0.0, 0.2, 0.0, 0.0, 0.0],
        [0, 0, 0.3, 0, 0.7, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 9, 8, 7],
    )

    nearest = found.nearest(2, codes=np.array([0, 0, 1, 2]))

    assert sorted(map(tuple, nearest.tolist())) == [(0, 1), (0, 2), (0, 3), (2, 1), (2, 2), (3, 1), (3, 2)]


def test_pairs_without_a_likeness_have_none():
    found = _found([0, 0, 2], [1, 3, 0], [0.5, 0.6, 0.1], [0.0, 0.2, 0.1])

    values = found.of_pairs(np.array([2, 0, 0, 1, 2, 5]), np.array([0, 3, 2, 1, 9, 0]))

    np.testing.assert_allclose(values[:2], [[0.1, 0.6, 0, 0, 0, 0], [0.1, 0.2, 0, 0, 0, 0]])
    assert not LocalLikeness.joined([]).of_pairs(np.array([0]), np.array([0])).any()
    assert not len(LocalLikeness.joined([]).nearest(3, codes=np.arange(4)))


def test_portions_of_samples_are_joined_in_order():
    joined = LocalLikeness.joined(
        [_found([1, 3], [5, 0], [0.1, 0.3], [0, 0]), _found([0, 2], [5, 0], [0.0, 0.2], [1, 1])]
    )

    assert joined.sample.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(joined.values[0], [0.0, 0.1, 0.2, 0.3])


def test_portions_of_queries_are_joined_in_order():
    patches = describe_patches(build(_textures(3, 16, 16)))
    samples = _textures(5, 16, 16, seed=1)
    together = _queries(patches, samples)

    joined = PatchQueries.joined([_queries(patches, samples[:2]), _queries(patches, samples[2:])])

    assert len(joined) == 5
    np.testing.assert_array_equal(joined.grids, together.grids)
    np.testing.assert_array_equal(joined.weights, together.weights)


def test_what_is_written_is_read_back(tmp_path):
    patches = describe_patches(build(_textures(3, 16, 20)))
    with writing(tmp_path / "entry", {}) as writer:
        write_patches(patches, writer, prefix="a_")

    again = read_patches(Entry(tmp_path / "entry"), prefix="a_")

    assert (again.factors, again.sides) == (patches.factors, patches.sides)
    np.testing.assert_array_equal(again.grids, patches.grids)
