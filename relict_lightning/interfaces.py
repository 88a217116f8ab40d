"""What users derive from: encoder, segmenter, sampler.

Any `torch.nn.Module` with the same forward is accepted where an encoder or a segmenter is, so deriving is a
convenience. A sampler is different: it knows how to draw images from a model that is being trained.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Encoder(torch.nn.Module, ABC):
    """Maps images to embeddings in which a copy lies close to its original."""

    @abstractmethod
    def forward(self, images: Float[Tensor, "n c *spatial"]) -> Float[Tensor, "n d"]:
        """Return one finite embedding per image; it need not be normalised."""


class Segmenter(torch.nn.Module, ABC):
    """Maps images to label maps."""

    @abstractmethod
    def forward(self, images: Float[Tensor, "n c *spatial"]) -> Int[Tensor, "n *spatial"]:
        """Return the label of every voxel, 0 for background."""


class Sampler(ABC):
    """Draws images from the model that is being trained."""

    @abstractmethod
    def sample(self, module: Any, n: int, *, seed: int) -> Float[Tensor, "n c *spatial"]:
        """Return `n` images that depend on the weights of `module` and on `seed` only.

        Called without gradients, with every submodule in evaluation mode, inside the precision plugin's forward
        context, and with the global random state seeded with `seed` (and put back afterwards).

        Args:
            module: The model under training, usually a `LightningModule`.
            n: Number of images, at least 1; the same in every call of one run.
            seed: Seed of this call.
        """
