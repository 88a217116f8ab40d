"""Calling what the user wrote: with the arguments that it takes, and with an error that says what was tried."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from relict_lightning.errors import SamplerError
from relict_lightning.samplers.memory import is_out_of_memory

_CONDITION_NAMES = ("condition", "conditions")


def parameters_of(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a function, a method or a network's `forward`; none where they cannot be read."""
    try:
        return inspect.signature(function.forward if isinstance(function, nn.Module) else function).parameters
    except (TypeError, ValueError):
        return {}


def condition_argument(
    function: Callable[..., Any], condition: Any, *, of: str, names: Sequence[str] = _CONDITION_NAMES
) -> dict[str, Any]:
    """Return the condition as the keyword argument that a function takes it by; nothing without a condition.

    Args:
        function: What is going to be called.
        condition: The condition, None without any.
        of: Who calls what, for the message.
        names: Names that the parameter may have, the likelier ones first.

    Raises:
        SamplerError: If the function takes none of these.
    """
    if condition is None:
        return {}
    parameters = parameters_of(function)
    for name in names:
        if name in parameters:
            return {name: condition}
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return {names[0]: condition}
    raise SamplerError(
        f"{of} has conditions to pass on, and what it calls takes no parameter {' or '.join(map(repr, names))}. "
        f"Give it one, or leave `conditions` out."
    )


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Return a context whose errors become a `SamplerError` that says what was tried.

    An error that memory ran out stays what it is, because fewer images at a time may fit.

    Args:
        doing: What is tried, a clause such as `DiffusionSampler ran the network on noise of shape (1, 1, 8, 8)`.
    """
    try:
        yield
    except SamplerError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, NotImplementedError) as error:
        if is_out_of_memory(error):
            raise
        raise SamplerError(f"{doing}, which failed. {type(error).__name__}: {error}") from error
