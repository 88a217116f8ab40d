"""The processes that draw an evaluation's samples: who draws what, and how they agree on what became of it.

They agree after every chunk, in a process group of their own and without blocking the interpreter. Lightning's handler
of SIGTERM broadcasts in the main group at whatever line the signal comes, and waits: a process that waited inside torch
could not run its own handler, and exchanges in the main group would be taken for one another.
"""

import enum
import time
from typing import Any, final

import torch
import torch.distributed
from lightning.pytorch import Trainer
from torch import Tensor

from relict_lightning.errors import ConfigurationError

_PAUSE_SECONDS = 0.002


@final
class Ending(enum.IntEnum):
    """How a chunk ended; of several processes' endings the largest is that of all."""

    DRAWN = 0
    OUT_OF_MEMORY = 1
    INTERRUPTED = 2
    FAILED = 3


@final
class DrawingProcesses:
    """The processes of a trainer, this one among them; all of them make this object together.

    Processes that share the layers of one model (tensor parallel) draw the same samples; the others take turns.

    Args:
        trainer: The trainer, while it fits.

    Raises:
        ConfigurationError: If there are several processes, and torch lacks what they need to agree.

    Attributes:
        count: Number of processes that take turns.
        turn: Whose turn is this process's, from 0.
    """

    def __init__(self, trainer: Trainer) -> None:
        shares = getattr(trainer.strategy, "distributed_sampler_kwargs", None) or {}
        self.count: int = shares.get("num_replicas", trainer.world_size)
        self.turn: int = shares.get("rank", trainer.global_rank)
        self._world: Any = None
        self._group: Any = None
        if trainer.world_size == 1:
            return
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized() and distributed.is_gloo_available()):
            raise ConfigurationError(
                f"Drawing samples in {trainer.world_size} processes needs torch.distributed with gloo, which "
                f"{type(trainer.strategy).__name__} does not use. Train in one process, or with another strategy."
            )
        self._world = distributed.group.WORLD
        self._group = distributed.new_group(backend="gloo")
        turns = self._gathered(torch.tensor([self.turn]))
        self._first_of = [[int(turn) for turn in turns].index(turn) for turn in range(self.count)]

    def serve(self, trainer: Trainer) -> bool:
        """Return whether these are still the trainer's processes."""
        if trainer.world_size == 1:
            return self._group is None
        return self._group is not None and self._world is torch.distributed.group.WORLD

    def agree(self, ending: Ending) -> Ending:
        """Return the worst ending of all processes, which all call this."""
        if self._group is None:
            return ending
        worst = torch.tensor([int(ending)])
        work = torch.distributed.all_reduce(worst, torch.distributed.ReduceOp.MAX, group=self._group, async_op=True)
        _finish(work)
        return Ending(int(worst))

    def gather(self, images: Tensor) -> list[Tensor]:
        """Return the images of every process that takes turns, in their order; all have as many, on the CPU."""
        if self._group is None:
            return [images]
        gathered = self._gathered(images)
        return [gathered[first] for first in self._first_of]

    def _gathered(self, own: Tensor) -> list[Tensor]:
        received = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size(self._group))]
        _finish(torch.distributed.all_gather(received, own.contiguous(), group=self._group, async_op=True))
        return received


def _finish(work: Any) -> None:
    """Wait for an exchange while signals are handled."""
    while not work.is_completed():
        time.sleep(_PAUSE_SECONDS)
    # Raises what went wrong.
    work.wait()
