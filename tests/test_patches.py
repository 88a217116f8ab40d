import math

import numpy as np
import pytest
import torch
from built_references import build

from relict_lightning.index import Entry, writing
from relict_lightning.patches import PatchQueries, describe_patches, read_patches, write_patches


def _textures(count, *spatial, channels=1, seed=0):
    """Returns images of smooth random texture, in which no two places are alike."""
    stream = torch.Generator().manual_seed(seed)
    coarse = torch.rand((count, channels, *[max(2, side // 3) for side in spatial]), generator=stream)
    mode = "bilinear" if len(spatial) == 2 else "trilinear"
    return torch.nn.functional.interpolate(coarse, spatial, mode=mode, align_corners=True)


def _queries(patches, images, weights=None):
    """Returns queries of images all of which stands out, or as much as weights of their size say."""
    weights = torch.ones_like(images) if weights is None else weights
    return patches.queries(images, weights, weights)


def _all_pairs(patches, queries):
    """Returns the likeness of all pairs, `[2, n, m]`, one pair at a time."""
    count = patches.blocks.shape[1]
    sample, training = np.indices((len(queries), count)).reshape(2, -1)
    return patches.pair_similarities(queries, sample, training).reshape(2, len(queries), count)


@pytest.mark.parametrize(
    ("spatial", "sides", "blocks"),
    [
        ((64, 64), (11, 11), 25),
        ((300, 310), (10, 10), 36),
        ((24, 32, 32), (5, 5, 5), 4 * 6 * 6),
        ((48, 64, 64), (5, 5, 5), 144),
        ((4, 40), (2, 2), 40),
        ((8, 8, 8), (2, 2, 2), 64),
        # Thin slabs have blocks that are as thin, and wider.
        ((1, 128, 128), (1, 9, 9), 14 * 14),
        ((4, 256, 256), (2, 9, 9), 14 * 14),
    ],
)
def test_images_are_cut_into_blocks_of_a_sixth_of_their_side(spatial, sides, blocks):
    patches = describe_patches(build(_textures(3, *spatial)))

    assert patches.sides == sides
    assert patches.blocks.shape == (blocks, 3, math.prod(sides))
    assert patches.blocks.dtype == np.float16


def test_a_block_counts_by_the_eighth_power_of_its_correlation():
    training = _textures(4, 16, 20)
    patches = describe_patches(build(training))
    samples = training[:2] + 0.4 * _textures(2, 16, 20, seed=1)

    found = _all_pairs(patches, _queries(patches, samples))

    assert patches.sides == (3, 3)
    # The row and the columns that fill no block are left out at both ends.
    cut = lambda image: image[0, :15, 1:19].unfold(0, 3, 3).unfold(1, 3, 3).reshape(-1, 9).double().numpy()  # noqa: E731
    for sample in range(2):
        for position in range(4):
            pairs = zip(cut(samples[sample]), cut(training[position]), strict=True)
            # The correlation, were there noise of a hundredth in each of the two.
            noisy = [np.cov(*pair, ddof=0) + 1e-4 * np.eye(2) for pair in pairs]
            expected = np.mean([max(0, both[0, 1] / np.sqrt(both[0, 0] * both[1, 1])) ** 8 for both in noisy])
            np.testing.assert_allclose(found[:, sample, position], expected, atol=0.005)
    assert found[:, 0].argmax(axis=1).tolist() == [0, 0]


def test_a_part_in_front_of_another_background_is_found_where_it_stands_out():
    training, hosts = _textures(30, 24, 32, 32), _textures(30, 24, 32, 32, seed=1)
    patches = describe_patches(build(training))
    samples, stands_out = hosts.clone(), torch.full_like(hosts, 0.02)
    samples[..., 6:14, 8:20, 8:20] = training[..., 6:14, 8:20, 8:20]
    stands_out[..., 6:14, 8:20, 8:20] = 1.0

    found = _all_pairs(patches, _queries(patches, samples, stands_out))

    for of_way in found:
        assert (of_way.argmax(axis=1) == np.arange(30)).all()
        own = of_way.diagonal()
        others = of_way[~np.eye(30, dtype=bool)].reshape(30, 29).max(axis=1)
        assert (own > 3 * others).all()


def test_gain_and_offset_change_little_and_noise_alone_is_not_alike():
    stream = torch.Generator().manual_seed(0)
    training = _textures(6, 24, 24)
    patches = describe_patches(build(training))

    found = _all_pairs(patches, _queries(patches, 0.6 * training + 0.2))
    flat = [0.5 + 0.003 * torch.randn(6, 1, 24, 24, generator=stream) for _ in range(2)]
    of_noise = describe_patches(build(flat[0]))

    assert found.diagonal(axis1=1, axis2=2).min() > 0.8
    assert _all_pairs(of_noise, _queries(of_noise, flat[0])).max() < 0.05


def test_nothing_is_like_a_sample_out_of_which_nothing_stands():
    training = _textures(4, 16, 16)
    patches = describe_patches(build(training))

    found = _all_pairs(patches, _queries(patches, training, torch.zeros_like(training)))

    assert not found.any()


def test_the_search_finds_what_single_pairs_are_whatever_the_batch(monkeypatch):
    training, samples = _textures(7, 20, 20, channels=2), _textures(5, 20, 20, channels=2, seed=1)
    patches = describe_patches(build(training))
    straight, mirrored = (_queries(patches, some) for some in (samples, samples.flip(2)))
    pairs = [_all_pairs(patches, queries) for queries in (straight, mirrored)]

    # Two samples at once.
    monkeypatch.setattr("relict_lightning.patches._BYTES_AT_ONCE", 16 * 7 * 2)
    portions = list(patches.similarities([straight, mirrored]))

    assert [len(samples) for samples, _ in portions] == [2, 2, 1]
    np.testing.assert_allclose(np.concatenate([part for _, part in portions], axis=1), np.maximum(*pairs), atol=1e-5)
    alone = [_all_pairs(patches, _queries(patches, samples[[number]])) for number in range(5)]
    np.testing.assert_array_equal(np.concatenate(alone, axis=1), pairs[0])


def test_portions_are_joined_in_order():
    patches = describe_patches(build(_textures(3, 16, 16)))
    samples = _textures(5, 16, 16, seed=1)
    together = _queries(patches, samples)

    joined = PatchQueries.joined([_queries(patches, samples[:2]), _queries(patches, samples[2:])])

    assert len(joined) == 5
    np.testing.assert_array_equal(joined.blocks, together.blocks)
    np.testing.assert_array_equal(joined.weights, together.weights)


def test_what_is_written_is_read_back(tmp_path):
    patches = describe_patches(build(_textures(3, 16, 20)))
    with writing(tmp_path / "entry", {}) as writer:
        write_patches(patches, writer, prefix="a_")

    again = read_patches(Entry(tmp_path / "entry"), prefix="a_")

    assert (again.factors, again.sides) == (patches.factors, patches.sides)
    np.testing.assert_array_equal(again.blocks, patches.blocks)
