import math

import numpy as np
import pytest
import torch
from built_references import build

from relict_lightning.index import Entry, writing
from relict_lightning.saliency import (
    Spectrum,
    _detail_factors,
    describe_saliency,
    read_saliency,
    write_saliency,
)


def _spots(count, *spatial, sign=1.0, seed=0):
    """Returns flat anatomy that varies slowly, and on it three small spots per image, at places of its own."""
    stream = torch.Generator().manual_seed(seed)
    slow = torch.rand((count, 1, *[3] * len(spatial)), generator=stream)
    mode = "bilinear" if len(spatial) == 2 else "trilinear"
    images = 0.4 + 0.1 * torch.nn.functional.interpolate(slow, spatial, mode=mode, align_corners=True)
    images += 0.01 * torch.randn(images.shape, generator=stream)
    places = []
    for image in images:
        of_image = [[int(torch.randint(4, side - 4, (), generator=stream)) for side in spatial] for _ in range(3)]
        for place in of_image:
            image[0][tuple(slice(at - 1, at + 2) for at in place)] += 0.3 * sign
        places.append(of_image)
    return images, places


def _similarity(one, other, *, max_shift):
    """Returns the similarity of two maps `[c, *cells]`."""
    return Spectrum.of(one, max_shift=max_shift).similarity(Spectrum.of(other, max_shift=max_shift))


@pytest.fixture(scope="module")
def spots():
    return _spots(20, 32, 32)


@pytest.fixture(scope="module")
def saliency(spots):
    return describe_saliency(build(spots[0]))


@pytest.mark.parametrize("spatial", [(32, 32), (16, 24, 20)], ids=["2-D", "3-D"])
@pytest.mark.parametrize("sign", [1, -1], ids=["bright", "dark"])
def test_what_stands_out_is_bright_or_dark_as_the_training_images_have_it(spatial, sign):
    images, places = _spots(20, *spatial, sign=sign)

    saliency = describe_saliency(build(images))
    maps = saliency.maps(images)

    assert saliency.sign == sign
    assert maps.shape == (20, 1, *(side // 2 for side in spatial))
    for one, of_image in zip(maps, places, strict=True):
        values = [float(one[0][tuple(at // 2 for at in place)]) for place in of_image]
        # Most of what stands out are the spots, and what does not stand out is zero.
        assert min(values) > 0
        assert max(values) > 0.8 * float(one.max())
        assert (one > 0).double().mean() < 0.2


def test_ranks_do_not_change_with_gain_and_offset(spots, saliency):
    images, places = spots

    maps, changed = saliency.maps(images), saliency.maps(0.8 * images + 0.1)

    assert min(_similarity(one, other, max_shift=0) for one, other in zip(maps, changed, strict=True)) > 0.85
    assert len(places) == len(maps)


def test_a_map_does_not_depend_on_its_batch(spots, saliency):
    together = saliency.maps(spots[0])

    alone = torch.cat([saliency.maps(image[None]) for image in spots[0]])

    assert torch.equal(together, alone)
    assert saliency.maps(spots[0][:0]).shape == (0, 1, 16, 16)


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_nothing_stands_out_of_a_blank_image(spots, saliency, value):
    blank = saliency.maps(torch.full((1, 1, 32, 32), value))

    assert not blank.any()
    assert not saliency.to_vectors(blank).any()
    assert _similarity(blank[0], saliency.maps(spots[0])[0], max_shift=1) == 0.0


def test_the_largest_similarity_within_the_bound_counts_and_nothing_wraps_around():
    one, other, edge, far = torch.zeros(4, 1, 8, 8)
    one[0, 2, 2], other[0, 4, 1] = 2.0, 3.0
    edge[0, 2, 0], far[0, 2, 7] = 1.0, 1.0

    assert _similarity(one, other, max_shift=2) == pytest.approx(1.0)
    assert _similarity(one, other, max_shift=1) == pytest.approx(0.0, abs=1e-6)
    assert _similarity(one, other, max_shift=0) == pytest.approx(0.0, abs=1e-6)
    assert _similarity(edge, far, max_shift=3) == pytest.approx(0.0, abs=1e-6)


def test_edges_that_lie_off_by_a_voxel_in_everybody_stand_out_less_than_a_spot_that_one_patient_has():
    stream = torch.Generator().manual_seed(0)
    # The edge of a bright disc, of which most patients' radii are alike and some are larger: voxels that are dark in
    # most, so that a robust deviation at the voxel alone would call the others' edges very unusual.
    row, column = torch.meshgrid(torch.arange(64) - 31.5, torch.arange(64) - 31.5, indexing="ij")
    radius = 20 + 1.5 * torch.randn(60, 1, 1, 1, generator=stream).round()
    images = ((row.square() + column.square()).sqrt() < radius).float()
    images += 0.02 * torch.randn(images.shape, generator=stream)
    saliency = describe_saliency(build(images))
    images[0, 0, 30:33, 30:33] += 0.4 * saliency.sign

    stands_out = saliency.maps(images[:1])[0, 0]

    assert stands_out.argmax() in [row * 32 + column for row in (14, 15, 16) for column in (14, 15, 16)]


@pytest.mark.parametrize(
    ("spatial", "voxels", "kept"), [((16, 16), 20, 20), ((96, 96), 184, 20), ((24, 32, 32), 492, 49.2)]
)
def test_peaks_are_the_map_that_a_tenth_of_the_voxels_would_have_given(spatial, voxels, kept):
    saliency = describe_saliency(build(_spots(3, *spatial)[0]))
    ranks = torch.arange(1.0, voxels + 1) - 0.5
    maps = torch.log(voxels / ranks).clamp_min(0).reshape(1, 1, 1, voxels)

    torch.testing.assert_close(saliency.peaks(maps), torch.log(kept / ranks).clamp_min(0).reshape(maps.shape))


def test_spots_in_front_of_another_background_find_their_patient():
    training, places = _spots(40, 32, 32)
    hosts, _ = _spots(40, 32, 32, sign=0.0, seed=1)
    samples = hosts.clone()
    for sample, of_image in zip(samples, places, strict=True):
        for row, column in of_image:
            sample[0, row - 1 : row + 2, column - 1 : column + 2] += 0.3
    saliency = describe_saliency(build(training))

    _, positions = saliency.index.search(saliency.to_vectors(saliency.maps(samples)), 2)

    assert np.mean([patient in row for patient, row in enumerate(positions.tolist())]) >= 0.9


def test_vectors_keep_the_cosines_of_large_maps():
    images, _ = _spots(6, 32, 40, 36)
    saliency = describe_saliency(build(images))
    maps = saliency.maps(images)

    vectors = saliency.to_vectors(maps)

    assert vectors.shape == (6, 1024) == saliency.vectors.shape
    np.testing.assert_allclose(saliency.vectors, vectors, atol=0.05)
    flat = torch.nn.functional.normalize(maps.flatten(1), dim=1).numpy()
    # Of 15 pairs, none is further off than four standard errors.
    np.testing.assert_allclose(vectors @ vectors.T, flat @ flat.T, atol=4 / math.sqrt(1024))


@pytest.mark.parametrize(
    ("spatial", "factor"), [((64, 64, 64), 1), ((48, 64, 64), 1), ((96, 128, 128), 2), ((512, 512), 4), ((128, 96), 1)]
)
def test_details_are_looked_at_on_a_grid_of_bounded_size(spatial, factor):
    assert _detail_factors(spatial) == (factor,) * len(spatial)


def test_constant_training_images_give_finite_maps():
    images = torch.full((4, 1, 16, 16), 0.5)
    images[0] = 0.25

    saliency = describe_saliency(build(images))

    assert torch.isfinite(saliency.maps(torch.rand(2, 1, 16, 16))).all()
    assert np.isfinite(saliency.vectors).all()


def test_what_is_written_is_read_back(spots, saliency, tmp_path):
    with writing(tmp_path / "entry", {}) as writer:
        write_saliency(saliency, writer, prefix="a_")

    again = read_saliency(Entry(tmp_path / "entry"), prefix="a_")

    assert torch.equal(again.maps(spots[0]), saliency.maps(spots[0]))
    np.testing.assert_array_equal(again.vectors, saliency.vectors)
    assert (again.sign, again.factors, again.cell) == (1, (1, 1), (2, 2))
