"""Loads the packages that only file formats need, on first use."""

import importlib
from types import ModuleType

from relict_lightning.errors import MissingDependencyError

_DISTRIBUTIONS = {"PIL": "pillow", "nibabel": "nibabel", "pydicom": "pydicom"}


def optional_module(name: str) -> ModuleType:
    """Return a module of a package that is installed with the extra `io`.

    Args:
        name: Name of the module, such as `PIL.Image`.

    Returns:
        The module.

    Raises:
        MissingDependencyError: If its package is not installed.

    Example:
        >>> optional_module("PIL.Image").__name__
        'PIL.Image'
    """
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"Reading this format needs the package `{_DISTRIBUTIONS.get(package, package)}`, which is not installed. "
            f"Install it with `pip install 'relict-lightning[io]'`."
        ) from error
