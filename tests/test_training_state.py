import random

import numpy as np
import pytest
import torch
from torch import nn

from relict_lightning.training_state import seed_everywhere, untouched


@pytest.fixture
def partly_frozen() -> nn.Module:
    """A model under training whose second part is frozen and in evaluation mode."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Dropout()), nn.BatchNorm1d(2)).train()
    model[1].eval()
    return model


def _flags(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def _draw_everywhere() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002, S311


def test_every_submodule_is_in_evaluation_mode_inside_the_block(partly_frozen):
    with untouched(partly_frozen):
        inside = _flags(partly_frozen)

    assert inside == [False] * 6


def test_every_submodule_gets_its_own_training_flag_back(partly_frozen):
    before = _flags(partly_frozen)

    with untouched(partly_frozen):
        pass

    assert before == [True, True, False, False, False, True]
    assert _flags(partly_frozen) == before


def test_a_mode_that_the_block_switches_on_is_switched_off_again(partly_frozen):
    before = _flags(partly_frozen)

    with untouched(partly_frozen):
        partly_frozen.train()

    assert _flags(partly_frozen) == before


def test_a_model_whose_eval_is_overridden_is_still_in_evaluation_mode_inside_the_block():
    class Stubborn(nn.Dropout):
        def eval(self) -> nn.Module:
            return self

    model = nn.Sequential(Stubborn())

    with untouched(model):
        inside = _flags(model)

    assert inside == [False, False]
    assert _flags(model) == [True, True]


@pytest.mark.parametrize("source", [random.random, np.random.rand, lambda: float(torch.rand(()))])
def test_the_next_random_number_is_the_one_that_would_have_come_without_the_block(partly_frozen, source):
    seed_everywhere(3)
    expected = source()
    seed_everywhere(3)

    with untouched(partly_frozen):
        for _ in range(5):
            _draw_everywhere()

    assert source() == expected


def test_flags_random_state_and_grad_mode_come_back_when_the_block_fails(partly_frozen):
    before = _flags(partly_frozen)
    seed_everywhere(3)
    expected = _draw_everywhere()
    seed_everywhere(3)

    def diverge() -> None:
        _draw_everywhere()
        partly_frozen.train()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), untouched(partly_frozen):
        diverge()

    assert _flags(partly_frozen) == before
    assert torch.is_grad_enabled()
    assert _draw_everywhere() == expected


@pytest.mark.parametrize("enabled", [True, False])
def test_the_block_has_no_gradients_and_the_grad_mode_comes_back(partly_frozen, enabled):
    with torch.set_grad_enabled(enabled):
        with untouched(partly_frozen):
            inside = torch.is_grad_enabled()
        after = torch.is_grad_enabled()

    assert (inside, after) == (False, enabled)


def test_a_tensor_that_a_model_caches_inside_the_block_can_be_used_in_the_next_backward_pass():
    # Under `inference_mode` this fails: "Inference tensors cannot be saved for backward".
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale: torch.Tensor | None = None
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self) -> torch.Tensor:
            if self.scale is None:
                self.scale = torch.full((3,), 2.0)
            return (self.weight * self.scale).sum()

    model = Caching()
    with untouched(model):
        model()

    model().backward()

    assert model.weight.grad.tolist() == [2.0, 2.0, 2.0]


def test_batch_statistics_do_not_move_inside_the_block(partly_frozen):
    norm = partly_frozen[2]
    before = norm.running_mean.clone(), norm.running_var.clone(), norm.num_batches_tracked.clone()

    with untouched(partly_frozen):
        partly_frozen(torch.randn(8, 2))

    assert all(map(torch.equal, before, (norm.running_mean, norm.running_var, norm.num_batches_tracked)))


@pytest.mark.parametrize("seed", [0, 7, 2**32 + 7])
def test_one_seed_gives_the_same_numbers_everywhere(partly_frozen, seed):
    with untouched(partly_frozen):
        seed_everywhere(seed)
        first = _draw_everywhere()
        seed_everywhere(seed)
        second = _draw_everywhere()
        seed_everywhere(seed + 1)
        other = _draw_everywhere()

    assert first == second
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_a_block_that_switches_to_training_mode_does_not_move_batch_normalisation():
    module = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    before = {name: values.clone() for name, values in module.state_dict().items()}

    with untouched(module):
        module.train()
        module(torch.randn(8, 3))

    assert all(torch.equal(values, before[name]) for name, values in module.state_dict().items())
