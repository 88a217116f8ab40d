"""Drawing an evaluation's samples: each process its share, all processes the same set, and training none the wiser."""

import gc
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, final

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from tqdm.auto import tqdm

from relict_lightning.callbacks.evaluation.drawing_processes import DrawingProcesses, Ending
from relict_lightning.callbacks.evaluation.sharded import inside_forward
from relict_lightning.errors import DrawingInterrupted, OtherProcessError, RelictWarning
from relict_lightning.interfaces import Sampler
from relict_lightning.samplers import check_label_maps, draw_chunk, is_out_of_memory, sample_seeds
from relict_lightning.training_state import seed_everywhere, untouched

Result = TypeVar("Result")


@final
@dataclass(frozen=True, kw_only=True)
class DrawnSamples:
    """The samples of an evaluation, in the order of their positions.

    Attributes:
        images: `[n, c, *spatial]`, float32, on the CPU.
        label_maps: `[n, *spatial]`, whole numbers, where samples are made from label maps; None otherwise.
    """

    images: Tensor
    label_maps: Tensor | None


@final
class SampleDrawer:
    """Draws samples from a model under training.

    Each sample has a position in the evaluation and a seed of its own. Samples are drawn in chunks of one size, and the
    processes take turns, so that the samples do not depend on the number of processes. Every process draws the same
    number of chunks, because sharded models need equal numbers of forward passes.

    Where memory runs out on any process, all of them draw the evaluation anew in chunks of half the size, and keep to
    it. A forward pass of a sharded model waits for the other processes: there all have to run out of memory in the same
    pass, as they do where they hold equal shares.

    Args:
        sampler: Where samples come from.
        chunk_size: Samples drawn at a time.
        seed: Seed of all evaluations.

    Attributes:
        chunk_size: Samples drawn at a time from now on.
    """

    def __init__(self, sampler: Sampler, *, chunk_size: int, seed: int) -> None:
        self.sampler = sampler
        self.chunk_size = chunk_size
        self.seed = seed
        self._processes: DrawingProcesses | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the processes out: a copy finds its own."""
        return {**self.__dict__, "_processes": None}

    def draw(
        self,
        trainer: Trainer,
        module: LightningModule,
        *,
        num_samples: int,
        evaluation: int,
        image_shape: tuple[int, ...],
        progress: bool,
    ) -> DrawnSamples:
        """Return an evaluation's samples, the same on every process.

        Args:
            trainer: The trainer, while it fits.
            module: The model under training, which is left as it was.
            num_samples: How many samples.
            evaluation: Number of the evaluation; each has seeds of its own.
            image_shape: `[c, *spatial]` that samples must have.
            progress: Whether to show a progress bar.

        Raises:
            SamplerError: If the samples are not what was asked for.
            OtherProcessError: If they are not on another process, or its memory does not hold one sample.
            DrawingInterrupted: If the trainer has received SIGTERM on any process.
        """
        if self._processes is None or not self._processes.serve(trainer):
            self._processes = DrawingProcesses(trainer)
        processes = self._processes
        label_maps = self._label_maps(trainer, module, processes, num_samples=num_samples, image_shape=image_shape)
        asked = size = min(self.chunk_size, num_samples)
        draw = partial(
            self._in_chunks,
            trainer,
            module,
            processes,
            num_samples=num_samples,
            seeds_of=evaluation,
            image_shape=image_shape,
            progress=progress,
        )
        while (images := draw(size=size)) is None:
            size //= 2
            _free_memory()
        if size < asked:
            self.chunk_size = size
            if trainer.is_global_zero:
                _warn_of_smaller_chunks(asked, size)
        return DrawnSamples(images=images, label_maps=label_maps)

    def _in_chunks(
        self,
        trainer: Trainer,
        module: LightningModule,
        processes: DrawingProcesses,
        *,
        num_samples: int,
        size: int,
        seeds_of: int,
        image_shape: tuple[int, ...],
        progress: bool,
    ) -> Tensor | None:
        """Return the samples, drawn so many at a time; None where memory ran out."""
        rounds = -(-num_samples // (size * processes.count))
        # Also the last chunk is full, so that compiled models see one shape; what is too much is dropped.
        seeds = sample_seeds(num_samples=rounds * processes.count * size, seed=self.seed, evaluation=seeds_of)
        bar = tqdm(total=rounds * size, desc="Sampling", unit="image", leave=False, disable=not progress)
        drawn: list[Tensor] = []
        with bar, untouched(module), trainer.precision_plugin.forward_context():
            for turn in range(rounds):
                start = (turn * processes.count + processes.turn) * size
                positions = range(start, start + size)
                chunk = partial(
                    self._chunk, trainer, module, positions, seeds[start : start + size], image_shape=image_shape
                )
                images = _drawn_by_all(trainer, processes, chunk, is_last_resort=size == 1)
                if images is None:
                    return None
                drawn.append(images)
                bar.update(size)
        chunks = [chunk for images in drawn for chunk in processes.gather(images)]
        return torch.cat(chunks)[:num_samples]

    def _chunk(
        self,
        trainer: Trainer,
        module: LightningModule,
        positions: range,
        seeds: list[int],
        *,
        image_shape: tuple[int, ...],
    ) -> Tensor:
        """Return one chunk, drawn inside the forward pass of a sharded model unless the sampler goes there itself."""
        seed_everywhere(seeds[0])
        draw = partial(draw_chunk, self.sampler, module, positions=positions, seeds=seeds, image_shape=image_shape)
        return draw() if self.sampler.calls_strategy else inside_forward(trainer, module, draw)

    def _label_maps(
        self,
        trainer: Trainer,
        module: LightningModule,
        processes: DrawingProcesses,
        *,
        num_samples: int,
        image_shape: tuple[int, ...],
    ) -> Tensor | None:
        """Return the label maps that the samples are made from."""

        def find() -> list[Tensor]:
            found = self.sampler.label_maps_at(module, range(num_samples))
            return [] if found is None else [check_label_maps(found, count=num_samples, image_shape=image_shape)]

        found = _drawn_by_all(trainer, processes, find, is_last_resort=True)
        return found[0] if found else None


def _drawn_by_all(
    trainer: Trainer, processes: DrawingProcesses, act: Callable[[], Result], *, is_last_resort: bool
) -> Result | None:
    """Return what `act` returns, once it is known that it went well on all processes; None where memory ran out.

    Args:
        trainer: The trainer.
        processes: The processes, which all call this.
        act: What to do.
        is_last_resort: Whether memory that runs out is an error, because nothing smaller can be tried.

    Raises:
        DrawingInterrupted: If the trainer has received SIGTERM on any process.
        OtherProcessError: If `act` failed on another process only. Its own error is raised where it failed.
    """
    failure: Exception | None = None
    results: list[Result] = []
    ending = Ending.DRAWN
    try:
        results.append(act())
    except Exception as error:  # noqa: BLE001 - raised again below, once all processes know of it
        if is_out_of_memory(error) and not is_last_resort:
            # Not kept: its traceback holds what fills the memory.
            ending = Ending.OUT_OF_MEMORY
        else:
            ending, failure = Ending.FAILED, error
    if ending is not Ending.FAILED and trainer.received_sigterm:
        ending = Ending.INTERRUPTED
    agreed = processes.agree(ending)
    if failure is not None:
        raise failure
    if agreed is Ending.FAILED:
        raise OtherProcessError("Sampling failed on another process; its error says why.")
    if agreed is Ending.INTERRUPTED:
        raise DrawingInterrupted(
            "The run was told to end (SIGTERM) while samples were drawn. This evaluation is left out. "
            "Resume the run from its last checkpoint."
        )
    return None if agreed is Ending.OUT_OF_MEMORY else results[0]


def _free_memory() -> None:
    """Give back what a failed attempt has left behind."""
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch has no types
        torch.cuda.empty_cache()


def _warn_of_smaller_chunks(asked: int, size: int) -> None:
    warnings.warn(
        f"Memory ran out while {asked} samples were drawn at a time; {size} are drawn at a time from here on. Samplers "
        f"that seed all samples drawn at a time together draw others than they would have. Pass "
        f"`ReplicaMonitor(sample_batch_size={size})` to start there.",
        RelictWarning,
        stacklevel=4,
    )
