import torch

from metric_cases.case import Case, vectors
from relict_lightning.functional import (
    authenticity,
    closer_to_training_share,
    ct_score,
    leaning_rate,
    memorization_p_value,
    neighbor_ratio_fraction,
    replica_rate,
    unique_training_groups,
    unique_training_images,
)
from relict_lightning.metrics import (
    Authenticity,
    CloserToTrainingShare,
    CtScore,
    LeaningRate,
    MemorizationPValue,
    NeighborRatioFraction,
    ReplicaRate,
    UniqueTrainingGroups,
    UniqueTrainingImages,
)


def authentic_share(distances: torch.Tensor, reference_distances: torch.Tensor) -> float:
    control = {"heldout_distances": distances, "heldout_reference_distances": reference_distances}
    return authenticity(distances, reference_distances, **control).value.value


def distances_in_cells(seed: int, n: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return *vectors(seed, n), *torch.randint(0, 3, (2, n), generator=generator)


def neighbors_of_split(seed: int, n: int) -> tuple[torch.Tensor, ...]:
    groups = torch.randint(0, 10, (n,), generator=torch.Generator().manual_seed(seed))
    return vectors(seed, n)[0], groups, groups < 6


def matches(seed: int, n: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 5, (n,), generator=generator), torch.rand(n, generator=generator) < 0.5


CASES = {
    "ReplicaRate": Case(
        metric=lambda: ReplicaRate(threshold=0.5),
        samples=lambda seed, n: vectors(seed, n)[:1],
        twin=lambda scores: replica_rate(scores, 0.5).value,
        other=lambda: ReplicaRate(threshold=0.8),
    ),
    "NeighborRatioFraction": Case(
        metric=NeighborRatioFraction,
        samples=lambda seed, n: vectors(seed, n)[:1],
        twin=neighbor_ratio_fraction,
        other=lambda: NeighborRatioFraction(threshold=0.8),
    ),
    "CloserToTrainingShare": Case(metric=CloserToTrainingShare, samples=vectors, twin=closer_to_training_share),
    "Authenticity": Case(metric=Authenticity, samples=vectors, twin=authentic_share),
    "CtScore": Case(
        metric=lambda: CtScore(min_share=0.0),
        samples=distances_in_cells,
        twin=lambda generated, heldout, cells, heldout_cells: ct_score(
            generated, heldout, generated_cells=cells, heldout_cells=heldout_cells
        ),
        other=lambda: CtScore(min_share=0.34),
    ),
    "LeaningRate": Case(
        metric=lambda: LeaningRate(training_groups=6, total_groups=10),
        samples=lambda seed, n: tuple(row > 0.3 for row in vectors(seed, n)),
        twin=lambda *labels: leaning_rate(*labels, training_groups=6, total_groups=10).value,
        other=lambda: LeaningRate(training_groups=8, total_groups=12),
    ),
    "MemorizationPValue": Case(
        metric=lambda: MemorizationPValue(training_groups=6, total_groups=10),
        samples=neighbors_of_split,
        twin=lambda weights, groups, is_training: memorization_p_value(
            weights, groups, training_groups=6, total_groups=10, is_training=is_training
        ),
        other=lambda: MemorizationPValue(training_groups=8, total_groups=12),
    ),
    "UniqueTrainingImages": Case(metric=UniqueTrainingImages, samples=matches, twin=unique_training_images),
    "UniqueTrainingGroups": Case(metric=UniqueTrainingGroups, samples=matches, twin=unique_training_groups),
}
