"""Sampling from a diffusion or rectified-flow model in image space."""

from collections.abc import Sequence
from typing import Any, final

from torch import nn

from relict_lightning.errors import SamplerError
from relict_lightning.samplers.denoising import DenoisingSampler
from relict_lightning.samplers.shapes import checked_shape


@final
class DiffusionSampler(DenoisingSampler):
    """Samples by MONAI's `DiffusionInferer`: DDPM, DDIM, PNDM, and rectified flow where MONAI has it.

    Each sample's noise comes from its own seed, that of a scheduler's steps as well, so that a sample does not depend
    on how many are drawn at a time. A scheduler of another make that draws noise in its steps without taking a
    `generator` draws from the global random state, which is seeded for all samples drawn at a time; its samples then do
    depend on how many these are.

    Args:
        network: Name of the module's denoising network; dots lead into its parts.
        scheduler: Name of the module's scheduler, or a scheduler. It is copied before its steps are set.
        num_inference_steps: Steps from noise to image; None takes every training step, which MONAI's DDPM needs.
        image_shape: `[c, *spatial]` of the images; None takes that of the training images.
        conditions: What samples are conditioned on: a tensor, a sequence, or the name of an attribute of the datamodule
            or the model. They are cycled by the position of the sample.
        conditions_are_label_maps: Whether the conditions are the samples' label maps, for the detector.
        mode: How the network takes conditions: `crossattn` as tokens `[n, tokens, features]` (a label or an embedding
            is one token), `concat` as channels beside the image, `class_labels` as whole numbers, `seg` as the label
            maps of MONAI's SPADE networks.
        cfg: Scale of classifier-free guidance; None for none.
        cfg_fill_value: What stands for no condition in guidance.
        network_arguments: Further keyword arguments of the network, the same for every sample: numbers or lists, such
            as `spacing_tensor` of MONAI's MAISI.

    Raises:
        ConfigurationError: If a number lies outside its range, or mode, guidance and conditions do not go together.

    Example:
        >>> sampler = DiffusionSampler("unet", num_inference_steps=50)
        >>> sampler.network, sampler.scheduler
        ('unet', 'scheduler')
    """

    def __init__(
        self,
        network: str = "network",
        scheduler: nn.Module | str = "scheduler",
        *,
        num_inference_steps: int | None = None,
        image_shape: Sequence[int] | None = None,
        conditions: Any = None,
        conditions_are_label_maps: bool = False,
        mode: str = "crossattn",
        cfg: float | None = None,
        cfg_fill_value: float = -1.0,
        network_arguments: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            network,
            scheduler,
            num_inference_steps=num_inference_steps,
            conditions=conditions,
            conditions_are_label_maps=conditions_are_label_maps,
            mode=mode,
            cfg=cfg,
            cfg_fill_value=cfg_fill_value,
            network_arguments=network_arguments,
        )
        self.image_shape = None if image_shape is None else checked_shape(image_shape, of="image_shape")

    def noise_shape(self, image_shape: tuple[int, ...] | None) -> tuple[int, ...]:
        """Return the shape of an image.

        Raises:
            SamplerError: If it is not known.
        """
        shape = self.image_shape or image_shape
        if shape is None:
            raise SamplerError(
                "DiffusionSampler takes the shape of its samples from the training images, and was used without any. "
                "Pass `image_shape=` [c, *spatial]."
            )
        return shape

    def infer(self, module: Any, scheduler: Any, arguments: dict[str, Any]) -> Any:
        """Return images."""
        from monai.inferers import DiffusionInferer

        return DiffusionInferer(scheduler).sample(scheduler=scheduler, **arguments)
