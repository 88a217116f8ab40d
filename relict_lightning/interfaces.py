"""What users derive from: encoder, segmenter, sampler.

Any `torch.nn.Module` with the same forward is accepted where an encoder or a segmenter is, so deriving is a
convenience. A sampler is different: it knows how to draw images from a model that is being trained.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

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
    """Draws images from the model that is being trained.

    Attributes:
        calls_strategy: Whether it goes through the trainer's strategy by itself, as with
            `module.trainer.strategy.predict_step(...)`. Where a strategy shards the model (FSDP), every other sampler
            is called inside the sharded model's forward pass, because the weights are whole nowhere else; one that goes
            through the strategy must not be, and says so by True.
    """

    calls_strategy: ClassVar[bool] = False

    @abstractmethod
    def sample(self, module: Any, n: int, *, seed: int) -> Float[Tensor, "n c *spatial"]:
        """Return `n` images that depend on the weights of `module` and on `seed` only.

        Called without gradients, with every submodule in evaluation mode, inside the precision plugin's forward
        context, and with the global random state seeded with `seed` (and put back afterwards).

        Args:
            module: The model under training, usually a `LightningModule`.
            n: Number of images, at least 1; the same in every call of one run, unless memory runs out.
            seed: Seed of this call.
        """

    def sample_at(
        self, module: Any, positions: Sequence[int], seeds: Sequence[int], *, image_shape: tuple[int, ...] | None = None
    ) -> Float[Tensor, "n c *spatial"]:
        """Return the images of an evaluation that have these positions; called as `sample` is.

        This one calls `sample` with the seed of the first image, so that images depend on how many are drawn at a time.
        Ready samplers draw each image's noise from its own seed.

        Args:
            module: The model under training.
            positions: Positions of the images in the evaluation, counted over all processes from 0.
            seeds: One per image; a function of the run's seed, the evaluation and the position.
            image_shape: `[c, *spatial]` of the training images, which samples must have; None where it is not known.
        """
        return self.sample(module, len(positions), seed=seeds[0])

    def label_maps_at(self, module: Any, positions: Sequence[int]) -> Tensor | None:
        """Return the label maps of the images at these positions, where samples are made from some; None otherwise.

        Args:
            module: The model under training.
            positions: Positions of the images in the evaluation.

        Returns:
            Whole-numbered labels `[n, *spatial]` or `[n, 1, *spatial]`, or one-hot `[n, l, *spatial]` with the
            background first.
        """
        return None
