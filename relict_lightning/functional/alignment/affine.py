"""Affine maps: rotation, scale, shear and displacement in one.

A map is `[n, ndim, ndim + 1]`, one matrix per pair. It takes a position of the training image to the position of the
generated image whose voxel belongs there. Positions run from -1 to 1 between the outer faces of the image along every
axis, in the order of the array's axes, so that one map serves all resolutions of an image.

- `align_affine`: the maps that move generated images onto training images.
- `warp_affine`: images moved by maps.
- `compose_affine`: one map for two.
- `affine_coverage`: where moved images have voxels of their own.
- `invert_affine`: the maps that undo maps.
- `affine_identity`: the maps that leave images where they are.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional.slopes import central_difference
from relict_lightning.functional.validation import check_images, check_pairs

# Fraction of the mean of the diagonal that is added to it: keeps the step finite where an image has no gradient along
# some direction, and is too small to slow the others down.
_DAMPING = 1e-4
# Unlike images must not be bent into each other. Registered anatomy needs less than this: an axis stretched or sheared
# by a quarter (14 degrees of rotation), and a displacement by an eighth of the image.
_LARGEST_STRETCH = 0.25
_LARGEST_DISPLACEMENT = 0.25


class AffineAlignment(NamedTuple):
    """What `align_affine` found.

    Attributes:
        maps: One map per pair, `[n, ndim, ndim + 1]`, for `warp_affine` of the generated image.
        correlation: Normalised cross-correlation of the two images after it, in [-1, 1], `[n]`.
    """

    maps: Tensor
    correlation: Tensor


def affine_identity(count: int, ndim: int) -> Float[Tensor, "n ndim columns"]:
    """Return the maps that leave images where they are.

    Args:
        count: How many.
        ndim: Spatial axes, 2 or 3.

    Returns:
        Maps `[n, ndim, ndim + 1]`, float32.

    Raises:
        ConfigurationError: If `count` is negative, or `ndim` is neither 2 nor 3.

    Example:
        >>> affine_identity(1, 2).tolist()
        [[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]
    """
    if count < 0 or ndim not in (2, 3):
        raise ConfigurationError(
            f"count must not be negative and ndim must be 2 or 3, but are count={count} and ndim={ndim}."
        )
    return torch.eye(ndim, ndim + 1).repeat(count, 1, 1)


def warp_affine(
    images: Float[Tensor, "n c *spatial"],
    maps: Float[Tensor, "m ndim columns"],
    *,
    interpolation: Literal["linear", "nearest"] = "linear",
) -> Float[Tensor, "n c *spatial"]:
    """Return images moved by affine maps; beyond the border the edge is repeated.

    Args:
        images: Images.
        maps: One map per image.
        interpolation: "linear", or "nearest" for label maps.

    Returns:
        Images of the same shape.

    Raises:
        InvalidImageError: If images are not floating point, not finite, or not 2-D or 3-D.
        ConfigurationError: If there is not one map per image.

    Example:
        >>> by_one_voxel = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.5]]])
        >>> warp_affine(torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]]), by_one_voxel)
        tensor([[[[2., 3., 4., 4.]]]])
    """
    check_images(images, name="images")
    ndim = images.ndim - 2
    _check_maps(maps, count=len(images), ndim=ndim)
    if not len(images):
        return images
    grid = _grid(maps.to(images), tuple(images.shape[2:]))
    mode = "bilinear" if interpolation == "linear" else "nearest"
    return functional.grid_sample(images, grid, mode=mode, padding_mode="border", align_corners=False)


def align_affine(
    generated: Float[Tensor, "n c *spatial"],
    training: Float[Tensor, "n c *spatial"],
    *,
    start: Float[Tensor, "m ndim columns"] | None = None,
    iterations: int = 10,
) -> AffineAlignment:
    """Return the affine maps that move generated images onto training images.

    The generated image, moved, is explained as gain times the training image, plus offset, plus the change that a small
    affine motion of the training image makes; the motion that explains it best, in the sense of least squares, is
    undone, and so on (Gauss-Newton, inverse compositional, so that gradients are taken once). Gain and offset being
    free, it is the correlation of the two images that grows. Of all maps on the way the one with the largest
    correlation is returned, so the correlation never falls below that at the start.

    It finds its way from displacements of about the width of the structures in the image; start from a coarse
    resolution for larger ones.

    Args:
        generated: Generated images.
        training: Training images, one for each generated image.
        start: Where to start; None starts where the images are.
        iterations: Steps, at least 1.

    Returns:
        One map per pair, and the correlation after it. Maps that stretch, turn or shear by more than a
        quarter, or displace by more than an eighth of the side, are never taken.

    Raises:
        InvalidImageError: If images are not floating point, not finite, or of different shapes.
        ConfigurationError: If `iterations` is below 1, or `start` does not have one map per pair.

    Example:
        >>> place = torch.linspace(-1, 1, 32)
        >>> training = torch.exp(-4 * (place[:, None] ** 2 + 3 * (place - 0.2) ** 2))[None, None]
        >>> moved = warp_affine(training, torch.tensor([[[1.0, 0.1, 0.02], [-0.1, 1.0, 0.05]]]))
        >>> maps, correlation = align_affine(moved, training)
        >>> bool(correlation > 0.99), maps.shape
        (True, torch.Size([1, 2, 3]))

    References:
        Baker, Matthews (2004), doi:10.1023/B:VISI.0000011205.11775.fd (inverse compositional); Evangelidis, Psarakis
        (2008), doi:10.1109/TPAMI.2008.113 (maximising the correlation).
    """
    if iterations < 1:
        raise ConfigurationError(f"iterations must be at least 1, but is iterations={iterations}.")
    generated, training = check_pairs(generated, training)
    count, ndim = len(generated), generated.ndim - 2
    maps = affine_identity(count, ndim).to(generated) if start is None else start.to(generated)
    _check_maps(maps, count=count, ndim=ndim)
    if not count:
        return AffineAlignment(maps, maps.new_zeros(0))
    if count == 1:
        # torch sums a single row in another order than one of several, and a pair's map must not depend on its batch.
        twice = (values.repeat(2, *[1] * (values.ndim - 1)) for values in (generated, training, maps))
        found = _align(*twice, iterations=iterations)
        return AffineAlignment(found.maps[:1], found.correlation[:1])
    return _align(generated, training, maps, iterations=iterations)


def _align(generated: Tensor, training: Tensor, maps: Tensor, *, iterations: int) -> AffineAlignment:
    count, ndim = len(generated), generated.ndim - 2
    regressors = _regressors(training)
    # One matrix product per pair, so that a pair gets the same map to the bit in whatever batch it is.
    normal = torch.bmm(regressors, regressors.transpose(1, 2)).double()
    diagonal = normal.diagonal(dim1=1, dim2=2)
    diagonal.add_(_DAMPING * diagonal.mean(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny))
    factor = torch.linalg.cholesky(normal)
    target = _standardised(training)
    best, best_correlation = maps, torch.full((count,), -torch.inf, device=generated.device)
    bottom = torch.eye(ndim + 1, device=generated.device)[ndim:].expand(count, 1, ndim + 1)
    for step in range(iterations + 1):
        moved = _standardised(warp_affine(generated, maps))
        correlation = (moved * target).sum(dim=1)
        improves = (correlation > best_correlation) & (_is_allowed(maps) if step else True)
        best = torch.where(improves[:, None, None], maps, best)
        best_correlation = torch.where(improves, correlation, best_correlation)
        if step == iterations:
            break
        explained = torch.bmm(regressors, moved[:, :, None]).double()
        solution = torch.cholesky_solve(explained, factor)[:, :, 0].float()
        gain = solution[:, 0]
        # Images that are not alike at all have no motion between them.
        motion = solution[:, 1:] / torch.where(gain > 0, gain, torch.inf)[:, None]
        small = torch.eye(ndim, ndim + 1, device=generated.device) + motion.reshape(count, ndim, ndim + 1)
        maps = (torch.cat([maps, bottom], dim=1) @ torch.linalg.inv(torch.cat([small, bottom], dim=1)))[:, :ndim]
    return AffineAlignment(best, best_correlation)


def compose_affine(
    first: Float[Tensor, "n ndim columns"], second: Float[Tensor, "m ndim columns"]
) -> Float[Tensor, "n ndim columns"]:
    """Return the maps that move images as `first` and then `second` does.

    Args:
        first: Maps that are applied first.
        second: Maps that are applied to what `first` moved.

    Returns:
        One map per pair of maps.

    Raises:
        ConfigurationError: If the two are not equally many maps of the same number of axes.

    Example:
        >>> by_half = torch.tensor([[[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]]])
        >>> compose_affine(by_half, by_half).tolist()
        [[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]]
    """
    ndim = first.shape[1]
    _check_maps(second, count=len(first), ndim=ndim)
    # A few products elementwise, because the order of a sum in a matrix product may depend on the batch.
    linear = (first[:, :, :ndim, None] * second[:, None, :, :]).sum(dim=2)
    return torch.cat([linear[:, :, :ndim], linear[:, :, ndim:] + first[:, :, ndim:]], dim=2)


def invert_affine(maps: Float[Tensor, "n ndim columns"]) -> Float[Tensor, "n ndim columns"]:
    """Return the maps that undo maps.

    Args:
        maps: Maps that can be undone.

    Returns:
        One map per map.

    Raises:
        ConfigurationError: If a map folds the image flat and cannot be undone.

    Example:
        >>> invert_affine(torch.tensor([[[2.0, 0.0, 0.5], [0.0, 1.0, 0.0]]])).tolist()
        [[[0.5, 0.0, -0.25], [0.0, 1.0, 0.0]]]
    """
    count, ndim, _ = maps.shape
    bottom = torch.eye(ndim + 1, device=maps.device)[ndim:].expand(count, 1, ndim + 1)
    inverse, failed = torch.linalg.inv_ex(torch.cat([maps, bottom], dim=1))
    if failed.any():
        raise ConfigurationError(
            f"Map {int(failed.nonzero()[0])} of {count} cannot be undone, because its matrix is singular. Pass maps "
            f"whose linear part has a determinant other than 0."
        )
    undone: Tensor = inverse[:, :ndim]
    return undone


def affine_coverage(maps: Float[Tensor, "n ndim columns"], sides: tuple[int, ...]) -> Bool[Tensor, "n *spatial"]:
    """Return where images moved by maps have voxels of their own, rather than repetitions of their edge.

    Args:
        maps: Maps.
        sides: Sides of the images.

    Returns:
        True where a voxel comes from inside the image.

    Raises:
        ConfigurationError: If the maps are of images with another number of sides.

    Example:
        >>> affine_coverage(torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.5]]]), (1, 4)).tolist()
        [[[True, True, True, False]]]
    """
    _check_maps(maps, count=len(maps), ndim=len(sides))
    return (_grid(maps, sides).abs() <= 1).all(dim=-1)


def _grid(maps: Tensor, sides: tuple[int, ...]) -> Tensor:
    """Return where every voxel comes from, `[n, *spatial, ndim]`; torch counts the last axis of a grid backwards.

    Summed axis by axis, which takes a fraction of the time of a product with all positions.
    """
    count, ndim, _ = maps.shape
    backwards = maps.flip(1)
    grid = backwards[:, :, ndim].reshape(count, *[1] * ndim, ndim)
    for axis, side in enumerate(sides):
        shape = [count, *[1] * ndim, ndim]
        shape[axis + 1] = side
        steps = _positions(side, maps.device)[None, :, None] * backwards[:, None, :, axis]
        grid = grid + steps.reshape(shape)
    return grid


def _positions(side: int, device: torch.device) -> Tensor:
    """Return the centres of voxels along one axis, whose outer faces lie at -1 and 1."""
    return (2 * torch.arange(side, device=device) + 1) / side - 1


def _is_allowed(maps: Tensor) -> Tensor:
    ndim = maps.shape[1]
    change = (maps - torch.eye(ndim, ndim + 1, device=maps.device)).abs()
    stretch, displacement = change[:, :, :ndim].flatten(1).amax(dim=1), change[:, :, ndim].amax(dim=1)
    return (stretch <= _LARGEST_STRETCH) & (displacement <= _LARGEST_DISPLACEMENT)


def _regressors(training: Tensor) -> Tensor:
    """Return the training image and its change under each small affine motion, all centred, `[n, p, c * voxels]`."""
    sides = training.shape[2:]
    positions = [_positions(side, training.device) for side in sides]
    one = torch.ones(sides, device=training.device)
    places = [*torch.meshgrid(*positions, indexing="ij"), one]
    columns = [training]
    for axis, side in enumerate(sides):
        # From voxels to positions, which span 2.
        slope = central_difference(training, axis + 2) * (side / 2)
        columns += [slope * place for place in places]
    stacked = torch.stack([column.flatten(1) for column in columns], dim=1)
    return stacked - stacked.mean(dim=2, keepdim=True)


def _standardised(images: Tensor) -> Tensor:
    """Return flattened images without mean, at unit length; constant images become zero."""
    flat = images.flatten(1)
    centred = flat - flat.mean(dim=1, keepdim=True)
    blank = centred.norm(dim=1, keepdim=True) <= 1e-6 * flat.norm(dim=1, keepdim=True)
    return functional.normalize(centred.masked_fill(blank, 0.0), dim=1)


def _check_maps(maps: Tensor, *, count: int, ndim: int) -> None:
    if maps.shape != (count, ndim, ndim + 1):
        raise ConfigurationError(
            f"maps must have shape {(count, ndim, ndim + 1)}, one per image, but have shape {tuple(maps.shape)}."
        )
