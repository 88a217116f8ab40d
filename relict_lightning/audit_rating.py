"""Experts rate an audit's pairs, and the ratings judge the audit's scores: RELICT's protocol.

References:
    RELICT, arXiv:2502.17360.
"""

import json
import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from relict_lightning.audit import PAIRS, VERDICTS
from relict_lightning.calibration import LabelledCalibration, calibrate_on_ratings
from relict_lightning.errors import ConfigurationError, UnreadableDataError
from relict_lightning.report import read_ratings, write_private, write_rating_page
from relict_lightning.results import MatchedPair, Transform, Verdict

SCORES: Mapping[str, str] = {
    "voxel: normalized cross-correlation": "voxel_normalized_cross_correlation",
    "voxel: structural similarity": "voxel_structural_similarity",
    "feature: cosine similarity": "feature_cosine_similarity",
    "segmentation: what stands out": "segmentation_salient_similarity",
    "segmentation: patches": "segmentation_patch_likeness",
    "segmentation: mean Dice": "segmentation_mean_dice",
    "all levels: score": "score",
}
"""What is judged, in words, and its column of the verdicts; larger is more like a copy for each."""


def write_audit_rating_page(folder: Path, *, output: Path, seed: int = 0) -> tuple[Path, int]:
    """Write the page on which an expert rates an audit's pairs blindly.

    Args:
        folder: The audit.
        output: Where to write the page.
        seed: Seed of the order of the pairs; give each rater another.

    Returns:
        The absolute path of the page, and the number of pairs on it.

    Raises:
        UnreadableDataError: If the folder holds no audit, or the page cannot be written.
    """
    pairs = read_pairs(folder)
    return write_rating_page(output, pairs=pairs, seed=seed), len(pairs)


def calibrate_audit(folder: Path, *, ratings: Path) -> dict[str, LabelledCalibration]:
    """Return how well each of an audit's scores agrees with expert ratings, by its name in `SCORES`.

    Args:
        folder: The audit.
        ratings: The CSV file that the rating page saved.

    Raises:
        ConfigurationError: If the ratings are of other pairs, or are too few.
        UnreadableDataError: If a file is missing or damaged.
    """
    samples = _read_archive(folder)["sample"]
    rated = read_ratings(ratings)
    unknown = sorted(pair for pair in rated if pair >= len(samples))
    if unknown:
        raise ConfigurationError(
            f"{ratings} rates pair {unknown[0]}, but the audit in {folder} has pairs 0 to {len(samples) - 1}. "
            f"Pass the ratings of this audit's own page."
        )
    try:
        verdicts = pd.read_csv(folder / VERDICTS).set_index("sample").loc[samples[list(rated)]]
    except (OSError, ValueError, KeyError) as error:
        raise UnreadableDataError(
            f"{folder / VERDICTS} cannot be read as an audit's verdicts ({error}). Run the audit again."
        ) from error
    is_replica = np.array(list(rated.values()), dtype=bool)
    return {
        name: calibrate_on_ratings(verdicts[column].to_numpy(dtype=np.float64), is_replica)
        for name, column in SCORES.items()
        # Without a control there is no score.
        if column in verdicts and bool(verdicts[column].notna().all())
    }


def write_calibration(path: Path, calibrations: Mapping[str, LabelledCalibration]) -> Path:
    """Write calibrations as JSON, readable by their owner only, and return the absolute path."""
    content = {}
    for name, calibration in calibrations.items():
        threshold = calibration.threshold if math.isfinite(calibration.threshold) else None
        content[name] = {**asdict(calibration), "threshold": threshold}
    return write_private(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_pairs(folder: Path) -> list[MatchedPair]:
    """Return the pairs that an audit kept for rating, without what the detector says of them.

    Raises:
        UnreadableDataError: If the folder holds no audit, or its pairs are damaged.
    """
    stored = _read_archive(folder)
    return [
        MatchedPair(
            generated=generated.astype(np.float32),
            training=training.astype(np.float32),
            verdict=Verdict(
                score=math.nan,
                p_value=math.nan,
                is_replica=False,
                match=int(match),
                match_id="",
                match_group="",
                transform=Transform(),
                evidence={},
            ),
        )
        for generated, training, match in zip(stored["generated"], stored["training"], stored["match"], strict=True)
    ]


def _read_archive(folder: Path) -> dict[str, np.ndarray]:
    path = folder / PAIRS
    if not path.is_file():
        raise UnreadableDataError(
            f"{folder} holds no audit: {PAIRS} is missing. Pass the folder that `relict-lightning audit` wrote."
        )
    try:
        # Opened here, because NumPy leaves the file open where it is no archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in ("sample", "match", "generated", "training")}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UnreadableDataError(f"{path} is damaged ({error}). Run the audit again.") from error
