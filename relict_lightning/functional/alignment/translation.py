"""Displacements by whole voxels.

Displacements are `[n, ndim]` with one entry per spatial axis, positive towards larger positions. Whatever moves past a
border is lost, and what opens at the other side repeats the edge: nothing wraps around.

- `phase_correlation_shift`: the displacement that moves each generated image onto its training image.
- `shift`: displaced images.
- `align_translation`: both, but only where the images then agree better.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional.validation import check_images, check_pairs
from relict_lightning.functional.voxel import normalized_cross_correlation

# Kuglin and Hines divide by the magnitude of the cross-power spectrum. Anatomy is smooth: most of its frequencies carry
# nothing but noise, and full whitening would give them the say. This share of the mean magnitude is added to the
# divisor, so that frequencies without power have no weight.
_WHITENING_FLOOR = 1.0


def phase_correlation_shift(
    generated: Float[Tensor, "n c *spatial"],
    training: Float[Tensor, "n c *spatial"],
    *,
    max_shift: int,
    taper: bool = False,
) -> Int[Tensor, "n ndim"]:
    """Return the whole-voxel displacement that moves each generated image onto its training image.

    The displacement is where the phase correlation of the two images, averaged over channels, is largest within the
    bound. An answer always comes back, also for unrelated images: `align_translation` asks whether it helps. Identical
    and constant images give 0.

    Args:
        generated: Generated images.
        training: Training images, one for each generated image.
        max_shift: Largest displacement along any axis, in voxels, at least 0. Along an axis of fewer than
            `2 * max_shift + 1` voxels the bound is the largest number below half the side.
        taper: Whether to fade both images out towards the border. Anatomy that is cut at the border makes an edge
            that lies still in both images and outvotes the motion; fading removes it, and with it some of the evidence
            in images whose border is empty.

    Returns:
        Displacements for `shift`, one row per pair.

    Raises:
        InvalidImageError: If images are not floating point, not finite, or of different shapes.
        ConfigurationError: If `max_shift` is negative.

    Example:
        >>> training = torch.zeros(1, 1, 16, 16)
        >>> training[..., 6:9, 5:9] = 1
        >>> phase_correlation_shift(torch.roll(training, (3, -2), dims=(2, 3)), training, max_shift=4)
        tensor([[-3,  2]])

    References:
        Kuglin, Hines (1975), The phase correlation image alignment method, Proceedings of the IEEE International
        Conference on Cybernetics and Society, 163-165.
    """
    if max_shift < 0:
        raise ConfigurationError(f"max_shift must be at least 0, but is max_shift={max_shift}.")
    generated, training = check_pairs(generated, training)
    sides = generated.shape[2:]
    if len(generated) == 0:
        # MKL's FFT refuses an empty batch.
        return torch.zeros(0, len(sides), dtype=torch.long, device=generated.device)
    correlation = _phase_correlation(generated, training, taper=taper)
    candidates = [_displacements(min(max_shift, (side - 1) // 2), like=correlation) for side in sides]
    for axis, (side, candidate) in enumerate(zip(sides, candidates, strict=True), start=1):
        correlation = correlation.index_select(axis, candidate % side)
    # argmax returns the first of several maxima, and candidates start with 0: a tie is resolved in favour of no motion.
    best = torch.unravel_index(correlation.flatten(1).argmax(dim=1), correlation.shape[1:])
    return torch.stack([candidate[position] for candidate, position in zip(candidates, best, strict=True)], dim=1)


def shift(images: Float[Tensor, "n c *spatial"], shifts: Int[Tensor, "n ndim"]) -> Float[Tensor, "n c *spatial"]:
    """Return the images, each displaced by whole voxels.

    Voxels that move past a border are lost. The space that opens repeats the voxels at the edge, so an image with an
    empty border is displaced without loss and a flat background stays flat, whatever its value.

    Args:
        images: Images.
        shifts: Displacement of each image along each spatial axis; positive moves towards larger positions.

    Returns:
        Displaced images of the same shape and dtype.

    Raises:
        InvalidImageError: If images are not floating point, not finite, or not 2-D or 3-D.
        ConfigurationError: If `shifts` does not have one row per image and one column per spatial axis.

    Example:
        >>> shift(torch.tensor([[[[1.0, 2.0, 3.0]]]]), torch.tensor([[0, 1]]))
        tensor([[[[1., 1., 2.]]]])
    """
    check_images(images, name="images")
    sides = images.shape[2:]
    if shifts.shape != (len(images), len(sides)):
        raise ConfigurationError(
            f"shifts must have shape {(len(images), len(sides))}, one row per image and one column per spatial axis, "
            f"but have shape {tuple(shifts.shape)}."
        )
    source = torch.zeros(len(images), *(1 for _ in sides), dtype=torch.long, device=images.device)
    for axis, side in enumerate(sides):
        positions = torch.arange(side, device=images.device) - shifts[:, axis, None].to(images.device)
        shape = [1] * len(sides)
        shape[axis] = side
        source = source * side + positions.clamp(0, side - 1).reshape(-1, *shape)
    flat_source = source.flatten(1)[:, None].expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, flat_source).reshape(images.shape)


def align_translation(
    generated: Float[Tensor, "n c *spatial"], training: Float[Tensor, "n c *spatial"], *, max_shift: int
) -> tuple[Float[Tensor, "n c *spatial"], Int[Tensor, "n ndim"]]:
    """Return the generated images, moved onto their training images where that makes them more alike.

    The displacements of `phase_correlation_shift`, with and without taper, are tried, and the one that gives the larger
    normalized cross-correlation with the training image is kept, if that is larger than the correlation of the image
    as it was; else the image stays. So the correlation of a pair never falls, and the same must be done to the control,
    because it rises for unrelated pairs too.

    Args:
        generated: Generated images.
        training: Training images, one for each generated image.
        max_shift: Largest displacement along any axis, in voxels, at least 0.

    Returns:
        The images, and the displacement of each; 0 where the image stayed.

    Raises:
        InvalidImageError: If images are not floating point, not finite, or of different shapes.
        ConfigurationError: If `max_shift` is negative.

    Example:
        >>> training = torch.zeros(1, 1, 16, 16)
        >>> training[..., 6:9, 5:9] = 1
        >>> aligned, shifts = align_translation(torch.roll(training, (3, -2), dims=(2, 3)), training, max_shift=4)
        >>> torch.equal(aligned, training), shifts.tolist()
        (True, [[-3, 2]])

    References:
        Kuglin, Hines (1975), The phase correlation image alignment method, Proceedings of the IEEE International
        Conference on Cybernetics and Society, 163-165.
    """
    aligned, best = generated, normalized_cross_correlation(generated, training)
    shifts = torch.zeros(len(generated), generated.ndim - 2, dtype=torch.long, device=generated.device)
    for taper in (False, True):
        candidate = phase_correlation_shift(generated, training, max_shift=max_shift, taper=taper)
        moved = shift(generated, candidate)
        correlation = normalized_cross_correlation(moved, training)
        improves = correlation > best
        best = torch.maximum(correlation, best)
        shifts = torch.where(improves[:, None], candidate, shifts)
        aligned = torch.where(improves.reshape(-1, *[1] * (generated.ndim - 1)), moved, aligned)
    return aligned, shifts


def _phase_correlation(generated: Tensor, training: Tensor, *, taper: bool) -> Tensor:
    spatial = tuple(range(2, generated.ndim))
    weight = torch.ones((), device=generated.device)
    if taper:
        for side in generated.shape[2:]:
            positions = torch.arange(side, device=generated.device) + 0.5
            weight = weight[..., None] * torch.sin(torch.pi * positions / side) ** 2
    spectra = []
    for images in (generated, training):
        centred = images - images.mean(dim=spatial, keepdim=True)
        largest = centred.flatten(1).abs().amax(dim=1).reshape(-1, *[1] * (images.ndim - 1))
        scale = torch.where(largest > 0, largest, torch.ones_like(largest))
        spectra.append(torch.fft.rfftn(centred * (weight / scale), dim=spatial))
    cross_power: Tensor = (spectra[1] * spectra[0].conj()).mean(dim=1)
    magnitude = cross_power.abs()
    floor = _WHITENING_FLOOR * magnitude.mean(dim=tuple(range(1, magnitude.ndim)), keepdim=True)
    divisor = magnitude + floor
    whitened = cross_power / torch.where(divisor > 0, divisor, torch.ones_like(divisor))
    correlation: Tensor = torch.fft.irfftn(whitened, s=generated.shape[2:], dim=tuple(range(1, whitened.ndim)))
    return correlation


def _displacements(bound: int, *, like: Tensor) -> Tensor:
    steps = torch.arange(1, bound + 1, device=like.device)
    both_ways = torch.stack([steps, -steps], dim=1).flatten()
    return torch.cat([both_ways.new_zeros(1), both_ways])
