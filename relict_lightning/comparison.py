"""Comparing samples with the training images that they may have been made from: align first, then measure.

In two rounds, which samples and control go through alike. The first looks at every hit on a coarse grid and aligns it
from two starts. A copy may have been moved as a whole: then the whole images are brought to cover, by phase correlation
and an affine refinement. Or a lesion may have been transplanted to the same place in another head: then images stay,
and only what sets them apart from the population (`Population.residual`) is brought to cover. The second round takes
the best hit of each of the patients that fit best, moved, as they lie, by what stands out or by patches, refines it on
the working grid, and measures at full resolution, once moved and once unmoved. Both count, because an alignment brings
unlike people closer too: a copy that was not moved, or not yet complete, stands out most where nothing is.

What stands out of the images (`Saliency`) is compared on its own, as it lies and displaced by a little either way: it
may have been copied without anything around it that an alignment could hold on to.
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
from relict_lightning.rows import row_norms, row_sums
from relict_lightning.structures import Structures
from relict_lightning.usual import Usual

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

MEASURES_OF_STRUCTURES = (
    "salient_similarity",
    "mean_dice",
    "unmoved_dice",
)
MEASURES = (
    "residual_correlation",
    "normalized_cross_correlation",
    "structural_similarity",
    "unmoved_similarity",
    *MEASURES_OF_STRUCTURES,
)

MEASUREMENT_VERSION = 7
"""Raised whenever the same images get other measures: a control that was measured otherwise is not compared with."""

# Patients per sample that are compared in full, of those that fit best when moved, of those that do as they lie, and of
# those with the most alike salient structures or patches: the best one, and two others to judge it against.
_PATIENTS = 3
# What is brought to cover where images stay is beyond usual variation: 5 % of a normal variable lies further off.
_SALIENT = 2.0
# Most of the way from a displacement of two voxels is made in four steps.
_COARSE_STEPS, _FINE_STEPS = 8, 6
# Displacements are looked for up to this share of the shortest side; anatomy that lies further off was not registered
# alike.
_SHIFT_SHARE = 0.1
# Voxels of images that are held at once for a step, which bounds its memory to some 100 MiB.
_VOXELS_AT_ONCE = 1 << 18


class _FirstLook(NamedTuple):
    """Maps of pairs, how well they bring the two images to cover, and how alike the images are as they lie."""

    maps: Tensor
    score: Tensor
    unmoved: Tensor
    salient: Tensor


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
    usual: Usual,
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
        usual: What is usual in its images.
        device: Where to compare.
    """
    held = np.flatnonzero(reference.stored.holds(hits.training) & reference.label_maps.holds(hits.training))
    work = _Work(images, label_maps, hits, mirrors, reference, usual.to(device), device, align=align)
    count, ndim = len(hits.sample), images.ndim - 2
    maps, score, unmoved, salient = affine_identity(count, ndim), *(torch.zeros(count) for _ in range(3))
    first = reference.processes.gather(lambda: (held, work.first_round(held)), doing="Aligning images")
    for pairs, look in first:
        maps[pairs], score[pairs], unmoved[pairs], salient[pairs] = look
    codes = reference.group_codes[hits.training]
    orders = (score.numpy(), unmoved.numpy(), salient.numpy(), _by_patches(hits))
    chosen = np.unique(np.concatenate([_best_patients(hits, codes, by) for by in orders]))
    measures = {name: np.zeros(len(chosen), dtype=np.float32) for name in MEASURES}
    places = np.flatnonzero(np.isin(chosen, held))
    second = reference.processes.gather(
        lambda: (places, work.second_round(chosen[places], maps[chosen[places]])),
        doing="Comparing images",
    )
    final = np.zeros((len(chosen), ndim, ndim + 1), dtype=np.float32)
    for here, (moved, values) in second:
        final[here] = moved
        for name in MEASURES:
            measures[name][here] = values[name]
    measures["salient_similarity"] = salient[torch.from_numpy(chosen)].numpy()
    return Compared(pairs=chosen, maps=final, measures=measures)


def _by_patches(hits: Hits) -> Array:
    """Return how well pairs fit by patches, `[p]`: minus their rank among the sample's, by what ranks them highest."""
    start = np.searchsorted(hits.sample, hits.sample)
    best = np.full(len(hits.sample), len(hits.sample))
    for values in hits.patch_likeness:
        order = np.lexsort((-values, hits.sample))
        best[order] = np.minimum(best[order], np.arange(len(order)) - start)
    return -best


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


@dataclass(frozen=True, kw_only=True)
class _Placed:
    """Training images on one grid, one for each pair.

    Attributes:
        images: As they lie.
        place: The maps that move them to where the population's mean lies.
        own: Their residuals, there.
        seen: Where they have voxels, there.
        population: The population, on the same grid.
    """

    images: Tensor
    place: Tensor
    own: Tensor
    seen: Tensor
    population: Population

    @classmethod
    def of(cls, images: Tensor, place: Tensor, population: Population) -> "_Placed":
        """Return training images that `place` moves to the population."""
        own = population.residual(warp_affine(images, place))
        seen = affine_coverage(place, tuple(images.shape[2:]))[:, None]
        return cls(images=images, place=place, own=own, seen=seen, population=population)

    def covered(self, samples: Tensor, maps: Tensor, *, steps: int) -> _Aligned:
        """Return maps that also bring what sets the images apart to cover, where that makes them more alike."""
        before, residual = self._compared(samples, maps)
        salient, target = (functional.softshrink(values, _SALIENT) for values in (residual, self.own))
        # Found where the population's mean lies, and wanted where the training image lies.
        change = align_affine(salient, target, iterations=steps).maps
        there = compose_affine(self.place, compose_affine(change, invert_affine(self.place)))
        refined = compose_affine(maps, there)
        return _best([_Aligned(maps, before), _Aligned(refined, self.likeness(samples, refined))])

    def likeness(self, samples: Tensor, maps: Tensor) -> Tensor:
        """Return the correlation of residuals where both images have voxels."""
        return self._compared(samples, maps)[0]

    def _compared(self, samples: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the correlation of residuals, and the residuals of the samples."""
        together = compose_affine(maps, self.place)
        residual = self.population.residual(warp_affine(samples, together))
        seen = self.seen & affine_coverage(together, tuple(samples.shape[2:]))[:, None]
        return _cosines((residual * seen).flatten(1), (self.own * seen).flatten(1)), residual


class _Work:
    """The samples and the training images of a comparison, on the working grid."""

    def __init__(
        self,
        images: Tensor,
        label_maps: Tensor,
        hits: Hits,
        mirrors: Sequence[tuple[int, ...]],
        reference: Reference,
        usual: Usual,
        device: torch.device,
        *,
        align: bool,
    ) -> None:
        self.images, self.label_maps, self.hits, self.mirrors = images, label_maps, hits, mirrors
        self.reference, self.device, self.align = reference, device, align
        self.population = usual.population
        size = max(1, _VOXELS_AT_ONCE // int(np.prod(images.shape[1:])))
        self.small = torch.cat([self.population.working(some.to(device)) for some in torch.split(images, size)])
        self.size = max(1, _VOXELS_AT_ONCE // int(np.prod(self.small.shape[1:])))
        reach = _SHIFT_SHARE * min(images.shape[2:])
        self.max_shift = max(1, int(reach / max(self.population.factors)) // 2)
        self.structures = Structures(
            images,
            mirrors,
            reference,
            usual.saliency,
            max_shift=max(1, int(reach / max(usual.saliency.cell))) if align else 0,
            device=device,
        )
        self.coarse = self.population.at_half_resolution()
        self.places: dict[int, Tensor] = {}

    def first_round(self, pairs: Array) -> _FirstLook:
        """Return the better of both alignments of each pair, on half the working grid."""
        # Half the working grid takes an eighth of its memory in 3-D, and a quarter in 2-D.
        found = [self._first(some) for some in _parts(pairs, 4 * self.size)]
        if not found:
            return _FirstLook(affine_identity(0, self.images.ndim - 2), *(torch.zeros(0) for _ in range(3)))
        return _FirstLook(*(torch.cat(parts).cpu() for parts in zip(*found, strict=True)))

    def second_round(self, pairs: Array, maps: Tensor) -> tuple[Array, Mapping[str, Array]]:
        """Return refined maps of pairs, and their measures."""
        moved = np.zeros((len(pairs), *maps.shape[1:]), dtype=np.float32)
        values = {name: np.zeros(len(pairs), dtype=np.float32) for name in MEASURES}
        for here in _parts(np.arange(len(pairs)), self.size):
            samples, map_ = self._samples(pairs[here]), maps[here].to(self.device)
            patients = _Placed.of(*self._patients(pairs[here]), self.population)
            if self.align:
                whole = align_affine(samples, patients.images, start=map_, iterations=_FINE_STEPS).maps
                found = _best([patients.covered(samples, start, steps=_FINE_STEPS) for start in (map_, whole)])
            else:
                found = _Aligned(map_, patients.likeness(samples, map_))
            moved[here], values["residual_correlation"][here] = (one.cpu().numpy() for one in found)
        # Whole images may be many times as large as the working grid.
        whole_size = max(1, _VOXELS_AT_ONCE // int(np.prod(self.images.shape[1:])))
        for here in _parts(np.arange(len(pairs)), whole_size):
            for name, of_pairs in self._in_full(pairs[here], torch.from_numpy(moved[here])).items():
                values[name][here] = of_pairs
        return moved, values

    def _first(self, pairs: Array) -> _FirstLook:
        samples = halved(self._samples(pairs))
        images, place = self._patients(pairs)
        patients = _Placed.of(halved(images), place, self.coarse)
        stay = affine_identity(len(pairs), samples.ndim - 2).to(self.device)
        unmoved = patients.likeness(samples, stay)
        salient = self.structures.similarities(*self._named(pairs))
        if not self.align:
            return _FirstLook(stay, unmoved, unmoved, salient)
        _, steps = align_translation(samples, patients.images, max_shift=self.max_shift)
        sides = torch.tensor(samples.shape[2:], device=self.device)
        start = torch.cat([stay[:, :, :-1], (-2 * steps / sides)[:, :, None]], dim=2)
        whole = align_affine(samples, patients.images, start=start, iterations=_COARSE_STEPS).maps
        transplanted = patients.covered(samples, stay, steps=_COARSE_STEPS)
        return _FirstLook(*_best([_Aligned(whole, patients.likeness(samples, whole)), transplanted]), unmoved, salient)

    def _named(self, pairs: Array) -> tuple[Array, Array, Array]:
        """Return sample, mirroring and training image of each of pairs."""
        return self.hits.sample[pairs], self.hits.mirroring[pairs], self.hits.training[pairs]

    def _samples(self, pairs: Array) -> Tensor:
        """Return the samples of pairs on the working grid, mirrored."""
        return self._mirrored(self.small[torch.from_numpy(self.hits.sample[pairs])], pairs)

    def _patients(self, pairs: Array) -> tuple[Tensor, Tensor]:
        """Return the training images of pairs on the working grid, and the maps that place them on the population."""
        names, of_pair = np.unique(self.hits.training[pairs], return_inverse=True)
        patients = self.population.working(torch.from_numpy(self.reference.volumes(names)).to(self.device))
        new = [number for number, name in enumerate(names) if int(name) not in self.places]
        for number, place in zip(new, self.population.place(patients[new]), strict=True):
            self.places[int(names[number])] = place
        places = torch.stack([self.places[int(name)] for name in names])
        return patients[torch.from_numpy(of_pair)], places[torch.from_numpy(of_pair)]

    def _in_full(self, pairs: Array, maps: Tensor) -> dict[str, Array]:
        """Return the measures of pairs at full resolution."""
        maps, training = maps.to(self.device), self.hits.training[pairs]
        patients = torch.from_numpy(self.reference.volumes(training)).to(self.device)
        labels = torch.from_numpy(self.reference.label_maps[training].astype(np.int64)).to(self.device)
        sample = torch.from_numpy(self.hits.sample[pairs])
        # Labels are whole numbers, which float32 holds exactly.
        images, own = self.images[sample].to(self.device), self.label_maps[sample].to(self.device)[:, None].float()
        images, own = self._mirrored(images, pairs), self._mirrored(own, pairs)
        correlation, structure = _voxel_measures(warp_affine(images, maps), patients)
        still_correlation, still_structure = _voxel_measures(images, patients)
        # The structural similarity of two blank images is 1, and no evidence of anything.
        still = np.where(still_correlation == 0, 0.0, (still_correlation + still_structure) / 2)
        return {
            "normalized_cross_correlation": correlation,
            "structural_similarity": structure,
            "unmoved_similarity": still,
            "mean_dice": _dice(warp_affine(own, maps, interpolation="nearest"), labels),
            "unmoved_dice": _dice(own, labels),
        }

    def _mirrored(self, taken: Tensor, pairs: Array) -> Tensor:
        """Return images of pairs, mirrored as the pairs are."""
        for mirroring, axes in enumerate(self.mirrors):
            here = torch.from_numpy(np.flatnonzero(self.hits.mirroring[pairs] == mirroring))
            if axes and len(here):
                taken[here] = mirror(taken[here], axes)
        return taken


def _voxel_measures(images: Tensor, patients: Tensor) -> tuple[Array, Array]:
    """Return correlation and structural similarity of pairs."""
    return (
        normalized_cross_correlation(images, patients).cpu().numpy(),
        structural_similarity(images, patients, data_range=1.0).cpu().numpy(),
    )


def _dice(own: Tensor, labels: Tensor) -> Array:
    """Return the mean Dice of pairs of label maps, `[n, 1, *spatial]` and `[n, *spatial]`."""
    # Two at least, because a segmenter may find nothing but background.
    num_labels = max(2, int(max(own.max(), labels.max())) + 1)
    dice: Array = mean_dice(own[:, 0].long(), labels, num_labels=num_labels).cpu().numpy()
    return dice


def _parts(values: Array, size: int) -> list[Array]:
    return [values[start : start + size] for start in range(0, len(values), size)]


def _best(found: Sequence[_Aligned]) -> _Aligned:
    """Return the better of alignments, pair by pair; of equals the first."""
    maps, score = found[0]
    for other in found[1:]:
        better = other.score > score
        maps = torch.where(better[:, None, None], other.maps, maps)
        score = torch.maximum(score, other.score)
    return _Aligned(maps, score)


def _cosines(one: Tensor, other: Tensor) -> Tensor:
    """Return the cosine of each pair of rows, 0 where one of them is zero."""
    lengths = row_norms(one) * row_norms(other)
    return torch.where(lengths > 0, row_sums(one * other) / lengths.clamp_min(torch.finfo(torch.float32).tiny), 0.0)
