"""Whether samples lie closer to training than held-out images do. The state is every distance, because ranks count."""

from typing import Any, final

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional.memorization import ct_score
from relict_lightning.functional.memorization.data_copying import check_min_share
from relict_lightning.functional.validation import check_not_nan, check_same_length
from relict_lightning.metrics.pooled import PooledNumbers


@final
class CtScore(PooledNumbers):
    """Data-copying statistic C_T: far below 0 where samples lie closer to training than held-out images do.

    `update(generated_distances, heldout_distances)` takes what `ct_score` takes. The two may differ in length, and
    either may be empty, so held-out images can be added once and samples over many batches. NaN as long as either set
    is empty.

    Args:
        min_share: Share of the samples that a cell must exceed, in [0, 1); then `update` needs the cells. None: one
            cell.
        **kwargs: Passed on to `torchmetrics.Metric`.

    Raises:
        ConfigurationError: If `min_share` lies outside [0, 1).

    Example:
        >>> metric = CtScore()
        >>> metric.update(torch.tensor([0.1, 0.2]), torch.tensor([1.0, 2.0, 3.0]))
        >>> metric.update(torch.tensor([0.3]), torch.tensor([]))
        >>> metric.compute()
        tensor(-1.9640, dtype=torch.float64)

    References:
        Meehan, Chaudhuri, Dasgupta (2020), A non-parametric test to detect data-copying in generative models,
        arXiv:2004.05675.
    """

    higher_is_better = True

    def __init__(self, *, min_share: float | None = None, **kwargs: Any) -> None:
        names = ["generated_distances", "heldout_distances"]
        if min_share is not None:
            check_min_share(min_share)
            names += ["generated_cells", "heldout_cells"]
        super().__init__(names=names, settings={"min_share": min_share}, **kwargs)
        self.min_share = min_share

    def update(
        self,
        generated_distances: Float[Tensor, " n"],
        heldout_distances: Float[Tensor, " m"],
        generated_cells: Integer[Tensor, " n"] | None = None,
        heldout_cells: Integer[Tensor, " m"] | None = None,
    ) -> None:
        """Add a batch of samples, of held-out images, or of both.

        Args:
            generated_distances: Distance of each sample to its nearest training image; with cells, to that of its cell.
            heldout_distances: The same distance of each held-out image.
            generated_cells: Cell of each sample.
            heldout_cells: Cell of each held-out image.
        """
        batch = {"generated": (generated_distances, generated_cells), "heldout": (heldout_distances, heldout_cells)}
        numbers = {}
        for name, (distances, cells) in batch.items():
            check_not_nan(distances, name=f"{name}_distances")
            numbers[f"{name}_distances"] = distances
            if (cells is None) != (self.min_share is None):
                raise ConfigurationError(
                    f"{name}_cells must be given if and only if min_share is, but min_share={self.min_share} and "
                    f"{name}_cells is {'missing' if cells is None else 'given'}. Give cells to both or to neither."
                )
            if cells is not None:
                check_same_length(distances, cells, names=(f"{name}_distances", f"{name}_cells"))
                numbers[f"{name}_cells"] = cells
        self.append(**numbers)

    def value(self) -> Tensor:
        """Return the score; NaN without samples or without held-out images."""
        distances = self.pooled("generated_distances"), self.pooled("heldout_distances")
        if self.min_share is None:
            score = ct_score(*distances)
        else:
            score = ct_score(
                *distances,
                generated_cells=self.pooled("generated_cells").long(),
                heldout_cells=self.pooled("heldout_cells").long(),
                min_share=self.min_share,
            )
        return torch.tensor(score, dtype=torch.float64, device=self.device)
