"""A folder of image files as a map-style data set."""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch.utils.data import Dataset

from relict_lightning.data.dicom import dicom_files, is_dicom_file, series_uid
from relict_lightning.data.readers import SUPPORTED_SUFFIXES, LoadedImage, read_image, read_label_map, suffix_of
from relict_lightning.data.stamp import ItemFiles
from relict_lightning.errors import ConfigurationError, EmptyDataError, InvalidImageError, UnreadableDataError

_SUBJECT = re.compile(r"(?:^|/)(sub-[A-Za-z0-9]+)(?=[/_.]|$)")

# Scanners and converters round spacing; images of another resolution differ by more.
_SPACING_TOLERANCE = 0.01


@final
class ImageFolder(Dataset[dict[str, Any]]):
    """Every image under a folder, sorted by path.

    Items are dictionaries: `image` (tensor `[c, *spatial]`, float32), `id` (path relative to the folder), `group` (the
    patient) and, with `labels`, `label` (tensor of whole numbers). Hidden files are left out. A folder with the files
    of one DICOM series is one image; DICOM files that lie together and belong to different series are one image each.

    Args:
        root: The folder.
        pattern: Which files, as a glob relative to `root`, such as `*/anat/*_T1w.nii.gz`. By default every file of a
            format that can be read, at any depth.
        labels: Folder of segmentations, each with the path of its image relative to `root` apart from the suffix.
        groups: What says the patient. `bids`: the first `sub-<label>` in the path, else the stem; `stem`: the file
            name without suffix; `parent`: the folder that the file lies in; or the path of a CSV file with the columns
            `file` (path relative to `root`) and `group`.

    Raises:
        ConfigurationError: If `groups` is none of these.
        EmptyDataError: If no file is found.
        UnreadableDataError: If a folder, the first image, a segmentation or a row of the CSV file is missing.

    Example:
        >>> import tempfile, numpy as np
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(Path(folder, "sub-01_T1w.npy"), np.zeros((1, 8, 8)))
        ...     item = ImageFolder(folder)[0]
        >>> item["id"], item["group"], item["image"].shape
        ('sub-01_T1w.npy', 'sub-01', torch.Size([1, 8, 8]))
    """

    def __init__(
        self,
        root: str | Path,
        *,
        pattern: str | None = None,
        labels: str | Path | None = None,
        groups: str | Path = "bids",
    ) -> None:
        self._root = _existing_folder(root, argument="root")
        label_folder = None if labels is None else _existing_folder(labels, argument="labels")
        self._paths = _image_paths(self._root, pattern=pattern, left_out=label_folder)
        if not self._paths:
            wanted = repr(pattern) if pattern is not None else ", ".join(SUPPORTED_SUFFIXES)
            raise EmptyDataError(f"{self._root} holds no image; expected files that match {wanted}. Check the folder.")
        self._ids = [path.relative_to(self._root).as_posix() for path in self._paths]
        self._groups = _groups(self._ids, rule=groups)
        self._labels = None if label_folder is None else _label_paths(self._ids, label_folder)
        first = read_image(self._paths[0])
        self._shape, self._spacing_mm = first.array.shape, first.spacing_mm

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Distance of neighbouring voxels along each spatial axis, the same for every image."""
        return self._spacing_mm

    def item_files(self) -> list[ItemFiles]:
        """Return the files, id and group of every image, in order, without reading them.

        Example:
            >>> import tempfile, numpy as np
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     np.save(Path(folder, "sub-01_T1w.npy"), np.zeros((1, 8, 8)))
            ...     files = ImageFolder(folder).item_files()
            >>> files[0].image.name, files[0].group
            ('sub-01_T1w.npy', 'sub-01')
        """
        labels: Sequence[Path | None] = [None] * len(self) if self._labels is None else self._labels
        return [
            ItemFiles(image=path, label=label, id=id_, group=group)
            for path, label, id_, group in zip(self._paths, labels, self._ids, self._groups, strict=True)
        ]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one image as a dictionary.

        Args:
            index: Position in the sorted list of images.

        Returns:
            `image`, `id`, `group` and, with labels, `label`.

        Raises:
            InvalidImageError: If shape or spacing differ from those of the first image.
            UnreadableDataError: If the file cannot be read.
        """
        loaded = read_image(self._paths[index])
        self._refuse_odd(loaded, self._ids[index])
        item = {"image": torch.from_numpy(loaded.array), "id": self._ids[index], "group": self._groups[index]}
        if self._labels is not None:
            item["label"] = torch.from_numpy(read_label_map(self._labels[index]))
        return item

    def _refuse_odd(self, loaded: LoadedImage, id_: str) -> None:
        if loaded.array.shape != self._shape:
            raise InvalidImageError(
                f"{id_} has shape {list(loaded.array.shape)}, but {self._ids[0]} has {list(self._shape)}; expected one "
                f"shape ([channels, *spatial]). Crop, pad or resample the images, or choose some with `pattern=`."
            )
        pairs = zip(loaded.spacing_mm, self._spacing_mm, strict=True)
        if any(abs(found - expected) > _SPACING_TOLERANCE * expected for found, expected in pairs):
            raise InvalidImageError(
                f"{id_} has a spacing of {_in_mm(loaded.spacing_mm)}, but {self._ids[0]} of {_in_mm(self._spacing_mm)}"
                f"; expected the same within {_SPACING_TOLERANCE:.0%}. Resample the images to one spacing."
            )


def _existing_folder(path: str | Path, *, argument: str) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        raise UnreadableDataError(f"{argument}={str(folder)!r} is not a folder; expected one. Check the path.")
    return folder


def _image_paths(root: Path, *, pattern: str | None, left_out: Path | None) -> list[Path]:
    found = root.rglob("*") if pattern is None else root.glob(pattern)
    visible = [path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts)]
    if left_out is not None and left_out.resolve() != root.resolve():
        visible = [path for path in visible if left_out.resolve() not in (path.resolve(), *path.resolve().parents)]
    files = [path for path in visible if path.is_file()]
    others = [path for path in files if suffix_of(path) in SUPPORTED_SUFFIXES and not is_dicom_file(path)]
    dicom = {path for path in files if is_dicom_file(path)}
    if pattern is not None:
        # A pattern may name the folders of series instead of their files.
        dicom |= {file for path in visible if path.is_dir() for file in dicom_files(path)}
    return sorted([*others, *_series_or_files(dicom, root=root)])


def _series_or_files(paths: set[Path], *, root: Path) -> Iterator[Path]:
    by_folder: dict[Path, list[Path]] = {}
    for path in sorted(paths):
        by_folder.setdefault(path.parent, []).append(path)
    for folder, files in by_folder.items():
        # Two headers decide; should the rest of the folder disagree, reading the series says so.
        if len(files) > 1 and folder != root and series_uid(files[0]) == series_uid(files[1]):
            yield folder
        else:
            yield from files


def _stem(id_: str) -> str:
    name = id_.rpartition("/")[2]
    return name[: -len(suffix_of(Path(name)))] if suffix_of(Path(name)) in SUPPORTED_SUFFIXES else name


def _groups(ids: list[str], *, rule: str | Path) -> list[str]:
    if rule == "stem":
        return [_stem(id_) for id_ in ids]
    if rule == "parent":
        return [Path(id_).parent.as_posix() for id_ in ids]
    if rule == "bids":
        subjects = [_SUBJECT.search(id_) for id_ in ids]
        return [_stem(id_) if found is None else found[1] for id_, found in zip(ids, subjects, strict=True)]
    if not Path(rule).is_file():
        raise ConfigurationError(
            f"groups={str(rule)!r} is no file; expected 'bids', 'stem', 'parent', or the path of a CSV file with the "
            f"columns file and group."
        )
    table = _group_table(Path(rule))
    missing = [id_ for id_ in ids if id_ not in table]
    if missing:
        raise UnreadableDataError(
            f"{rule} has no row for {missing[0]} and {len(missing) - 1} other files; expected one row per image. Add "
            f"them, with paths relative to the image folder."
        )
    return [table[id_] for id_ in ids]


def _group_table(path: Path) -> Mapping[str, str]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        if not {"file", "group"} <= set(rows.fieldnames or ()):
            raise UnreadableDataError(
                f"{path} has the columns {list(rows.fieldnames or ())}; expected file and group. Name them so."
            )
        return {row["file"].replace("\\", "/"): row["group"] for row in rows}


def _label_paths(ids: list[str], folder: Path) -> list[Path]:
    found = {
        str(Path(id_).parent / _stem(id_)): path
        for path in _image_paths(folder, pattern=None, left_out=None)
        for id_ in [path.relative_to(folder).as_posix()]
    }
    wanted = [str(Path(id_).parent / _stem(id_)) for id_ in ids]
    missing = [id_ for id_, key in zip(ids, wanted, strict=True) if key not in found]
    if missing:
        raise UnreadableDataError(
            f"{folder} has no segmentation for {missing[0]} and {len(missing) - 1} other images; expected a file of "
            f"the same relative path apart from the suffix. Complete or rename them."
        )
    return [found[key] for key in wanted]


def _in_mm(spacing: tuple[float, ...]) -> str:
    return " x ".join(f"{size:.4g}" for size in spacing) + " mm"
