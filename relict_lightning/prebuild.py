"""Building the index of a training set before it is needed, so that audits and training runs find it ready."""

import time
from dataclasses import dataclass
from pathlib import Path

from relict_lightning.audit import AuditSettings, relict_warnings
from relict_lightning.duplicates import TrainingAudit
from relict_lightning.processes import Processes


@dataclass(frozen=True, kw_only=True)
class Prebuilt:
    """An index in the cache.

    Attributes:
        training_images: Number of training images.
        training_patients: Their patients.
        heldout_images: Number of held-out images.
        heldout_patients: Their patients, as far as they are not training patients.
        image_shape: `[c, *spatial]` of every image.
        built: Folders of the cache that are new; 0 where everything was found.
        seconds: How long it took.
        build_seconds: How long building took, now or when the folders were written.
        megabytes: Size of the whole cache on disk.
        audit: What is in the data sets twice.
        notes: What a user should know, one sentence each.
    """

    training_images: int
    training_patients: int
    heldout_images: int
    heldout_patients: int
    image_shape: tuple[int, ...]
    built: int
    seconds: float
    build_seconds: float
    megabytes: float
    audit: TrainingAudit
    notes: tuple[str, ...]


def prebuild_index(
    *,
    training: Path,
    heldout: Path | None,
    cache_dir: Path,
    settings: AuditSettings,
    progress: bool = False,
    processes: Processes | None = None,
) -> Prebuilt:
    """Build the index of a training set and its control in a cache, or find them there.

    Args:
        training: The training set: a folder of images, or one file with an array.
        heldout: Images of other patients, in the same forms; None builds no control.
        cache_dir: The cache; created when missing. It holds patient data.
        settings: What the control depends on; an audit with the same settings finds it again.
        progress: Whether to show progress bars.
        processes: Who shares the work; None builds alone.

    Raises:
        RelictError: If images cannot be read or compared.
    """
    before = _entries(cache_dir)
    started = time.perf_counter()
    with relict_warnings() as notes:
        known, others = settings.open_sets(training, heldout)
        detector = settings.make_detector(cache_dir=cache_dir, progress=progress)
        detector.share(processes or Processes())
        detector.fit(known, others)
        twice = detector.audit_training()
    return Prebuilt(
        training_images=len(known),
        training_patients=detector.training_groups,
        heldout_images=0 if others is None else len(others),
        heldout_patients=detector.heldout_groups,
        image_shape=detector.image_shape,
        built=len(_entries(cache_dir) - before),
        seconds=time.perf_counter() - started,
        build_seconds=detector.build_seconds,
        megabytes=_bytes_of(cache_dir) / 1e6,
        audit=twice,
        notes=tuple(notes),
    )


def _bytes_of(cache_dir: Path) -> int:
    """Return the size of a cache; a file that several folders share counts once."""
    files = [path.stat() for path in cache_dir.rglob("*") if path.is_file()]
    return sum({status.st_ino: status.st_size for status in files}.values())


def _entries(cache_dir: Path) -> set[str]:
    """Return the finished folders of a cache; unfinished and damaged ones are hidden."""
    return {path.name for path in cache_dir.glob("[!.]*") if path.is_dir()}
