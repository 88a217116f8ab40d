"""One of two processes that draw samples from a model in training, in all the ways that a strategy may hold it.

Run as `python drawn_by_two.py FOLDER` with the environment of `torchrun`; writes what this process drew.
"""

import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy
from monai.networks.schedulers import DDIMScheduler
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.utils.data import DataLoader

from relict_lightning.callbacks.evaluation.drawing import DrawnSamples, SampleDrawer
from relict_lightning.interfaces import Sampler
from relict_lightning.samplers import DiffusionSampler, FunctionSampler, MethodSampler, PredictStepSampler

# Seven samples in chunks of two: four chunks, of which the last is not needed in full.
NUM_SAMPLES, CHUNK = 7, 2
SHAPE = (1, 8, 8)


class Denoiser(nn.Module):
    """Two convolutions with the signature of MONAI's networks."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(1, 4, 3, padding=1)
        self.outer = nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, images: Tensor, timesteps: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        shift = 0 if context is None else context.reshape(-1, 1, 1, 1)
        out: Tensor = self.outer(torch.tanh(self.inner(images)) + shift)
        return out


class Diffusing(LightningModule):
    """Can be sampled from in every way."""

    def __init__(self, *, shards: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network, self.head = Denoiser(), nn.Conv2d(1, 1, 1)
        self.scheduler = DDIMScheduler(num_train_timesteps=20, clip_sample=False)
        self.shards = shards
        self.labels = torch.tensor([0.0, 1.0, -1.0])

    def configure_model(self) -> None:
        if self.shards:
            for part in (self.network, self.head):
                fully_shard(part, mesh=self.device_mesh["data_parallel"])

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.head(self.network(images))
        return out

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return ((self(batch) - batch) ** 2).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        # By its own forward, and once more by a part.
        return self.network(self(torch.randn(n, *SHAPE, generator=generator)))

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        noise = [torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in batch["seeds"]]
        return self(torch.stack(noise)) + batch["condition"].reshape(-1, 1, 1, 1)

    def sample_round_about(self, n: int) -> Tensor:
        return self.trainer.strategy.predict_step({"seeds": [1] * n, "condition": torch.zeros(n)}, 0)


class CpuFsdp(FSDPStrategy):
    """FSDP on the CPU: Lightning and torch ask for an accelerator, unless they are told the device."""

    def _setup_model(self, model: nn.Module) -> nn.Module:
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), **self.kwargs)


class Draws(Callback):
    """Draws before the first step and after the last."""

    def __init__(self, sampler: Sampler, *, chunk_size: int = CHUNK) -> None:
        self.drawer = SampleDrawer(sampler, chunk_size=chunk_size, seed=3)
        self.drawn: list[DrawnSamples] = []

    def _draw(self, trainer: Trainer, module: LightningModule) -> None:
        self.drawn.append(
            self.drawer.draw(trainer, module, num_samples=NUM_SAMPLES, evaluation=1, image_shape=SHAPE, progress=False)
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer, pl_module)


class Greedy(Sampler):
    """The model's own samples; memory runs out in one process where more than so many are drawn at a time."""

    def __init__(self, *, fits: int) -> None:
        self.fits = fits
        self.sizes: list[int] = []

    def sample_at(self, module: Any, positions: range, seeds: list[int], **_: Any) -> Tensor:
        self.sizes.append(len(positions))
        # Not in the first samples, so that something has been drawn that has to go.
        if positions[0] >= 4 and len(positions) > self.fits and module.global_rank == module.trainer.world_size - 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.sample(module, len(positions), seed=seeds[0])

    def sample(self, module: Any, n: int, *, seed: int) -> Tensor:
        return module.sample(n, generator=torch.Generator().manual_seed(seed))


class Interrupting(Sampler):
    """Something happens to the run in the second chunk."""

    def __init__(self, happens: Callable[[Any], object]) -> None:
        self.happens = happens
        self.chunks = 0

    def sample(self, module: Any, n: int, *, seed: int) -> Tensor:
        self.chunks += 1
        if self.chunks == 2:
            self.happens(module)
        return module.sample(n, generator=torch.Generator().manual_seed(seed))


def samplers() -> dict[str, Sampler]:
    return {
        "method": MethodSampler(),
        "function": FunctionSampler(lambda module, n, generator: module.sample(n, generator=generator)),
        "predict_step": PredictStepSampler(conditions="labels"),
        "diffusion": DiffusionSampler("network", num_inference_steps=3),
        "conditional": DiffusionSampler("network", num_inference_steps=2, conditions="labels"),
    }


def fit(sampler: Sampler, folder: Path, *, devices: int, strategy: Strategy | str = "auto", chunk_size: int = CHUNK):
    draws = Draws(sampler, chunk_size=chunk_size)
    trainer = Trainer(
        accelerator="cpu", devices=devices, strategy=strategy, max_steps=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, callbacks=[draws],
    )  # fmt: skip
    images = torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(1))
    module = Diffusing(shards=isinstance(strategy, ModelParallelStrategy))
    # All images in every step: Lightning shuffles what several processes read.
    trainer.fit(module, DataLoader(images, batch_size=8 // devices))
    return draws


def images_of(draws: Draws) -> list[Tensor]:
    return [drawn.images for drawn in draws.drawn]


def error_of(act: Callable[[], object]) -> str:
    try:
        act()
    except Exception as error:  # noqa: BLE001 - told to the test
        return f"{type(error).__name__}: {error}"
    return "nothing"


def ends_both(module: Any) -> None:
    """Send SIGTERM to both processes while the other one waits for this one."""
    if module.global_rank == 1:
        time.sleep(0.3)
        for pid in PIDS:
            os.kill(pid, signal.SIGTERM)
        # The handler waits for that of the other process.
        time.sleep(0.1)


def flags_one(module: Any) -> None:
    """Let the first process alone know of SIGTERM."""
    if module.global_rank == 0:
        module.trainer._signal_connector.received_sigterm = True


PIDS: list[int] = []


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    report: dict[str, Any] = {}
    strategies: dict[str, Callable[[], Strategy | str]] = {
        "ddp": lambda: "ddp",
        "fsdp": CpuFsdp,
        "fsdp in parts": lambda: CpuFsdp(auto_wrap_policy={nn.Conv2d}),
        "fsdp2": lambda: ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
    }
    for name, strategy in strategies.items():
        for kind, sampler in samplers().items():
            report[name, kind] = images_of(fit(sampler, folder, devices=2, strategy=strategy()))
    report["tensor parallel"] = images_of(
        fit(MethodSampler(), folder, devices=2, strategy=ModelParallelStrategy(data_parallel_size=1))
    )
    report["round about"] = error_of(
        lambda: fit(MethodSampler("sample_round_about"), folder, devices=2, strategy=CpuFsdp())
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        greedy = Greedy(fits=1)
        draws = fit(greedy, folder, devices=2, strategy="ddp", chunk_size=4)
    report["greedy"] = {
        "images": images_of(draws),
        "sizes": greedy.sizes,
        "chunk size": draws.drawer.chunk_size,
        "said": [str(warning.message) for warning in caught if "Memory ran out" in str(warning.message)],
    }
    report["too greedy"] = error_of(lambda: fit(Greedy(fits=0), folder, devices=2, strategy="ddp"))
    pids = [torch.tensor([0]), torch.tensor([0])]
    torch.distributed.all_gather(pids, torch.tensor([os.getpid()]))
    PIDS.extend(int(pid) for pid in pids)
    for name, happens in {"flag": flags_one, "SIGTERM": ends_both}.items():
        sampler = Interrupting(happens)
        started = time.monotonic()
        report[name] = {
            "error": error_of(lambda sampler=sampler: fit(sampler, folder, devices=2, strategy="ddp")),
            "chunks": sampler.chunks,
            "seconds": time.monotonic() - started,
        }
    torch.save(report, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
