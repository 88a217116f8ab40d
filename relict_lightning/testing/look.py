"""What a generator's decoder does to an image: it blurs, replaces fine texture by its own, and drifts in intensity.

A memorized image never leaves a latent generator as the scan that went in. So a sample in a test passes through the
look, whether it is a replica or not.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from relict_lightning.errors import ConfigurationError, InvalidImageError
from relict_lightning.testing.deformation import Draws, random_field

# In voxels, at strength 1: about what the autoencoders of latent diffusion models lose at a compression of 4 per axis.
_BLUR_VOXELS = 0.8
# Transposed convolutions of stride 4 leave their grid, faintly; values are shares of the range [0, 1].
_GRID_PERIOD = 4
_GRID = 0.005
_TEXTURE = 0.006
_TEXTURE_KNOTS = 3.0
_BIAS_KNOTS = 40.0
_GAIN, _OFFSET, _GAMMA, _BIAS = 0.05, 0.012, 0.07, 0.04


def apply_generator_look(
    images: Float[Tensor, "n c *spatial"], *, strength: float = 1.0, seed: int
) -> Float[Tensor, "n c *spatial"]:
    """Return the images as a decoder would give them, in [0, 1].

    Each image is blurred by 0.8 voxels (within 8 %), which takes its noise and fine texture; gets the faint grid of a
    decoder and a soft texture; and drifts in gain, offset, gamma and a slow bias field. The drift differs per sample.

    Args:
        images: Images in [0, 1], 2-D or 3-D, with sides of at least 4.
        strength: Scales blur, texture and drift; 1.5 is half as much again, 0 returns the images as they are.
        seed: Seed of the drifts; sample i of a seed drifts alike in any batch that holds it at position i.

    Raises:
        ConfigurationError: If `strength` is negative or not finite, or `seed` is negative.
        InvalidImageError: If the images are not 2-D or 3-D, or a side is below 4.

    Example:
        >>> images = torch.rand(2, 1, 16, 16)
        >>> bool(apply_generator_look(images, seed=0).std() < images.std())
        True
    """
    if not (math.isfinite(strength) and strength >= 0):
        raise ConfigurationError(f"strength must be finite and at least 0, got strength={strength}.")
    if seed < 0:
        raise ConfigurationError(f"seed must be at least 0, got seed={seed}.")
    shape = tuple(images.shape[2:])
    if len(shape) not in (2, 3) or min(shape) < 4:
        raise InvalidImageError(f"Images must be [n, c, *spatial] with 2 or 3 sides of at least 4, got {images.shape}.")
    if strength == 0 or not len(images):
        return images.clone()
    with torch.no_grad():
        return torch.cat([_look(image[None], strength, seed, number) for number, image in enumerate(images)])


def _look(image: Tensor, strength: float, seed: int, number: int) -> Tensor:
    draws = Draws(seed, [number])
    shape = tuple(image.shape[2:])
    normal = draws.scalars[0].clamp(-2.5, 2.5).tolist()
    image = gaussian_blur(image, sigma=_BLUR_VOXELS * strength * math.exp(0.08 * max(-1.0, min(1.0, normal[0]))))
    fields = [
        random_field(draws, components=1, shape=shape, knots_mm=knots, spacing_mm=1.0).to(image)
        for knots in (_TEXTURE_KNOTS, _BIAS_KNOTS)
    ]
    # The grid belongs to the decoder, so that it lies alike in all samples; it shows where there is signal.
    grid = _grid(shape).to(image) * math.exp(0.3 * normal[1])
    image = image + strength * (_GRID * grid + _TEXTURE * fields[0]) * (image / 0.3).clamp(max=1)
    image = image.clamp(min=0) ** math.exp(strength * _GAMMA * normal[2])
    image = image * torch.exp(strength * (_GAIN * normal[3] + _BIAS * fields[1])) + strength * _OFFSET * normal[4]
    return image.clamp(0, 1)


def gaussian_blur(images: Float[Tensor, "n c *spatial"], *, sigma: float) -> Float[Tensor, "n c *spatial"]:
    """Return images smoothed by a Gaussian of `sigma` voxels along every axis; the border is continued."""
    if sigma <= 0:
        return images
    reach = max(1, math.ceil(3 * sigma))
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).to(images)
    dims = images.ndim - 2
    convolve = functional.conv2d if dims == 2 else functional.conv3d
    flat = images.reshape(-1, 1, *images.shape[2:])
    for axis in range(dims):
        padding = [0] * (2 * dims)
        padding[2 * (dims - 1 - axis)] = padding[2 * (dims - 1 - axis) + 1] = reach
        kernel = weights.reshape([1, 1, *[-1 if other == axis else 1 for other in range(dims)]])
        flat = convolve(functional.pad(flat, padding, mode="replicate"), kernel)
    return flat.reshape(images.shape)


def _grid(shape: tuple[int, ...]) -> Tensor:
    """Return a periodic pattern of unit variance."""
    pattern = torch.zeros(shape)
    for axis, side in enumerate(shape):
        line = torch.cos(2 * math.pi * torch.arange(side) / _GRID_PERIOD + 0.5 + axis)
        pattern = pattern + line.reshape([-1 if other == axis else 1 for other in range(len(shape))])
    return pattern * math.sqrt(2 / len(shape))
