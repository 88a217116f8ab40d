"""Sampling from what maps latents to images: the generator of a GAN, the decoder of a VAE."""

from collections.abc import Sequence
from typing import Any, final

from relict_lightning.errors import SamplerError
from relict_lightning.samplers.attributes import device_of, dtype_of, find_attribute
from relict_lightning.samplers.calling import condition_argument, explained
from relict_lightning.samplers.conditioned import ConditionedSampler
from relict_lightning.samplers.noise import seeded_noise
from relict_lightning.samplers.shapes import checked_shape


@final
class LatentSampler(ConditionedSampler):
    """Draws standard normal latents, each sample's from its own seed, and maps them to images.

    For a GAN name its generator, `LatentSampler([128], "generator")`; for a VAE its decoder, `LatentSampler([3, 8, 8],
    "vae.decode")`, or MONAI's `"autoencoder.decode_stage_2_outputs"`. The same for a flow that is called on noise.

    Args:
        latent_shape: Shape of one sample's latents.
        network: Name of the module's network or method that maps latents `[n, *latent_shape]` to images; dots lead
            into its parts.
        conditions: What samples are conditioned on: a tensor, a sequence, or the name of an attribute of the datamodule
            or the model. They are cycled by the position of the sample.
        conditions_are_label_maps: Whether the conditions are the samples' label maps, for the detector.
        condition_name: Name of the network's parameter that takes conditions; None finds `condition` or `conditions`.

    Raises:
        ConfigurationError: If the shape has numbers below 1, or conditions are empty.

    Example:
        >>> LatentSampler([128], "generator").latent_shape
        (128,)
    """

    def __init__(
        self,
        latent_shape: Sequence[int],
        network: str = "generator",
        *,
        conditions: Any = None,
        conditions_are_label_maps: bool = False,
        condition_name: str | None = None,
    ) -> None:
        super().__init__(conditions=conditions, conditions_are_label_maps=conditions_are_label_maps)
        self.latent_shape = checked_shape(latent_shape, of="latent_shape")
        self.network = network
        self.condition_name = condition_name

    def sample_at(
        self, module: Any, positions: Sequence[int], seeds: Sequence[int], *, image_shape: tuple[int, ...] | None = None
    ) -> Any:
        """Return the images of an evaluation that have these positions.

        Raises:
            SamplerError: If the module has no such network, or it does not take latents of this shape.
        """
        network = find_attribute(module, self.network, of="LatentSampler(network=...)")
        if not callable(network):
            raise SamplerError(
                f"LatentSampler(network={self.network!r}) must name a network or a method; got a "
                f"{type(network).__name__} of that name."
            )
        device, dtype = device_of(module), dtype_of(network)
        condition = self.conditions.at(module, positions, device=device, dtype=dtype)
        of = f"LatentSampler(network={self.network!r})"
        names = ("condition", "conditions") if self.condition_name is None else (self.condition_name,)
        conditioning = condition_argument(network, condition, of=of, names=names)
        latents = seeded_noise(seeds, self.latent_shape, device=device, dtype=dtype)
        with explained(f"LatentSampler called {self.network!r} on latents {tuple(latents.shape)}"):
            return network(latents, **conditioning)
