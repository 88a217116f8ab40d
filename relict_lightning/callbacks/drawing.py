"""Drawing an evaluation's samples: each process its share, all processes the same set, and training none the wiser."""

from typing import final

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from tqdm.auto import tqdm

from relict_lightning.callbacks.agreement import together
from relict_lightning.interfaces import Sampler
from relict_lightning.samplers import chunk_seeds, draw
from relict_lightning.training_state import seed_everywhere, untouched


@final
class SampleDrawer:
    """Draws samples from a model under training.

    Samples are drawn in chunks of one size, each with a seed of its own, and the processes take turns, so that the
    samples do not depend on the number of processes. Every process draws the same number of chunks, because sharded
    models need equal numbers of forward passes.

    Args:
        sampler: Where samples come from.
        chunk_size: Samples drawn at a time.
        seed: Seed of all evaluations.
    """

    def __init__(self, sampler: Sampler, *, chunk_size: int, seed: int) -> None:
        self.sampler = sampler
        self.chunk_size = chunk_size
        self.seed = seed

    def draw(
        self,
        trainer: Trainer,
        module: LightningModule,
        *,
        num_samples: int,
        evaluation: int,
        image_shape: tuple[int, ...],
        progress: bool,
    ) -> Tensor:
        """Return `[n, c, *spatial]` samples, float32, on the CPU, the same on every process.

        Args:
            trainer: The trainer, while it fits.
            module: The model under training, which is left as it was.
            num_samples: How many samples.
            evaluation: Number of the evaluation; each has seeds of its own.
            image_shape: `[c, *spatial]` that samples must have.
            progress: Whether to show a progress bar.

        Raises:
            SamplerError: If the samples are not what was asked for.
            OtherProcessError: If they are not on another process.
        """
        size = min(self.chunk_size, num_samples)
        seeds = chunk_seeds(num_samples=num_samples, chunk_size=size, seed=self.seed, evaluation=evaluation)
        world = trainer.world_size
        padded = seeds + [seeds[-1]] * (-len(seeds) % world)
        mine = padded[trainer.global_rank :: world]
        bar = tqdm(total=len(mine) * size, desc="Sampling", unit="image", leave=False, disable=not progress)

        def draw_mine() -> Tensor:
            with bar, untouched(module), trainer.precision_plugin.forward_context():
                return draw(
                    self.sampler,
                    module,
                    seeds=mine,
                    chunk_size=size,
                    image_shape=image_shape,
                    before_chunk=seed_everywhere,
                    after_chunk=bar.update,
                )

        samples = together(trainer, draw_mine, doing="Sampling")
        return _gathered(samples, trainer, module, size)[:num_samples]


def _gathered(samples: Tensor, trainer: Trainer, module: LightningModule, size: int) -> Tensor:
    """Return all processes' samples in the order of their chunks."""
    if trainer.world_size == 1:
        return samples
    gathered = trainer.strategy.all_gather(samples.to(module.device)).cpu()
    # Chunk number j was drawn by process j modulo the number of processes.
    chunks = gathered.reshape(trainer.world_size, -1, size, *samples.shape[1:]).transpose(0, 1)
    return chunks.reshape(-1, *samples.shape[1:])
