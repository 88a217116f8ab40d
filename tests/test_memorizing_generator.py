"""A generator that is trained until it memorizes, judged by a truth that shares nothing with the detector."""

import importlib.util
import json
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from relict_lightning.testing import simulate_heads

# Noise early in training has other intensities than heads.
pytestmark = pytest.mark.filterwarnings("ignore:The samples' intensities")

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "memorizing_generator.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("memorizing_generator", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Data classes look their module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def caught(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.set_num_threads(1)
    return script.train_until_caught(0, folder=tmp_path_factory.mktemp("run"))


def test_the_truth_tells_copies_from_new_subjects(script: ModuleType) -> None:
    training = simulate_heads(24).images
    others = simulate_heads(100, first_subject=100).images
    copies = training + 0.02 * torch.randn(training.shape, generator=torch.Generator().manual_seed(0))

    truth = script.Truth(training, seed=0, new=200, beside=99)

    assert {name: rate.value for name, rate in truth.shares(copies).items()} == dict.fromkeys(
        ("copies", "beyond", "near", "first"), 1.0
    )
    shares = truth.shares(others)
    assert shares["copies"].value <= 0.05
    assert shares["near"].value == 0
    # Of 24 + 99 images, any of 24 is the nearest in about a fifth of the cases.
    assert shares["first"].low < 24 / 123 < shares["first"].high


def test_a_run_tells_the_truth_at_each_evaluation_and_has_no_onset_where_nothing_is_memorized(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "HELDOUT", 25)
    monkeypatch.setattr(script, "Truth", partial(script.Truth, new=20, beside=20))

    run = script.train_until_caught(
        0, folder=tmp_path, num_samples=4, every_n_steps=1, max_steps=2, judged_samples=3, kept_samples=3
    )

    assert [(look.step, look.detected.trials, look.shares["copies"].trials) for look in run.looks] == [
        (1, 4, 3),
        (2, 4, 3),
    ]
    assert run.onset_step is None
    assert not run.is_caught_in_time()
    assert not run.is_kept_clean()
    assert "no onset in 2 evaluations" in script.describe(run)
    assert json.loads(json.dumps(script.to_primitives(run)))["caught in time"]["near"] is False


@pytest.mark.slow
@pytest.mark.parametrize("truth", ["near", "beyond", "copies"])
def test_memorization_is_caught_early_and_the_checkpoint_to_go_back_to_makes_no_copies(
    script: ModuleType, caught: Any, truth: str
) -> None:
    assert caught.is_caught_in_time(truth), script.describe(caught)
    assert caught.is_kept_clean(truth), script.describe(caught)
