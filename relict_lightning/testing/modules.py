"""Tiny `LightningModule`s for tests of callbacks: one that any stray look would disturb, one with a known onset."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, final

import lightning
import torch
from jaxtyping import Float
from torch import Tensor

from relict_lightning.errors import ConfigurationError, EmptyDataError, InvalidImageError


@final
class NoisyModule(lightning.LightningModule):
    """A denoiser whose weights after training depend on every random number drawn and every mode left behind.

    The forward draws from the global random state, drops voxels out and keeps batch statistics. `sample` switches
    nothing: a callback that samples in training mode, or does not put the random state back, changes the final weights.

    Args:
        shape: Sides of the images, two or three.
        channels: Image channels, at least 1.

    Raises:
        ConfigurationError: If `shape` has not two or three sides, or `channels < 1`.

    Example:
        >>> NoisyModule((8, 8)).sample(2, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(self, shape: tuple[int, ...] = (16, 16), *, channels: int = 1) -> None:
        super().__init__()
        if len(shape) not in (2, 3) or min(shape) < 1:
            raise ConfigurationError(f"shape must have 2 or 3 sides of at least 1 voxel, got shape={tuple(shape)}.")
        if channels < 1:
            raise ConfigurationError(f"channels must be at least 1, got channels={channels}.")
        self.shape = tuple(shape)
        self.channels = channels
        volume = len(shape) == 3
        convolution = torch.nn.Conv3d if volume else torch.nn.Conv2d
        self.network = torch.nn.Sequential(
            convolution(channels, 4, 3, padding=1),
            torch.nn.BatchNorm3d(4) if volume else torch.nn.BatchNorm2d(4),
            torch.nn.SiLU(),
            torch.nn.Dropout(0.2),
            convolution(4, channels, 3, padding=1),
        )

    def forward(self, images: Float[Tensor, "n c *spatial"]) -> Float[Tensor, "n c *spatial"]:
        """Return the images denoised after noise was added to them."""
        denoised: Tensor = self.network(images + 0.1 * torch.randn_like(images))
        return denoised

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the squared error of the denoised batch."""
        return self._loss(batch, name="train_loss")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the squared error of the denoised batch."""
        self._loss(batch, name="val_loss")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return plain gradient descent."""
        return torch.optim.SGD(self.parameters(), 0.05)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "n c *spatial"]:
        """Return noise through the network, in whatever mode it is.

        Args:
            n: Number of images.
            generator: Source of the noise; the global random state without one.
        """
        source = generator.device if generator is not None else self.device
        noise = torch.randn((n, self.channels, *self.shape), generator=generator, device=source)
        images: Tensor = self.network(noise.to(self.device))
        return images

    def _loss(self, batch: Any, *, name: str) -> Tensor:
        images = _images(batch)
        loss = torch.nn.functional.mse_loss(self(images), images)
        self.log(name, loss, batch_size=len(images))
        return loss


@final
class CopyingModule(lightning.LightningModule):
    """A scripted generator that hands out training images from a known step on.

    Each sample is a copy of a random training image with the probability that `schedule` gives for the number of
    optimizer steps taken, and one of the fresh images otherwise, none of which comes twice before all came once. That
    number is one of its weights: with those of an earlier checkpoint it copies as it did then.

    Args:
        training: Training images, `[m, c, *spatial]`.
        fresh: Images of other patients, `[f, c, *spatial]`.
        schedule: Pairs (step, probability of a copy), steps rising; a probability holds from its step on, and it is 0
            before the first.
        noise: Standard deviation of the noise on every sample, at least 0.

    Raises:
        ConfigurationError: If steps do not rise, a probability lies outside [0, 1], or `noise < 0`.
        EmptyDataError: If a set has no images.
        InvalidImageError: If the images of the two sets differ in shape.

    Example:
        >>> copying = CopyingModule(torch.ones(3, 1, 8, 8), torch.zeros(5, 1, 8, 8), schedule=[(0, 0.0), (40, 0.5)])
        >>> copying.copy_probability(39), copying.copy_probability(40)
        (0.0, 0.5)
    """

    training_images: Tensor
    fresh_images: Tensor
    steps_taken: Tensor

    def __init__(
        self,
        training: Float[Tensor, "m ..."],
        fresh: Float[Tensor, "f ..."],
        *,
        schedule: Sequence[tuple[int, float]],
        noise: float = 0.0,
    ) -> None:
        super().__init__()
        steps = [step for step, _ in schedule]
        if any(later <= earlier for earlier, later in pairwise(steps)):
            raise ConfigurationError(f"The steps of schedule must rise, got {steps}.")
        if any(not 0 <= probability <= 1 for _, probability in schedule):
            raise ConfigurationError(f"The probabilities of schedule must lie in [0, 1], got {list(schedule)}.")
        if not (math.isfinite(noise) and noise >= 0):
            raise ConfigurationError(f"noise must be finite and at least 0, got noise={noise}.")
        if not len(training) or not len(fresh):
            raise EmptyDataError(
                f"CopyingModule needs training and fresh images, got {len(training)} and {len(fresh)}."
            )
        if training.shape[1:] != fresh.shape[1:]:
            raise InvalidImageError(
                f"Training and fresh images must have one shape [c, *spatial], got {list(training.shape[1:])} and "
                f"{list(fresh.shape[1:])}."
            )
        self.schedule = tuple((int(step), float(probability)) for step, probability in schedule)
        self.noise = noise
        self.register_buffer("training_images", training.detach().clone(), persistent=False)
        self.register_buffer("fresh_images", fresh.detach().clone(), persistent=False)
        self.register_buffer("steps_taken", torch.zeros((), dtype=torch.long))
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def setup(self, stage: str) -> None:
        """Count from the start of each run; one that is resumed gets its number back with its weights."""
        if stage == "fit":
            self.steps_taken.zero_()

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Step, and count it."""
        super().optimizer_step(*arguments, **options)
        self.steps_taken += 1

    def copy_probability(self, step: int) -> float:
        """Return the probability that a sample drawn at `step` is a copy."""
        probability = 0.0
        for start, value in self.schedule:
            if step >= start:
                probability = value
        return probability

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return a loss that moves one weight towards the mean of the batch."""
        loss = (self.weight - _images(batch).mean()) ** 2
        self.log("train_loss", loss, batch_size=len(_images(batch)))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the same loss on held-out images."""
        images = _images(batch)
        self.log("val_loss", (self.weight - images.mean()) ** 2, batch_size=len(images))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return plain gradient descent."""
        return torch.optim.SGD(self.parameters(), 0.1)

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "n c *spatial"]:
        """Return copies and fresh images, as the schedule has it after the steps taken.

        Args:
            n: Number of images.
            generator: Source of every choice; the global random state without one.
        """
        source = generator.device if generator is not None else self.device
        is_copy = torch.rand(n, generator=generator, device=source) < self.copy_probability(int(self.steps_taken))
        copied = torch.randint(len(self.training_images), (n,), generator=generator, device=source)
        order = torch.randperm(len(self.fresh_images), generator=generator, device=source)
        unused = order[torch.arange(n, device=source) % len(order)]
        noise = torch.randn((n, *self.fresh_images.shape[1:]), generator=generator, device=source).to(self.fresh_images)
        mask = is_copy.to(self.device).reshape(n, *[1] * (self.fresh_images.ndim - 1))
        copies = self.training_images[copied.to(self.device)]
        return torch.where(mask, copies, self.fresh_images[unused.to(self.device)]) + self.noise * noise


def _images(batch: Any) -> Tensor:
    if isinstance(batch, Mapping):
        batch = batch["image"]
    elif isinstance(batch, list | tuple):
        batch = batch[0]
    images: Tensor = batch
    return images
