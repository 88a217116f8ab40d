"""What reading leaves in the process as it found it: the global random state, and the number of torch's threads."""

import pickle
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Return a context that leaves the global random state of python, numpy and torch as it was, errors included.

    Example:
        >>> before = torch.get_rng_state()
        >>> with random_state_kept():
        ...     noise = torch.rand(3)
        >>> torch.equal(torch.get_rng_state(), before)
        True
    """
    python_state = random.getstate()
    # The legacy generator is the one that augmentations share.
    numpy_state = np.random.get_state()  # noqa: NPY002
    torch_state = torch.get_rng_state()
    # Asking for the state would otherwise start CUDA, which breaks workers that are forked later.
    cuda_states = torch.cuda.get_rng_state_all() if _cuda_is_running() else None
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(torch_state)
        if cuda_states is not None:
            torch.cuda.set_rng_state_all(cuda_states)


@contextmanager
def reading_state() -> Iterator[None]:
    """Return a context in which a data set reads, here or in a worker, with the same result and without a trace.

    Torch has one thread inside, as it has in the workers of a data loader: how a sum is split among threads shows in
    its last bits, so that the same image would differ between machines, and between the main process and a worker. The
    random state and the number of threads are put back, errors included.

    Example:
        >>> before = torch.get_num_threads()
        >>> with reading_state():
        ...     torch.get_num_threads()
        1
        >>> torch.get_num_threads() == before
        True
    """
    threads = torch.get_num_threads()
    with random_state_kept():
        # Only where it changes something: a forked worker must not touch the threads of its parent.
        if threads != 1:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            if threads != 1:
                torch.set_num_threads(threads)


def global_random_state() -> bytes:
    """Return the global random state of python, numpy and torch, to be compared with another."""
    states = (random.getstate(), np.random.get_state(), torch.get_rng_state().numpy())  # noqa: NPY002
    return pickle.dumps(states)


def _cuda_is_running() -> bool:
    is_running: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch ships it without types
    return is_running
