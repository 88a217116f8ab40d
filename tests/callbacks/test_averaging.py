"""What is evaluated is what gets saved: averaged weights where Lightning averages them, whatever the order."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, WeightAveraging
from torch import Tensor

from relict_lightning.testing import NoisyModule

# A model that has hardly been trained may return anything.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The samples' intensities are not those:relict_lightning.errors.RelictWarning"
)

MONITORED = [
    pytest.param({}, True, id="validation"),
    pytest.param({}, False, id="epochs"),
    pytest.param({"every_n_steps": 4}, False, id="steps"),
]


class Sampled:
    """A sampler that remembers the weights which it sampled from, by step."""

    def __init__(self) -> None:
        self.weights: dict[int, Tensor] = {}

    def __call__(self, module: Any, n: int, *, generator: torch.Generator) -> Tensor:
        self.weights[module.global_step] = module.network[0].weight.clone()
        return module.sample(n, generator=generator)


class EpochAveraging(WeightAveraging):
    """Averages at the end of epochs."""

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return epoch_idx is not None


def _fit(make_trainer: Any, heads: Any, *callbacks: Callback, validates: bool) -> tuple[Trainer, NoisyModule]:
    seed_everything(3, verbose=False)
    module, run = NoisyModule(), make_trainer(*callbacks, max_epochs=3)
    run.fit(module, heads.training_loader(), heads.heldout_loader() if validates else None)
    return run, module


@pytest.mark.parametrize("averages_first", [True, False])
@pytest.mark.parametrize(("monitored", "validates"), MONITORED)
def test_the_averages_that_a_checkpoint_holds_are_evaluated(
    trainer, heads, monitor, tmp_path, averages_first, monitored, validates
):
    sampled = Sampled()
    pair = (monitor(sampler=sampled, num_samples=8, **monitored), EMAWeightAveraging(decay=0.5))
    every = {"every_n_train_steps": 4} if monitored else {"every_n_epochs": 1}
    keeper = ModelCheckpoint(tmp_path / "kept", save_top_k=-1, filename="{step}", **every)

    _fit(trainer, heads, *(pair[::-1] if averages_first else pair), keeper, validates=validates)

    for step in (4, 8, 12):
        saved = torch.load(tmp_path / "kept" / f"step={step}.ckpt", weights_only=True)
        assert torch.equal(saved["state_dict"]["network.0.weight"], sampled.weights[step])
        assert not torch.equal(saved["current_model_state"]["network.0.weight"], sampled.weights[step])


@pytest.mark.parametrize("averages_first", [True, False])
@pytest.mark.parametrize(("monitored", "validates"), MONITORED)
@pytest.mark.parametrize("averaging", [lambda: EMAWeightAveraging(decay=0.5), EpochAveraging])
def test_weights_and_averages_are_those_of_a_run_that_nobody_watches(
    trainer, heads, monitor, averages_first, monitored, validates, averaging
):
    alone_average, watched_average = averaging(), averaging()
    _, alone = _fit(trainer, heads, alone_average, validates=validates)
    pair = (monitor(num_samples=8, **monitored), watched_average)

    _, watched = _fit(trainer, heads, *(pair[::-1] if averages_first else pair), validates=validates)

    for one, other in ((alone, watched), (alone_average._average_model, watched_average._average_model)):
        expected = one.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize("averages_first", [True, False])
def test_the_final_averages_are_evaluated_after_the_last_step(trainer, heads, monitor, averages_first):
    sampled = Sampled()
    pair = (monitor(sampler=sampled, num_samples=8, every_n_epochs=9), EMAWeightAveraging(decay=0.5))

    _, module = _fit(trainer, heads, *(pair[::-1] if averages_first else pair), validates=True)

    # Averaging leaves its averages in the module when training has ended.
    assert torch.equal(sampled.weights[12], module.network[0].weight)


def test_weights_are_put_back_where_sampling_fails(trainer, heads, monitor):
    def failing(module: Any, n: int) -> Tensor:
        raise RuntimeError("no memory")

    alone_average, average = (EMAWeightAveraging(decay=0.5) for _ in range(2))
    _, alone = _fit(trainer, heads, alone_average, validates=True)

    with pytest.warns(match=r"failed at step 0 \(RuntimeError\)"):
        _, watched = _fit(trainer, heads, average, monitor(num_samples=8, sampler=failing), validates=True)

    assert all(torch.equal(value, alone.state_dict()[name]) for name, value in watched.state_dict().items())
