import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relict_lightning.encoders import GradientEncoder
from relict_lightning.errors import ConfigurationError
from relict_lightning.interfaces import Encoder


def _images(count, *spatial, channels=1, seed=0):
    return torch.rand((count, channels, *spatial), generator=torch.Generator().manual_seed(seed))


def _cosine(first, second):
    return torch.nn.functional.cosine_similarity(first, second)


@pytest.mark.parametrize(
    ("spatial", "channels", "cells", "size"),
    [
        ((32, 32), 1, None, 4 * 64),
        ((32, 24), 3, None, 3 * 4 * 64),
        ((16, 16, 16), 1, None, 6 * 216),
        ((32, 32), 1, 4, 4 * 16),
        # An axis shorter than the grid has one cell per voxel.
        ((32, 5), 1, None, 4 * 8 * 5),
        ((16, 16, 1), 1, None, 6 * 36),
    ],
)
def test_an_embedding_has_channels_times_orientations_times_cells_numbers(spatial, channels, cells, size):
    embeddings = GradientEncoder(cells)(_images(2, *spatial, channels=channels))

    assert embeddings.shape == (2, size)
    assert torch.isfinite(embeddings).all()


@settings(max_examples=30)
@given(gain=st.floats(0.01, 100), offset=st.floats(-100, 100), seed=st.integers(0, 50))
def test_gain_and_offset_are_forgotten(gain, offset, seed):
    images = _images(2, 24, 24, seed=seed).double()

    changed = GradientEncoder()(gain * images + offset)

    assert (_cosine(changed, GradientEncoder()(images)) > 1 - 1e-6).all()


def test_a_ramp_has_one_direction_everywhere_and_so_no_layout():
    ramp = torch.arange(32.0).expand(1, 1, 32, 32)

    embedding = GradientEncoder()(ramp).reshape(4, 8, 8)

    # Only the border, where the slope is cut, tells cells apart; rows carry no gradient at all.
    assert embedding[0].abs().max() == embedding[2].abs().max() == 0


def test_rising_and_falling_edges_differ():
    step = torch.zeros(1, 1, 32, 32)
    step[..., 10:22] = 1

    embedding, inverted = GradientEncoder()(step), GradientEncoder()(1 - step)

    assert _cosine(embedding, inverted) < 0


def test_mirroring_an_image_mirrors_its_cells_and_swaps_its_slopes():
    images = _images(1, 32, 32)

    embedding = GradientEncoder()(images).reshape(4, 8, 8)
    mirrored = GradientEncoder()(images.flip(3)).reshape(4, 8, 8)

    # Orientations: along rows rising, along columns rising, along rows falling, along columns falling.
    torch.testing.assert_close(mirrored, embedding[[0, 3, 2, 1]].flip(2))


def test_noise_changes_an_embedding_less_than_another_image_does():
    images = _images(2, 32, 32)
    smooth = torch.nn.functional.avg_pool2d(images, 5, stride=1, padding=2)

    noisy = smooth[:1] + 0.005 * torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    encoder = GradientEncoder()

    assert _cosine(encoder(noisy), encoder(smooth[:1])) > 0.9
    assert _cosine(encoder(smooth[1:]), encoder(smooth[:1])) < 0.5


@pytest.mark.parametrize("value", [0.0, 0.1, -700.0])
@pytest.mark.parametrize("spatial", [(24, 24), (12, 12, 12)])
def test_a_constant_image_has_the_embedding_zero(value, spatial):
    assert not GradientEncoder()(torch.full((2, 1, *spatial), value)).any()


def test_an_embedding_does_not_depend_on_the_batch():
    images = _images(5, 24, 24)

    torch.testing.assert_close(GradientEncoder()(images)[3:4], GradientEncoder()(images[3:4]))


def test_the_configuration_is_shown():
    assert repr(GradientEncoder(4)) == "GradientEncoder(cells=4)"


def test_it_has_no_weights_and_is_an_encoder():
    encoder = GradientEncoder()

    assert isinstance(encoder, Encoder)
    assert list(encoder.state_dict()) == []


@pytest.mark.parametrize("cells", [0, -1])
def test_a_grid_without_cells_is_refused(cells):
    with pytest.raises(ConfigurationError, match=f"cells must be at least 1, got {cells}"):
        GradientEncoder(cells)
