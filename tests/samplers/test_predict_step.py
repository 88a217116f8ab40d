from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from torch import nn

from relict_lightning.errors import SamplerError
from relict_lightning.samplers import PredictStepSampler


class Predicting(nn.Module):
    """Attached to a strategy that calls `predict_step` and remembers with what."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[tuple[dict[str, Any], int]] = []
        strategy = SimpleNamespace(predict_step=self.predict_step)
        self.trainer = SimpleNamespace(strategy=strategy, datamodule=SimpleNamespace(labels=[7, 8, 9]))

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        self.called.append((batch, batch_idx))
        rows = [torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in batch["seeds"]]
        return torch.stack(rows)


def test_the_step_is_told_what_to_draw():
    module = Predicting()

    PredictStepSampler().sample_at(module, range(6, 9), [4, 5, 6])

    ((batch, batch_idx),) = module.called
    assert batch == {"n": 3, "seed": 4, "seeds": [4, 5, 6], "positions": [6, 7, 8]}
    assert batch_idx == 2


def test_conditions_are_part_of_the_batch():
    module = Predicting()

    PredictStepSampler(conditions="labels").sample_at(module, range(2, 5), [4, 5, 6])

    assert module.called[0][0]["condition"].tolist() == [9, 7, 8]


def test_a_step_that_uses_the_seeds_draws_the_same_however_many_at_a_time(in_chunks):
    one, three, eight = (in_chunks(PredictStepSampler(), Predicting(), chunk_size=size) for size in (1, 3, 8))

    assert torch.equal(one, three)
    assert torch.equal(one, eight)


def test_a_module_without_a_trainer_is_told_so():
    with pytest.raises(SamplerError, match="goes through the trainer's strategy, and LightningModule is attached"):
        PredictStepSampler().sample(lightning.LightningModule(), 1, seed=0)


@pytest.mark.parametrize("kind", [nn.Identity, lightning.LightningModule])
def test_a_module_without_a_step_of_its_own_is_told_what_to_add(kind):
    class Mute(kind):
        trainer = SimpleNamespace(strategy=None)

    with pytest.raises(SamplerError, match=r"Mute has no `predict_step\(batch, batch_idx\)` of its own.*batch\[.n.\]"):
        PredictStepSampler().sample(Mute(), 1, seed=0)
