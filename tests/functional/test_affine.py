import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relict_lightning.errors import ConfigurationError, InvalidImageError
from relict_lightning.functional import (
    affine_coverage,
    affine_identity,
    align_affine,
    compose_affine,
    invert_affine,
    normalized_cross_correlation,
    shift,
    warp_affine,
)


def _smooth(count, sides, seed=0):
    """Return random images whose structures are some voxels wide and fade out towards the border."""
    stream = torch.Generator().manual_seed(seed)
    knots = torch.rand((count, 1, *[side // 4 for side in sides]), generator=stream)
    mode = "bilinear" if len(sides) == 2 else "trilinear"
    images = torch.nn.functional.interpolate(knots, size=sides, mode=mode, align_corners=False)
    for axis, side in enumerate(sides):
        fading = torch.sin(math.pi * (torch.arange(side) + 0.5) / side)
        images = images * fading.reshape(-1, *[1] * (len(sides) - 1 - axis))
    return images


def _maps(count, ndim, size, seed=0):
    noise = torch.randn((count, ndim, ndim + 1), generator=torch.Generator().manual_seed(seed))
    return affine_identity(count, ndim) + size * noise.clamp(-2, 2)


@pytest.mark.parametrize("sides", [(32, 40), (20, 24, 28)])
def test_a_small_affine_motion_is_undone(sides):
    training = _smooth(5, sides)
    motion = _maps(5, len(sides), 0.04)
    generated = warp_affine(training, motion)

    maps, correlation = align_affine(generated, training, iterations=15)

    # First the motion, then its undoing, is no motion.
    together = compose_affine(motion, maps)
    torch.testing.assert_close(together, affine_identity(5, len(sides)), atol=0.02, rtol=0)
    assert (correlation > 0.995).all()
    assert (normalized_cross_correlation(generated, training) < correlation).all()


def test_the_map_takes_positions_of_the_training_image_to_the_generated_image():
    training = _smooth(1, (32, 32))
    generated = shift(training, torch.tensor([[2, 0]]))

    maps, _ = align_affine(generated, training)

    # Two of 32 voxels, where the side spans 2.
    assert maps[0, :, 2].tolist() == pytest.approx([2 * 2 / 32, 0.0], abs=0.005)


def test_gain_and_offset_do_not_matter():
    training = _smooth(3, (32, 32))
    generated = warp_affine(training, _maps(3, 2, 0.03))

    expected, _ = align_affine(generated, training)
    found, _ = align_affine(7 * generated - 3, 0.2 * training + 5)

    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_the_correlation_never_falls_below_that_at_the_start_and_is_that_of_the_moved_image(seed):
    generated, training = _smooth(2, (16, 20), seed), _smooth(2, (16, 20), seed + 1)
    start = _maps(2, 2, 0.03, seed)

    maps, correlation = align_affine(generated, training, start=start)

    before = normalized_cross_correlation(warp_affine(generated, start), training)
    assert (correlation >= before - 1e-5).all()
    torch.testing.assert_close(
        correlation, normalized_cross_correlation(warp_affine(generated, maps), training), atol=1e-4, rtol=0
    )


def test_unlike_images_are_not_bent_into_each_other():
    generated, training = _smooth(20, (16, 16), 0), _smooth(20, (16, 16), 1)

    change = align_affine(generated, training, iterations=30).maps - affine_identity(20, 2)

    assert change.abs().max() <= 0.25


@pytest.mark.parametrize("sides", [(16, 16), (12, 12, 12)])
def test_a_pair_gets_the_same_map_to_the_bit_in_every_batch(sides):
    training = _smooth(9, sides)
    generated = warp_affine(training, _maps(9, len(sides), 0.05))

    together = align_affine(generated, training)

    for some in ([0], [8], [3, 4], [0, 1, 2, 3, 4, 5, 6]):
        alone = align_affine(generated[some], training[some])
        assert torch.equal(alone.maps, together.maps[some])
        assert torch.equal(alone.correlation, together.correlation[some])


@pytest.mark.parametrize("which", ["generated", "training", "both"])
def test_constant_images_stay_where_they_are(which):
    images, flat = _smooth(2, (16, 16)), torch.full((2, 1, 16, 16), 0.3)
    generated = images if which == "training" else flat
    training = images if which == "generated" else flat

    maps, correlation = align_affine(generated, training)

    assert torch.equal(maps, affine_identity(2, 2))
    assert correlation.tolist() == [0.0, 0.0]


def test_moving_twice_is_moving_by_the_composed_map():
    images = _smooth(1, (40, 40))
    zoom = torch.tensor([[[0.7, 0.0, 0.0], [0.0, 0.7, 0.0]]])
    step = torch.tensor([[[1.0, 0.0, 0.2], [0.0, 1.0, 0.0]]])

    twice = warp_affine(warp_affine(images, zoom), step)

    # Away from the border, which the two moves repeat differently.
    once, turned_around = (
        warp_affine(images, maps)[..., 8:-8, 8:-8] for maps in (compose_affine(zoom, step), compose_affine(step, zoom))
    )
    torch.testing.assert_close(once, twice[..., 8:-8, 8:-8], atol=0.03, rtol=0)
    assert (turned_around - once).abs().max() > 0.05


def _rotated(ndim, angle):
    """Return one map that turns by an angle in the plane of the first two axes."""
    maps = affine_identity(1, ndim)
    maps[0, :2, :2] = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return maps


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_map_and_its_undoing_compose_to_no_motion_in_either_order(ndim):
    maps = _maps(20, ndim, 0.1)

    undone = invert_affine(maps)

    for together in (compose_affine(maps, undone), compose_affine(undone, maps)):
        torch.testing.assert_close(together, affine_identity(20, ndim), atol=1e-5, rtol=0)


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_turn_is_undone_by_the_turn_back(ndim):
    torch.testing.assert_close(invert_affine(_rotated(ndim, 0.3)), _rotated(ndim, -0.3))


def test_no_maps_have_no_undoing():
    assert invert_affine(affine_identity(0, 3)).shape == (0, 3, 4)


def test_a_map_that_folds_the_image_flat_is_named():
    maps = affine_identity(3, 2)
    maps[1, 1, 1] = 0.0

    with pytest.raises(ConfigurationError, match="Map 1 of 3 cannot be undone"):
        invert_affine(maps)


@pytest.mark.parametrize("sides", [(7, 10), (4, 5, 6)])
def test_images_that_stay_where_they_are_have_all_voxels_of_their_own(sides):
    assert affine_coverage(affine_identity(2, len(sides)), sides).tolist() == torch.ones(2, *sides).bool().tolist()


@pytest.mark.parametrize("sides", [(8, 10), (8, 10, 6)])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_a_displaced_image_lacks_as_many_voxels_as_it_was_displaced_by(sides, axis):
    maps = affine_identity(2, len(sides))
    # By two voxels one way, and by three the other way; the side spans 2.
    maps[0, axis, -1] = 2 * 2 / sides[axis]
    maps[1, axis, -1] = -2 * 3 / sides[axis]

    covered = affine_coverage(maps, sides).movedim(axis % len(sides) + 1, 1)

    assert covered[0, :-2].all()
    assert not covered[0, -2:].any()
    assert covered[1, 3:].all()
    assert not covered[1, :3].any()


def test_what_is_not_covered_is_what_a_moved_image_repeats_from_its_edge():
    maps = _maps(6, 2, 0.2)
    framed = torch.nn.functional.pad(torch.ones(6, 1, 24, 24), [20] * 4)
    # The same motion of an image that has a dark frame instead of a border; what is drawn from there is not its own.
    wider = maps.clone()
    wider[:, :, 2] *= 24 / 64

    moved = warp_affine(framed, wider, interpolation="nearest")[:, 0, 20:-20, 20:-20]

    covered = affine_coverage(maps, (24, 24))
    assert torch.equal(covered, moved > 0)
    assert 0.3 < float(covered.float().mean()) < 0.99


@pytest.mark.parametrize(("ndim", "sides"), [(2, (8, 8, 8)), (3, (8, 8)), (2, (8,))])
def test_coverage_of_another_number_of_sides_is_refused(ndim, sides):
    with pytest.raises(ConfigurationError, match="maps must have shape"):
        affine_coverage(affine_identity(1, ndim), sides)


def test_label_maps_keep_their_labels():
    labels = torch.randint(0, 5, (2, 1, 12, 12), generator=torch.Generator().manual_seed(0)).float()

    moved = warp_affine(labels, _maps(2, 2, 0.1), interpolation="nearest")

    assert set(moved.unique().tolist()) <= {0.0, 1.0, 2.0, 3.0, 4.0}
    assert torch.equal(warp_affine(labels, affine_identity(2, 2), interpolation="nearest"), labels)


def test_no_images_have_no_maps():
    nothing = torch.zeros(0, 1, 8, 8)

    maps, correlation = align_affine(nothing, nothing)

    assert maps.shape == (0, 2, 3)
    assert correlation.shape == (0,)
    assert warp_affine(nothing, maps).shape == (0, 1, 8, 8)


def test_bad_arguments_are_named():
    images = torch.rand(2, 1, 8, 8)
    with pytest.raises(ConfigurationError, match="iterations=0"):
        align_affine(images, images, iterations=0)
    with pytest.raises(ConfigurationError, match=r"\(2, 2, 3\)"):
        align_affine(images, images, start=affine_identity(1, 2))
    with pytest.raises(ConfigurationError, match=r"\(2, 2, 3\)"):
        warp_affine(images, affine_identity(2, 3))
    with pytest.raises(InvalidImageError):
        align_affine(images / 0, images)
    with pytest.raises(ConfigurationError, match="ndim=4"):
        affine_identity(1, 4)
    with pytest.raises(ConfigurationError, match=r"\(2, 2, 3\)"):
        compose_affine(affine_identity(2, 2), affine_identity(3, 2))
