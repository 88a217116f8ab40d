import numpy as np
import pytest
import torch
from torch import nn

from relict_lightning.encoders import GradientEncoder
from relict_lightning.errors import InvalidImageError
from relict_lightning.index import coarse_view, feature_view


def _images(count, *spatial, channels=1, seed=0):
    return torch.rand((count, channels, *spatial), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("spatial", [(32, 32), (8, 40), (20, 20, 20)])
@pytest.mark.parametrize("channels", [1, 2])
def test_both_views_are_unit_vectors(spatial, channels):
    images = _images(3, *spatial, channels=channels)

    for view in (feature_view(GradientEncoder(), images), coarse_view(images)):
        np.testing.assert_allclose(view.norm(dim=1), 1, atol=1e-5)


def test_the_cosine_of_coarse_views_is_the_correlation_of_pooled_images():
    images = _images(2, 32, 32)
    pooled = images.reshape(2, 16, 2, 16, 2).mean((2, 4)).flatten(1).numpy()

    cosine = float(coarse_view(images).prod(0).sum())

    assert cosine == pytest.approx(np.corrcoef(pooled)[0, 1], abs=1e-5)


@pytest.mark.parametrize("spatial", [(32, 32), (30, 17), (12, 12, 12)])
@pytest.mark.parametrize("value", [0.0, 0.1, 0.3, 0.7])
def test_a_blank_image_is_alike_to_nothing(spatial, value):
    blank = torch.full((2, 1, *spatial), value)

    assert not coarse_view(blank).any()
    assert not feature_view(GradientEncoder(), blank).any()


def test_faint_structure_on_a_bright_offset_is_still_seen():
    images = 0.9 + 1e-3 * _images(1, 32, 32)

    assert coarse_view(images).norm() == pytest.approx(1, abs=1e-5)


def test_images_smaller_than_the_coarse_grid_keep_their_voxels():
    assert coarse_view(_images(2, 8, 6)).shape == (2, 48)


def test_half_precision_images_have_a_coarse_view():
    assert coarse_view(_images(2, 32, 32).bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(
    ("encoder", "found"),
    [
        (nn.Identity(), r"\(3, 1, 8, 8\)"),
        (nn.Flatten(0), r"\(192,\)"),
        (nn.Flatten(0, 1), r"\(3, 8, 8\)"),
    ],
    ids=["map", "vector", "matrices"],
)
def test_an_encoder_that_returns_no_vector_per_image_is_refused(encoder, found):
    with pytest.raises(InvalidImageError, match=rf"one vector per image, \(3, d\); got {found}"):
        feature_view(encoder, _images(3, 8, 8))


def test_an_encoder_that_returns_no_tensor_is_refused():
    class Pair(nn.Module):
        def forward(self, images):
            return images, images

    with pytest.raises(InvalidImageError, match=r"Pair must return one vector per image.* got tuple"):
        feature_view(Pair(), _images(3, 8, 8))


def test_an_encoder_that_overflows_is_refused():
    class Overflowing(nn.Module):
        def forward(self, images):
            return images.flatten(1) * torch.inf

    with pytest.raises(InvalidImageError, match="Overflowing returned NaN or infinite embeddings"):
        feature_view(Overflowing(), _images(3, 8, 8))
