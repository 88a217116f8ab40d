import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.registration import phase_cross_correlation

from relict_lightning.errors import ConfigurationError, InvalidImageError
from relict_lightning.functional import (
    align_translation,
    mirror,
    normalized_cross_correlation,
    phase_correlation_shift,
    shift,
)


def phantoms(n: int, sides: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    # Smooth bodies with structure inside and an empty border of a fifth of the side.
    noise = np.random.default_rng(seed).standard_normal((n, 1, *sides))
    texture = ndimage.gaussian_filter(noise, (0, 0, *(1.5 for _ in sides)))
    axes = np.meshgrid(*(np.linspace(-1, 1, side) for side in sides), indexing="ij")
    body = sum(axis**2 for axis in axes) < 0.36
    return torch.tensor((0.5 + texture / texture.std() / 5) * body, dtype=torch.float32)


@pytest.mark.parametrize("sides", [(32, 40), (20, 24, 22)])
def test_a_moved_image_is_moved_back(sides):
    training = phantoms(6, sides)
    moved_by = torch.randint(-3, 4, (6, len(sides)), generator=torch.Generator().manual_seed(0))
    generated = shift(training, moved_by)

    aligned, shifts = align_translation(generated, training, max_shift=4)

    assert torch.equal(shifts, -moved_by)
    torch.testing.assert_close(aligned, training)


def test_the_shift_moves_generated_onto_training_and_not_the_reverse():
    training = phantoms(1, (32, 32))
    generated = shift(training, torch.tensor([[3, -2]]))

    assert phase_correlation_shift(generated, training, max_shift=5).tolist() == [[-3, 2]]
    assert phase_correlation_shift(training, generated, max_shift=5).tolist() == [[3, -2]]


def test_phase_correlation_agrees_with_scikit_image():
    training = phantoms(4, (32, 32))
    generated = shift(training, torch.tensor([[1, 4], [-3, 2], [0, -5], [2, 2]]))

    expected = [
        phase_cross_correlation(t[0], g[0], normalization=None)[0].astype(int).tolist()
        for g, t in zip(generated.numpy(), training.numpy(), strict=True)
    ]

    assert phase_correlation_shift(generated, training, max_shift=6).tolist() == expected


def test_a_blurred_and_noisy_copy_is_found_where_it_was_moved():
    training = phantoms(10, (48, 48))
    moved_by = torch.randint(-5, 6, (10, 2), generator=torch.Generator().manual_seed(1))
    blurred = torch.tensor(ndimage.gaussian_filter(shift(training, moved_by).numpy(), (0, 0, 1.5, 1.5)))
    noisy = blurred + 0.1 * training.std() * torch.randn(blurred.shape, generator=torch.Generator().manual_seed(2))

    _, shifts = align_translation(noisy, training, max_shift=6)

    assert torch.equal(shifts, -moved_by)


def test_a_copy_whose_anatomy_is_cut_at_the_border_is_found_by_the_taper():
    noise = np.random.default_rng(0).standard_normal((10, 1, 60, 60))
    large = torch.tensor(ndimage.gaussian_filter(noise, (0, 0, 3, 3)), dtype=torch.float32)
    large = large + torch.linspace(0, 1, 60)
    training, generated = large[..., 8:52, 8:52], large[..., 5:49, 10:54]

    _, shifts = align_translation(generated, training, max_shift=6)

    assert shifts.tolist() == [[-3, 2]] * 10


@pytest.mark.parametrize("max_shift", [0, 1, 3, 100])
def test_shifts_stay_inside_the_bound(max_shift):
    generator = torch.Generator().manual_seed(0)
    generated, training = torch.rand(20, 1, 9, 12, generator=generator), torch.rand(20, 1, 9, 12, generator=generator)

    shifts = phase_correlation_shift(generated, training, max_shift=max_shift)

    assert (shifts.abs() <= torch.tensor([min(max_shift, 4), min(max_shift, 5)])).all()
    assert max_shift == 0 or (shifts != 0).any()


@given(seed=st.integers(0, 1000), max_shift=st.integers(0, 6))
@settings(max_examples=15)
def test_alignment_never_lowers_the_correlation(seed, max_shift):
    generator = torch.Generator().manual_seed(seed)
    generated, training = torch.rand(5, 1, 10, 11, generator=generator), torch.rand(5, 1, 10, 11, generator=generator)
    before = normalized_cross_correlation(generated, training)

    aligned, shifts = align_translation(generated, training, max_shift=max_shift)
    after = normalized_cross_correlation(aligned, training)

    assert (after >= before).all()
    assert torch.equal(aligned, shift(generated, shifts))
    assert (shifts[after == before] == 0).all()


@pytest.mark.parametrize("sides", [(16, 16), (1, 16), (8, 8, 8)])
@pytest.mark.parametrize("taper", [False, True])
def test_identical_and_constant_images_are_not_moved(sides, taper):
    image, constant = torch.rand(2, 1, *sides, generator=torch.Generator().manual_seed(0)), torch.ones(2, 1, *sides)

    assert (phase_correlation_shift(image, image, max_shift=3, taper=taper) == 0).all()
    assert (phase_correlation_shift(constant, image, max_shift=3, taper=taper) == 0).all()


@given(gain=st.floats(1e-10, 1e10), seed=st.integers(0, 50))
@settings(max_examples=15)
def test_the_shift_does_not_depend_on_the_scale_of_intensities(gain, seed):
    training = phantoms(2, (24, 24), seed)
    generated = shift(training, torch.tensor([[2, 1], [-1, 3]]))

    assert phase_correlation_shift(generated * gain, training, max_shift=4).tolist() == [[-2, -1], [1, -3]]


def test_channels_are_moved_together():
    training = torch.cat([phantoms(2, (24, 24), 0), phantoms(2, (24, 24), 1)], dim=1)
    generated = shift(training, torch.tensor([[2, 0], [0, -2]]))

    aligned, _ = align_translation(generated, training, max_shift=4)

    torch.testing.assert_close(aligned, training)


def test_shift_repeats_the_edge_and_does_not_wrap():
    image = torch.arange(6.0).reshape(1, 1, 2, 3)

    assert shift(image, torch.tensor([[0, 1]])).tolist() == [[[[0, 0, 1], [3, 3, 4]]]]
    assert shift(image, torch.tensor([[-1, 0]])).tolist() == [[[[3, 4, 5], [3, 4, 5]]]]
    assert shift(image, torch.tensor([[0, -9]])).tolist() == [[[[2, 2, 2], [5, 5, 5]]]]


@pytest.mark.parametrize("sides", [(7, 9), (5, 6, 7)])
def test_shift_agrees_with_scipy(sides):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(5, 2, *sides, generator=generator)
    shifts = torch.randint(-4, 5, (5, len(sides)), generator=generator)

    expected = [
        ndimage.shift(image, (0, *row), order=0, mode="nearest")
        for image, row in zip(images.numpy(), shifts.tolist(), strict=True)
    ]

    np.testing.assert_array_equal(shift(images, shifts), np.stack(expected))


def test_shift_keeps_the_dtype():
    assert (
        shift(torch.ones(1, 1, 3, 3, dtype=torch.float16), torch.zeros(1, 2, dtype=torch.int32)).dtype == torch.float16
    )


@given(axes=st.sets(st.integers(0, 2)), seed=st.integers(0, 100))
@settings(max_examples=15)
def test_mirroring_twice_gives_the_images_back_and_agrees_with_numpy(axes, seed):
    images = torch.rand(2, 1, 3, 4, 5, generator=torch.Generator().manual_seed(seed))
    chosen = tuple(axes)

    mirrored = mirror(images, chosen)

    assert torch.equal(mirror(mirrored, chosen), images)
    np.testing.assert_array_equal(mirrored, np.flip(images.numpy(), [axis + 2 for axis in chosen]))


@pytest.mark.parametrize("axes", [(2,), (-1,), (0, 0)])
def test_mirror_refuses_axes_that_do_not_exist_or_repeat(axes):
    with pytest.raises(ConfigurationError, match="from 0 to 1"):
        mirror(torch.zeros(1, 1, 4, 4), axes)


def test_mirror_refuses_images_without_a_channel_axis():
    with pytest.raises(InvalidImageError, match=r"\(4, 4, 4\)"):
        inspect.unwrap(mirror)(torch.zeros(4, 4, 4), (0,))


def test_shift_refuses_displacements_of_another_shape():
    with pytest.raises(ConfigurationError, match=r"\(2, 2\).*\(2, 3\)"):
        shift(torch.zeros(2, 1, 4, 4), torch.zeros(2, 3, dtype=torch.long))


def test_a_negative_bound_is_refused():
    with pytest.raises(ConfigurationError, match="max_shift=-1"):
        align_translation(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), max_shift=-1)


def test_no_pairs_give_no_shifts():
    aligned, shifts = align_translation(torch.zeros(0, 1, 8, 8), torch.zeros(0, 1, 8, 8), max_shift=2)

    assert aligned.shape == (0, 1, 8, 8)
    assert shifts.shape == (0, 2)
