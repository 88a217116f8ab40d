"""Checking finished samples against the training set, from files to files.

An audit is one folder, readable by its owner only, because it shows patients:

- `verdicts.csv`: one row per sample;
- `summary.json`: rate with interval, p-values, measures, and the settings that they depend on;
- `report.html`: the same for people, with the pairs most like copies;
- `pairs.npz`: pairs for experts to rate.
"""

import io
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from relict_lightning.alterations import SMALLEST_SIDE
from relict_lightning.data import ImageFolder, images_at, open_images
from relict_lightning.detector import ReplicaDetector
from relict_lightning.errors import ConfigurationError, RelictWarning
from relict_lightning.index import Check, Store
from relict_lightning.report import write_private, write_report
from relict_lightning.results import DetectionResult, Evaluation, MatchedPair
from relict_lightning.self_test import SelfTest

VERDICTS, SUMMARY, REPORT, PAIRS = "verdicts.csv", "summary.json", "report.html", "pairs.npz"

_PAIRS_IN_REPORT = 24
_PATIENT_COLUMNS = ["match_id", "match_group"]


@dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """What an audit's numbers depend on besides the images.

    Attributes:
        fdr: False discovery rate of the verdicts, in (0, 1).
        top_k: Hits per view.
        transforms: Which alterations to look through.
        pattern: Which files of the training and held-out folders, as a glob; None takes all that can be read.
        groups: What says the patient, as `ImageFolder` has it; None takes `bids` for folders.
        num_pairs: Pairs kept for rating, at least 1.
        store: How images are kept for comparison, as `ReplicaDetector` has it; so are all that follow.
        check: How a set that is in the cache is recognised.
        hash_ids: Whether ids and patients are known by keyed hashes only.
        num_workers: Processes that read ahead.
        self_test: Copies of training images to plant per alteration, to see which the detector finds; 0 plants none.
    """

    fdr: float = 0.05
    top_k: int = 5
    transforms: Literal["default", "none"] = "default"
    pattern: str | None = None
    groups: str | None = None
    num_pairs: int = 100
    store: Store = "float16"
    check: Check = "full"
    hash_ids: bool = False
    num_workers: int = 0
    self_test: int = 4

    def __post_init__(self) -> None:
        """Check what the detector does not."""
        if self.num_pairs < 1:
            raise ConfigurationError(f"num_pairs must be at least 1, got {self.num_pairs}.")
        if self.self_test < 0:
            raise ConfigurationError(f"self_test must not be negative, got {self.self_test}.")

    def open_sets(
        self, training: Path, heldout: Path | None
    ) -> tuple[ImageFolder | NDArray[Any], ImageFolder | NDArray[Any] | None]:
        """Return the training and the held-out images at two paths."""
        where: dict[str, Any] = {"pattern": self.pattern, "groups": self.groups}
        return images_at(training, **where), None if heldout is None else images_at(heldout, **where)

    def make_detector(self, *, cache_dir: Path | None, progress: bool) -> ReplicaDetector:
        """Return the detector with these settings.

        Args:
            cache_dir: Where the index is kept and found again; None keeps it in memory.
            progress: Whether `fit` shows progress bars.
        """
        return ReplicaDetector(
            top_k=self.top_k,
            fdr=self.fdr,
            transforms=self.transforms,
            cache_dir=cache_dir,
            store=self.store,
            check=self.check,
            hash_ids=self.hash_ids,
            num_workers=self.num_workers,
            progress=progress,
        )


@dataclass(frozen=True, kw_only=True)
class Audit:
    """A finished audit.

    Attributes:
        result: What the detector found.
        folder: Where the files lie, an absolute path.
        notes: What a reader of the numbers should know, one sentence each.
        self_test: Which planted copies the detector found; None without held-out images, or where none were planted.
    """

    result: DetectionResult
    folder: Path
    notes: tuple[str, ...]
    self_test: SelfTest | None


def run_audit(
    generated: Path,
    *,
    training: Path,
    heldout: Path | None,
    output: Path,
    settings: AuditSettings,
    cache_dir: Path | None = None,
    show_ids: bool = False,
    announce: Callable[[str], object] | None = None,
) -> Audit:
    """Check samples against a training set and write what was found into a new folder.

    Args:
        generated: Samples: a folder of images, or an `.npy` or `.npz` file with an array `[n, c, *spatial]`.
        training: The whole training set, in the same forms.
        heldout: Images of patients that the model was not trained on; None gives matches, but no rates and p-values.
        output: The folder; it must not hold an audit yet.
        settings: What the numbers depend on.
        cache_dir: Where the index is kept and found again; None keeps it in memory.
        show_ids: Whether verdicts and report name the matched training images and patients.
        announce: Called with a line at the beginning of each stage; with it, indexing shows progress bars.

    Raises:
        ConfigurationError: If `output` holds an audit, or a setting lies outside its range.
        RelictError: If images cannot be read or compared.
    """
    output = output.expanduser().absolute()
    if (output / SUMMARY).exists():
        # Ratings of an earlier audit's pairs would be read as ratings of this one's.
        raise ConfigurationError(f"{output} holds an audit already. Choose another folder, or delete that one first.")
    say = announce or (lambda _: None)
    started = time.perf_counter()
    with relict_warnings() as notes:
        detector = settings.make_detector(cache_dir=cache_dir, progress=announce is not None)
        samples = images_at(generated)
        known, others = settings.open_sets(training, heldout)
        say(f"Indexing {len(known)} training images and {0 if others is None else len(others)} held-out images.")
        detector.fit(known, others)
        say(f"Checking {len(samples)} samples against {detector.training_groups} training patients.")
        result = detector.detect(samples)
        self_test = None
        if settings.self_test and detector.has_control and min(detector.image_shape[1:]) >= SMALLEST_SIDE:
            say("Checking the detector itself on planted copies.")
            self_test = detector.self_test(copies_per_alteration=settings.self_test)
    notes += _notes(result, known=known, others=others)
    if self_test is not None and (warning := self_test.warning()) is not None:
        notes.append(warning)
    seconds = time.perf_counter() - started
    say("Writing the results.")
    order = most_alike_first(result)
    described = {
        "Samples": str(len(samples)),
        "Training images": f"{len(known)} of {detector.training_groups} patients",
        "Held-out images": "none" if others is None else f"{len(others)}, {detector.heldout_groups} patients used",
        "False discovery rate of the verdicts": f"{settings.fdr:g}",
        "Hits per view": str(settings.top_k),
        "Alterations searched": settings.transforms,
        "Planted copies found": "none were planted" if self_test is None else str(self_test.overall_recall),
        "Version": version("relict-lightning"),
    }
    write_report(
        output / REPORT,
        title="Audit of generated images",
        evaluations=[_evaluation(result, seconds=seconds)],
        onset=None,
        pairs=detector.matched_pairs(samples, result, order[:_PAIRS_IN_REPORT]),
        settings=described,
        notes=notes,
        self_test=self_test,
        show_ids=show_ids,
        is_audit=True,
    )
    chosen = pairs_to_rate(order, count=settings.num_pairs)
    write_private(output / PAIRS, _packed(chosen, detector.matched_pairs(samples, result, chosen)))
    write_private(output / VERDICTS, _table(result, samples, show_ids=show_ids))
    paths = {"generated": generated, "training": training, "heldout": heldout}
    sources = {name: None if path is None else str(path.expanduser().absolute()) for name, path in paths.items()}
    summary = _summary(result) | {
        "training_patients": detector.training_groups,
        "heldout_patients": detector.heldout_groups,
        "seconds": round(seconds, 3),
        "notes": notes,
        "self_test": None if self_test is None else self_test.to_dict(),
        "settings": {**sources, **asdict(settings), "version": version("relict-lightning")},
    }
    # Last, because its presence says that the audit is complete.
    write_private(output / SUMMARY, json.dumps(_finite(summary), indent=1, allow_nan=False) + "\n")
    return Audit(result=result, folder=output, notes=tuple(notes), self_test=self_test)


def most_alike_first(result: DetectionResult) -> list[int]:
    """Return the samples by how much they are like copies: by score, or by correlation where there is no score."""

    def alike(sample: int) -> float:
        verdict = result.verdicts[sample]
        return verdict.evidence["voxel"]["normalized_cross_correlation"] if math.isnan(verdict.score) else verdict.score

    return sorted(range(len(result.verdicts)), key=alike, reverse=True)


def pairs_to_rate(order: Sequence[int], *, count: int) -> list[int]:
    """Return which samples experts should rate: half of them the most alike, half spread evenly over the others.

    A threshold cannot be judged on copies alone, and an even choice would hold hardly any copy where they are rare.

    Args:
        order: All samples, most alike first.
        count: How many to choose at most.

    Returns:
        The samples in ascending order, which tells a rater nothing.

    Example:
        >>> pairs_to_rate([9, 8, 7, 6, 5, 4, 3, 2, 1, 0], count=4)
        [0, 3, 8, 9]
    """
    if count >= len(order):
        return sorted(order)
    top = (count + 1) // 2
    rest = np.linspace(top, len(order) - 1, count - top + 1).round().astype(int)[1:]
    return sorted([*order[:top], *(order[position] for position in rest)])


@contextmanager
def relict_warnings() -> Iterator[list[str]]:
    """Collect this package's warnings as sentences for the report; pass all others on."""
    sentences: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RelictWarning)
        yield sentences
    for warning in caught:
        if issubclass(warning.category, RelictWarning):
            sentences.append(str(warning.message))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _notes(result: DetectionResult, *, known: object, others: object) -> list[str]:
    """Return what a reader must know beyond warnings."""
    notes = []
    arrays = [name for name, images in (("training", known), ("held-out", others)) if isinstance(images, np.ndarray)]
    if arrays:
        notes.append(
            f"The {' and '.join(arrays)} images came as one array, which names no patients: each image counts as a "
            f"patient of its own. If some patients have several images, pass folders of files and say how patients "
            f"are named, or copies of such patients may be missed."
        )
    if result.attainable_p_value is not None and result.attainable_p_value > 0.01:
        notes.append(
            f"With this split and these samples the memorization p-value could not have been below "
            f"{result.attainable_p_value:.2g}. More held-out patients or more samples give it more power."
        )
    return notes


def _evaluation(result: DetectionResult, *, seconds: float) -> Evaluation:
    measures = {**result.measures, "seconds_checking": seconds}
    if result.memorization_p_value is not None:
        measures["memorization_p_value"] = result.memorization_p_value
    if result.leaning_rate is not None:
        measures["leaning_rate"] = result.leaning_rate.value
    return Evaluation(step=0, epoch=0, replica_rate=result.replica_rate, measures=measures)


def _table(result: DetectionResult, samples: Any, *, show_ids: bool) -> str:
    """Return the verdicts as CSV, each beside the name of its sample."""
    frame = result.to_frame()
    ids = [name for batch in open_images(samples, role="generated").batches(64) for name in batch.ids]
    frame.insert(1, "generated", ids)
    if not show_ids:
        frame = frame.drop(columns=_PATIENT_COLUMNS)
    text: str = frame.to_csv(index=False)
    return text


def _packed(samples: Sequence[int], pairs: Sequence[MatchedPair]) -> bytes:
    """Return pairs as the bytes of an `.npz` file: sample, matched position, and both images."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        sample=np.array(samples, dtype=np.int64),
        match=np.array([pair.verdict.match for pair in pairs], dtype=np.int64),
        # Eight times finer than any screen shows.
        generated=np.stack([np.asarray(pair.generated, dtype=np.float16) for pair in pairs]),
        training=np.stack([np.asarray(pair.training, dtype=np.float16) for pair in pairs]),
    )
    return buffer.getvalue()


def _summary(result: DetectionResult) -> dict[str, Any]:
    """Return the numbers of the whole set."""
    return {
        "samples": len(result.verdicts),
        "replica_rate": None if result.replica_rate is None else asdict(result.replica_rate),
        "replica_rate_by_level": {level: asdict(rate) for level, rate in result.level_rates.items()},
        "leaning_rate": None if result.leaning_rate is None else asdict(result.leaning_rate),
        "memorization_p_value": result.memorization_p_value,
        "attainable_memorization_p_value": result.attainable_p_value,
        "discovery_p_value": result.discovery_p_value,
        "measures": dict(result.measures),
    }


def _finite(value: Any) -> Any:
    """Return JSON content with null for numbers that JSON has no word for."""
    if isinstance(value, Mapping):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
