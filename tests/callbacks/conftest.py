import copy
import logging
import pickle
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint
from ranks import run_ranks
from torch import Tensor
from torch.utils.data import DataLoader

from relict_lightning import ReplicaDetector, ReplicaMonitor
from relict_lightning.testing import CopyingModule, simulate_heads

# Lightning's advice to the user of a trainer, which these runs do not follow on purpose.
_ADVICE = (
    "You defined a `validation_step` but have no `val_dataloader`",
    "Checkpoint directory .* exists and is not empty",
    # Parts that are frozen in evaluation mode are what one test is about.
    "Found .* module.* in eval mode at the start of training",
    # Runs that go on from a checkpoint in the middle of an epoch.
    "You're resuming from a checkpoint that ended before the epoch ended",
)


def pytest_itemcollected(item: pytest.Item) -> None:
    for advice in _ADVICE:
        item.add_marker(pytest.mark.filterwarnings(f"ignore:{advice}"))


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Patients of three kinds, `[n, 1, 16, 16]`."""

    training: Tensor
    heldout: Tensor
    fresh: Tensor

    def training_loader(self, *, shuffle: bool = False) -> DataLoader:
        """Four batches of ten make an epoch."""
        return DataLoader(self.training, batch_size=10, shuffle=shuffle)

    def heldout_loader(self) -> DataLoader:
        return DataLoader(self.heldout, batch_size=20)


@pytest.fixture(scope="session")
def heads() -> Heads:
    images = simulate_heads(144, shape=(16, 16)).images
    return Heads(training=images[:40], heldout=images[40:80], fresh=images[80:])


@pytest.fixture(scope="session")
def fitted_once(heads) -> ReplicaDetector:
    return ReplicaDetector(transforms="none", top_k=2).fit(heads.training, heads.heldout)


@pytest.fixture
def detector(fitted_once) -> ReplicaDetector:
    """A detector of one's own, fitted to training and held-out heads.

    It looks for plain copies only, which are all that `copying` makes, and so takes half of the time.
    """
    return copy.deepcopy(fitted_once)


@pytest.fixture
def monitor(detector) -> Callable[..., ReplicaMonitor]:
    """Make a monitor with the fitted detector, or with the one that is given."""

    def make(**arguments: Any) -> ReplicaMonitor:
        return ReplicaMonitor(**{"detector": copy.deepcopy(detector), "num_samples": 48, **arguments})

    return make


@pytest.fixture
def copying(heads) -> Callable[..., CopyingModule]:
    """Make a model that copies with the probabilities of a schedule, or never."""

    def make(*schedule: tuple[int, float]) -> CopyingModule:
        return CopyingModule(heads.training, heads.fresh, schedule=schedule, noise=0.01)

    return make


@pytest.fixture
def trainer(tmp_path) -> Callable[..., Trainer]:
    """Make a quiet trainer that writes to `tmp_path` only."""

    def make(*callbacks: Any, **arguments: Any) -> Trainer:
        quiet = {
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": tmp_path,
            "max_epochs": 2,
        }
        return Trainer(callbacks=list(callbacks), **{**quiet, **arguments})

    return make


@pytest.fixture
def messages() -> Iterator[Sequence[str]]:
    """What the run says to its user, line by line."""
    said: list[str] = []

    class _Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    listener = _Listener()
    logger = logging.getLogger("lightning.pytorch")
    logger.addHandler(listener)
    yield said
    logger.removeHandler(listener)


@pytest.fixture
def random_states() -> Callable[[], tuple[bytes, ...]]:
    """Take the global random state of NumPy and torch.

    Python's is left out: the shape checks that are on in tests draw from it. `logged_run.py` compares it without them.
    """
    return lambda: (pickle.dumps(np.random.get_state()[1:]), torch.get_rng_state().numpy().tobytes())  # noqa: NPY002


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def by_processes() -> Callable[..., None]:
    """Run a script in processes that know of each other, as `torchrun` would; it gets a folder to write to."""

    def run(script: Path, folder: Path, *, count: int = 2) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        environment = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "LOCAL_WORLD_SIZE": str(count),
            "GROUP_RANK": "0",
            # By this Lightning knows that the processes were started for it.
            "TORCHELASTIC_RUN_ID": "several",
        }
        run_ranks(script, folder, count=count, environment=environment)

    return run
