"""Images by the path that a person types: a folder of files, or one file with an array of all images."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relict_lightning.data.folder import ImageFolder
from relict_lightning.errors import ConfigurationError, UnreadableDataError


def images_at(
    path: str | Path, *, pattern: str | None = None, groups: str | Path | None = None
) -> ImageFolder | NDArray[Any]:
    """Return the images at a path, in a form that `open_images` and `ReplicaDetector` take.

    Args:
        path: A folder of images (NIfTI, DICOM, pictures, arrays), or one `.npy` or `.npz` file with an array
            `[n, c, *spatial]`; an `.npz` file holds one array, or one called `images`.
        pattern: Which files of the folder, as a glob; None takes all that can be read.
        groups: What says the patient, as `ImageFolder` has it; None takes `bids` for folders. In one array every
            image counts as a patient.

    Raises:
        ConfigurationError: If `pattern` or `groups` are given for an array, which has no file names.
        EmptyDataError: If no file of the folder can be read.
        UnreadableDataError: If there is no such path, or it is neither a folder nor an array.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "samples.npy")
        ...     np.save(path, np.zeros((3, 1, 8, 8)))
        ...     images_at(path).shape
        (3, 1, 8, 8)
    """
    path = Path(path)
    if path.is_dir():
        return ImageFolder(path, pattern=pattern, groups="bids" if groups is None else groups)
    if not path.exists():
        raise UnreadableDataError(f"{path} does not exist; expected a folder of images or an .npy or .npz file.")
    if path.suffix.lower() not in (".npy", ".npz"):
        raise UnreadableDataError(
            f"{path} is one file and no array; expected a folder of images, or an .npy or .npz file with an array "
            f"[n, c, *spatial]. Pass the folder."
        )
    for name, value in (("pattern", pattern), ("groups", groups)):
        if value is not None:
            raise ConfigurationError(
                f"{name}={str(value)!r} needs file names, but {path} is one array. Pass a folder of files instead."
            )
    try:
        # Mapped, because a training set may be larger than memory; archives cannot be.
        is_archive = path.suffix.lower() == ".npz"
        array: NDArray[Any] = _only_array(path) if is_archive else np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, UnreadableDataError):
            raise
        raise UnreadableDataError(
            f"{path} cannot be read ({type(error).__name__}: {error}). Write it again with `numpy.save`."
        ) from error
    if array.ndim not in (4, 5):
        raise UnreadableDataError(
            f"{path} holds an array of shape {list(array.shape)}; expected [n, channels, height, width] or [n, "
            f"channels, depth, height, width]. Add a missing channel axis with `images[:, None]`."
        )
    return array


def _only_array(path: Path) -> NDArray[Any]:
    # Opened here, because NumPy leaves the file open where it is no archive.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        names = archive.files
        if len(names) != 1 and "images" not in names:
            raise UnreadableDataError(
                f"{path} holds the arrays {sorted(names)}; expected one, or one called 'images'. Save the images alone."
            )
        array: NDArray[Any] = archive["images" if "images" in names else names[0]]
        return array
