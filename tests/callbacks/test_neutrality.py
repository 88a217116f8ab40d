"""Training must not notice that it is watched: weights, the order of data and random states are bit-identical."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from relict_lightning import MemorizationCheckpoint, MemorizationStopping, ReplicaDetector, ReplicaMonitor
from relict_lightning.errors import RelictWarning
from relict_lightning.testing import NoisyModule


class RecordingDataset(Dataset):
    """Remembers the order in which it is read."""

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> Tensor:
        self.read.append(position)
        return self.images[position]


class FlagsAtEachStep(Callback):
    """Remembers the training flag of every submodule before each step."""

    def __init__(self) -> None:
        self.flags: list[list[bool]] = []
        self.gradients: list[bool] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.flags.append([module.training for module in pl_module.modules()])
        self.gradients.append(torch.is_grad_enabled())


def _train(make_trainer, make_module, images, *watching, validation=None, random_states, **arguments):
    """Train from a fixed seed; return all that watching must not change."""
    seed_everything(11, verbose=False)
    module, dataset, flags = make_module(), RecordingDataset(images), FlagsAtEachStep()
    loader = DataLoader(dataset, batch_size=10, shuffle=True)
    make_trainer(*watching, flags, **arguments).fit(module, loader, validation)
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    return {"weights": weights, "read": dataset.read, "flags": flags.flags, "random state": random_states()}


def _assert_same(watched: dict[str, Any], alone: dict[str, Any]) -> None:
    assert watched["read"] == alone["read"]
    assert watched["flags"] == alone["flags"]
    assert watched["random state"] == alone["random state"]
    assert watched["weights"].keys() == alone["weights"].keys()
    assert all(torch.equal(value, alone["weights"][name]) for name, value in watched["weights"].items())


def _from_global_state(module: Any, n: int) -> Tensor:
    """Draws from the global random state, and leaves the module in training mode, frozen parts included."""
    images = module.network(torch.randn(n, 1, 16, 16))
    module.train()
    return images


@pytest.mark.parametrize("every_n_steps", [None, 3])
@pytest.mark.parametrize("validates", [True, False])
@pytest.mark.parametrize("sampler", [None, _from_global_state])
def test_final_weights_and_order_of_data_are_those_of_a_run_that_nobody_watches(
    trainer, heads, random_states, tmp_path, every_n_steps, validates, sampler
):
    validation = heads.heldout_loader() if validates else None
    run = {"images": heads.training, "validation": validation, "random_states": random_states}
    alone = _train(trainer, NoisyModule, **run)
    # Without a detector, so that the reference is built during the run as well.
    monitor = ReplicaMonitor(
        sampler=sampler, num_samples=8, every_n_steps=every_n_steps, heldout=heads.heldout, cache_dir=tmp_path / "cache"
    )

    watched = _train(trainer, NoisyModule, heads.training, monitor, **{k: v for k, v in run.items() if k != "images"})

    assert len(monitor.history) == (3 if every_n_steps is None else len([0, 3, 6, 8]))
    _assert_same(watched, alone)


def test_stopping_and_checkpoints_leave_training_alone_as_well(trainer, heads, monitor, random_states, tmp_path):
    alone = _train(trainer, NoisyModule, heads.training, random_states=random_states)
    watching = monitor(num_samples=8), MemorizationStopping(), MemorizationCheckpoint(tmp_path / "kept")

    watched = _train(trainer, NoisyModule, heads.training, *watching, random_states=random_states)

    _assert_same(watched, alone)


def _fails(module: Any, n: int) -> Tensor:
    module.train()
    torch.rand(3)
    raise ZeroDivisionError("diverged")


def test_a_sampler_that_raises_leaves_modes_grad_mode_and_random_state_as_they_were(
    trainer, heads, monitor, random_states
):
    class BeforeAndAfter(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            self.before = random_states(), [module.training for module in pl_module.modules()], torch.is_grad_enabled()

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            self.after = random_states(), [module.training for module in pl_module.modules()], torch.is_grad_enabled()

    watching = monitor(sampler=_fails, every_n_steps=2, evaluate_at_start=False, on_error="raise")
    states = BeforeAndAfter()
    module = NoisyModule()
    module.network[1].eval()

    with pytest.raises(ZeroDivisionError, match="diverged"):
        trainer(states, watching).fit(module, heads.training_loader())

    assert states.after == states.before


def test_training_that_goes_on_after_a_sampler_raised_goes_on_as_if_alone(trainer, heads, monitor, random_states):
    alone = _train(trainer, NoisyModule, heads.training, random_states=random_states)
    watching = monitor(sampler=_fails, every_n_steps=2)

    with pytest.warns(RelictWarning, match="What it said is in"):
        watched = _train(trainer, NoisyModule, heads.training, watching, random_states=random_states)

    # The last weights are tried once more at the end.
    assert watching.failures == len([0, 2, 4, 6, 8, 8])
    _assert_same(watched, alone)


def test_an_encoder_that_draws_random_numbers_takes_none_from_training(trainer, heads, random_states, tmp_path):
    class Drawing(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            torch.rand(3)
            return images.flatten(1)

    alone = _train(trainer, NoisyModule, heads.training, random_states=random_states)
    watching = ReplicaMonitor(ReplicaDetector(Drawing()), num_samples=8, heldout=heads.heldout)

    watched = _train(trainer, NoisyModule, heads.training, watching, random_states=random_states)

    _assert_same(watched, alone)


# A model that has hardly been trained may return anything.
@pytest.mark.filterwarnings("ignore:The samples' intensities are not those:relict_lightning.errors.RelictWarning")
def test_the_encoder_is_neither_trained_nor_saved_with_the_model(trainer, heads, monitor):
    module = NoisyModule()
    names = set(module.state_dict())

    trainer(monitor(num_samples=8)).fit(module, heads.training_loader())

    assert set(module.state_dict()) == names
    assert not any("detector" in name or "encoder" in name for name, _ in module.named_modules())
