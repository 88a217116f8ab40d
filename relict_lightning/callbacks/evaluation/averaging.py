"""The weights that get saved: where Lightning averages weights over steps, checkpoints hold the averages."""

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch import callbacks as lightning_callbacks

from relict_lightning.callbacks.listed import callbacks_of

# Lightning has had it since 2.6.
_WeightAveraging: Any = getattr(lightning_callbacks, "WeightAveraging", None)

Moment = Literal["start", "batch", "validation", "epoch", "end"]


@contextlib.contextmanager
def weights_to_be_saved(
    trainer: Trainer, module: LightningModule, *, watcher: Callback, moment: Moment
) -> Iterator[None]:
    """Run a block while the module holds the weights that a checkpoint saved now would hold.

    `WeightAveraging` updates and swaps weights in hooks that it shares with the watcher, so what the module holds when
    the watcher is called depends on which of them comes first in the trainer's list. Here it does not.

    Args:
        trainer: The trainer, while it fits.
        module: The model under training, which holds afterwards what it held before.
        watcher: The callback that looks.
        moment: In which hook it looks: at the start of training, or at the end of a batch, of a validation, of an epoch
            or of training.
    """
    averaging = averaging_of(trainer)
    if averaging is None or averaging._average_model is None:
        yield
        return
    callbacks = callbacks_of(trainer)
    is_later = callbacks.index(averaging) > callbacks.index(watcher)
    # It would take this step or epoch in only after the watcher has looked. A second call then changes nothing.
    if is_later and moment == "batch":
        averaging.on_train_batch_end(trainer, module, None, None, 0)
    elif is_later and moment == "epoch":
        averaging.on_train_epoch_end(trainer, module)
    if moment == "end" and not is_later:
        # The averages were copied into the module, for good.
        yield
        return
    # During validation the module holds the averages already.
    is_swapped = moment == "validation" and is_later
    swapped = contextlib.nullcontext() if is_swapped else _swapped(averaging, module)
    with swapped, _saved_as_if_not(trainer, averaging, module):
        yield


@contextlib.contextmanager
def _swapped(averaging: Any, module: LightningModule) -> Iterator[None]:
    averaging._swap_models(module)
    try:
        yield
    finally:
        averaging._swap_models(module)


@contextlib.contextmanager
def _saved_as_if_not(trainer: Trainer, averaging: Any, module: LightningModule) -> Iterator[None]:
    """Run a block; a checkpoint saved in it, as when a cluster tells the run to end, holds each weight in its place."""
    save = trainer.save_checkpoint

    def save_checkpoint(*arguments: Any, **options: Any) -> None:
        with _swapped(averaging, module):
            save(*arguments, **options)

    trainer.save_checkpoint = save_checkpoint  # type: ignore[method-assign]
    try:
        yield
    finally:
        trainer.save_checkpoint = save  # type: ignore[method-assign]


def averaging_of(trainer: Trainer) -> Any | None:
    """Return the trainer's `WeightAveraging`, if it has one."""
    if _WeightAveraging is None:
        return None
    return next((callback for callback in callbacks_of(trainer) if isinstance(callback, _WeightAveraging)), None)
