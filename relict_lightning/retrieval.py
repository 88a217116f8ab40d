"""From samples to hits: which training images deserve a closer look.

Every sample is looked up as it is and mirrored along each spatial axis, in several views (features, coarse voxels,
coarse label maps, what stands out, patches), and the union of each view's nearest images is kept. The cost grows with
the training set only here, and only as one matrix product does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from relict_lightning.data import images_per_batch
from relict_lightning.functional import copy_likeness, mirror
from relict_lightning.index import (
    COARSE,
    FEATURE,
    LABELS,
    VIEWS,
    ExactIndex,
    Reference,
    SharedIndex,
    coarse_view,
    feature_view,
    label_view,
    merge_hits,
)
from relict_lightning.patches import LocalLikeness, PatchQueries
from relict_lightning.usual import Usual

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

_PAIRS = 4096
_SALIENT = "salient"
# A second mirroring is tried where it is at most half as far again. A displacement by a tenth of the side, the largest
# that is looked for, moves the two of a head closer together than this.
_LIKELY = 1.5
# A sample is judged against this many images of other groups.
_OTHERS = 5


@dataclass(frozen=True, kw_only=True)
class Queries:
    """The samples as vectors, once per mirroring.

    Attributes:
        mirrors: The axes mirrored, one tuple per mirroring; the first is `()`, the sample as it is.
        feature: `[v, n, d]`, unit vectors of the feature view.
        coarse: `[v, n, d]`, unit vectors of the coarse voxel view.
        labels: `[v, n, d]`, unit vectors of the coarse label map view.
        salient: `[v, n, d]`, unit vectors of what stands out.
        patches: The samples cut into blocks, per mirroring.
    """

    mirrors: tuple[tuple[int, ...], ...]
    feature: Array
    coarse: Array
    labels: Array
    salient: Array
    patches: tuple[PatchQueries, ...]

    def __len__(self) -> int:
        """Return the number of samples."""
        return int(self.feature.shape[1])


@dataclass(frozen=True, kw_only=True)
class Hits:
    """Pairs worth comparing, sorted by sample. A pair occurs twice where two mirrorings are almost equally alike.

    Attributes:
        sample: Position of the sample, `[p]`.
        training: Position of the training image, `[p]`.
        mirroring: Which of the queries' mirrorings is tried, `[p]`.
        feature_similarity: Cosine of the two in the feature view under that mirroring, `[p]`.
        patch_likeness: How alike the patch is in which they are so most, of all that stand out and of those that do
            most, and how many patches are alike, under any mirroring, `[3, p]` (`LocalLikeness.values`).
    """

    sample: Array
    training: Array
    mirroring: Array
    feature_similarity: Array
    patch_likeness: Array


@torch.no_grad()
def make_queries(
    images: Float[Tensor, "n c *spatial"],
    label_maps: Int[Tensor, "n *spatial"],
    *,
    encoder: nn.Module,
    usual: Usual,
    mirrors: Sequence[tuple[int, ...]],
    device: torch.device,
) -> Queries:
    """Return the vectors that images are looked up by.

    Args:
        images: On the training set's intensity scale.
        label_maps: Label of every voxel.
        encoder: The encoder that the reference was built with.
        usual: What is usual in the reference's images.
        mirrors: Axes to mirror, one tuple per mirroring.
        device: Where to encode.
    """
    views: dict[str, list[list[Array]]] = {name: [[] for _ in mirrors] for name in (*VIEWS, _SALIENT)}
    patches: list[list[PatchQueries]] = [[] for _ in mirrors]
    saliency = usual.saliency.to(device)
    size = images_per_batch(tuple(images.shape[1:]))
    for some, maps in zip(torch.split(images, size), torch.split(label_maps, size), strict=True):
        batch, labels = some.to(device), maps.to(device)
        for position, axes in enumerate(mirrors):
            mirrored = mirror(batch, axes)
            made = {
                FEATURE: feature_view(encoder, mirrored),
                COARSE: coarse_view(mirrored),
                LABELS: label_view(labels.flip([axis + 1 for axis in axes])),
            }
            for name, vectors in made.items():
                views[name][position].append(vectors.cpu().numpy())
            salient = saliency.maps(mirrored)
            views[_SALIENT][position].append(saliency.to_vectors(salient))
            patches[position].append(usual.patches.queries(mirrored, salient, saliency.peaks(salient)))
    stacked = {name: np.stack([np.concatenate(parts) for parts in by_mirror]) for name, by_mirror in views.items()}
    return Queries(mirrors=tuple(mirrors), patches=tuple(map(PatchQueries.joined, patches)), **stacked)


def retrieve(queries: Queries, reference: Reference, usual: Usual, *, top_k: int) -> Hits:
    """Return the union of every sample's nearest training images over all views.

    In each view a sample's `top_k` nearest images under any mirroring are hits, and so are the nearest images of its
    `top_k` nearest groups, so that a patient with many images does not hide the others, against whom the likeness is
    judged. By what stands out, so are the `top_k` nearest to the sample as it is.

    Args:
        queries: The samples as vectors.
        reference: The training images.
        usual: What is usual in them.
        top_k: How many hits each view gives.
    """
    codes = reference.group_codes
    everyone = np.arange(len(codes))
    has_repeats = int(codes.max()) + 1 < len(codes)
    found: list[Array] = []
    indexes: dict[str, SharedIndex | ExactIndex] = {name: reference.views[name] for name in VIEWS}
    for name, index in {**indexes, _SALIENT: usual.saliency.index}.items():
        vectors = getattr(queries, name)
        for counted in (codes, everyone) if has_repeats else (everyone,):
            hits = index.search(
                vectors.reshape(-1, vectors.shape[2]), top_k, codes=counted if counted is codes else None
            )
            similarity, positions = (_side_by_side(rows, queries) for rows in hits)
            # A transplant shares little with its source, which the mirrorings of others must not crowd out.
            as_it_is = hits[1][: len(queries)] if name == _SALIENT else positions[:, :0]
            for best in (merge_hits(similarity, positions, top_k, codes=counted)[1], as_it_is):
                sample = np.arange(len(queries))[:, None].repeat(best.shape[1], axis=1)
                found.append(np.stack([sample.ravel(), best.ravel()], axis=1))
    # Each process has all patches, and looks at some of the samples.
    processes = reference.processes
    share = np.arange(processes.rank, len(queries), processes.count)
    find = partial(usual.patches.likeness, queries.patches, share, codes=codes)
    by_patches = LocalLikeness.joined(processes.gather(find, doing="Comparing patches"))
    found.append(by_patches.nearest(top_k, codes=codes))
    pairs = np.unique(np.concatenate(found), axis=0)
    sample, training = pairs[:, 0], pairs[:, 1]
    feature = _pair_similarity(queries.feature, reference, FEATURE, sample, training)
    coarse = _pair_similarity(queries.coarse, reference, COARSE, sample, training)
    pair, mirroring = _likely_mirrorings(feature + coarse)
    return Hits(
        sample=sample[pair],
        training=training[pair],
        mirroring=mirroring,
        feature_similarity=np.clip(feature[mirroring, pair], -1.0, 1.0),
        patch_likeness=by_patches.of_pairs(sample[pair], training[pair]),
    )


def _side_by_side(rows: Array, queries: Queries) -> Array:
    """Return what was found for every sample under all mirrorings, `[n, v * k]`, from `[v * n, k]`."""
    by_mirroring = rows.reshape(len(queries.mirrors), len(queries), rows.shape[1])
    return np.concatenate(list(by_mirroring), axis=1)


def _likely_mirrorings(similarity: Array) -> tuple[Array, Array]:
    """Return pairs and mirrorings that may be the right ones, in the order of the pairs.

    Args:
        similarity: Sum of two cosines of each pair under each mirroring, `[v, p]`.
    """
    # Rounding can put a cosine above 1 by a hair.
    distance = np.maximum(2.0 - similarity, 0.0)
    order = distance.argsort(axis=0, kind="stable")[:2]
    best = np.take_along_axis(distance, order, axis=0)
    # The mirror image of a head is almost the head, and displaced the other way: only alignment tells the two apart.
    is_likely = best <= _LIKELY * best[:1]
    pair, rank = np.nonzero(is_likely.T)
    return pair, order[rank, pair]


@dataclass(frozen=True, kw_only=True)
class UnionNeighbors:
    """Each sample's nearest image among training and held-out images together, found blind to which is which.

    There is one row for each of two views, features and coarse voxels, because a view that is blind to what a generator
    copies must not be the only one that is asked: that of features may not see the copies of one whose samples are
    still blurred, nor that of voxels those of one that recolours.

    Attributes:
        group: Group of the nearest image, one integer per group of the union, `[2, n]`.
        is_training: Whether that group is a training group, `[2, n]`.
        likeness: How much like a copy the sample is of that image, in [0, 1], `[2, n]`: the positive part of its
            copy-likeness among the union, so that a sample that is near to everyone is like a copy of no one.
    """

    group: Array
    is_training: Array
    likeness: Array

    @property
    def weight(self) -> Array:
        """What each sample counts for in the permutation test, in [0, 1], `[2, n]`."""
        squared: Array = np.square(self.likeness)
        return squared

    def copylike(self, usual: Array) -> tuple[Array, Array]:
        """Return which samples are more like a copy of one patient than is usual, and of a training patient.

        Args:
            usual: What is usual in each view, `[2]`. Where both views exceed it, the one that exceeds it more tells the
                patient.

        Returns:
            Whether the sample is like a copy, and whether the nearest patient is a training patient, `[n]` and `[n]`.
        """
        excess = self.likeness - usual[:, None]
        telling = excess.argmax(axis=0)[None]
        return excess.max(axis=0) > 0, np.take_along_axis(self.is_training, telling, axis=0)[0]


def nearest_of_union(
    queries: Queries, training: Reference, heldout: Reference, *, own: Array | None = None
) -> UnionNeighbors:
    """Return each sample's nearest image among training and held-out images, in two views.

    Groups of the two sets must be disjoint.

    Args:
        queries: The samples as vectors.
        training: The training images.
        heldout: The held-out images.
        own: Where the samples are held-out images themselves, the code of each one's group, `[n]`, which is passed
            over.
    """
    rows = [
        _nearest_in_view(vectors, name, queries, training, heldout, own=own)
        for name, vectors in ((FEATURE, queries.feature), (COARSE, queries.coarse))
    ]
    group, likeness = (np.stack(of_views) for of_views in zip(*rows, strict=True))
    return UnionNeighbors(group=group, is_training=group <= int(training.group_codes.max()), likeness=likeness)


def _nearest_in_view(
    vectors: Array, name: str, queries: Queries, training: Reference, heldout: Reference, *, own: Array | None
) -> tuple[Array, Array]:
    """Return the group of each sample's nearest image in one view, and how much like a copy of it the sample is."""
    similarity, groups = [], []
    first_code = 0
    # One more for the nearest, and one for the group that is passed over.
    wanted = _OTHERS + 1 + (own is not None)
    for reference in (training, heldout):
        flat = vectors.reshape(-1, vectors.shape[2])
        found, positions = reference.views[name].search(flat, wanted, codes=reference.group_codes)
        similarity.append(_side_by_side(found, queries))
        codes = reference.group_codes[positions]
        if reference is heldout and own is not None:
            similarity[-1][_side_by_side(codes, queries) == own[:, None]] = -1.0
        groups.append(_side_by_side(codes + first_code, queries))
        first_code += int(reference.group_codes.max()) + 1
    # The best of each group over its images and all mirrorings.
    best, group = merge_hits(
        np.concatenate(similarity, axis=1), np.concatenate(groups, axis=1), _OTHERS + 1, codes=np.arange(first_code)
    )
    distance = np.sqrt(np.maximum(2 - 2 * best, 0))
    likeness = copy_likeness(torch.from_numpy(distance), torch.from_numpy(group)).numpy()
    return group[:, 0], np.clip(likeness, 0.0, 1.0)


def balanced_distances(queries: Queries, training: Reference, heldout: Reference) -> tuple[Array, Array]:
    """Return each sample's distance to the nearest of equally many training and held-out patients, `[n]` and `[n]`.

    The larger set has the nearer neighbours by its size alone. So of each set one image of as many groups as the
    smaller set has is drawn, the same ones each time, and the two distances can be compared.

    Returns:
        Euclidean distances between unit embeddings, in [0, 2].
    """
    groups = min(int(reference.group_codes.max()) + 1 for reference in (training, heldout))
    distances = []
    for reference in (training, heldout):
        _, first_of_group = np.unique(reference.group_codes, return_index=True)
        drawn = np.random.default_rng(0).permutation(first_of_group)[:groups]
        found, _ = reference.feature.selected(np.sort(drawn)).search(
            queries.feature.reshape(-1, queries.feature.shape[2]), 1
        )
        nearest = found.reshape(len(queries.mirrors), len(queries)).max(axis=0)
        distances.append(np.sqrt(np.maximum(2 - 2 * nearest, 0)))
    return distances[0], distances[1]


def _pair_similarity(queries: Array, reference: Reference, view: str, sample: Array, training: Array) -> Array:
    """Return the cosine of each pair under each mirroring, `[v, p]`."""
    vectors = reference.views[view].vectors

    def of_held() -> tuple[Array, Array]:
        held = np.flatnonzero(vectors.holds(training))
        cosine = np.empty((len(queries), len(held)), dtype=np.float32)
        for start in range(0, len(held), _PAIRS):
            here = held[start : start + _PAIRS]
            cosine[:, start : start + len(here)] = np.einsum(
                "vpd,pd->vp", queries[:, sample[here]], vectors[training[here]]
            )
        return held, cosine

    cosine = np.empty((len(queries), len(sample)), dtype=np.float32)
    for held, values in reference.processes.gather(of_held, doing="Comparing vectors"):
        cosine[:, held] = values
    return cosine
