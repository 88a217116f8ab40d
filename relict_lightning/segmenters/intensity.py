"""A segmenter without weights: classes of intensity."""

from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from relict_lightning.errors import ConfigurationError
from relict_lightning.interfaces import Segmenter

_BINS = 256
_ITERATIONS = 20


@final
class IntensitySegmenter(Segmenter):
    """Splits each image into classes of intensity, darkest first.

    The classes minimise the squared deviation within classes (a one-dimensional k-means on the histogram, the
    criterion of Otsu's method for several thresholds). On a T1-weighted head that gives background, fluid, grey and
    white matter; on other modalities whatever differs in intensity. Because thresholds follow each image's own
    histogram, gain and offset do not change the label map.

    Args:
        num_labels: Number of classes, background included, from 2 to 16.

    Raises:
        ConfigurationError: If `num_labels` lies outside its range.

    Example:
        >>> IntensitySegmenter(num_labels=2)(torch.tensor([[[[0.0, 0.1], [0.9, 1.0]]]])).tolist()
        [[[0, 0], [1, 1]]]

    References:
        Otsu (1979), doi:10.1109/TSMC.1979.4310076; Lloyd (1982), doi:10.1109/TIT.1982.1056489.
    """

    def __init__(self, num_labels: int = 4) -> None:
        super().__init__()
        if not 2 <= num_labels <= 16:
            raise ConfigurationError(f"num_labels must lie in [2, 16], got {num_labels}.")
        self.num_labels = num_labels

    def extra_repr(self) -> str:
        """Return the configuration, which is part of the fingerprint of an index."""
        return f"num_labels={self.num_labels}"

    def forward(self, images: Float[Tensor, "n c *spatial"]) -> Int[Tensor, "n *spatial"]:
        """Return the class of every voxel of the channel mean; a constant image is all background."""
        intensity = images.mean(1).flatten(1).float()
        low, high = intensity.aminmax(dim=1, keepdim=True)
        span = torch.where(high > low, high - low, torch.ones_like(high))
        bins = ((intensity - low) / span * (_BINS - 1)).round().long()
        counts = torch.zeros(len(images), _BINS, device=images.device).scatter_add_(1, bins, torch.ones_like(intensity))
        label_of_bin = self._classify(counts)
        return label_of_bin.gather(1, bins).reshape(len(images), *images.shape[2:])

    def _classify(self, counts: Tensor) -> Tensor:
        """Return the class of every histogram bin by Lloyd's iteration from evenly spaced centres."""
        levels = torch.arange(_BINS, device=counts.device, dtype=torch.float32)
        centres = torch.linspace(0, _BINS - 1, self.num_labels, device=counts.device).repeat(len(counts), 1)
        labels = torch.zeros_like(counts, dtype=torch.long)
        for _ in range(_ITERATIONS):
            edges = ((centres[:, 1:] + centres[:, :-1]) / 2).contiguous()
            labels = torch.searchsorted(edges, levels.expand(len(counts), -1).contiguous())
            mass = torch.zeros_like(centres).scatter_add_(1, labels, counts)
            moment = torch.zeros_like(centres).scatter_add_(1, labels, counts * levels)
            centres = torch.where(mass > 0, moment / mass.clamp_min(1), centres)
        return labels
