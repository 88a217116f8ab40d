"""The vectors that images are searched by: learned or handcrafted features, coarse voxels, coarse label maps.

A view that is blind to a copy must not be the one that retrieves, so there are three of different kinds. Each is a unit
vector, so that an inner product is a cosine similarity; a blank image is the zero vector, alike to nothing.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from relict_lightning.errors import InvalidImageError

_COARSE_SIDE = {2: 16, 3: 10}
_LABEL_SIDE = {2: 8, 3: 6}
# Labels beyond share the channels of the first ones; vessel trees and lesions have few, atlases many.
_LABEL_CHANNELS = 4
_ROUNDING = 1e-6


def feature_view(encoder: nn.Module, images: Float[Tensor, "n c *spatial"]) -> Float[Tensor, "n d"]:
    """Return the unit embeddings of images.

    Raises:
        InvalidImageError: If the encoder returns something other than one finite vector per image.
    """
    embeddings = encoder(images)
    if not isinstance(embeddings, Tensor) or embeddings.ndim != 2 or len(embeddings) != len(images):
        found = tuple(embeddings.shape) if isinstance(embeddings, Tensor) else type(embeddings).__name__
        raise InvalidImageError(
            f"Encoder {type(encoder).__name__} must return one vector per image, ({len(images)}, d); got {found}. "
            f"Pool its feature map, for instance by `torch.nn.Sequential(encoder, torch.nn.Flatten())`."
        )
    embeddings = embeddings.float()
    if not torch.isfinite(embeddings).all():
        raise InvalidImageError(
            f"Encoder {type(encoder).__name__} returned NaN or infinite embeddings for images that are finite. "
            f"Check its weights, and the intensity range that it expects."
        )
    return torch.nn.functional.normalize(embeddings, dim=1)


def coarse_view(images: Float[Tensor, "n c *spatial"]) -> Float[Tensor, "n d"]:
    """Return the images pooled to at most 16 x 16 or 10 x 10 x 10 voxels, centred, as unit vectors.

    The cosine of two of them is the normalised cross-correlation of the pooled images.
    """
    return _centred(_pooled(images.float(), _COARSE_SIDE).flatten(1))


def label_view(label_maps: Int[Tensor, "n *spatial"]) -> Float[Tensor, "n d"]:
    """Return where each label lies, pooled to at most 8 x 8 or 6 x 6 x 6 voxels, centred, as unit vectors.

    Background, label 0, is left out. A map without any other label is the zero vector.
    """
    channels = torch.where(label_maps > 0, (label_maps - 1) % _LABEL_CHANNELS, -1)
    pooled = [_pooled((channels == channel).float()[:, None], _LABEL_SIDE) for channel in range(_LABEL_CHANNELS)]
    return _centred(torch.cat(pooled, dim=1).flatten(1))


def _pooled(images: Tensor, sides: dict[int, int]) -> Tensor:
    dimensions = images.ndim - 2
    grid = tuple(min(sides[dimensions], size) for size in images.shape[2:])
    pool = torch.nn.AdaptiveAvgPool2d(grid) if dimensions == 2 else torch.nn.AdaptiveAvgPool3d(grid)
    pooled: Tensor = pool(images)
    return pooled


def _centred(coarse: Tensor) -> Tensor:
    """Return vectors minus their mean, at unit length; a constant becomes the zero vector."""
    centred = coarse - coarse.mean(1, keepdim=True)
    # What rounding leaves of a constant would otherwise be scaled up to a unit vector, and blank images be alike.
    blank = centred.norm(dim=1, keepdim=True) <= _ROUNDING * coarse.norm(dim=1, keepdim=True)
    return torch.nn.functional.normalize(centred.masked_fill(blank, 0.0), dim=1)
