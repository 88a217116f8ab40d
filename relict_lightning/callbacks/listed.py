"""The callbacks of a trainer, in its order."""

from typing import cast

from lightning.pytorch import Callback, Trainer


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Return a trainer's callbacks; a connector sets them, so that type checkers do not know of them."""
    return cast("list[Callback]", trainer.callbacks)  # type: ignore[attr-defined]
