import torch

from metric_cases.case import Case, embeddings
from relict_lightning.functional import (
    calibrated_neighbor_ratio,
    cosine_similarity,
    embedding_correlation,
    euclidean_similarity,
    neighbor_ratio,
    split_product_similarity,
)
from relict_lightning.metrics import (
    CalibratedNeighborRatio,
    CosineSimilarity,
    EmbeddingCorrelation,
    EuclideanSimilarity,
    NeighborRatio,
    SplitProductSimilarity,
)


def neighbors(seed: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return distances to neighbours and their groups; some samples have neighbours of one group only."""
    generator = torch.Generator().manual_seed(seed)
    distances = torch.rand(n, 4, generator=generator).sort(dim=1).values
    return distances, torch.randint(0, 3, (n, 4), generator=generator)


CASES = {
    "CosineSimilarity": Case(
        metric=CosineSimilarity, samples=embeddings, twin=lambda g, t: cosine_similarity(g, t).mean()
    ),
    "EuclideanSimilarity": Case(
        metric=EuclideanSimilarity, samples=embeddings, twin=lambda g, t: euclidean_similarity(g, t).mean()
    ),
    "EmbeddingCorrelation": Case(
        metric=EmbeddingCorrelation, samples=embeddings, twin=lambda g, t: embedding_correlation(g, t).mean()
    ),
    "SplitProductSimilarity": Case(
        metric=lambda: SplitProductSimilarity(chunks=4),
        samples=embeddings,
        twin=lambda g, t: split_product_similarity(g, t, chunks=4).mean(),
        other=lambda: SplitProductSimilarity(chunks=4, any_position=True),
    ),
    "NeighborRatio": Case(metric=NeighborRatio, samples=neighbors, twin=lambda d, g: neighbor_ratio(d, g).nanmean()),
    "CalibratedNeighborRatio": Case(
        metric=CalibratedNeighborRatio,
        samples=neighbors,
        twin=lambda d, g: calibrated_neighbor_ratio(d, g).nanmean(),
        other=lambda: CalibratedNeighborRatio(num_neighbors=1),
    ),
}
