"""Calling what uses a model that a strategy shards: the weights are whole inside its forward pass only."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from relict_lightning.errors import SamplerError

Result = TypeVar("Result")


def inside_forward(trainer: Trainer, module: LightningModule, act: Callable[[], Result]) -> Result:
    """Return what `act` returns, called inside the forward pass of the strategy's model where FSDP has wrapped it.

    A method that is called directly meets the pieces of the weights that this process holds. FSDP2, as by
    `ModelParallelStrategy`, gathers weights at each layer that it shards, so that direct calls work.

    Args:
        trainer: The trainer, while it fits.
        module: The model under training.
        act: What to do, on all processes equally often.

    Raises:
        SamplerError: If `act` goes through the wrapped model itself.
    """
    wrapped = trainer.strategy.model
    if wrapped is None or not _is_sharded(wrapped, module):
        return act()
    # Where a compiled model has a forward of its own, it hides that of its class.
    own = module.__dict__.get("forward")

    def put_back() -> None:
        module.__dict__.pop("forward", None)
        if own is not None:
            module.__dict__["forward"] = own

    results: list[Result] = []
    failures: list[Exception] = []

    def instead() -> None:
        # What is called inside may call the module's own forward.
        put_back()
        # An error is raised outside, so that FSDP ends its forward pass as it should.
        try:
            results.append(act())
        except Exception as error:  # noqa: BLE001 - raised again below
            failures.append(error)

    module.__dict__["forward"] = instead
    try:
        with _entered_once(wrapped):
            wrapped()
    finally:
        put_back()
    if failures:
        raise failures.pop()
    return results[0]


@contextmanager
def _entered_once(wrapped: nn.Module) -> Iterator[None]:
    """Return a context in which the model's forward pass is not begun inside itself, which FSDP does not survive."""
    entered: list[bool] = []

    def refuse(*_: Any) -> None:
        if entered:
            raise SamplerError(
                "The sampler goes through the strategy's model, inside whose forward pass it is called because FSDP "
                "shards it. Call the module's own methods there, or sample in `predict_step` and pass "
                "`relict_lightning.samplers.PredictStepSampler()`; a Sampler of your own sets `calls_strategy = True`."
            )
        entered.append(True)

    handle = wrapped.register_forward_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()


def _is_sharded(wrapped: nn.Module, module: LightningModule) -> bool:
    """Return whether FSDP has wrapped the whole module, parts of it or the rest of it."""
    if wrapped is module or not torch.distributed.is_available():
        return False
    from torch.distributed.fsdp import FullyShardedDataParallel

    return isinstance(wrapped, FullyShardedDataParallel)
