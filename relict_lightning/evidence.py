"""From hits to evidence: how alike a sample and a training image are, at every level, and how unlike all others.

Retrieval has narrowed the training set down to a few hits per sample, and the best of these were aligned and compared.
Samples of one generator may be alike to every patient, because they are blurred, or to none, because they are noisy. So
a level's likeness is judged against the sample's own other patients: it is the logarithm of how many times as far off
as the nearest patient the two next ones are, on average. A new patient has one near 0, a copy much more, whatever the
generator's look.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from relict_lightning.calibration import Rule, level_excess
from relict_lightning.comparison import MEASURES_OF_STRUCTURES, Compared
from relict_lightning.functional import neighbor_ratio
from relict_lightning.index import Reference
from relict_lightning.patches import MEASURES_OF_PATCHES
from relict_lightning.results import LEVELS, Level, Transform
from relict_lightning.retrieval import Hits, Queries

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

# A sample halfway between two patients is near to two, and no copy of either. Two and not one, because a patient who is
# in the training set under two names must not hide the copies of both.
_OTHERS = 2
_SMALLEST_DISTANCE = 1e-12
# To be nearer than a twentieth says no more: that far, a generator's look moves any copy.
_SMALLEST_RATIO = 1 / 20
# Fewer patches that are alike say nothing.
_LEAST_PATCHES = 0.1
_STRUCTURES: Level = "segmentation"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The measures of the pairs that were compared in full.

    Attributes:
        hits: All pairs that were retrieved.
        mirrors: The mirrorings that `hits.mirroring` counts.
        compared: Those of them that were compared in full, at least one per sample, and their measures.
        image_sides: Sides of the images, in voxels.
        has_label_maps: Whether label maps are those of a segmenter or of the data, and not classes of intensity.
    """

    hits: Hits
    mirrors: tuple[tuple[int, ...], ...]
    compared: Compared
    image_sides: tuple[int, ...]
    has_label_maps: bool

    @property
    def sample(self) -> Array:
        """Position of the sample of each compared pair, `[p]`."""
        sample: Array = self.hits.sample[self.compared.pairs]
        return sample

    @property
    def training(self) -> Array:
        """Position of the training image of each compared pair, `[p]`."""
        training: Array = self.hits.training[self.compared.pairs]
        return training

    def similarities(self, level: Level) -> tuple[Array, ...]:
        """Return similarities of every compared pair, at most 1, larger for more alike, each `[p]`.

        At voxel level they are the correlation of what sets the two images apart from the population, after alignment,
        and the mean of correlation and structural similarity of the images as they lie. At segmentation level they are
        how alike what stands out of the images is. The Dice of label maps, moved and as they lie, is of that level
        where these show structures, and of voxel level where they are classes of intensity.
        """
        measures = self.compared.measures
        if level == "feature":
            return (self.hits.feature_similarity[self.compared.pairs],)
        dice = (measures["mean_dice"], measures["unmoved_dice"])
        if level == "voxel":
            whole = (measures["residual_correlation"], measures["unmoved_similarity"])
            return whole if self.has_label_maps else (*whole, *dice)
        salient = measures["salient_similarity"]
        return (salient, *dice) if self.has_label_maps else (salient,)

    def describe(self, pair: int) -> dict[Level, dict[str, float]]:
        """Return the measures of one compared pair, per level, by name."""
        values = {name: float(of_pairs[pair]) for name, of_pairs in self.compared.measures.items()}
        cosine = float(self.hits.feature_similarity[self.compared.pairs[pair]])
        structures = {name: values.pop(name) for name in MEASURES_OF_STRUCTURES}
        by_patches = self.hits.patch_likeness[:, self.compared.pairs[pair]]
        structures |= zip(MEASURES_OF_PATCHES, map(float, by_patches), strict=True)
        return {"voxel": values, "feature": {"cosine_similarity": cosine}, "segmentation": structures}

    def transform(self, pair: int) -> Transform:
        """Return how the sample of one compared pair was moved onto the training image."""
        mirroring = int(self.hits.mirroring[self.compared.pairs[pair]])
        return _transform(self.compared.maps[pair], sides=self.image_sides, mirrored_axes=self.mirrors[mirroring])


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """How much like a copy every sample is.

    Attributes:
        columns: The level of each measure.
        by_measure: Copy-likeness of each sample by each measure, `[n, c]`: the natural logarithm of a ratio of
            distances, at most 3, or of a number of patches.
        by_pair: The same of each compared pair, `[p, c]`.
        sample: Position of the sample of each compared pair, `[p]`, in order.
        neighbor_ratio: Feature distance (Euclidean, between unit vectors) to the nearest image over that to the
            nearest image of another group, `[n]`, in [0, 1].
    """

    columns: tuple[Level, ...]
    by_measure: Array
    by_pair: Array
    sample: Array
    neighbor_ratio: Array

    def best_pairs(self, *, control: Array | None = None, rule: Rule | None = None) -> Array:
        """Return the position, among the compared pairs, of the one that matches each sample best, `[n]`.

        With a control it is the one whose levels together exceed what is usual most, by the sum of squares, so that a
        match by one level outweighs chance by several.

        Args:
            control: Copy-likeness of held-out images, `[h, c]`; None without any.
            rule: Which measures are of which level, where there is a control.
        """
        excess = self.by_pair if control is None or rule is None else level_excess(self.by_pair, control, rule)
        total = np.square(excess.clip(0.0)).sum(axis=1)
        # Where nothing exceeds the usual, the nearest.
        order = np.lexsort((self.by_pair.sum(axis=1), total, self.sample))
        best: Array = order[np.flatnonzero(np.diff(self.sample[order], append=-1))]
        return best


@dataclass(frozen=True, kw_only=True)
class Look:
    """Everything measured on one set of images before any of it is judged.

    Attributes:
        queries: The images as vectors.
        evidence: The measures of each hit.
        likeness: How much like a copy each image is.
    """

    queries: Queries
    evidence: Evidence
    likeness: Likeness

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.queries)

    @property
    def distance_to_training(self) -> Array:
        """Euclidean distance of unit embeddings to the nearest hit, `[n]`."""
        hits = self.evidence.hits
        nearest = np.full(len(self), -np.inf)
        np.maximum.at(nearest, hits.sample, hits.feature_similarity)
        distance: Array = np.sqrt(np.maximum(2 - 2 * nearest, 0.0))
        return distance


def judge(evidence: Evidence, reference: Reference, *, count: int) -> Likeness:
    """Return how much like a copy each of `count` samples is.

    Every sample needs hits of at least two groups, which retrieval gives wherever the training set has two.
    """
    codes = torch.from_numpy(reference.group_codes[evidence.training])
    # Rounding can put the similarity of two equal images above 1 by a hair.
    named = [(level, similarity) for level in LEVELS for similarity in evidence.similarities(level)]
    distances = [torch.from_numpy(1.0 - similarity).float().clamp_min(0) for _, similarity in named]
    by_pair = np.zeros((len(codes), len(named) + len(MEASURES_OF_PATCHES)))
    by_measure = np.full((count, by_pair.shape[1]), -np.inf)
    for start, stop in pairwise(np.searchsorted(evidence.sample, np.arange(count + 1))):
        for column, distance in enumerate(distances):
            by_pair[start:stop, column] = _judged(distance[start:stop], codes[start:stop])
    np.maximum.at(by_measure[:, : len(named)], evidence.sample, by_pair[:, : len(named)])
    # A patch was judged against other patients at its own place already, all hits alike.
    *likeness, alike = evidence.hits.patch_likeness.astype(np.float64)
    by_patches = [*(_logarithm(1.0 - of_patch) for of_patch in likeness), np.log(_LEAST_PATCHES + alike)]
    for column, of_hits in enumerate(by_patches, start=len(named)):
        by_pair[:, column] = of_hits[evidence.compared.pairs]
        np.maximum.at(by_measure[:, column], evidence.hits.sample, of_hits)
    return Likeness(
        columns=(*(level for level, _ in named), *[_STRUCTURES] * len(MEASURES_OF_PATCHES)),
        by_measure=by_measure,
        by_pair=by_pair,
        sample=evidence.sample,
        neighbor_ratio=_neighbor_ratios(evidence.hits, reference),
    )


def _judged(distance: torch.Tensor, codes: torch.Tensor) -> Array:
    """Return the copy-likeness of each of a sample's pairs by one measure."""
    nearest = [float(distance[codes == code].min()) for code in set(codes.tolist())]
    others = float(np.sort(nearest)[1 : 1 + _OTHERS].mean())
    # Where others are as near as can be, nothing tells them apart.
    ratio = distance.numpy() / others if others > _SMALLEST_DISTANCE else np.ones(len(distance))
    return _logarithm(ratio)


def _logarithm(ratio: Array) -> Array:
    """Return the copy-likeness of a ratio of distances."""
    likeness: Array = -np.log(np.maximum(ratio, _SMALLEST_RATIO))
    return likeness


def _neighbor_ratios(hits: Hits, reference: Reference) -> Array:
    """Return each sample's ratio of feature distances, over all of its hits, `[n]`."""
    # The Euclidean distance of unit vectors with cosine s is sqrt(2 - 2 s).
    distance = torch.from_numpy(np.sqrt(np.maximum(2 - 2 * hits.feature_similarity, 0)))
    codes = torch.from_numpy(reference.group_codes[hits.training])
    starts = np.flatnonzero(np.diff(hits.sample, prepend=-1, append=-1))
    ratios = []
    for start, stop in pairwise(starts):
        ordered, order = distance[start:stop].sort()
        ratios.append(float(neighbor_ratio(ordered[None], codes[start:stop][order][None])))
    return np.array(ratios)


def _transform(values: Array, *, sides: tuple[int, ...], mirrored_axes: tuple[int, ...]) -> Transform:
    """Return the motion that a map makes, in numbers that people can picture."""
    matrix, half = np.asarray(values, dtype=np.float64), np.asarray(sides) / 2
    ndim = len(sides)
    # In voxels, and from the sample to the training image: the way that the sample was moved.
    linear = np.linalg.inv(matrix[:, :ndim] * half[:, None] / half[None, :])
    displacement = -linear @ (matrix[:, ndim] * half)
    left, stretches, right = np.linalg.svd(linear)
    cosine = (np.trace(left @ right) - (ndim - 2)) / 2
    return Transform(
        mirrored_axes=mirrored_axes,
        shift_voxels=tuple(float(step) for step in displacement),
        rotation_degrees=float(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))),
        scale=float(stretches.prod() ** (1 / ndim)),
        map=tuple(tuple(float(value) for value in row) for row in matrix),
    )
