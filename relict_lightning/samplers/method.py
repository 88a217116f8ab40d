"""Sampling by a method of the module or by a function."""

import inspect
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, final

import torch
from torch import Tensor

from relict_lightning.errors import SamplerError
from relict_lightning.interfaces import Sampler


@final
class MethodSampler(Sampler):
    """Calls a method of the module, `module.sample(n)` by default.

    Where the method takes a `generator`, it gets a `torch.Generator` on the module's device, seeded for the call;
    otherwise the global random state, which is seeded for the call as well, decides.

    Args:
        method: Name of the method.
        arguments: Further keyword arguments, such as a number of steps.
    """

    def __init__(self, method: str = "sample", arguments: dict[str, Any] | None = None) -> None:
        self.method = method
        self.arguments = dict(arguments or {})

    def sample(self, module: Any, n: int, *, seed: int) -> Tensor:
        """Return what the method returns.

        Raises:
            SamplerError: If the module has no such method.
        """
        function = getattr(module, self.method, None)
        if not callable(function):
            raise SamplerError(
                f"{type(module).__name__} has no method `{self.method}(n, *, generator)` to draw samples with. "
                f"Add one that returns [n, c, *spatial] images, or pass `ReplicaMonitor(sampler=...)`: the name of "
                f"another method, a function of (module, n), or a `relict_lightning.interfaces.Sampler`."
            )
        return _call(function, (n,), self.arguments, seed, _device_of(module))


@final
class FunctionSampler(Sampler):
    """Calls a function of (module, n), with a `generator` where it takes one.

    Args:
        function: Returns `[n, c, *spatial]` images.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function

    def sample(self, module: Any, n: int, *, seed: int) -> Tensor:
        """Return what the function returns."""
        return _call(self.function, (module, n), {}, seed, _device_of(module))


def _call(
    function: Callable[..., Any],
    positional: tuple[Any, ...],
    arguments: dict[str, Any],
    seed: int,
    device: torch.device,
) -> Tensor:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        parameters = MappingProxyType({})
    if "generator" in parameters:
        arguments = {**arguments, "generator": torch.Generator(device=device).manual_seed(seed)}
    # What comes back is checked by whoever draws.
    images: Tensor = function(*positional, **arguments)
    return images


def _device_of(module: Any) -> torch.device:
    parameters = getattr(module, "parameters", None)
    parameter = next(iter(parameters()), None) if callable(parameters) else None
    return torch.device("cpu") if parameter is None else parameter.device
