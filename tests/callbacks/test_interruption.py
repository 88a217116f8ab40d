"""A run that is told to end while samples are drawn leaves a state that it can go on from."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from relict_lightning.testing import NoisyModule


def _told_to_end_at(trainer: Callable[[], Trainer], step: int) -> Callable[..., Tensor]:
    """Return a sampler that sees SIGTERM come while it draws at a step, as Lightning's handler notes it down."""

    def sample(module: Any, n: int, *, generator: torch.Generator) -> Tensor:
        if module.global_step == step:
            trainer()._signal_connector.received_sigterm = True
        return module.sample(n, generator=generator)

    return sample


class SavesOnException(Callback):
    """Saves what a run is resumed from."""

    def __init__(self, path: Any) -> None:
        self.path = path

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("monitored", [{"every_n_steps": 2}, {}])
def test_what_was_due_is_due_again_when_the_run_is_resumed(trainer, heads, monitor, copying, tmp_path, monitored):
    runs: list[Trainer] = []
    told = _told_to_end_at(lambda: runs[0], 4)
    interrupted = monitor(sampler=told, num_samples=8, sample_batch_size=4, **monitored)
    runs.append(trainer(interrupted, SavesOnException(tmp_path / "interrupted.ckpt"), max_epochs=3))

    with pytest.raises(SIGTERMException):
        runs[0].fit(copying(), heads.training_loader(), heads.heldout_loader())
    resumed = monitor(num_samples=8, **monitored)
    trainer(resumed, max_epochs=3).fit(
        copying(), heads.training_loader(), heads.heldout_loader(), ckpt_path=tmp_path / "interrupted.ckpt"
    )

    before = [evaluation.step for evaluation in interrupted.history]
    after = [evaluation.step for evaluation in resumed.history]
    assert 4 not in before
    # Due at step 4, made up for at the first point after it.
    assert after == ([0, 2, 5, 6, 8, 10, 12] if monitored else [0, 8, 12])
    assert (interrupted.failures, resumed.failures) == (0, 0)


class SavesWhileSampling(Callback):
    """Saves a checkpoint while samples are drawn, as a cluster's signal handler does."""

    def __init__(self, path: Any) -> None:
        self.path = path

    def sample(self, module: Any, n: int, *, generator: torch.Generator) -> Tensor:
        if module.global_step == 8:
            module.trainer.save_checkpoint(self.path)
        return module.sample(n, generator=generator)


# A model that has hardly been trained may return anything.
@pytest.mark.filterwarnings("ignore:The samples' intensities are not those:relict_lightning.errors.RelictWarning")
@pytest.mark.parametrize("averages_first", [True, False])
@pytest.mark.parametrize("validates", [True, False])
def test_a_checkpoint_saved_while_samples_are_drawn_holds_each_weight_in_its_place(
    trainer, heads, monitor, tmp_path, averages_first, validates
):
    saves = SavesWhileSampling(tmp_path / "meanwhile.ckpt")
    watching, averaging = monitor(sampler=saves.sample, num_samples=8), EMAWeightAveraging(decay=0.5)
    expected: dict[str, Tensor] = {}

    class Expected(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 8:
                expected["own"] = pl_module.network[0].weight.clone()
                expected["averaged"] = averaging._average_model.module.network[0].weight.clone()

    pair = [averaging, watching] if averages_first else [watching, averaging]
    seed_everything(3, verbose=False)

    trainer(*pair, Expected(), max_epochs=3).fit(
        NoisyModule(), heads.training_loader(), heads.heldout_loader() if validates else None
    )

    saved = torch.load(tmp_path / "meanwhile.ckpt", weights_only=True)
    assert torch.equal(saved["current_model_state"]["network.0.weight"], expected["own"])
    assert torch.equal(saved["state_dict"]["network.0.weight"], expected["averaged"])
