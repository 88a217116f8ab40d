"""A small generator of head images, trained by flow matching, that memorizes on two processor cores.

The network predicts the clean image, from which the velocity follows; predicting the image rather than the noise lets
a network of a million weights work on patches. Images are [0, 1] outside and [-1, 1] inside.
"""

import importlib.util
import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, final

import lightning
import torch
from jaxtyping import Float
from monai.networks.nets import DiffusionModelUNet
from monai.networks.schedulers import RFlowScheduler
from torch import Tensor

from relict_lightning.errors import ConfigurationError, MissingDependencyError

# The velocity is the image's error over the noise level, which grows without bound as the noise vanishes.
_LEAST_NOISE = 0.05
_GROUPS = 16
_VALIDATION_SEED = 0

Batch = Mapping[str, Any] | Tensor


@final
class HeadGenerator(lightning.LightningModule):
    """A rectified-flow model of images in [0, 1] around MONAI's `DiffusionModelUNet`.

    With the defaults and 24 slices of 64 x 64 voxels in batches of 24, the first copies appear at about step 500, and
    nearly every sample is a copy at step 1,000.

    Args:
        shape: Sides of the images, two or three, each divisible by `patch * 2 ** (len(channels) - 1)`.
        channels: Width of the network at each resolution, multiples of 16.
        patch: Side of the patches that the network sees as one voxel; larger is faster and coarser.
        learning_rate: Learning rate of Adam, above 0.
        sampling_steps: Euler steps from noise to image, from 1 to 1000.

    Raises:
        ConfigurationError: If an argument lies outside its range.
        MissingDependencyError: If einops, which MONAI's network needs, is not installed.

    Example:
        >>> generator = HeadGenerator(shape=(16, 16), channels=(16,), sampling_steps=2)
        >>> generator.sample(3, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([3, 1, 16, 16])

    References:
        Liu et al. (2023), arXiv:2209.03003 (rectified flow); Esser et al. (2024), arXiv:2403.03206 (logit-normal
        times).
    """

    def __init__(
        self,
        shape: tuple[int, ...] = (64, 64),
        *,
        channels: tuple[int, ...] = (64, 64),
        patch: int = 8,
        learning_rate: float = 2e-3,
        sampling_steps: int = 20,
    ) -> None:
        super().__init__()
        # Configuration libraries pass containers of their own, which a checkpoint could not hold.
        shape, channels = tuple(shape), tuple(channels)
        _check_arguments(shape, channels, patch, learning_rate, sampling_steps)
        if importlib.util.find_spec("einops") is None:
            raise MissingDependencyError(
                "MONAI's DiffusionModelUNet needs einops, which is not installed. "
                'pip install "relict-lightning[examples]"'
            )
        self.save_hyperparameters()
        self.shape = shape
        self.patch = patch
        self.learning_rate = learning_rate
        self.sampling_steps = sampling_steps
        folded = patch ** len(self.shape)
        self.network = DiffusionModelUNet(
            spatial_dims=len(self.shape),
            in_channels=folded,
            out_channels=folded,
            channels=channels,
            num_res_blocks=1,
            attention_levels=(False,) * len(channels),
            norm_num_groups=_GROUPS,
            num_head_channels=_GROUPS,
        )
        # MONAI starts the last layer at zero, so that an untrained network that predicts images would give one constant
        # image whatever the noise.
        self.network.out[-1].conv.reset_parameters()

    def forward(self, noisy: Float[Tensor, "n 1 *spatial"], timesteps: Float[Tensor, " n"]) -> Tensor:
        """Return the velocity from noise to image at `timesteps`, 1000 for noise and 0 for images."""
        predicted = _unfold(self.network(_fold(noisy, self.patch), timesteps), self.patch)
        noise_level = (timesteps / 1000).clamp(min=_LEAST_NOISE).reshape(-1, *[1] * len(self.shape), 1)
        return (predicted - noisy) / noise_level

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the flow-matching loss of a batch, drawn with the global random state."""
        images = _images(batch)
        loss = self._loss(images, torch.randn_like(images), torch.randn(len(images), device=images.device))
        self.log("train_loss", loss, prog_bar=True, batch_size=len(images))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss on held-out images, with the same noise in every epoch."""
        images = _images(batch)
        stream = torch.Generator().manual_seed(_VALIDATION_SEED + batch_idx)
        noise = torch.randn(images.shape, generator=stream).to(images)
        loss = self._loss(images, noise, torch.randn(len(images), generator=stream).to(images))
        self.log("val_loss", loss, prog_bar=True, batch_size=len(images))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam with a short memory of squared gradients, which suits a run of a thousand steps."""
        return torch.optim.Adam(self.parameters(), self.learning_rate, betas=(0.9, 0.99))

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "n 1 *spatial"]:
        """Return images in [0, 1] drawn from the model.

        Args:
            n: Number of images, at least 1.
            generator: Source of the noise, on any device; the global random state without one.

        Returns:
            Images on the model's device, `[n, 1, *spatial]`, without gradients.

        Raises:
            ConfigurationError: If `n < 1`.
        """
        if n < 1:
            raise ConfigurationError(f"n must be at least 1, got n={n}.")
        source = generator.device if generator is not None else self.device
        images = torch.randn((n, 1, *self.shape), generator=generator, device=source).to(self.device)
        scheduler = _scheduler()
        scheduler.set_timesteps(self.sampling_steps)
        times = [int(time) for time in scheduler.timesteps] + [0]
        for time, following in pairwise(times):
            velocity = self(images, torch.full((n,), float(time), device=self.device)).float()
            images, _ = scheduler.step(velocity, time, images, following)
        return ((images + 1) / 2).clamp(0, 1)

    def _loss(self, images: Tensor, noise: Tensor, normal: Tensor) -> Tensor:
        clean = 2 * images - 1
        timesteps = 1000 * torch.sigmoid(normal)
        noisy = _scheduler().add_noise(original_samples=clean, noise=noise, timesteps=timesteps)
        velocity: Tensor = self(noisy, timesteps)
        return torch.nn.functional.mse_loss(velocity, clean - noise)


def _check_arguments(
    shape: tuple[int, ...], channels: tuple[int, ...], patch: int, learning_rate: float, sampling_steps: int
) -> None:
    if not channels or any(width < _GROUPS or width % _GROUPS for width in channels):
        raise ConfigurationError(f"channels must be multiples of {_GROUPS}, got channels={channels}.")
    if patch < 1:
        raise ConfigurationError(f"patch must be at least 1, got patch={patch}.")
    divisor = patch * 2 ** (len(channels) - 1)
    if len(shape) not in (2, 3) or any(side < divisor or side % divisor for side in shape):
        raise ConfigurationError(
            f"shape must have 2 or 3 sides divisible by {divisor}, which is patch * 2 ** (len(channels) - 1); "
            f"got shape={shape}."
        )
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ConfigurationError(f"learning_rate must be finite and above 0, got {learning_rate}.")
    if not 1 <= sampling_steps <= 1000:
        raise ConfigurationError(f"sampling_steps must lie in [1, 1000], got {sampling_steps}.")


def _scheduler() -> RFlowScheduler:
    # MONAI's class derives from Module without initialising it, so it cannot be kept as a submodule; and setting its
    # timesteps changes it, so that one for each use is the safe way.
    return RFlowScheduler(num_train_timesteps=1000, use_discrete_timesteps=True)


def _images(batch: Batch) -> Tensor:
    images: Tensor = batch["image"] if isinstance(batch, Mapping) else batch
    return images


def _fold(images: Tensor, patch: int) -> Tensor:
    """Return patches as channels, `[n, patch ** dims, *spatial / patch]`."""
    n, _, *shape = images.shape
    dims = len(shape)
    split = images.reshape(n, *[part for side in shape for part in (side // patch, patch)])
    inner = [2 + 2 * axis for axis in range(dims)]
    outer = [1 + 2 * axis for axis in range(dims)]
    return split.permute(0, *inner, *outer).reshape(n, patch**dims, *[side // patch for side in shape])


def _unfold(folded: Tensor, patch: int) -> Tensor:
    """Return images from patches, the inverse of `_fold`."""
    n, _, *coarse = folded.shape
    dims = len(coarse)
    split = folded.reshape(n, *[patch] * dims, *coarse)
    interleaved = [
        axis for pair in zip(range(1 + dims, 1 + 2 * dims), range(1, 1 + dims), strict=True) for axis in pair
    ]
    return split.permute(0, *interleaved).reshape(n, 1, *[side * patch for side in coarse])
