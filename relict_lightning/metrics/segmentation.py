"""How alike pairs of label maps are, on average: the metrics of `relict_lightning.functional.segmentation`."""

from typing import Any, final

from jaxtyping import Float, Integer
from torch import Tensor

from relict_lightning.functional.segmentation import mean_dice
from relict_lightning.functional.segmentation.label_maps import check_num_labels
from relict_lightning.metrics.mean import MeanOverPairs


@final
class MeanDice(MeanOverPairs):
    """Mean Dice coefficient of `(generated, training)` pairs of label maps, in [0, 1].

    `update(generated, training)` takes integer label maps `[n, *spatial]`. Each pair counts with its mean over the
    labels that either map has, and with 0 if neither has any. Larger is more alike.

    Args:
        num_labels: Number of labels, background included.
        include_background: Whether label 0 counts.
        **kwargs: Passed on to `torchmetrics.Metric`.

    Raises:
        ConfigurationError: If `num_labels` leaves no label to compare.

    Example:
        >>> import torch
        >>> metric = MeanDice(num_labels=3)
        >>> metric.update(torch.tensor([[1, 1, 0, 2]]), torch.tensor([[1, 0, 0, 0]]))
        >>> metric.compute()
        tensor(0.3333)

    References:
        Dice (1945), Measures of the amount of ecologic association between species, doi:10.2307/1932409.
    """

    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(self, *, num_labels: int, include_background: bool = False, **kwargs: Any) -> None:
        super().__init__(settings={"num_labels": num_labels, "include_background": include_background}, **kwargs)
        check_num_labels(num_labels, include_background=include_background)
        self.num_labels = num_labels
        self.include_background = include_background

    def measure(
        self, generated: Integer[Tensor, "n *spatial"], training: Integer[Tensor, "n *spatial"]
    ) -> Float[Tensor, " n"]:
        """Return `mean_dice` of each pair."""
        return mean_dice(generated, training, num_labels=self.num_labels, include_background=self.include_background)
