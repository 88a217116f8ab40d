"""Failing together: an error on one process must not leave the others waiting for it."""

from collections.abc import Callable
from typing import TypeVar

from lightning.pytorch import Trainer

from relict_lightning.errors import OtherProcessError

Result = TypeVar("Result")


def together(trainer: Trainer, act: Callable[[], Result], *, doing: str) -> Result:
    """Return what `act` returns, once every process has done its own; raise on all if it fails on any.

    Args:
        trainer: The trainer, whose processes all call this.
        act: What to do. It must not wait for other processes.
        doing: What it is, for the message of the processes that did not fail.

    Raises:
        OtherProcessError: If `act` failed on another process only. Its own error is raised where it failed.
    """
    failure: Exception | None = None
    results = []
    try:
        results.append(act())
    except Exception as error:  # noqa: BLE001 - raised again below, once all processes know of it
        failure = error
    everyone_did = trainer.strategy.reduce_boolean_decision(failure is None, all=True)
    if failure is not None:
        raise failure
    if not everyone_did:
        raise OtherProcessError(f"{doing} failed on another process; its error says why.")
    return results[0]


def on_first(trainer: Trainer, act: Callable[[], object], *, doing: str) -> None:
    """Do something on the first process only; raise on all if it fails.

    Args:
        trainer: The trainer, whose processes all call this.
        act: What to do. It must not wait for other processes.
        doing: What it is, for the message of the other processes.

    Raises:
        OtherProcessError: On the other processes, if `act` failed. Its own error is raised on the first.
    """
    together(trainer, act if trainer.is_global_zero else _nothing, doing=doing)


def _nothing() -> None:
    """Take part without doing anything."""
