import pytest
import torch

from relict_lightning.errors import ConfigurationError, InvalidImageError
from relict_lightning.testing.look import apply_generator_look, gaussian_blur


def _noise(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def _roughness(images):
    return float((images[..., 1:] - images[..., :-1]).square().mean())


@pytest.mark.parametrize("shape", [(32, 32), (16, 24, 24)])
def test_the_look_takes_most_of_the_noise_and_stays_in_range(shape):
    images = _noise(3, 1, *shape)

    looked = apply_generator_look(images, seed=0)

    assert looked.shape == images.shape
    assert 0 <= float(looked.min()) <= float(looked.max()) <= 1
    assert _roughness(looked) < 0.3 * _roughness(images)


def test_a_stronger_look_blurs_more():
    images = _noise(3, 1, 16, 24, 24)
    mild, strong = (apply_generator_look(images, strength=strength, seed=0) for strength in (1.0, 1.5))

    assert _roughness(strong) < _roughness(mild)


def test_no_strength_changes_nothing():
    images = _noise(2, 1, 16, 16)

    assert torch.equal(apply_generator_look(images, strength=0.0, seed=0), images)


def test_a_sample_looks_alike_in_any_batch_and_unlike_its_neighbour():
    images = _noise(1, 1, 16, 16).repeat(3, 1, 1, 1)

    looked = apply_generator_look(images, seed=5)

    assert torch.equal(looked[:2], apply_generator_look(images[:2], seed=5))
    assert not torch.equal(looked[0], looked[1])
    assert not torch.equal(looked, apply_generator_look(images, seed=6))


def test_an_empty_batch_stays_empty():
    assert apply_generator_look(torch.empty(0, 1, 16, 16), seed=0).shape == (0, 1, 16, 16)


def test_blur_has_the_width_it_is_asked_for_and_keeps_the_sum():
    impulse = torch.zeros(1, 1, 41, 41)
    impulse[0, 0, 20, 20] = 1

    blurred = gaussian_blur(impulse, sigma=2.0)

    place = torch.arange(41.0) - 20
    assert float(blurred.sum()) == pytest.approx(1, abs=1e-5)
    assert float((blurred[0, 0].sum(1) * place**2).sum()) == pytest.approx(4, rel=0.05)


def test_bad_arguments_are_refused():
    with pytest.raises(ConfigurationError, match="strength=-1"):
        apply_generator_look(_noise(1, 1, 8, 8), strength=-1.0, seed=0)
    with pytest.raises(ConfigurationError, match="seed=-1"):
        apply_generator_look(_noise(1, 1, 8, 8), seed=-1)
    with pytest.raises(InvalidImageError, match="2 or 3 sides"):
        apply_generator_look(_noise(1, 1, 8), seed=0)
