"""Shapes and numbers that samplers are given, checked when the sampler is made."""

from collections.abc import Sequence

from relict_lightning.errors import ConfigurationError


def checked_shape(shape: Sequence[int], *, of: str) -> tuple[int, ...]:
    """Return a shape as a tuple of plain numbers, also where a configuration file brought it.

    Args:
        shape: Numbers of at least 1.
        of: What it was given as, for the message.

    Raises:
        ConfigurationError: If it is empty or has other numbers.
    """
    sides = tuple(int(side) for side in shape)
    if not sides or min(sides) < 1:
        raise ConfigurationError(f"{of} must be numbers of at least 1, got {list(shape)}.")
    return sides
