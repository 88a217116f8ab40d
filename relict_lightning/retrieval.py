"""From samples to hits: which training images deserve a closer look.

Every sample is looked up as it is and mirrored along each spatial axis, in each view of the index, and the union of
the nearest images is kept. The cost grows with the training set only here, and only as one matrix product does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from relict_lightning.data import images_per_batch
from relict_lightning.functional import copy_likeness, mirror
from relict_lightning.index import Reference, coarse_view, feature_view

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

_PAIRS = 4096
# A sample is judged against this many images of other groups.
_OTHERS = 5


@dataclass(frozen=True, kw_only=True)
class Queries:
    """The samples as vectors, once per mirroring.

    Attributes:
        mirrors: The axes mirrored, one tuple per mirroring; the first is `()`, the sample as it is.
        feature: `[v, n, d]`, unit vectors of the feature view.
        coarse: `[v, n, d]`, unit vectors of the coarse view.
    """

    mirrors: tuple[tuple[int, ...], ...]
    feature: Array
    coarse: Array

    def __len__(self) -> int:
        """Return the number of samples."""
        return int(self.feature.shape[1])


@dataclass(frozen=True, kw_only=True)
class Hits:
    """Pairs worth comparing, sorted by sample.

    Attributes:
        sample: Position of the sample, `[p]`.
        training: Position of the training image, `[p]`.
        mirroring: Which of the queries' mirrorings makes the two most alike, `[p]`.
        feature_similarity: Cosine of the two in the feature view under that mirroring, `[p]`.
    """

    sample: Array
    training: Array
    mirroring: Array
    feature_similarity: Array


@torch.no_grad()
def make_queries(
    images: Float[Tensor, "n c *spatial"],
    *,
    encoder: nn.Module,
    mirrors: Sequence[tuple[int, ...]],
    device: torch.device,
) -> Queries:
    """Return the vectors that images are looked up by.

    Args:
        images: On the training set's intensity scale.
        encoder: The encoder that the reference was built with.
        mirrors: Axes to mirror, one tuple per mirroring.
        device: Where to encode.
    """
    feature: list[list[Array]] = [[] for _ in mirrors]
    coarse: list[list[Array]] = [[] for _ in mirrors]
    for part in torch.split(images, images_per_batch(tuple(images.shape[1:]))):
        batch = part.to(device)
        for position, axes in enumerate(mirrors):
            mirrored = mirror(batch, axes)
            feature[position].append(feature_view(encoder, mirrored).cpu().numpy())
            coarse[position].append(coarse_view(mirrored).cpu().numpy())
    return Queries(
        mirrors=tuple(mirrors),
        feature=np.stack([np.concatenate(parts) for parts in feature]),
        coarse=np.stack([np.concatenate(parts) for parts in coarse]),
    )


def retrieve(queries: Queries, reference: Reference, *, top_k: int) -> Hits:
    """Return the union of every sample's nearest training images over all views and mirrorings.

    In each view and mirroring a sample's `top_k` nearest images are hits, and so is the nearest image of each further
    group until `top_k` groups are reached, so that a patient with many images does not hide the others, against whom
    the likeness is judged.
    """
    codes = reference.group_codes
    per_group = int(np.bincount(codes).max())
    depth = min(len(reference), top_k * per_group)
    found: list[Array] = []
    count = len(queries)
    for vectors, index in ((queries.feature, reference.feature), (queries.coarse, reference.coarse)):
        _, positions = index.search(vectors.reshape(-1, vectors.shape[2]), depth)
        wanted = _nearest_with_groups(codes[positions], top_k)
        sample = np.tile(np.arange(count), len(queries.mirrors))[:, None].repeat(positions.shape[1], axis=1)
        found.append(np.stack([sample[wanted], positions[wanted]], axis=1))
    pairs = np.unique(np.concatenate(found), axis=0)
    sample, training = pairs[:, 0], pairs[:, 1]
    feature = _pair_similarity(queries.feature, reference.feature_vectors, sample, training)
    coarse = _pair_similarity(queries.coarse, reference.coarse_vectors, sample, training)
    mirroring = (feature + coarse).argmax(axis=0)
    return Hits(
        sample=sample,
        training=training,
        mirroring=mirroring,
        feature_similarity=np.clip(feature[mirroring, np.arange(len(sample))], -1.0, 1.0),
    )


@dataclass(frozen=True, kw_only=True)
class UnionNeighbors:
    """Each sample's nearest image among training and held-out images together, found blind to which is which.

    Attributes:
        group: Group of the nearest image, one integer per group of the union, `[n]`.
        is_training: Whether that group is a training group, `[n]`.
        weight: How much like a copy the sample is of that image, in [0, 1], `[n]`: the squared positive part of its
            copy-likeness among the union, so that a sample that is near to everyone counts for little.
    """

    group: Array
    is_training: Array
    weight: Array


def nearest_of_union(queries: Queries, training: Reference, heldout: Reference) -> UnionNeighbors:
    """Return each sample's nearest image among training and held-out images, in the feature view.

    Groups of the two sets must be disjoint.
    """
    count = len(queries)
    similarity, codes = [], []
    for reference, first_code in ((training, 0), (heldout, int(training.group_codes.max()) + 1)):
        depth = (_OTHERS + 1) * int(np.bincount(reference.group_codes).max())
        found, positions = reference.feature.search(queries.feature.reshape(-1, queries.feature.shape[2]), depth)
        # A sample's hits under all mirrorings, side by side.
        by_mirroring = (len(queries.mirrors), count, -1)
        similarity.append(np.concatenate(list(found.reshape(by_mirroring)), axis=1))
        codes.append(np.concatenate(list(reference.group_codes[positions].reshape(by_mirroring)), axis=1) + first_code)
    distance = np.sqrt(np.maximum(2 - 2 * np.concatenate(similarity, axis=1), 0))
    group = np.concatenate(codes, axis=1)
    order = distance.argsort(axis=1, kind="stable")
    nearest = np.take_along_axis(group, order[:, :1], axis=1)[:, 0]
    likeness = copy_likeness(
        torch.from_numpy(np.take_along_axis(distance, order, axis=1)),
        torch.from_numpy(np.take_along_axis(group, order, axis=1)),
    ).numpy()
    return UnionNeighbors(
        group=nearest,
        is_training=nearest <= int(training.group_codes.max()),
        weight=np.square(np.clip(likeness, 0.0, 1.0)),
    )


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
        vectors = reference.feature_vectors[np.sort(drawn)]
        nearest = np.stack([(mirrored @ vectors.T).max(axis=1) for mirrored in queries.feature]).max(axis=0)
        distances.append(np.sqrt(np.maximum(2 - 2 * nearest, 0)))
    return distances[0], distances[1]


def _nearest_with_groups(codes: Array, top_k: int) -> Array:
    """Return which of the sorted hits to keep, `[q, k]`, given the group of each."""
    rank = np.arange(codes.shape[1])
    # Sorted stably, each group's images stand together in the order of their ranks, the nearest one first.
    order = codes.argsort(axis=1, kind="stable")
    by_group = np.take_along_axis(codes, order, axis=1)
    begins = np.ones(codes.shape, dtype=bool)
    begins[:, 1:] = by_group[:, 1:] != by_group[:, :-1]
    first_of_group = np.empty(codes.shape, dtype=bool)
    np.put_along_axis(first_of_group, order, begins, axis=1)
    groups_so_far = first_of_group.cumsum(axis=1)
    keep: Array = (rank < top_k) | (first_of_group & (groups_so_far <= top_k))
    return keep


def _pair_similarity(queries: Array, vectors: Array, sample: Array, training: Array) -> Array:
    """Return the cosine of each pair under each mirroring, `[v, p]`."""
    cosine = np.empty((len(queries), len(sample)), dtype=np.float32)
    for start in range(0, len(sample), _PAIRS):
        here = slice(start, start + _PAIRS)
        cosine[:, here] = np.einsum("vpd,pd->vp", queries[:, sample[here]], vectors[training[here]])
    return cosine
