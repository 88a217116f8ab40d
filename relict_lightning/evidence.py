"""From hits to evidence: how alike a sample and a training image are, at every level, and how unlike all others.

Retrieval has narrowed the training set down to a few hits per sample; here each of these pairs is aligned and compared
voxel by voxel and label by label. Samples of one generator may be alike to every patient, because they are blurred,
or to none, because they are noisy. So a level's likeness is judged against the sample's own other hits: the score is
one minus the ratio of the distance to the nearest image to the mean distance to the nearest images of other patients.
A copy has a score near 1, a new patient one near 0, whatever the generator's look.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from relict_lightning.functional import (
    align_translation,
    copy_likeness,
    mean_dice,
    mirror,
    neighbor_ratio,
    normalized_cross_correlation,
    shift,
    structural_similarity,
)
from relict_lightning.index import Reference
from relict_lightning.results import LEVELS, Level, Transform
from relict_lightning.retrieval import Hits, Queries

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

# Pairs are compared in chunks of this many voxels, which bounds the memory of a chunk to some 100 MiB.
_VOXELS_PER_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Every pair's measures, in the order of the hits.

    Attributes:
        hits: The pairs.
        mirrors: The mirrorings that `hits.mirroring` counts.
        shifts: Whole voxels that the (mirrored) sample was moved by, `[p, d]`.
        normalized_cross_correlation: In [-1, 1], `[p]`.
        structural_similarity: At most 1, `[p]`.
        mean_dice: In [0, 1], the mean over the labels present in either, `[p]`.
    """

    hits: Hits
    mirrors: tuple[tuple[int, ...], ...]
    shifts: Array
    normalized_cross_correlation: Array
    structural_similarity: Array
    mean_dice: Array

    def similarity(self, level: Level) -> Array:
        """Return one similarity per pair, at most 1, larger for more alike.

        At voxel level it is the mean of correlation and structural similarity: the one ignores gain and offset, the
        other weighs local structure. A constant image has no structure, so its similarity to anything is 0.
        """
        if level == "voxel":
            # The structural similarity of two blank images is 1, and no evidence of anything.
            correlation = self.normalized_cross_correlation
            similarity: Array = np.where(correlation == 0, 0.0, (correlation + self.structural_similarity) / 2)
            return similarity
        return self.hits.feature_similarity if level == "feature" else self.mean_dice

    def describe(self, pair: int) -> dict[Level, dict[str, float]]:
        """Return the measures of one pair, per level, by name."""
        return {
            "voxel": {
                "normalized_cross_correlation": float(self.normalized_cross_correlation[pair]),
                "structural_similarity": float(self.structural_similarity[pair]),
            },
            "feature": {"cosine_similarity": float(self.hits.feature_similarity[pair])},
            "segmentation": {"mean_dice": float(self.mean_dice[pair])},
        }

    def transform(self, pair: int) -> Transform:
        """Return how the sample of one pair was moved onto the training image."""
        return Transform(
            mirrored_axes=self.mirrors[int(self.hits.mirroring[pair])],
            shift_voxels=tuple(int(step) for step in self.shifts[pair]),
        )


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """How much like a copy every sample is.

    Attributes:
        by_level: Copy-likeness of each sample at each level of `LEVELS`, `[n, 3]`, at most 1.
        best_pair: Position, among the hits, of the pair that matches best over all levels, `[n]`.
        neighbor_ratio: Feature distance (Euclidean, between unit vectors) to the nearest image over that to the
            nearest image of another group, `[n]`, in [0, 1].
    """

    by_level: Array
    best_pair: Array
    neighbor_ratio: Array


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


@torch.no_grad()
def compare(
    images: Float[Tensor, "n c *spatial"],
    label_maps: Int[Tensor, "n *spatial"],
    hits: Hits,
    *,
    mirrors: tuple[tuple[int, ...], ...],
    max_shift: int,
    reference: Reference,
    device: torch.device,
) -> Evidence:
    """Return the evidence of every hit.

    Args:
        images: Samples on the training set's intensity scale.
        label_maps: Their label maps.
        hits: The pairs to compare.
        mirrors: The mirrorings that the hits count.
        max_shift: Largest displacement to look for along each axis, in voxels; 0 switches the search off.
        reference: The training set.
        device: Where to compare.
    """
    count = len(hits.sample)
    held = np.flatnonzero(reference.stored.holds(hits.training) & reference.label_maps.holds(hits.training))
    measures: dict[str, Array] = {name: np.zeros(count, dtype=np.float32) for name in ("ncc", "ssim", "dice")}
    measures["shifts"] = np.zeros((count, images.ndim - 2), dtype=np.int64)

    def of_held() -> dict[str, Array]:
        return _measured(
            images, label_maps, hits, held, mirrors=mirrors, max_shift=max_shift, reference=reference, device=device
        )

    for pairs, values in reference.processes.gather(lambda: (held, of_held()), doing="Comparing images"):
        for name, of_pairs in values.items():
            measures[name][pairs] = of_pairs
    return Evidence(
        hits=hits,
        mirrors=mirrors,
        shifts=measures["shifts"],
        normalized_cross_correlation=measures["ncc"],
        structural_similarity=measures["ssim"],
        mean_dice=measures["dice"],
    )


def _measured(
    images: Tensor,
    label_maps: Tensor,
    hits: Hits,
    chosen: Array,
    *,
    mirrors: tuple[tuple[int, ...], ...],
    max_shift: int,
    reference: Reference,
    device: torch.device,
) -> dict[str, Array]:
    """Return the measures of some hits, in their order."""
    measures: dict[str, Array] = {name: np.zeros(len(chosen), dtype=np.float32) for name in ("ncc", "ssim", "dice")}
    measures["shifts"] = np.zeros((len(chosen), images.ndim - 2), dtype=np.int64)
    chunk = max(1, _VOXELS_PER_CHUNK // int(np.prod(images.shape[1:])))
    for mirroring, axes in enumerate(mirrors):
        of_mirroring = np.flatnonzero(hits.mirroring[chosen] == mirroring)
        for places in np.split(of_mirroring, range(chunk, len(of_mirroring), chunk)):
            if not len(places):
                continue
            sample, training = hits.sample[chosen[places]], hits.training[chosen[places]]
            patient = torch.from_numpy(reference.volumes(training)).to(device)
            patient_labels = torch.from_numpy(reference.label_maps[training].astype(np.int64)).to(device)
            moved = mirror(images[sample].to(device), axes)
            # Labels are whole numbers, which float32 holds exactly; they are moved by whole voxels.
            moved_labels = mirror(label_maps[sample].to(device)[:, None].float(), axes)
            if max_shift:
                moved, steps = align_translation(moved, patient, max_shift=max_shift)
                moved_labels = shift(moved_labels, steps)
                measures["shifts"][places] = steps.cpu().numpy()
            measures["ncc"][places] = normalized_cross_correlation(moved, patient).cpu().numpy()
            measures["ssim"][places] = structural_similarity(moved, patient, data_range=1.0).cpu().numpy()
            # Two at least, because a segmenter may find nothing but background.
            num_labels = max(2, int(max(moved_labels.max(), patient_labels.max())) + 1)
            dice = mean_dice(moved_labels[:, 0].long(), patient_labels, num_labels=num_labels)
            measures["dice"][places] = dice.cpu().numpy()
    return measures


def judge(evidence: Evidence, reference: Reference, *, count: int) -> Likeness:
    """Return how much like a copy each of `count` samples is.

    Every sample needs hits of at least two groups, which retrieval gives wherever the training set has two.
    """
    hits = evidence.hits
    codes = torch.from_numpy(reference.group_codes[hits.training])
    # Rounding can put the similarity of two equal images above 1 by a hair.
    distances = {level: torch.from_numpy(1.0 - evidence.similarity(level)).float().clamp_min(0) for level in LEVELS}
    by_level = np.zeros((count, len(LEVELS)))
    best_pair = np.zeros(count, dtype=np.int64)
    neighbor_ratios = np.zeros(count)
    starts = np.searchsorted(hits.sample, np.arange(count + 1))
    for sample, (start, stop) in enumerate(pairwise(starts)):
        over_levels = np.zeros(stop - start)
        for column, level in enumerate(LEVELS):
            distance, order = distances[level][start:stop].sort()
            groups = codes[start:stop][order]
            by_level[sample, column] = float(copy_likeness(distance[None], groups[None]))
            others = distance[groups != groups[0]][:5].mean().clamp_min(1e-12)
            over_levels += (1 - distances[level][start:stop] / others).numpy()
            if level == "feature":
                # The Euclidean distance of unit vectors with cosine s is sqrt(2 - 2 s).
                euclidean = (2 * distance).clamp_min(0).sqrt()
                neighbor_ratios[sample] = float(neighbor_ratio(euclidean[None], groups[None]))
        best_pair[sample] = start + int(over_levels.argmax())
    return Likeness(by_level=by_level, best_pair=best_pair, neighbor_ratio=neighbor_ratios)
