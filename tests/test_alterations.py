import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relict_lightning.alterations import ALTERATION_NAMES, alter, draw_alteration
from relict_lightning.errors import ConfigurationError, InvalidImageError
from relict_lightning.testing.look import gaussian_blur

SHAPES = [(48, 48), (24, 32, 32)]
GEOMETRIC = ("shift", "rotation", "elastic", "crop")


def _stream(seed=0):
    return torch.Generator().manual_seed(seed)


def _image(shape, seed=0):
    """Return smooth blobs away from the border, so that interpolation and border cost little."""
    image = torch.zeros(1, *shape)
    inner = tuple(slice(side // 4, side - side // 4) for side in shape)
    image[(0, *inner)] = torch.rand(image[(0, *inner)].shape, generator=_stream(seed))
    image = gaussian_blur(image[None], sigma=2.0)[0]
    return image / image.max()


def _centre(image):
    weights = image[0] / image.sum()
    grid = torch.meshgrid(*[torch.arange(float(side)) for side in weights.shape], indexing="ij")
    return torch.stack([(line * weights).sum() for line in grid])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", [name for name in ALTERATION_NAMES if name != "plain"])
def test_every_alteration_but_plain_changes_the_image_and_keeps_its_shape(name, shape):
    image, host = _image(shape), _image(shape, seed=1)
    region = torch.zeros(shape, dtype=torch.bool)
    region[tuple(slice(side // 3, side // 2) for side in shape)] = True

    altered = alter(image, name, stream=_stream(), host=host, region=region)

    assert altered.shape == image.shape
    assert float((altered - image).abs().max()) > 0.02


def test_plain_changes_nothing_and_shares_no_memory():
    image = _image((16, 16))

    altered = alter(image, "plain", stream=_stream())

    assert torch.equal(altered, image)
    assert altered.data_ptr() != image.data_ptr()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", GEOMETRIC)
def test_a_geometric_alteration_is_undone_by_its_opposite(name, shape):
    image = _image(shape)

    once = alter(image, name, stream=_stream(3))
    back = alter(once, name, stream=_stream(3), strength=-1.0)

    assert float((back - image).abs().mean()) < 0.5 * float((once - image).abs().mean())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", [*GEOMETRIC, "mirror"])
def test_labels_move_as_the_image_does(name, shape):
    image = _image(shape)
    labels = (image[0] > 0.4).to(torch.uint8) + (image[0] > 0.7).to(torch.uint8)

    drawn = draw_alteration(name, shape, stream=_stream(1))
    moved, expected = drawn.labels(labels), drawn.image(image)[0]

    assert moved.dtype == torch.uint8
    assert float(((moved > 0) == (expected > 0.4)).float().mean()) > 0.98
    assert float(((moved > 1) == (expected > 0.7)).float().mean()) > 0.98


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_a_shift_is_of_one_to_three_voxels(seed):
    image = _image((48, 48))

    moved = (_centre(alter(image, "shift", stream=_stream(seed))) - _centre(image)).abs()

    assert 0.95 < float(moved.max()) < 3.05


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_a_rotation_keeps_distances_and_turns_by_two_to_six_degrees(seed):
    for shape in SHAPES:
        displacement = draw_alteration("rotation", shape, stream=_stream(seed)).displacement
        axes = torch.stack([displacement.diff(dim=axis + 1).flatten(1)[:, 0] for axis in range(len(shape))], 1)
        turn = axes + torch.eye(len(shape))
        cosine = (turn.trace() - len(shape) + 2) / 2

        assert torch.allclose(turn @ turn.T, torch.eye(len(shape)), atol=1e-4)
        assert 1.9 < float(torch.rad2deg(torch.arccos(cosine.clamp(-1, 1)))) < 6.1


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_a_crop_magnifies_by_five_to_twelve_per_cent_and_reads_nothing_outside(seed):
    shape = (40, 50)
    displacement = draw_alteration("crop", shape, stream=_stream(seed)).displacement
    place = displacement + torch.stack(torch.meshgrid(*[torch.arange(float(side)) for side in shape], indexing="ij"))
    zoom = 1 / float(place[0, 1, 0] - place[0, 0, 0])

    assert 1.049 < zoom < 1.121
    assert float(place.min()) > -0.5
    assert all(float(place[axis].max()) < side - 0.5 for axis, side in enumerate(shape))


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_the_opposite_of_a_crop_reads_where_the_crop_came_from(seed):
    there, back = (
        draw_alteration("crop", (41, 51), stream=_stream(seed), strength=sign).displacement for sign in (1.0, -1.0)
    )
    # Both are affine: the centre is read at `offset`, and a step of one at a step of `scale`.
    scale, other_scale = (1 + float(moved[0, 1, 0] - moved[0, 0, 0]) for moved in (there, back))
    offset, other_offset = there[:, 20, 25], back[:, 20, 25]

    assert scale * other_scale == pytest.approx(1, abs=1e-4)
    assert torch.allclose(scale * other_offset + offset, torch.zeros(2), atol=1e-4)


@settings(max_examples=10)
@given(seed=st.integers(0, 2**31))
def test_an_elastic_displacement_has_its_size_and_never_folds(seed):
    displacement = draw_alteration("elastic", (48, 48), stream=_stream(seed)).displacement
    down, right = displacement.diff(dim=1)[:, :, :-1], displacement.diff(dim=2)[:, :-1]
    determinant = (1 + down[0]) * (1 + right[1]) - down[1] * right[0]

    assert 1.2 < float(displacement.square().sum(0).mean().sqrt()) < 2.2
    assert float(determinant.min()) > 0


def test_intensity_moves_nothing_and_keeps_the_order_of_values():
    image = _image((32, 32))
    drawn = draw_alteration("intensity", (32, 32), stream=_stream())
    order = image.flatten().argsort()

    altered = drawn.image(image).flatten()[order]

    assert bool((altered.diff() >= -1e-6).all())
    assert torch.equal(drawn.labels(image[0] > 0.5), image[0] > 0.5)


def test_a_mirror_swaps_the_last_axis_of_image_and_labels():
    image = _image((16, 24, 20))
    drawn = draw_alteration("mirror", (16, 24, 20), stream=_stream())

    assert torch.equal(drawn.image(image), image.flip(-1))
    assert torch.equal(drawn.labels(image[0] > 0.5), image[0].flip(-1) > 0.5)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_transplant_keeps_the_region_and_the_host_outside_the_seam(shape):
    image, host = torch.rand(1, *shape, generator=_stream(0)), torch.rand(1, *shape, generator=_stream(1))
    region, near = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    region[tuple(slice(10, 14) for _ in shape)] = True
    near[tuple(slice(6, 18) for _ in shape)] = True
    labels, host_labels = torch.full(shape, 3, dtype=torch.uint8), torch.full(shape, 1, dtype=torch.uint8)
    drawn = draw_alteration("transplant", shape, stream=_stream())

    altered = drawn.image(image, host=host, region=region)[0]
    moved = drawn.labels(labels, host=host_labels, region=region)

    assert torch.allclose(altered[region], image[0][region], atol=1e-6)
    assert torch.equal(altered[~near], host[0][~near])
    assert bool((moved[region] == 3).all())
    assert bool((moved[~near] == 1).all())


@pytest.mark.parametrize("name", ALTERATION_NAMES)
def test_an_alteration_is_settled_by_its_stream(name):
    image, host = _image((32, 32)), _image((32, 32), seed=1)
    region = image[0] > 0.5

    one, two = (alter(image, name, stream=_stream(4), host=host, region=region) for _ in range(2))

    assert torch.equal(one, two)


@pytest.mark.parametrize("name", [*GEOMETRIC, "intensity"])
def test_no_strength_is_no_alteration(name):
    image = _image((32, 32))

    assert torch.allclose(alter(image, name, stream=_stream(), strength=0.0), image, atol=1e-5)


def test_a_constant_image_survives_a_change_of_intensity():
    assert torch.equal(alter(torch.ones(1, 8, 8), "intensity", stream=_stream()), torch.ones(1, 8, 8))


def test_what_cannot_be_done_is_refused():
    image = _image((16, 16))
    with pytest.raises(ConfigurationError, match="'twirl'"):
        alter(image, "twirl", stream=_stream())
    with pytest.raises(ConfigurationError, match="needs a host"):
        alter(image, "transplant", stream=_stream(), region=image[0] > 0)
    with pytest.raises(ConfigurationError, match="needs a region"):
        alter(image, "transplant", stream=_stream(), host=image)
    with pytest.raises(ConfigurationError, match="strength=nan"):
        alter(image, "shift", stream=_stream(), strength=float("nan"))
    with pytest.raises(InvalidImageError, match=r"shape=\(16,\)"):
        draw_alteration("shift", (16,), stream=_stream())
