"""Means over the voxels inside a mask."""

from jaxtyping import Bool, Float
from torch import Tensor


def masked_mean(
    values: Float[Tensor, "n *voxels"], mask: Bool[Tensor, "n *voxels"] | None, *, empty: float
) -> Float[Tensor, " n"]:
    """Return the mean of each row over the entries inside the mask.

    Args:
        values: One map of values per pair.
        mask: Entries to average over; None for all.
        empty: The mean of a row of which no entry is inside.

    Example:
        >>> import torch
        >>> masked_mean(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[True, True, False]]), empty=0.0)
        tensor([1.5000])
    """
    if mask is None:
        return values.flatten(1).mean(dim=1)
    inside = mask.flatten(1)
    count = inside.sum(dim=1)
    mean = values.flatten(1).masked_fill(~inside, 0.0).sum(dim=1) / count.clamp(min=1)
    return mean.masked_fill(count == 0, empty)
