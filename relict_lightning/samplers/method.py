"""Sampling by a method of the module or by a function."""

from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor

from relict_lightning.errors import SamplerError
from relict_lightning.samplers.attributes import device_of
from relict_lightning.samplers.calling import condition_argument, parameters_of
from relict_lightning.samplers.conditioned import ConditionedSampler


@final
class MethodSampler(ConditionedSampler):
    """Calls a method of the module, `module.sample(n)` by default.

    Where the method takes a `generator`, it gets a `torch.Generator` on the module's device, seeded for the call;
    otherwise the global random state, which is seeded for the call as well, decides. There is one seed for the images
    that are drawn at a time, so that they depend on how many these are. Conditions are passed as `condition` or
    `conditions`, whichever the method takes.

    Args:
        method: Name of the method.
        arguments: Further keyword arguments, such as a number of steps.
        conditions: What samples are conditioned on: a tensor, a sequence, or the name of an attribute of the datamodule
            or the model. They are cycled.
        conditions_are_label_maps: Whether the conditions are the samples' label maps, for the detector.

    Raises:
        ConfigurationError: If conditions are empty, or are to be label maps and there are none.
    """

    def __init__(
        self,
        method: str = "sample",
        arguments: dict[str, Any] | None = None,
        *,
        conditions: Any = None,
        conditions_are_label_maps: bool = False,
    ) -> None:
        super().__init__(conditions=conditions, conditions_are_label_maps=conditions_are_label_maps)
        self.method = method
        self.arguments = dict(arguments or {})

    def sample_at(
        self, module: Any, positions: Sequence[int], seeds: Sequence[int], *, image_shape: tuple[int, ...] | None = None
    ) -> Any:
        """Return what the method returns.

        Raises:
            SamplerError: If the module has no such method, or it takes no condition and there are some.
        """
        function = getattr(module, self.method, None)
        if not callable(function):
            raise SamplerError(
                f"{type(module).__name__} has no method `{self.method}(n, *, generator)` to draw samples with. "
                f"Add one that returns [n, c, *spatial] images, or pass `ReplicaMonitor(sampler=...)`: the name of "
                f"another method, a function of (module, n), or a `relict_lightning.interfaces.Sampler`, such as the "
                f"ready ones in `relict_lightning.samplers`."
            )
        of = f"MethodSampler({self.method!r})"
        condition = self.conditions.at(module, positions, device=device_of(module))
        arguments = {**self.arguments, **condition_argument(function, condition, of=of)}
        return _call(function, (len(positions),), arguments, seeds[0], device_of(module))


@final
class FunctionSampler(ConditionedSampler):
    """Calls a function of (module, n), with a `generator` and a `condition` where it takes them, as methods are called.

    Args:
        function: Returns `[n, c, *spatial]` images.
        conditions: What samples are conditioned on: a tensor, a sequence, or the name of an attribute of the datamodule
            or the model. They are cycled.
        conditions_are_label_maps: Whether the conditions are the samples' label maps, for the detector.

    Raises:
        ConfigurationError: If conditions are empty, or are to be label maps and there are none.
    """

    def __init__(
        self, function: Callable[..., Tensor], *, conditions: Any = None, conditions_are_label_maps: bool = False
    ) -> None:
        super().__init__(conditions=conditions, conditions_are_label_maps=conditions_are_label_maps)
        self.function = function

    def sample_at(
        self, module: Any, positions: Sequence[int], seeds: Sequence[int], *, image_shape: tuple[int, ...] | None = None
    ) -> Any:
        """Return what the function returns.

        Raises:
            SamplerError: If it takes no condition and there are some.
        """
        condition = self.conditions.at(module, positions, device=device_of(module))
        arguments = condition_argument(self.function, condition, of="FunctionSampler")
        return _call(self.function, (module, len(positions)), arguments, seeds[0], device_of(module))


def _call(
    function: Callable[..., Any],
    positional: tuple[Any, ...],
    arguments: dict[str, Any],
    seed: int,
    device: torch.device,
) -> Any:
    if "generator" in parameters_of(function):
        arguments = {**arguments, "generator": torch.Generator(device=device).manual_seed(seed)}
    # What comes back is checked by whoever draws.
    return function(*positional, **arguments)
