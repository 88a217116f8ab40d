"""How alike embeddings are, and how near to the training set samples lie, on average.

The metrics of `relict_lightning.functional.feature`: each averages its functional twin over samples.
"""

from typing import Any, Literal, final

from relict_lightning.functional.feature import (
    calibrated_neighbor_ratio,
    cosine_similarity,
    embedding_correlation,
    euclidean_similarity,
    neighbor_ratio,
    split_product_similarity,
)
from relict_lightning.functional.feature.neighbors import Centre, check_calibration_settings
from relict_lightning.functional.feature.similarity import check_split_settings
from relict_lightning.metrics.mean import MeanOverPairs


@final
class CosineSimilarity(MeanOverPairs):
    """Mean cosine of the angle between `(generated, training)` embeddings, in [-1, 1].

    `update(generated, training)` takes embeddings `[n, d]`, one pair per row. Larger is more alike.

    Args:
        **kwargs: Passed on to `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = CosineSimilarity()
        >>> metric.update(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]]))
        >>> metric.compute()
        tensor(0.6000)
    """

    plot_lower_bound = -1.0
    plot_upper_bound = 1.0

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(cosine_similarity, {}, **kwargs)


@final
class EuclideanSimilarity(MeanOverPairs):
    """Minus the mean Euclidean distance between `(generated, training)` embeddings, at most 0.

    `update(generated, training)` takes embeddings `[n, d]`, one pair per row. Larger is more alike.

    Args:
        **kwargs: Passed on to `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = EuclideanSimilarity()
        >>> metric.update(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 0.0]]))
        >>> metric.compute()
        tensor(-5.)
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(euclidean_similarity, {}, **kwargs)


@final
class EmbeddingCorrelation(MeanOverPairs):
    """Mean Pearson correlation of `(generated, training)` embeddings, in [-1, 1].

    `update(generated, training)` takes embeddings `[n, d]`, one pair per row. Larger is more alike.

    Args:
        **kwargs: Passed on to `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = EmbeddingCorrelation()
        >>> metric.update(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 2.0, 6.0]]))
        >>> metric.compute()
        tensor(0.9449)
    """

    plot_lower_bound = -1.0
    plot_upper_bound = 1.0

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(embedding_correlation, {}, **kwargs)


@final
class SplitProductSimilarity(MeanOverPairs):
    """Mean of the largest similarity of any chunk of `(generated, training)` embeddings, in [-1, 1].

    `update(generated, training)` takes embeddings `[n, d]`, one pair per row. Larger is more alike.

    Args:
        chunks: Number of consecutive parts of an embedding, such as its tokens.
        normalization: "chunk" for the cosine of each chunk, "embedding" for products of chunks of unit vectors.
        any_position: Whether a chunk may match any chunk, rather than the one at its own position only.
        **kwargs: Passed on to `torchmetrics.Metric`.

    Raises:
        ConfigurationError: If `chunks` is less than 1 or `normalization` is unknown.

    Example:
        >>> import torch
        >>> metric = SplitProductSimilarity(chunks=2)
        >>> metric.update(torch.tensor([[3.0, 4.0, 1.0, 0.0]]), torch.tensor([[6.0, 8.0, 0.0, 1.0]]))
        >>> metric.compute()
        tensor(1.)

    References:
        Somepalli, Singla, Goldblum, Geiping, Goldstein (2023), Diffusion art or digital forgery? Investigating data
        replication in diffusion models, arXiv:2212.03860.
    """

    plot_lower_bound = -1.0
    plot_upper_bound = 1.0

    def __init__(
        self,
        *,
        chunks: int,
        normalization: Literal["chunk", "embedding"] = "chunk",
        any_position: bool = False,
        **kwargs: Any,
    ) -> None:
        check_split_settings(chunks=chunks, normalization=normalization)
        super().__init__(
            split_product_similarity,
            {"chunks": chunks, "normalization": normalization, "any_position": any_position},
            **kwargs,
        )


@final
class NeighborRatio(MeanOverPairs):
    """Mean ratio of the distances to the nearest neighbour and to the nearest one of another group, in [0, 1].

    `update(distances, neighbor_groups)` takes the nearest training images of each sample, ascending, `[n, k]`. Smaller
    is more like copies. Samples without a neighbour of another group are left out.

    Args:
        **kwargs: Passed on to `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> metric = NeighborRatio()
        >>> metric.update(torch.tensor([[1.0, 1.1, 4.0]]), torch.tensor([[7, 7, 3]]))
        >>> metric.compute()
        tensor(0.2500)

    References:
        Yoon, Choi, Kwon, Ryu (2023), Diffusion probabilistic models generalize when they fail to memorize, ICML
        workshop on structured probabilistic inference and generative modeling.
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(neighbor_ratio, {}, **kwargs)


@final
class CalibratedNeighborRatio(MeanOverPairs):
    """Mean ratio of the distance to the nearest neighbour and the mean distance within a neighbourhood, at least 0.

    `update(distances, neighbor_groups)` takes training images of each sample, the nearest first, `[n, k]`; with
    `centre="reference"` also `reference_distances`, by keyword. Smaller is more like copies. Samples without a
    neighbourhood are left out.

    Args:
        centre: Whether the neighbourhood is that of the "sample", or that of its nearest training image, the
            "reference".
        num_neighbors: Largest number of nearest images to average over.
        alpha: Positive factor of the mean.
        **kwargs: Passed on to `torchmetrics.Metric`.

    Raises:
        ConfigurationError: If `centre` is unknown, or `num_neighbors` or `alpha` is not positive.

    Example:
        >>> import torch
        >>> metric = CalibratedNeighborRatio()
        >>> metric.update(torch.tensor([[1.0, 1.1, 3.0, 5.0]]), torch.tensor([[7, 7, 3, 4]]))
        >>> metric.compute()
        tensor(0.5000)

    References:
        Carlini et al. (2023), Extracting training data from diffusion models, arXiv:2301.13188.
    """

    higher_is_better = True

    def __init__(
        self, *, centre: Centre = "sample", num_neighbors: int = 50, alpha: float = 0.5, **kwargs: Any
    ) -> None:
        check_calibration_settings(centre=centre, num_neighbors=num_neighbors, alpha=alpha)
        super().__init__(
            calibrated_neighbor_ratio, {"centre": centre, "num_neighbors": num_neighbors, "alpha": alpha}, **kwargs
        )
