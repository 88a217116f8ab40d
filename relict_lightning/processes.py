"""The processes that share one job, and how they fail together.

Every exchange carries, beside what is exchanged, whether its sender failed. So an error on one process reaches all
others at the next exchange, wherever they are by then, and none is left waiting.
"""

import datetime as dt
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, final

import torch
import torch.distributed

from relict_lightning.errors import ConfigurationError, OtherProcessError

Result = TypeVar("Result")

# Processes that share a build finish at different times; torch's half hour is short for one that reads slowly.
_PATIENCE = dt.timedelta(hours=6)


@final
class Processes:
    """The processes of one job, this one among them.

    Args:
        group: A process group of `torch.distributed` that can exchange objects in the main memory (gloo); None for one
            process alone.
    """

    def __init__(self, group: Any | None = None) -> None:
        self._group = group
        self.rank = 0 if group is None else torch.distributed.get_rank(group)
        self.count = 1 if group is None else torch.distributed.get_world_size(group)
        self._told: BaseException | None = None

    @classmethod
    def current(cls) -> "Processes":
        """Return all processes of `torch.distributed`, which all must call this; one alone where it is not in use.

        Raises:
            ConfigurationError: If gloo, which comes with torch, is missing.
        """
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
            return cls()
        if not distributed.is_gloo_available():
            raise ConfigurationError("Sharing the reference among processes needs torch with gloo; this one lacks it.")
        # A group of its own: objects stay in the main memory, and their order does not mix with that of gradients.
        return cls(distributed.new_group(backend="gloo", timeout=_PATIENCE))

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes what is written once."""
        return self.rank == 0

    def gather(self, act: Callable[[], Result], *, doing: str) -> list[Result]:
        """Return what `act` returns on every process, in their order; raise on all if it fails on any.

        Args:
            act: What to do here. It must not wait for other processes.
            doing: What it is, for the message of the processes that did not fail.

        Raises:
            OtherProcessError: If `act` failed on another process only. Its own error is raised where it failed.
        """
        if self._group is None:
            return [act()]
        try:
            result = act()
        except Exception as error:
            self._tell(error)
            raise
        return self._exchanged(result, doing=doing)

    def together(self, act: Callable[[], Result], *, doing: str) -> Result:
        """Return what `act` returns, once every process has done its own; raise on all if it fails on any.

        Unlike in `gather`, `act` may call methods of this object, as often as on all other processes.

        Args:
            act: What to do.
            doing: What it is, for the message of the processes that did not fail.

        Raises:
            OtherProcessError: If it failed on another process only.
        """
        if self._group is None:
            return act()
        try:
            result = act()
        except Exception as error:
            # The others already know of an error that an exchange has carried.
            if error is not self._told:
                self._tell(error)
            elif isinstance(error, OtherProcessError):
                self._told = _failed_elsewhere(doing)
                raise self._told from error
            raise
        self._exchanged(None, doing=doing)
        return result

    def _tell(self, error: Exception) -> None:
        """Let the others know, in whatever exchange they wait."""
        self._told = error
        torch.distributed.all_gather_object([None] * self.count, (False, None), group=self._group)

    def _exchanged(self, value: Result, *, doing: str) -> list[Result]:
        received: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(received, (True, value), group=self._group)
        if not all(succeeded for succeeded, _ in received):
            self._told = _failed_elsewhere(doing)
            raise self._told
        return [value for _, value in received]


@contextmanager
def launched() -> Iterator[Processes]:
    """Return a context with the processes that `torchrun` has started; with this one alone where it has not."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    starts = count > 1 and "MASTER_ADDR" in os.environ and not torch.distributed.is_initialized()
    if starts:
        torch.distributed.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield Processes.current()
    finally:
        if starts:
            torch.distributed.destroy_process_group()


def _failed_elsewhere(doing: str) -> OtherProcessError:
    return OtherProcessError(f"{doing} failed on another process; its error says why.")
