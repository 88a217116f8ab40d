"""Looking at a model without training noticing.

Everything that touches the model under training runs inside `untouched`: afterwards the random state of Python, NumPy
and torch (CPU and every CUDA device in use), the training flag of each submodule, and the grad mode are what they were,
also when the block fails. Gradients and buffers are not written to, because the block runs without gradients and in
evaluation mode, in which BatchNorm does not update its statistics.
"""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn


@contextlib.contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Run a block with the module in evaluation mode and without gradients; put everything back afterwards.

    `torch.no_grad` rather than `inference_mode`: tensors that a model caches lazily inside inference mode break its
    next backward pass.

    Args:
        module: The model under training.
    """
    flags = [(submodule, submodule.training) for submodule in module.modules()]
    with preserved_random_state():
        try:
            # Set one by one: `eval()` may be overridden, and frozen parts must come back as they were.
            for submodule, _ in flags:
                submodule.training = False
            with torch.no_grad():
                yield
        finally:
            for submodule, training in flags:
                submodule.training = training


@contextlib.contextmanager
def preserved_random_state() -> Iterator[None]:
    """Put the global random state of Python, NumPy and torch back after a block, also when it fails."""
    python_state = random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002 - the legacy state is what training code draws from
    torch_state = torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(torch_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)


def seed_everywhere(seed: int) -> None:
    """Seed Python, NumPy and torch; call it inside `preserved_random_state`."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)
