"""Models of every kind train as if nobody looked: compiled, in bfloat16, with caches, schedulers and learning rates."""

from collections.abc import Callable
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from monai.networks.schedulers import DDIMScheduler
from noticed import Noticed, Recorded, differences
from torch import Tensor, nn
from torch.optim import lr_scheduler as schedulers
from torch.utils.data import DataLoader

from relict_lightning import ReplicaMonitor
from relict_lightning.samplers import DiffusionSampler
from relict_lightning.testing import NoisyModule

# A model that has hardly been trained may return anything.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The samples' intensities are not those:relict_lightning.errors.RelictWarning"
)


@pytest.fixture
def train(trainer, heads, random_states) -> Callable[..., dict[str, Any]]:
    """Train from a fixed seed; return all that watching must not change."""

    def run(make_module: Callable[[], Any], *watching: Callback, **trained: Any) -> dict[str, Any]:
        seed_everything(11, verbose=False)
        module, noticed, read = make_module(), Noticed(random_states), []
        fitted = trainer(*watching, noticed, **trained)
        loader = DataLoader(Recorded(heads.training, read), batch_size=10, shuffle=True)
        fitted.fit(module, loader, heads.heldout_loader())
        return {
            "read": read,
            "seen": noticed.seen,
            "weights": fitted.lightning_module.state_dict(),
            "gradients": [parameter.grad for parameter in fitted.lightning_module.parameters()],
            "optimizers": [optimizer.state_dict() for optimizer in fitted.optimizers],
            "schedulers": [config.scheduler.state_dict() for config in fitted.lr_scheduler_configs],
            "model's own": getattr(fitted.lightning_module, "own", dict)(),
        }

    return run


class Compiled(NoisyModule):
    """A network that is compiled, without code being generated for it, which takes minutes."""

    def __init__(self) -> None:
        super().__init__()
        self.network = torch.compile(self.network, backend="eager")


class Unchecked(NoisyModule):
    """The same without shape checks, which cannot be compiled."""

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images + 0.1 * torch.randn_like(images))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self(batch), batch)


class Caching(NoisyModule):
    """Makes a tensor when it is first needed, which may be while samples are drawn; the next backward needs it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self._ramp: Tensor | None = None

    def ramp(self) -> Tensor:
        if self._ramp is None:
            self._ramp = torch.linspace(0, 1, 16) + torch.zeros(16, 16)
        return self._ramp

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + self.scale * self.ramp()

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        return super().sample(n, generator=generator) + self.scale * self.ramp()


class OneCycle(NoisyModule):
    """A rate and a momentum that change with each step."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), 0.01)
        scheduler = schedulers.OneCycleLR(optimizer, 0.05, total_steps=8)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class OnPlateau(NoisyModule):
    """A rate that changes with what is logged."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)
        scheduler = schedulers.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=10.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}


class Denoiser(nn.Module):
    """Takes what MONAI's inferers pass."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Dropout(0.2), nn.Conv2d(4, 1, 3, padding=1))

    def forward(self, x: Tensor, timesteps: Tensor, context: Any = None) -> Tensor:
        return self.convolution(x) + timesteps.reshape(-1, 1, 1, 1) / 1000


class Diffusion(lightning.LightningModule):
    """Owns a scheduler of MONAI, whose steps it draws from while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Denoiser()
        self.scheduler = DDIMScheduler(num_train_timesteps=50)
        self.scheduler.set_timesteps(25)

    def own(self) -> dict[str, Any]:
        return {"timesteps": self.scheduler.timesteps, "inference steps": self.scheduler.num_inference_steps}

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        noise = torch.randn_like(batch)
        steps = self.scheduler.timesteps[torch.randint(len(self.scheduler.timesteps), (len(batch),))]
        noisy = self.scheduler.add_noise(original_samples=batch, noise=noise, timesteps=steps)
        return nn.functional.mse_loss(self.network(noisy, steps), noise)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.01)


@pytest.mark.parametrize("every_n_steps", [None, 3])
@pytest.mark.parametrize(
    ("make_module", "trained", "monitored"),
    [
        pytest.param(Compiled, {}, {}, id="a compiled network"),
        pytest.param(lambda: torch.compile(Unchecked(), backend="eager"), {}, {}, id="a compiled module"),
        pytest.param(NoisyModule, {"precision": "bf16-true"}, {}, id="bf16-true"),
        pytest.param(NoisyModule, {"precision": "bf16-mixed"}, {}, id="bf16-mixed"),
        pytest.param(
            Diffusion, {}, {"sampler": DiffusionSampler(num_inference_steps=2, image_shape=[1, 16, 16])},
            id="a scheduler of MONAI",
        ),
        # Without a sanity check, so that it is the monitor's sampling that needs it first.
        pytest.param(Caching, {"num_sanity_val_steps": 0}, {}, id="a lazy cache"),
        pytest.param(OneCycle, {}, {}, id="rates by steps"),
        pytest.param(OnPlateau, {}, {}, id="rates by a metric"),
    ],
)  # fmt: skip
def test_a_model_trains_as_if_alone(train, monitor, make_module, trained, monitored, every_n_steps):
    alone = train(make_module, **trained)
    watching: ReplicaMonitor = monitor(num_samples=8, every_n_steps=every_n_steps, **monitored)

    watched = train(make_module, watching, **trained)

    assert [evaluation.step for evaluation in watching.history] == ([0, 3, 6, 8] if every_n_steps else [0, 4, 8])
    assert watching.failures == 0
    assert differences(watched, alone) == []
