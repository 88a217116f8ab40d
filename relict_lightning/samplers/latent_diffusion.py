"""Sampling from a diffusion or rectified-flow model in the latents of an autoencoder."""

from collections.abc import Sequence
from typing import Any, final

from torch import nn

from relict_lightning.errors import SamplerError
from relict_lightning.samplers.attributes import find_attribute
from relict_lightning.samplers.denoising import DenoisingSampler
from relict_lightning.samplers.shapes import checked_shape


@final
class LatentDiffusionSampler(DenoisingSampler):
    """Samples by MONAI's `LatentDiffusionInferer`, and decodes.

    Any autoencoder with MONAI's `decode_stage_2_outputs` will do: `AutoencoderKL`, `VQVAE`, and `AutoencoderKlMaisi` of
    MAISI, whose network takes spacing and body region by `network_arguments`. Noise is drawn as by `DiffusionSampler`.

    Args:
        latent_shape: `[c, *spatial]` of one sample's latents, as the denoising network was trained on.
        network: Name of the module's denoising network; dots lead into its parts.
        autoencoder: Name of the module's autoencoder.
        scheduler: Name of the module's scheduler, or a scheduler. It is copied before its steps are set.
        scale_factor: What latents were multiplied by in training: a number, or the name of an attribute that holds it.
        autoencoder_latent_shape: `[*spatial]` of the latents that the autoencoder takes, where those of the network
            were padded; None where they are the same.
        num_inference_steps: Steps from noise to latents; None takes every training step, which MONAI's DDPM needs.
        conditions: What samples are conditioned on: a tensor, a sequence, or the name of an attribute of the datamodule
            or the model. They are cycled by the position of the sample.
        conditions_are_label_maps: Whether the conditions are the samples' label maps, for the detector.
        mode: How the network takes conditions, as for `DiffusionSampler`.
        cfg: Scale of classifier-free guidance; None for none.
        cfg_fill_value: What stands for no condition in guidance.
        network_arguments: Further keyword arguments of the network, the same for every sample: numbers or lists.

    Raises:
        ConfigurationError: If a number lies outside its range, or mode, guidance and conditions do not go together.

    Example:
        >>> LatentDiffusionSampler([3, 8, 8], "unet", "vae", num_inference_steps=50).latent_shape
        (3, 8, 8)
    """

    def __init__(
        self,
        latent_shape: Sequence[int],
        network: str = "network",
        autoencoder: str = "autoencoder",
        scheduler: nn.Module | str = "scheduler",
        *,
        scale_factor: float | str = 1.0,
        autoencoder_latent_shape: Sequence[int] | None = None,
        num_inference_steps: int | None = None,
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
        self.latent_shape = checked_shape(latent_shape, of="latent_shape")
        self.autoencoder = autoencoder
        self.scale_factor = scale_factor
        self.autoencoder_latent_shape = (
            None
            if autoencoder_latent_shape is None
            else checked_shape(autoencoder_latent_shape, of="autoencoder_latent_shape")
        )

    def noise_shape(self, image_shape: tuple[int, ...] | None) -> tuple[int, ...]:
        """Return the shape of a sample's latents.

        Raises:
            SamplerError: If they have not as many axes as the training images.
        """
        if image_shape is not None and len(image_shape) != len(self.latent_shape):
            raise SamplerError(
                f"LatentDiffusionSampler(latent_shape=...) must be [c, *spatial] with as many axes as the training "
                f"images {list(image_shape)}; got {list(self.latent_shape)}."
            )
        return self.latent_shape

    def infer(self, module: Any, scheduler: Any, arguments: dict[str, Any]) -> Any:
        """Return decoded images."""
        from monai.inferers import LatentDiffusionInferer

        of = "LatentDiffusionSampler"
        autoencoder = find_attribute(module, self.autoencoder, of=f"{of}(autoencoder=...)")
        if not hasattr(autoencoder, "decode_stage_2_outputs"):
            raise SamplerError(
                f"{of}(autoencoder={self.autoencoder!r}) must name an autoencoder with MONAI's "
                f"`decode_stage_2_outputs`; got a {type(autoencoder).__name__}. Add that method to it."
            )
        scale = self.scale_factor
        if isinstance(scale, str):
            scale = float(find_attribute(module, scale, of=f"{of}(scale_factor=...)"))
        padded = self.autoencoder_latent_shape is not None
        inferer = LatentDiffusionInferer(
            scheduler,
            scale_factor=scale,
            ldm_latent_shape=list(self.latent_shape[1:]) if padded else None,
            autoencoder_latent_shape=list(self.autoencoder_latent_shape or ()) if padded else None,
        )
        return inferer.sample(autoencoder_model=autoencoder, scheduler=scheduler, **arguments)
