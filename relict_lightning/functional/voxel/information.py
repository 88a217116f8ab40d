"""How much one image says about another, however the intensities of the two are related.

Conventions: pairs are `(generated, training)`, `[n, c, *spatial]` with two or three spatial axes, any floating dtype.
One value per pair comes back; the value of an empty batch is an empty vector.

- `normalized_mutual_information`: by a joint histogram; larger is more alike; blind to any one-to-one recolouring.

scikit-image has it for one pair, in one normalisation and without a mask; MONAI's and TorchIO's are smoothed losses.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional.validation import check_mask, check_pairs

Normalization = Literal["studholme", "arithmetic"]


def normalized_mutual_information(
    generated: Float[Tensor, "n c *spatial"],
    training: Float[Tensor, "n c *spatial"],
    *,
    bins: int = 100,
    normalization: Normalization = "studholme",
    mask: Bool[Tensor, "#n #c *spatial"] | None = None,
) -> Float[Tensor, " n"]:
    """Return the normalized mutual information of each pair, over all channels and voxels together.

    With the entropies H of the intensity histograms of both images and of their joint histogram, it is
    `(H(generated) + H(training)) / H(generated, training)` after Studholme et al., or with
    `normalization="arithmetic"` the mutual information over the mean of both entropies,
    `2 * (H(generated) + H(training) - H(generated, training)) / (H(generated) + H(training))`. With `s` the one, the
    other is `2 - 2 / s`. Histograms of few voxels in many bins look dependent by chance: images of 64 * 64 independent,
    uniform voxels have an arithmetic value near 0.04 with 32 bins, and near 0.25 with 100.

    Args:
        generated: Generated images.
        training: Training images, one for each generated image.
        bins: Number of equal bins between the smallest and the largest compared intensity of each image, at least 2;
            100 is scikit-image's default.
        normalization: Which of the two.
        mask: Voxels to compare; one mask for all pairs or channels where the axis has length 1.

    Returns:
        In [1, 2] with "studholme", in [0, 1] with "arithmetic"; larger is more alike. The largest value for images
        that determine each other, as far as the bins tell. An image that is constant, or an empty mask, says nothing,
        and gives the smallest value.

    Raises:
        InvalidImageError: If images are not floating point, not finite, or of different shapes, or if the mask is not
            boolean or does not fit the images.
        ConfigurationError: If `bins` is less than 2 or `normalization` is unknown.

    Example:
        >>> image = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
        >>> normalized_mutual_information(1 - image, image, bins=4)
        tensor([2.])
        >>> blank = torch.zeros(1, 1, 2, 2)
        >>> normalized_mutual_information(blank, image, bins=4, normalization="arithmetic")
        tensor([0.])

    References:
        Studholme, Hill, Hawkes (1999), An overlap invariant entropy measure of 3D medical image alignment,
        doi:10.1016/S0031-3203(98)00091-0; Kvalseth (1987), Entropy and correlation: some comments,
        doi:10.1109/TSMC.1987.4309069, for the arithmetic mean.
    """
    check_information_settings(bins=bins, normalization=normalization)
    generated, training = check_pairs(generated, training)
    mask = None if mask is None else check_mask(mask, generated)
    values = [generated.new_zeros(0)]
    for position in range(len(generated)):
        inside = None if mask is None else mask[position]
        values.append(
            _information(generated[position], training[position], inside, bins=bins, normalization=normalization)
        )
    return torch.cat(values)


def check_information_settings(*, bins: int, normalization: str) -> None:
    """Accept settings that `normalized_mutual_information` can work with.

    Args:
        bins: Number of bins of each histogram.
        normalization: Name of the normalisation.

    Raises:
        ConfigurationError: If `bins` is less than 2 or `normalization` is unknown.

    Example:
        >>> check_information_settings(bins=100, normalization="studholme")
    """
    if bins < 2:
        raise ConfigurationError(f"bins must be at least 2, but is bins={bins}. The usual value is 100.")
    if normalization not in ("studholme", "arithmetic"):
        raise ConfigurationError(
            f"normalization must be 'studholme' or 'arithmetic', but is normalization={normalization!r}."
        )


def _information(
    generated: Tensor, training: Tensor, inside: Tensor | None, *, bins: int, normalization: Normalization
) -> Float[Tensor, " 1"]:
    if inside is not None:
        generated, training = generated[inside], training[inside]
    pair = _bin(generated, bins) * bins + _bin(training, bins)
    joint = torch.bincount(pair, minlength=bins * bins).reshape(bins, bins)
    # In float64, because differences of entropies cancel; there are few numbers by now.
    both, of_generated, of_training = (
        _entropy(counts.flatten().double()) for counts in (joint, joint.sum(dim=1), joint.sum(dim=0))
    )
    separate = of_generated + of_training
    if normalization == "studholme":
        value = torch.where(both > 0, separate / both, torch.ones_like(both)).clamp(1.0, 2.0)
    else:
        value = torch.where(separate > 0, 2 * (separate - both) / separate, torch.zeros_like(both)).clamp(0.0, 1.0)
    return value.float()[None]


def _bin(intensities: Tensor, bins: int) -> Tensor:
    flat = intensities.flatten()
    if flat.numel() == 0:
        return flat.long()
    # Halved, because the range of intensities near the largest float32 is not a float32.
    low, high = flat.amin() / 2, flat.amax() / 2
    share = (flat / 2 - low) / torch.where(high > low, high - low, torch.ones_like(low))
    return (share * bins).long().clamp(max=bins - 1)


def _entropy(counts: Tensor) -> Tensor:
    entropy: Tensor = torch.special.entr(counts / counts.sum().clamp(min=1)).sum()
    return entropy
