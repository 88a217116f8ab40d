"""Reads DICOM: one file, or a folder that holds one series.

Axes are slices, rows, columns, slices sorted by their position along the normal of the image plane. Stored values are
turned into real ones (Hounsfield units for CT) by rescale slope and intercept; windows are not applied. Pictures whose
low values are bright (MONOCHROME1) are inverted, so that bright means the same in every image. Colour becomes RGB.
"""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from relict_lightning.errors import UnreadableDataError
from relict_lightning.extras import optional_module

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")

# A missing slice doubles a gap; scanners round positions by far less than this.
_GAP_TOLERANCE = 0.1

# What the slices of one volume have in common.
_COMMON = ("Rows", "Columns", "PixelSpacing", "SamplesPerPixel", "PhotometricInterpretation")


def is_dicom_file(path: Path) -> bool:
    """Return whether a file is DICOM by its suffix or, where a file has none, by its first bytes.

    Example:
        >>> is_dicom_file(Path("slice.DCM"))
        True
    """
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    # Scanners export numbered names and dotted identifiers, whose last number looks like a suffix.
    if path.suffix[1:].isalpha() or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def dicom_files(folder: Path) -> list[Path]:
    """Return the DICOM files that lie directly in a folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and is_dicom_file(path))


def series_uid(path: Path) -> str:
    """Return the identifier of the series that a DICOM file belongs to.

    Args:
        path: A DICOM file.

    Returns:
        Its SeriesInstanceUID; the empty string where it has none.

    Raises:
        UnreadableDataError: If the file cannot be read.
        MissingDependencyError: If pydicom is not installed.
    """
    return str(_read(path, header_only=True).get("SeriesInstanceUID", ""))


def read_dicom_file(path: Path) -> tuple[Float[np.ndarray, "c h w"], tuple[float, ...]]:
    """Return one DICOM image and the spacing of its rows and columns.

    Args:
        path: A DICOM file with one frame.

    Returns:
        The image, `[c, rows, columns]`, and the distances of neighbouring rows and columns in millimetres.

    Raises:
        UnreadableDataError: If the file is damaged, or has several frames.
        MissingDependencyError: If pydicom, or the plugin for a compressed file, is not installed.
    """
    dataset = _read(path)
    return _pixels(dataset, path), _pixel_spacing(dataset)


def read_dicom_series(folder: Path) -> tuple[Float[np.ndarray, "c *spatial"], tuple[float, ...]]:
    """Return the volume of a folder that holds one DICOM series, and its spacing.

    Args:
        folder: A folder with the files of one series, in any order and under any names.

    Returns:
        The volume, `[c, slices, rows, columns]`, and the distances of neighbours along these axes in millimetres. A
        series of one slice is a 2-D image.

    Raises:
        UnreadableDataError: If the folder holds no DICOM, several series, slices that do not fit together, two at one
            position, or gaps.
        MissingDependencyError: If pydicom, or the plugin for a compressed file, is not installed.
    """
    paths = dicom_files(folder)
    if not paths:
        raise UnreadableDataError(f"{folder} holds no DICOM file; expected the files of one series. Check the path.")
    if len(paths) == 1:
        return read_dicom_file(paths[0])
    datasets = [_read(path) for path in paths]
    _refuse_mixture(folder, paths, datasets)
    orientation = np.array(datasets[0].ImageOrientationPatient, dtype=float).reshape(2, 3)
    normal = np.cross(*orientation)
    along = np.array([np.dot(np.array(dataset.ImagePositionPatient, dtype=float), normal) for dataset in datasets])
    order = np.argsort(along, kind="stable")
    gaps = np.diff(along[order])
    gap = float(np.median(gaps))
    if gap <= 0 or np.any(np.abs(gaps - gap) > _GAP_TOLERANCE * gap):
        at = int(np.argmax(np.abs(gaps - gap)))
        raise UnreadableDataError(
            f"{folder} has slices {gaps[at]:.3g} mm apart ({paths[order[at]].name} and {paths[order[at + 1]].name}) "
            f"where {gap:.3g} mm is usual; expected one slice at each of evenly spaced positions. Complete the series, "
            f"or put repeated acquisitions into folders of their own."
        )
    volume = np.stack([_pixels(datasets[position], paths[position]) for position in order], axis=1)
    return volume, (gap, *_pixel_spacing(datasets[0]))


def _read(path: Path, *, header_only: bool = False) -> Any:
    pydicom = optional_module("pydicom")
    try:
        return pydicom.dcmread(path, stop_before_pixels=header_only)
    # pydicom lets errors of the parts that it parses through, so damage has no type of its own.
    except Exception as error:
        raise UnreadableDataError(
            f"{path} cannot be read as DICOM ({type(error).__name__}: {error}). Write it again, or leave it out."
        ) from error


def _refuse_mixture(folder: Path, paths: list[Path], datasets: list[Any]) -> None:
    series = {str(dataset.get("SeriesInstanceUID", "")) for dataset in datasets}
    if len(series) > 1:
        raise UnreadableDataError(
            f"{folder} holds {len(series)} DICOM series in {len(paths)} files; expected one. Put each series into a "
            f"folder of its own."
        )
    first = datasets[0]
    for path, dataset in zip(paths, datasets, strict=True):
        if not dataset.get("ImagePositionPatient") or not dataset.get("ImageOrientationPatient"):
            raise UnreadableDataError(
                f"{path} does not say where its slice lies (ImagePositionPatient, ImageOrientationPatient); expected "
                f"both in every file of a series. Take localizers and secondary captures out of {folder}."
            )
        for name in _COMMON:
            if dataset.get(name) != first.get(name):
                raise UnreadableDataError(
                    f"{path} has {name} {dataset.get(name)}, but {paths[0].name} of the same series has "
                    f"{first.get(name)}; expected one value. Take slices of another acquisition out of {folder}."
                )
        if not np.allclose(dataset.ImageOrientationPatient, first.ImageOrientationPatient, atol=1e-3):
            raise UnreadableDataError(
                f"{path} and {paths[0].name} lie in different planes; expected parallel slices. Take localizers out of "
                f"{folder}."
            )


def _pixels(dataset: Any, path: Path) -> Float[np.ndarray, "c h w"]:
    if int(dataset.get("NumberOfFrames", 1) or 1) > 1:
        raise UnreadableDataError(
            f"{path} has {dataset.NumberOfFrames} frames; expected one. Convert multi-frame files to NIfTI, for "
            f"instance with dcm2niix."
        )
    try:
        stored = np.asarray(dataset.pixel_array)
    # Damaged data, a missing plugin and a missing tag each raise what their decoder chose.
    except Exception as error:
        raise UnreadableDataError(
            f"The pixels of {path} cannot be decoded ({type(error).__name__}: {error}). Write the file uncompressed, "
            f"or install the plugin that the message names."
        ) from error
    interpretation = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    if stored.ndim == 3 and interpretation != "PALETTE COLOR":
        return np.ascontiguousarray(np.moveaxis(stored, -1, 0), dtype=np.float32)
    if stored.ndim != 2 or not interpretation.startswith("MONOCHROME"):
        raise UnreadableDataError(
            f"{path} has photometric interpretation {interpretation} and pixels of shape {stored.shape}; expected grey "
            f"or RGB. Convert the file."
        )
    values = stored.astype(np.float64)
    if interpretation == "MONOCHROME1":
        # The sum of the least and the greatest storable value turns one into the other.
        values = (-1 if dataset.get("PixelRepresentation", 0) else 2 ** int(dataset.BitsStored) - 1) - values
    values = values * float(dataset.get("RescaleSlope", 1) or 1) + float(dataset.get("RescaleIntercept", 0) or 0)
    return values[None].astype(np.float32)


def _pixel_spacing(dataset: Any) -> tuple[float, float]:
    # Projection images say the spacing at the detector instead.
    spacing = dataset.get("PixelSpacing") or dataset.get("ImagerPixelSpacing") or (1.0, 1.0)
    return float(spacing[0]), float(spacing[1])
