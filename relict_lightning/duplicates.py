"""Images that are in a data set twice: among the training images, and between training and held-out images.

What is in the training set twice is what a model memorizes first. A held-out image that is a training image in disguise
makes copies look ordinary. Every image is looked up among those of all other patients, in the views that samples are
looked up in, and judged as samples are: by how much nearer its nearest image lies than those of five more patients.
Images are looked up as they are, so a second copy that was mirrored, or moved by more than a coarse voxel, is missed.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from relict_lightning.functional import align_translation, copy_likeness, normalized_cross_correlation
from relict_lightning.index import COARSE, FEATURE, Reference

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

# Twice as near as other patients, in both views: a patient's look-alike is so in one of them at most.
_LIKENESS = 0.5
_OTHERS = 5
_QUERIES = 256
_PAIRS = 16
# As in the search for copies, displacements of up to this share of the shortest side are undone.
_SHIFT_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class DuplicatePair:
    """Two images of different patients that are more alike than those of different patients are.

    Attributes:
        first: Position of the one; in a leak, of the held-out image.
        second: Position of the other, a training image.
        first_id: Id of the one.
        second_id: Id of the other.
        feature_likeness: How much nearer they lie than other patients do, in the feature view, at most 1.
        voxel_likeness: The same in the coarse voxel view.
        correlation: Normalised cross-correlation of the two images after the best displacement, in [-1, 1].
        is_bitwise: Whether they are equal bit by bit.
    """

    first: int
    second: int
    first_id: str
    second_id: str
    feature_likeness: float
    voxel_likeness: float
    correlation: float
    is_bitwise: bool


@dataclass(frozen=True, kw_only=True)
class TrainingAudit:
    """What is in the data sets twice.

    Attributes:
        duplicates: Pairs of training images, the most alike first.
        leaks: Held-out images and the training images that they resemble, the most alike first.
    """

    duplicates: tuple[DuplicatePair, ...]
    leaks: tuple[DuplicatePair, ...]

    def to_frame(self) -> pd.DataFrame:
        """Return one row per pair; `kind` is "duplicate" or "leak"."""
        kinds = {"duplicate": self.duplicates, "leak": self.leaks}
        rows = [{"kind": kind, **asdict(pair)} for kind, pairs in kinds.items() for pair in pairs]
        return pd.DataFrame(rows, columns=["kind", *DuplicatePair.__dataclass_fields__])


def find_duplicates(training: Reference) -> tuple[DuplicatePair, ...]:
    """Return pairs of near-duplicates of different patients, and of bitwise copies of anyone, the most alike first.

    Where several processes share the reference, all of them call this.
    """
    found = _resembling(training, training)
    digests = training.item_digests
    # A pair that is found from both sides is one pair.
    pairs = {(min(pair), max(pair)): found[pair] for pair in sorted(found) if digests[pair[0]] != digests[pair[1]]}
    # Bitwise copies may have been merged into one patient, whose images are not compared with each other.
    first_of: dict[str, int] = {}
    for position, digest in enumerate(digests):
        if (first := first_of.setdefault(digest, position)) != position:
            pairs[first, position] = (1.0, 1.0)
    return _described(sorted(pairs.items()), training, training)


def find_leaks(heldout: Reference, training: Reference) -> tuple[DuplicatePair, ...]:
    """Return held-out images that resemble a training image as only a copy does, the most alike first.

    Where several processes share the references, all of them call this.
    """
    return _described(sorted(_resembling(heldout, training).items()), heldout, training)


def _resembling(queries: Reference, training: Reference) -> dict[tuple[int, int], tuple[float, float]]:
    """Return the likeness in both views of every image that is like its nearest image of another patient in both."""
    is_same = queries is training
    found: dict[tuple[int, int], tuple[float, float]] = {}
    for positions in _parts(len(queries), _QUERIES):
        own = training.group_codes[positions] if is_same else np.full(len(positions), -1)
        likeness, nearest = {}, {}
        for view in (FEATURE, COARSE):
            vectors = queries.fetch_vectors(view, positions)
            # One group more than are needed, because an image's own group is among them.
            similarity, hits = training.views[view].search(vectors, _OTHERS + 2, codes=training.group_codes)
            groups = training.group_codes[hits]
            distance = np.sqrt(np.maximum(2 - 2 * similarity, 0))
            # The own group last, at no distance that counts.
            distance = np.where(groups == own[:, None], np.inf, distance)
            order = distance.argsort(axis=1, kind="stable")
            distance, groups, hits = (np.take_along_axis(values, order, axis=1) for values in (distance, groups, hits))
            usable = np.isfinite(distance[:, 0])
            likeness[view] = np.zeros(len(positions))
            likeness[view][usable] = copy_likeness(
                torch.from_numpy(distance[usable].astype(np.float32)), torch.from_numpy(groups[usable])
            ).numpy()
            nearest[view] = hits[:, 0]
        for place, position in enumerate(positions):
            values = float(likeness[FEATURE][place]), float(likeness[COARSE][place])
            partner = int(nearest[FEATURE][place])
            same_patient = training.group_codes[partner] == training.group_codes[nearest[COARSE][place]]
            # NaN, where there are no more patients to compare with, is no likeness.
            if same_patient and min(values) >= _LIKENESS:
                found[int(position), partner] = values
    return found


def _described(
    pairs: list[tuple[tuple[int, int], tuple[float, float]]], queries: Reference, training: Reference
) -> tuple[DuplicatePair, ...]:
    """Return pairs with the correlation of their images."""
    described = []
    for places in _parts(len(pairs), _PAIRS):
        some = [pairs[place] for place in places]
        first = torch.from_numpy(queries.fetch_volumes(np.array([pair[0] for pair, _ in some])))
        second = torch.from_numpy(training.fetch_volumes(np.array([pair[1] for pair, _ in some])))
        moved, _ = align_translation(first, second, max_shift=int(_SHIFT_SHARE * min(first.shape[2:])))
        correlation = normalized_cross_correlation(moved, second)
        for ((one, other), (feature, voxel)), alike in zip(some, correlation, strict=True):
            described.append(
                DuplicatePair(
                    first=one,
                    second=other,
                    first_id=queries.ids[one],
                    second_id=training.ids[other],
                    feature_likeness=feature,
                    voxel_likeness=voxel,
                    correlation=float(alike),
                    is_bitwise=bool((queries.digests[one] == training.digests[other]).all()),
                )
            )
    return tuple(sorted(described, key=lambda pair: -pair.correlation))


def _parts(count: int, size: int) -> Iterator[Array]:
    """Return all positions, some at a time."""
    for start in range(0, count, size):
        yield np.arange(start, min(start + size, count))
