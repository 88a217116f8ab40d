import pytest
import torch

from relict_lightning.look_matching import Appearance, match_look
from relict_lightning.testing import apply_generator_look, simulate_heads
from relict_lightning.testing.look import gaussian_blur


def _heads(seed, *, shape=(32, 32), n=12):
    return simulate_heads(n, shape=shape, seed=seed).images


def _misfit(images, samples):
    """Mean factor between the powers of two sets, over all bands in which the samples have any."""
    one, other = (Appearance.of(each).power for each in (images, samples))
    bands = other > 1e-4 * other.max()
    return float((one[bands] / other[bands]).log().abs().mean().exp())


@pytest.mark.parametrize("shape", [(32, 32), (16, 24, 20)])
@pytest.mark.parametrize("look", ["blurred", "decoded", "noisy"])
def test_images_become_as_sharp_and_as_bright_as_samples(shape, look):
    held, samples = _heads(0, shape=shape), _heads(1, shape=shape)
    noise = 0.05 * torch.randn(samples.shape, generator=torch.Generator().manual_seed(2))
    samples = {
        "blurred": gaussian_blur(samples, sigma=1.5),
        "decoded": apply_generator_look(samples, strength=1.5, seed=0) ** 1.3,
        "noisy": 0.8 * samples + noise,
    }[look]

    matched = match_look(held, samples)

    assert matched.shape == held.shape
    assert _misfit(matched, samples) < min(1.5, _misfit(held, samples))
    wanted, before, after = (Appearance.of(each).quantiles for each in (samples, held, matched))
    assert (after - wanted).abs().mean() < 0.25 * (before - wanted).abs().mean()


def test_images_that_look_like_the_samples_stay_as_they_are():
    held = _heads(0)

    assert (match_look(held, held) - held).abs().max() < 0.01


@pytest.mark.parametrize("shape", [(32, 32), (16, 24, 20), (1, 1)])
def test_no_band_holds_the_mean_alone_that_was_taken_out(shape):
    noise = torch.rand((40, 1, *shape), generator=torch.Generator().manual_seed(0))

    power = Appearance.of(noise).power

    # White noise has the same power everywhere; of the mean rounding is left.
    assert power.min() > 0.5 * power.max() or shape == (1, 1)
    assert match_look(noise, noise).isfinite().all()


def test_patients_stay_who_they_are():
    held, samples = _heads(0), gaussian_blur(_heads(1), sigma=1.0)

    matched = match_look(held, samples)

    one, other = ((each - each.mean(dim=0)).flatten(1) for each in (held, matched))
    alike = torch.nn.functional.cosine_similarity(one[:, None], other[None], dim=2)
    assert (alike.argmax(dim=1) == torch.arange(len(held))).all()


def test_no_single_sample_decides():
    held, samples = _heads(0), _heads(1, n=40)
    others = torch.cat([samples[:-1], _heads(2, n=1)])

    assert (match_look(held, samples) - match_look(held, others)).abs().mean() < 0.005


def test_channels_keep_looks_of_their_own():
    first, second = _heads(0), _heads(3)
    held = torch.cat([first, second], dim=1)
    samples = torch.cat([gaussian_blur(_heads(1), sigma=1.5), 0.5 * _heads(2)], dim=1)

    matched = match_look(held, samples)

    for channel, alone in enumerate((first, second)):
        expected = match_look(alone, samples[:, channel : channel + 1])
        assert torch.allclose(matched[:, channel : channel + 1], expected, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_constant_images_are_no_obstacle(value):
    held, constant = _heads(0, n=4), torch.full((3, 1, 32, 32), value)

    assert torch.isfinite(match_look(held, constant)).all()
    assert torch.isfinite(match_look(constant, held)).all()
    assert torch.allclose(match_look(held, constant), torch.tensor(value), atol=1e-6)


def test_the_images_given_are_left_as_they_are():
    held = _heads(0)
    before = held.clone()

    match_look(held, gaussian_blur(held, sigma=1.0))

    assert torch.equal(held, before)
