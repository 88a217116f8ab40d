"""The weights of a checkpoint in the module: for a while during training, or for good after it."""

import copy
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from relict_lightning.callbacks.agreement import together
from relict_lightning.callbacks.evaluation.averaging import averaging_of


def loads_weights_alone(strategy: Strategy) -> bool:
    """Return whether a strategy can load a checkpoint's weights and leave the optimizer as it is.

    Those that shard a model (FSDP, DeepSpeed, model parallel) read the optimizer's state in the same stroke as the
    weights, while a model is fitted.
    """
    return type(strategy).load_checkpoint is Strategy.load_checkpoint


def read_checkpoint(trainer: Trainer, path: str | Path, *, trusted: bool) -> dict[str, Any]:
    """Return the content of a checkpoint on the CPU, once every process has read it.

    Args:
        trainer: The trainer.
        path: The checkpoint.
        trusted: Whether it may hold objects other than tensors and primitives, as hyperparameters can be, because this
            run wrote it.
    """
    load = trainer.strategy.load_checkpoint
    # Lightning before 2.6 knows no `weights_only` here and loads any object.
    knows = "weights_only" in inspect.signature(load).parameters
    options: dict[str, Any] = {"weights_only": False} if trusted and knows else {}
    return together(trainer, lambda: load(path, **options), doing="Reading a checkpoint")


def load_weights(trainer: Trainer, module: LightningModule, content: Mapping[str, Any]) -> None:
    """Put the weights of a checkpoint into a module, as the trainer does when it resumes from one.

    Lightning's `WeightAveraging` saves averaged weights under `state_dict`, and these are what is loaded.

    Args:
        trainer: The trainer.
        module: The module.
        content: The content of the checkpoint.
    """
    if is_overridden("on_load_checkpoint", module):
        module.on_load_checkpoint({**content})
    trainer.strategy.load_model_state_dict(content, strict=module.strict_loading)


def load_averages(trainer: Trainer, content: Mapping[str, Any]) -> None:
    """Put the weights of a checkpoint in place of running averages: Lightning validates these, also after training."""
    average = getattr(averaging_of(trainer), "_average_model", None)
    if average is not None:
        average.module.load_state_dict(content["state_dict"], strict=False)


def own_state(trainer: Trainer, module: LightningModule, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `load_weights` needs to put a module's own weights back, bit by bit, after those of a checkpoint.

    Weights are written in place both times, so that the optimizer and the wrappers of a strategy keep their tensors.
    What a module keeps besides, by `on_save_checkpoint` and `on_load_checkpoint`, goes the same way.

    Args:
        trainer: The trainer.
        module: The module under training.
        content: The content of the checkpoint that is to be loaded.

    Returns:
        The state; under `state_dict` the weights, on the CPU.
    """
    weights = {name: _kept(value) for name, value in module.state_dict().items()}
    if not is_overridden("on_load_checkpoint", module):
        return {"state_dict": weights}
    # A module may look for more in a checkpoint than it wrote there itself.
    own = {
        **{name: value for name, value in content.items() if name != "optimizer_states"},
        "epoch": trainer.current_epoch,
        "global_step": trainer.global_step,
        "state_dict": weights,
    }
    module.on_save_checkpoint(own)
    return {name: value if value is weights else copy.deepcopy(value) for name, value in own.items()}


def _kept(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else copy.deepcopy(value)
