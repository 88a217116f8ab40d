"""Comparing samples with the training images that they may have been made from: align first, then measure.

In two rounds, which samples and control go through alike. The first looks at every hit on a coarse grid and aligns it
from two starts. A copy may have been moved as a whole: then the whole images are brought to cover, by phase correlation
and an affine refinement. Or a lesion may have been transplanted to the same place in another head: then images stay,
and only what sets them apart from the population (`Population.residual`) is brought to cover. The second round takes
the best hit of each of the patients that fit best, refines it on the working grid, and measures at full resolution.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from relict_lightning.functional import (
    affine_coverage,
    affine_identity,
    align_affine,
    align_translation,
    compose_affine,
    invert_affine,
    mean_dice,
    mirror,
    normalized_cross_correlation,
    structural_similarity,
    warp_affine,
)
from relict_lightning.index import Reference
from relict_lightning.population import Population, halved
from relict_lightning.retrieval import Hits

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

MEASURES = (
    "residual_correlation",
    "normalized_cross_correlation",
    "structural_similarity",
    "mean_dice",
)

MEASUREMENT_VERSION = 2
"""Raised whenever the same images get other measures: a control that was measured otherwise is not compared with."""

# Patients per sample that are compared in full: the best one, and five others to say what is usual.
_PATIENTS = 6
# What is brought to cover where images stay is beyond usual variation: 5 % of a normal variable lies further off.
_SALIENT = 2.0
# Most of the way from a displacement of two voxels is made in four steps.
_COARSE_STEPS, _FINE_STEPS = 8, 6
# Displacements are looked for up to this share of the shortest side; anatomy that lies further off was not registered
# alike.
_SHIFT_SHARE = 0.1
# Voxels of images that are held at once for a step, which bounds its memory to some 100 MiB.
_VOXELS_AT_ONCE = 1 << 18


class _Aligned(NamedTuple):
    """Maps of pairs, and how well they bring the two images to cover."""

    maps: Tensor
    score: Tensor


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The pairs that were compared in full, and their measures.

    Attributes:
        pairs: Which of the hits they are, in order, `[p]`.
        maps: How each sample, mirrored, was moved onto the training image, `[p, ndim, ndim + 1]`.
        measures: Values of each of `MEASURES`, `[p]`.
    """

    pairs: Array
    maps: Array
    measures: Mapping[str, Array]


@torch.no_grad()
def compare_hits(
    images: Float[Tensor, "n c *spatial"],
    label_maps: Int[Tensor, "n *spatial"],
    hits: Hits,
    *,
    mirrors: tuple[tuple[int, ...], ...],
    align: bool,
    reference: Reference,
    population: Population,
    device: torch.device,
) -> Compared:
    """Return the measures of the best hit of each of a sample's best patients.

    Args:
        images: Samples on the training set's intensity scale.
        label_maps: Their label maps.
        hits: The pairs to choose from.
        mirrors: The mirrorings that the hits count.
        align: Whether to move samples onto training images.
        reference: The training set; all processes that share it call this.
        population: What its images have in common.
        device: Where to compare.
    """
    held = np.flatnonzero(reference.stored.holds(hits.training) & reference.label_maps.holds(hits.training))
    work = _Work(images, label_maps, hits, mirrors, reference, population.to(device), device)
    count, ndim = len(hits.sample), images.ndim - 2
    maps, score = affine_identity(count, ndim), torch.zeros(count)
    first = reference.processes.gather(lambda: (held, work.first_round(held, align=align)), doing="Aligning images")
    for pairs, aligned in first:
        maps[pairs], score[pairs] = aligned.maps, aligned.score
    chosen = _best_patients(hits, reference.group_codes[hits.training], score.numpy())
    measures = {name: np.zeros(len(chosen), dtype=np.float32) for name in MEASURES}
    places = np.flatnonzero(np.isin(chosen, held))
    second = reference.processes.gather(
        lambda: (places, work.second_round(chosen[places], maps[chosen[places]], align=align)),
        doing="Comparing images",
    )
    final = np.zeros((len(chosen), ndim, ndim + 1), dtype=np.float32)
    for here, (moved, values) in second:
        final[here] = moved
        for name in MEASURES:
            measures[name][here] = values[name]
    return Compared(pairs=chosen, maps=final, measures=measures)


def _best_patients(hits: Hits, codes: Array, score: Array) -> Array:
    """Return each sample's best pairs, at most one of each patient, in the order of the hits."""
    chosen = []
    taken: dict[int, set[int]] = {}
    for pair in np.lexsort((-score, hits.sample)):
        patients = taken.setdefault(int(hits.sample[pair]), set())
        if len(patients) < _PATIENTS and int(codes[pair]) not in patients:
            patients.add(int(codes[pair]))
            chosen.append(pair)
    return np.sort(np.array(chosen, dtype=np.int64))


class _Work:
    """The samples and the training images of a comparison, on the working grid."""

    def __init__(
        self,
        images: Tensor,
        label_maps: Tensor,
        hits: Hits,
        mirrors: Sequence[tuple[int, ...]],
        reference: Reference,
        population: Population,
        device: torch.device,
    ) -> None:
        self.images, self.label_maps, self.hits, self.mirrors = images, label_maps, hits, mirrors
        self.reference, self.population, self.device = reference, population, device
        size = max(1, _VOXELS_AT_ONCE // int(np.prod(images.shape[1:])))
        self.small = torch.cat([population.working(some.to(device)) for some in torch.split(images, size)])
        self.size = max(1, _VOXELS_AT_ONCE // int(np.prod(self.small.shape[1:])))
        bound = int(_SHIFT_SHARE * min(images.shape[2:]) / max(population.factors)) // 2
        self.max_shift = max(1, bound)
        self.places: dict[int, Tensor] = {}

    def first_round(self, pairs: Array, *, align: bool) -> _Aligned:
        """Return the better of both alignments of each pair, on half the working grid."""
        found = [self._first(some, align=align) for some in _parts(pairs, self.size)]
        if not found:
            return _Aligned(affine_identity(0, self.images.ndim - 2), torch.zeros(0))
        return _Aligned(torch.cat([one.maps for one in found]).cpu(), torch.cat([one.score for one in found]).cpu())

    def second_round(self, pairs: Array, maps: Tensor, *, align: bool) -> tuple[Array, Mapping[str, Array]]:
        """Return refined maps of pairs, and their measures."""
        moved = np.zeros((len(pairs), *maps.shape[1:]), dtype=np.float32)
        values = {name: np.zeros(len(pairs), dtype=np.float32) for name in MEASURES}
        for here in _parts(np.arange(len(pairs)), self.size):
            samples = self._samples(pairs[here])
            patients, place = self._patients(pairs[here])
            own = self.population.residual(warp_affine(patients, place))
            map_ = maps[here].to(self.device)
            if align:
                map_ = self._refined(samples, patients, own, place, map_)
            values["residual_correlation"][here] = self._likeness(samples, own, place, map_).cpu().numpy()
            moved[here] = map_.cpu().numpy()
        # Whole images are many times as large as the working grid.
        for number, pair in enumerate(pairs):
            for name, value in self._in_full(int(pair), torch.from_numpy(moved[number : number + 1])).items():
                values[name][number] = value
        return moved, values

    def _first(self, pairs: Array, *, align: bool) -> _Aligned:
        samples = self._samples(pairs)
        patients, place = self._patients(pairs)
        own = self.population.residual(warp_affine(patients, place))
        stay = affine_identity(len(pairs), samples.ndim - 2).to(self.device)
        if not align:
            return _Aligned(stay, self._likeness(samples, own, place, stay, coarse=True))
        small, target = halved(samples), halved(patients)
        _, steps = align_translation(small, target, max_shift=self.max_shift)
        sides = torch.tensor(small.shape[2:], device=self.device)
        start = torch.cat([stay[:, :, :-1], (-2 * steps / sides)[:, :, None]], dim=2)
        whole = align_affine(small, target, start=start, iterations=_COARSE_STEPS).maps
        transplanted = self._covered(samples, own, place, stay, steps=_COARSE_STEPS, coarse=True)
        score = self._likeness(samples, own, place, whole, coarse=True)
        better = transplanted.score > score
        maps = torch.where(better[:, None, None], transplanted.maps, whole)
        return _Aligned(maps, torch.maximum(score, transplanted.score))

    def _refined(self, samples: Tensor, patients: Tensor, own: Tensor, place: Tensor, maps: Tensor) -> Tensor:
        """Return the best of the maps, of those that bring the whole images to cover, and what is their own."""
        whole = align_affine(samples, patients, start=maps, iterations=_FINE_STEPS).maps
        starts = [self._covered(samples, own, place, start, steps=_FINE_STEPS) for start in (maps, whole)]
        better = starts[1].score > starts[0].score
        return torch.where(better[:, None, None], starts[1].maps, starts[0].maps)

    def _covered(
        self, samples: Tensor, own: Tensor, place: Tensor, maps: Tensor, *, steps: int, coarse: bool = False
    ) -> _Aligned:
        """Return maps that also bring what sets the images apart to cover, where that makes them more alike."""
        moved = functional.softshrink(self._residual(samples, place, maps), _SALIENT)
        target = functional.softshrink(own, _SALIENT)
        if coarse:
            moved, target = halved(moved), halved(target)
        # Found where the population's mean lies, and wanted where the training image lies.
        change = align_affine(moved, target, iterations=steps).maps
        there = compose_affine(place, compose_affine(change, invert_affine(place)))
        refined = compose_affine(maps, there)
        before, after = (self._likeness(samples, own, place, one, coarse=coarse) for one in (maps, refined))
        return _Aligned(torch.where((after > before)[:, None, None], refined, maps), torch.maximum(before, after))

    def _residual(self, samples: Tensor, place: Tensor, maps: Tensor) -> Tensor:
        return self.population.residual(warp_affine(samples, compose_affine(maps, place)))

    def _likeness(self, samples: Tensor, own: Tensor, place: Tensor, maps: Tensor, *, coarse: bool = False) -> Tensor:
        """Return the correlation of residuals where both images have voxels.

        On half the working grid (`coarse`) it forgives what a coarse alignment leaves.
        """
        together = compose_affine(maps, place)
        sides = tuple(samples.shape[2:])
        seen = (affine_coverage(together, sides) & affine_coverage(place, sides))[:, None]
        one, other = self._residual(samples, place, maps) * seen, own * seen
        if coarse:
            one, other = halved(one), halved(other)
        # A sum of its own for every pair, because the order of one over several depends on how many they are.
        return torch.stack([_cosine(*pair) for pair in zip(one.flatten(1), other.flatten(1), strict=True)])

    def _samples(self, pairs: Array) -> Tensor:
        """Return the samples of pairs on the working grid, mirrored."""
        taken = self.small[torch.from_numpy(self.hits.sample[pairs])]
        for mirroring, axes in enumerate(self.mirrors):
            here = torch.from_numpy(np.flatnonzero(self.hits.mirroring[pairs] == mirroring))
            if axes and len(here):
                taken[here] = mirror(taken[here], axes)
        return taken

    def _patients(self, pairs: Array) -> tuple[Tensor, Tensor]:
        """Return the training images of pairs on the working grid, and the maps that place them on the population."""
        names, of_pair = np.unique(self.hits.training[pairs], return_inverse=True)
        patients = self.population.working(torch.from_numpy(self.reference.volumes(names)).to(self.device))
        new = [number for number, name in enumerate(names) if int(name) not in self.places]
        for number, place in zip(new, self.population.place(patients[new]), strict=True):
            self.places[int(names[number])] = place
        places = torch.stack([self.places[int(name)] for name in names])
        return patients[torch.from_numpy(of_pair)], places[torch.from_numpy(of_pair)]

    def _in_full(self, pair: int, map_: Tensor) -> dict[str, float]:
        """Return the measures of one pair at full resolution."""
        some = slice(pair, pair + 1)
        axes, map_ = self.mirrors[self.hits.mirroring[pair]], map_.to(self.device)
        training = self.hits.training[some]
        patient = torch.from_numpy(self.reference.volumes(training)).to(self.device)
        labels = torch.from_numpy(self.reference.label_maps[training].astype(np.int64)).to(self.device)
        sample = torch.from_numpy(self.hits.sample[some])
        moved = warp_affine(mirror(self.images[sample].to(self.device), axes), map_)
        # Labels are whole numbers, which float32 holds exactly.
        own_labels = mirror(self.label_maps[sample].to(self.device)[:, None].float(), axes)
        own_labels = warp_affine(own_labels, map_, interpolation="nearest")[:, 0].long()
        # Two at least, because a segmenter may find nothing but background.
        num_labels = max(2, int(max(own_labels.max(), labels.max())) + 1)
        return {
            "normalized_cross_correlation": float(normalized_cross_correlation(moved, patient)),
            "structural_similarity": float(structural_similarity(moved, patient, data_range=1.0)),
            "mean_dice": float(mean_dice(own_labels, labels, num_labels=num_labels)),
        }


def _parts(values: Array, size: int) -> list[Array]:
    return [values[start : start + size] for start in range(0, len(values), size)]


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    lengths = one.norm() * other.norm()
    return torch.where(lengths > 0, one @ other / lengths.clamp_min(torch.finfo(torch.float32).tiny), 0.0)
