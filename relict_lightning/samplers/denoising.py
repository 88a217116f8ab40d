"""Sampling from denoising networks by MONAI's inferers: what diffusion in images and in latents have in common."""

import copy
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from relict_lightning.errors import ConfigurationError, SamplerError
from relict_lightning.samplers.attributes import device_of, dtype_of, find_attribute
from relict_lightning.samplers.calling import explained
from relict_lightning.samplers.conditioned import ConditionedSampler
from relict_lightning.samplers.noise import derived_seed, seeded_noise

_MODES = ("crossattn", "concat", "class_labels", "seg")
# The inferer knows the first two; the others are keyword arguments of the network.
_OF_THE_INFERER = _MODES[:2]


class DenoisingSampler(ConditionedSampler, ABC):
    """Starts from noise, each sample's from its own seed, and takes a network and a scheduler through the steps.

    The arguments are those of `DiffusionSampler`.
    """

    def __init__(
        self,
        network: str = "network",
        scheduler: nn.Module | str = "scheduler",
        *,
        num_inference_steps: int | None = None,
        conditions: Any = None,
        conditions_are_label_maps: bool = False,
        mode: str = "crossattn",
        cfg: float | None = None,
        cfg_fill_value: float = -1.0,
        network_arguments: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(conditions=conditions, conditions_are_label_maps=conditions_are_label_maps)
        if mode not in _MODES:
            raise ConfigurationError(f"mode must be one of {', '.join(_MODES)}, got {mode!r}.")
        if conditions is None and mode != "crossattn":
            raise ConfigurationError(f"mode={mode!r} needs conditions. Pass `conditions=`.")
        if cfg is not None and (conditions is None or mode not in _OF_THE_INFERER):
            raise ConfigurationError(
                f"cfg={cfg} guides between samples with and without a condition, which MONAI does in the modes "
                f"{' and '.join(_OF_THE_INFERER)}; this sampler has "
                f"{'no conditions' if conditions is None else f'mode={mode!r}'}."
            )
        if num_inference_steps is not None and num_inference_steps < 1:
            raise ConfigurationError(f"num_inference_steps must be at least 1, got {num_inference_steps}.")
        self.network = network
        self.scheduler = scheduler
        self.num_inference_steps = num_inference_steps
        self.mode = mode
        self.cfg = cfg
        self.cfg_fill_value = cfg_fill_value
        self.network_arguments = dict(network_arguments or {})

    @abstractmethod
    def noise_shape(self, image_shape: tuple[int, ...] | None) -> tuple[int, ...]:
        """Return the shape of one sample's noise, `[c, *spatial]`."""

    @abstractmethod
    def infer(self, module: Any, scheduler: Any, arguments: dict[str, Any]) -> Any:
        """Return images, by an inferer whose `sample` gets the arguments.

        Args:
            module: The model under training.
            scheduler: A scheduler of one's own, its steps set.
            arguments: What the inferers' `sample` takes, the noise among it.
        """

    def sample_at(
        self, module: Any, positions: Sequence[int], seeds: Sequence[int], *, image_shape: tuple[int, ...] | None = None
    ) -> Any:
        """Return the images of an evaluation that have these positions.

        Raises:
            SamplerError: If a part of the model is missing, or does not take noise or conditions of these shapes.
        """
        name = type(self).__name__
        network = find_attribute(module, self.network, of=f"{name}(network=...)")
        if not callable(network):
            raise SamplerError(
                f"{name}(network={self.network!r}) must name a network; got a {type(network).__name__} of that name."
            )
        shape = self.noise_shape(image_shape)
        device, dtype = device_of(module), dtype_of(network)
        scheduler = self._scheduler(module, shape=shape, seeds=seeds, device=device)
        condition = self._condition(self.conditions.at(module, positions, device=device, dtype=dtype), shape, dtype)
        _check_channels(network, shape, condition if self.mode == "concat" else None, name=name, attribute=self.network)
        arguments: dict[str, Any] = {
            "input_noise": seeded_noise(seeds, shape, device=device, dtype=dtype),
            "diffusion_model": self._network(network, condition, device=device, dtype=dtype),
            "verbose": False,
        }
        if condition is not None and self.mode in _OF_THE_INFERER:
            arguments |= {"conditioning": condition, "mode": self.mode}
        if self.mode == "seg":
            arguments["seg"] = condition
        if self.cfg is not None:
            arguments |= {"cfg": self.cfg, "cfg_fill_value": self.cfg_fill_value}
        tried = f"{name} took {len(seeds)} samples of noise of shape {shape} through {self.network!r}"
        with explained(tried if condition is None else f"{tried}, with conditions {tuple(condition.shape)}"):
            return self.infer(module, scheduler, arguments)

    def _scheduler(self, module: Any, *, shape: tuple[int, ...], seeds: Sequence[int], device: torch.device) -> Any:
        """Return a copy of the scheduler with its steps set; training goes on with the scheduler as it is."""
        name = type(self).__name__
        found = self.scheduler
        if isinstance(found, str):
            found = find_attribute(module, found, of=f"{name}(scheduler=...)")
        if not (hasattr(found, "set_timesteps") and hasattr(found, "step")):
            raise SamplerError(
                f"{name} needs a scheduler of MONAI's kind, with `set_timesteps` and `step`; got a "
                f"{type(found).__name__}."
            )
        scheduler: Any = copy.deepcopy(found)
        steps = self.num_inference_steps or scheduler.num_train_timesteps
        if type(scheduler).__name__ == "DDPMScheduler" and steps < scheduler.num_train_timesteps:
            # Its step leads from t to t - 1, whatever the next time is.
            raise SamplerError(
                f"MONAI's DDPMScheduler goes one training step at a time, so {steps} of its "
                f"{scheduler.num_train_timesteps} steps end in noise. Leave `num_inference_steps` out, or pass a "
                f"DDIMScheduler with the same noise schedule as {name}(scheduler=...)."
            )
        sized = "input_img_size_numel" in inspect.signature(scheduler.set_timesteps).parameters
        with explained(f"{name} set {steps} steps of {type(scheduler).__name__}"):
            # Not on the device: the inferers join the times with one of their own on the CPU.
            scheduler.set_timesteps(steps, **({"input_img_size_numel": math.prod(shape[1:])} if sized else {}))
        if "generator" not in inspect.signature(scheduler.step).parameters:
            return scheduler
        return _StepsOfEachSample(scheduler, seeds, device)

    def _condition(self, condition: Any, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
        """Return the conditions in the form that the mode asks for."""
        if condition is None:
            return None
        if not isinstance(condition, Tensor):
            raise SamplerError(
                f"The conditions of {type(self).__name__} must be tensors or numbers; got a batch of type "
                f"{type(condition).__name__}."
            )
        if self.mode == "class_labels":
            return condition
        given: Tensor = condition.to(dtype)
        if self.mode == "crossattn":
            # Tokens before features: an embedding, or a label, is one token.
            while given.ndim < 3:
                given = given.unsqueeze(1)
        elif given.ndim == len(shape):
            given = given.unsqueeze(1)
        return given

    def _network(
        self, network: Callable[..., Any], condition: Tensor | None, *, device: torch.device, dtype: torch.dtype
    ) -> Callable[..., Any]:
        """Return the network, with further arguments where there are any."""
        same = {name: torch.as_tensor(value, device=device) for name, value in self.network_arguments.items()}
        own = {self.mode: condition} if condition is not None and self.mode not in _OF_THE_INFERER else {}
        # Without further arguments as it is: inferers recognise networks that take label maps by their class.
        if not same and (not own or self.mode == "seg"):
            return network

        def called(images: Tensor, *, timesteps: Tensor, context: Tensor | None, **others: Any) -> Any:
            rows = {
                name: (value.to(dtype) if value.is_floating_point() else value).expand(len(images), *value.shape)
                for name, value in same.items()
            }
            # The inferers give one time for all samples, which MAISI's network joins with rows of each sample.
            times = timesteps.expand(len(images))
            return network(images, timesteps=times, context=context, **{**others, **rows, **own})

        return called


@final
class _StepsOfEachSample:
    """A scheduler whose steps draw each sample's noise from its own generator, whatever is drawn beside it."""

    def __init__(self, scheduler: Any, seeds: Sequence[int], device: torch.device) -> None:
        self.timesteps = scheduler.timesteps
        self._step = scheduler.step
        # Another stream than that of the noise that a sample starts from.
        self._generators = [torch.Generator(device=device).manual_seed(derived_seed(seed, 1)) for seed in seeds]

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor) -> tuple[Tensor, Tensor]:
        """Return the samples one step on, and what they are expected to become."""
        steps = [
            self._step(model_output[row : row + 1], timestep, sample[row : row + 1], generator=generator)
            for row, generator in enumerate(self._generators)
        ]
        return torch.cat([before for before, _ in steps]), torch.cat([final for _, final in steps])


def _check_channels(network: Any, shape: tuple[int, ...], joined: Tensor | None, *, name: str, attribute: str) -> None:
    """Raise where the network says that it takes another number of channels."""
    expected = getattr(network, "in_channels", None)
    channels = shape[0] + (0 if joined is None else joined.shape[1])
    if isinstance(expected, int) and channels != expected:
        beside = "" if joined is None else f" and conditions of {joined.shape[1]}"
        raise SamplerError(
            f"{name}: the network {attribute!r} takes {expected} channels; it would get noise of {shape[0]}{beside}, "
            f"from a shape [c, *spatial] of {list(shape)}. Give the shape that the network was trained on."
        )
