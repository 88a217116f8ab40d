"""Sums over rows that do not depend on which other rows there are.

The order in which torch adds up the numbers of a row may depend on how many rows there are, and on how many threads.
Verdicts must not depend on the batch that a sample is in, nor on the number of processes.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def row_sums(rows: Float[Tensor, "n l"]) -> Float[Tensor, " n"]:
    """Return the sum of each row."""
    if rows.device.type != "cpu":
        # A kernel of its own for each row, which starts at the same alignment.
        return torch.stack([row.clone().sum() for row in rows]) if len(rows) else rows.new_zeros(0)
    # NumPy adds up each row of contiguous numbers pairwise, one row after the other.
    return torch.from_numpy(np.add.reduce(rows.contiguous().numpy(), axis=1))


def row_norms(rows: Float[Tensor, "n l"]) -> Float[Tensor, " n"]:
    """Return the Euclidean norm of each row."""
    return row_sums(rows.square()).sqrt()
