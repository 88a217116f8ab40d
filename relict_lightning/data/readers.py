"""Reads image files into `[c, *spatial]`, float32.

- NIfTI (`.nii`, `.nii.gz`): reoriented to the closest canonical axes (right, anterior, superior); a fourth axis becomes
  channels.
- DICOM: one file, or a folder that holds one series, as slices, rows, columns; see `dicom`.
- Pictures (`.png`, `.jpg`, `.jpeg`): grey or RGB as rows, columns, with their values as stored.
- Arrays (`.npy`, `.npz`): already `[c, *spatial]`, or one grey 2-D image.

A spatial axis of one voxel is dropped from NIfTI and DICOM: a single slice is a 2-D image. Spacing is 1 where a format
does not know it.
"""

import gzip
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, final

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from relict_lightning.data.dicom import DICOM_SUFFIXES, is_dicom_file, read_dicom_file, read_dicom_series
from relict_lightning.errors import UnreadableDataError
from relict_lightning.extras import optional_module

NIFTI_SUFFIXES = (".nii.gz", ".nii")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
ARRAY_SUFFIXES = (".npy", ".npz")
SUPPORTED_SUFFIXES = (*NIFTI_SUFFIXES, *PICTURE_SUFFIXES, *ARRAY_SUFFIXES, *DICOM_SUFFIXES)


@final
@dataclass(frozen=True, kw_only=True)
class LoadedImage:
    """An image from disk.

    Attributes:
        array: The image, `[c, *spatial]`, float32.
        spacing_mm: Distance of neighbouring voxels along each spatial axis; 1 where the format does not know it.
    """

    array: Float[np.ndarray, "c *spatial"]
    spacing_mm: tuple[float, ...]


def read_image(path: str | Path) -> LoadedImage:
    """Return an image file, or a folder with one DICOM series, as `[c, *spatial]`.

    Args:
        path: A file in one of the formats above, or a folder that holds one DICOM series.

    Returns:
        The image and its spacing.

    Raises:
        UnreadableDataError: If the file is missing, corrupt, or of another format.
        MissingDependencyError: If the format needs a package that is not installed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "image.npy")
        ...     np.save(path, np.zeros((1, 8, 8)))
        ...     read_image(path).array.shape
        (1, 8, 8)
    """
    path = _existing(path)
    suffix = suffix_of(path)
    if suffix in NIFTI_SUFFIXES:
        return _read_nifti(path)
    if suffix in PICTURE_SUFFIXES:
        pixels = _read_picture(path, as_labels=False)
        channels = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
        return LoadedImage(array=np.ascontiguousarray(channels, dtype=np.float32), spacing_mm=(1.0, 1.0))
    if suffix in ARRAY_SUFFIXES:
        array = _read_array(path)
        array = array[None] if array.ndim == 2 else array
        return LoadedImage(array=_as_float(array, path), spacing_mm=(1.0,) * (array.ndim - 1))
    if path.is_dir():
        array, spacing = read_dicom_series(path)
    elif is_dicom_file(path):
        array, spacing = read_dicom_file(path)
    else:
        raise UnreadableDataError(
            f"{path} is of no format that can be read; expected one of {', '.join(SUPPORTED_SUFFIXES)}, or a folder "
            f"with one DICOM series. Convert it."
        )
    return LoadedImage(array=array, spacing_mm=spacing)


def read_label_map(path: str | Path) -> Int[np.ndarray, "*axes"]:
    """Return a segmentation file as whole numbers, `[*spatial]` or `[1, *spatial]`.

    Pictures with a palette give the palette's indices, which are the labels, and not its colours.

    Args:
        path: As for `read_image`.

    Returns:
        The label of every voxel, int64.

    Raises:
        UnreadableDataError: If the file cannot be read, or holds anything but whole numbers.
        MissingDependencyError: If the format needs a package that is not installed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "labels.npy")
        ...     np.save(path, np.ones((8, 8), dtype=np.uint8))
        ...     int(read_label_map(path).max())
        1
    """
    path = _existing(path)
    suffix = suffix_of(path)
    if suffix in PICTURE_SUFFIXES:
        labels = _read_picture(path, as_labels=True)
    elif suffix in ARRAY_SUFFIXES:
        labels = _read_array(path)
    else:
        labels = read_image(path).array
    if labels.dtype.kind not in "iubf" or not np.array_equal(labels, np.trunc(labels)):
        raise UnreadableDataError(
            f"{path} has values that are not whole numbers; expected one label per voxel. Pass a label map."
        )
    return labels.astype(np.int64)


def suffix_of(path: Path) -> str:
    """Return the suffix that says the format, in lower case, with `.nii.gz` in one piece.

    Example:
        >>> suffix_of(Path("sub-01.T1w.NII.GZ"))
        '.nii.gz'
    """
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.exists():
        raise UnreadableDataError(f"{path} does not exist; expected an image file. Check the path.")
    return path


@contextmanager
def _unreadable(path: Path, *errors: type[Exception]) -> Iterator[None]:
    try:
        yield
    except UnreadableDataError:
        raise
    except errors as error:
        raise UnreadableDataError(
            f"{path} cannot be read ({type(error).__name__}: {error}); the file is damaged or not what its name says. "
            f"Write it again, or leave it out."
        ) from error


def _read_nifti(path: Path) -> LoadedImage:
    nibabel: ModuleType = optional_module("nibabel")
    # Damage shows as any of these, depending on where in header, compression or data it lies.
    with _unreadable(path, nibabel.filebasedimages.ImageFileError, OSError, EOFError, ValueError, zlib.error):
        stored = nibabel.load(path)
        if suffix_of(path) == ".nii.gz":
            # nibabel stops reading at the last voxel, before the checksum that would show damage.
            stored = type(stored).from_bytes(gzip.decompress(path.read_bytes()))
        image = nibabel.as_closest_canonical(stored)
        if len(image.shape) not in (3, 4):
            raise UnreadableDataError(
                f"{path} has shape {tuple(image.shape)}; expected three spatial axes and, optionally, a fourth one for "
                f"channels. Drop or merge the other axes."
            )
        array = np.asarray(image.get_fdata(dtype=np.float32))
    spacing = tuple(float(size) for size in nibabel.affines.voxel_sizes(image.affine))
    channels = array[None] if array.ndim == 3 else np.moveaxis(array, -1, 0)
    if channels.shape[1:].count(1) == 1:
        single = channels.shape.index(1, 1)
        channels = channels.squeeze(single)
        spacing = (*spacing[: single - 1], *spacing[single:])
    return LoadedImage(array=np.ascontiguousarray(channels), spacing_mm=spacing)


def _read_picture(path: Path, *, as_labels: bool) -> NDArray[Any]:
    pillow: ModuleType = optional_module("PIL.Image")
    with _unreadable(path, OSError, ValueError, SyntaxError), pillow.open(path) as file:
        file.load()
        picture = file if as_labels else _without_palette_and_alpha(file, path)
        modes = (
            ("1", "L", "P", "I", "I;16", "I;16B", "F") if as_labels else ("1", "L", "I", "I;16", "I;16B", "F", "RGB")
        )
        if picture.mode not in modes:
            raise UnreadableDataError(
                f"{path} has colour mode {picture.mode}; expected {'one channel' if as_labels else 'grey or RGB'}. "
                f"Convert the picture."
            )
        return np.asarray(picture)


def _without_palette_and_alpha(picture: Any, path: Path) -> Any:
    if picture.mode == "P":
        picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    if picture.mode not in ("LA", "RGBA"):
        return picture
    if picture.getchannel("A").getextrema() != (255, 255):
        raise UnreadableDataError(f"{path} is partly transparent; expected an opaque grey or RGB picture. Flatten it.")
    return picture.convert(picture.mode.removesuffix("A"))


def _read_array(path: Path) -> NDArray[Any]:
    with _unreadable(path, OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, KeyError):
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            if len(loaded.files) != 1 and "image" not in loaded.files:
                raise UnreadableDataError(
                    f"{path} holds the arrays {sorted(loaded.files)}; expected one, or one called 'image'. Save the "
                    f"image alone."
                )
            array: NDArray[Any] = loaded["image" if "image" in loaded.files else loaded.files[0]]
            return array


def _as_float(array: NDArray[Any], path: Path) -> Float[np.ndarray, "*axes"]:
    if array.ndim not in (3, 4) or array.dtype.kind not in "iubf":
        raise UnreadableDataError(
            f"{path} holds an array of shape {array.shape} and dtype {array.dtype}; expected real numbers as "
            f"[channels, height, width] or [channels, depth, height, width]. Save it in that shape."
        )
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype=np.float32)
