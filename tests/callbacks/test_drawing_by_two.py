"""However two processes hold a model, they draw what one draws, and they agree on what became of it."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

# One worker for all of them: the processes are started once.
pytestmark = pytest.mark.xdist_group("drawn by two")

SCRIPT = Path(__file__).with_name("drawn_by_two.py")
SAMPLERS = ["method", "function", "predict_step", "diffusion", "conditional"]


@pytest.fixture(scope="module")
def two(tmp_path_factory, by_processes) -> list[dict[Any, Any]]:
    """What each of two processes drew."""
    folder = tmp_path_factory.mktemp("two")
    by_processes(SCRIPT, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("drawn_by_two", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def one(script, tmp_path_factory) -> dict[str, list[torch.Tensor]]:
    """What one process drew before training and after it."""
    folder = tmp_path_factory.mktemp("one")
    return {
        name: script.images_of(script.fit(sampler, folder, devices=1)) for name, sampler in script.samplers().items()
    }


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "fsdp in parts", "fsdp2"])
def test_two_processes_draw_what_one_draws(one, two, strategy, sampler):
    before, after = one[sampler]
    first, second = (seen[strategy, sampler] for seen in two)

    assert len(before) == 7
    assert torch.equal(first[0], before)
    # Two processes add gradients up in another order.
    assert torch.allclose(first[1], after, atol=1e-5)
    assert not torch.allclose(after, before, atol=1e-4)
    assert all(torch.equal(*drawn) for drawn in zip(first, second, strict=True))


def test_processes_that_share_the_layers_draw_the_same_samples(one, two):
    assert all(torch.equal(seen["tensor parallel"][0], one["method"][0]) for seen in two)


def test_a_method_that_goes_through_a_sharded_model_itself_is_told_of_the_sampler_that_does(two):
    for seen in two:
        assert seen["round about"].startswith("SamplerError: The sampler goes through the strategy's model")
        assert "PredictStepSampler()" in seen["round about"]


def test_where_memory_runs_out_in_one_process_both_draw_anew_in_smaller_chunks(script, two, tmp_path):
    expected = script.images_of(script.fit(script.Greedy(fits=1), tmp_path, devices=1, chunk_size=1))

    first, second = (seen["greedy"] for seen in two)
    assert first["sizes"] == second["sizes"] == [4, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1]
    assert first["chunk size"] == second["chunk size"] == 1
    assert torch.equal(first["images"][0], expected[0])
    assert torch.equal(first["images"][0], second["images"][0])


def test_it_is_said_once_that_memory_ran_out(two):
    (message,) = two[0]["greedy"]["said"]

    assert "Memory ran out while 4 samples were drawn at a time; 1 are drawn" in message
    assert two[1]["greedy"]["said"] == []


def test_where_memory_does_not_hold_one_sample_both_stop(two):
    assert two[1]["too greedy"] == "OutOfMemoryError: CUDA out of memory."
    assert two[0]["too greedy"].startswith("OtherProcessError: Sampling failed on another process")


@pytest.mark.parametrize("how", ["flag", "SIGTERM"])
def test_both_leave_between_two_chunks_when_the_run_is_told_to_end(two, how):
    for seen in two:
        assert seen[how]["error"].startswith("DrawingInterrupted: The run was told to end (SIGTERM)")
        assert seen[how]["chunks"] == 2
        assert seen[how]["seconds"] < 30
