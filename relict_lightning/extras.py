"""Loads the packages that come with an extra of this one, on first use."""

import importlib
from types import ModuleType

from relict_lightning.errors import MissingDependencyError

_PURPOSES = {"io": "Reading this format", "vessels": "Finding the centreline of vessels"}

# Package as it is imported: the name that it is installed by, and the extra that brings it.
_PACKAGES = {
    "PIL": ("pillow", "io"),
    "nibabel": ("nibabel", "io"),
    "pydicom": ("pydicom", "io"),
    "skimage": ("scikit-image", "vessels"),
}


def optional_module(name: str) -> ModuleType:
    """Return a module of a package that an extra brings.

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
        distribution, extra = _PACKAGES[package]
        raise MissingDependencyError(
            f"{_PURPOSES[extra]} needs the package `{distribution}`, which is not installed. Install it with "
            f"`pip install 'relict-lightning[{extra}]'`."
        ) from error
