"""Which errors mean that memory ran out."""

import torch

# Torch before 2.5 knows the error by its older name only.
_OUT_OF_MEMORY: type[Exception] = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)
# What libraries say that allocate outside torch's own pool.
_SAID = ("out of memory", "ALLOC_FAILED", "not enough memory", "can't allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out, on the accelerator or in the host.

    Example:
        >>> is_out_of_memory(RuntimeError("CUDA error: out of memory")), is_out_of_memory(RuntimeError("other"))
        (True, False)
    """
    if isinstance(error, (_OUT_OF_MEMORY, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID)
