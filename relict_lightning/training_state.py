"""Looking at a model without training noticing.

Everything that touches the model under training runs inside `untouched`: afterwards the random state of Python, NumPy
and torch (CPU and every CUDA device in use), the training flag of each submodule, and the grad mode are what they were,
also when the block fails. Gradients and buffers are not written to, because the block runs without gradients and in
evaluation mode; the statistics of batch normalisation are put back besides.
"""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from relict_lightning.data import random_state_kept


@contextlib.contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Run a block with the module in evaluation mode and without gradients; put everything back afterwards.

    `torch.no_grad` rather than `inference_mode`: tensors that a model caches lazily inside inference mode break its
    next backward pass.

    Args:
        module: The model under training.
    """
    flags = [(submodule, submodule.training) for submodule in module.modules()]
    # A sampler may switch to training mode by itself, and batch normalisation then moves its statistics.
    statistics = [
        (buffer, buffer.clone())
        for submodule in module.modules()
        if isinstance(submodule, _NormBase)
        for buffer in submodule.buffers(recurse=False)
    ]
    with random_state_kept():
        try:
            # Set one by one: `eval()` may be overridden, and frozen parts must come back as they were.
            for submodule, _ in flags:
                submodule.training = False
            with torch.no_grad():
                yield
        finally:
            for submodule, training in flags:
                submodule.training = training
            for buffer, before in statistics:
                buffer.copy_(before)


def seed_everywhere(seed: int) -> None:
    """Seed Python, NumPy and torch; call it inside `untouched`."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)
