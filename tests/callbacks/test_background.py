"""Samples are checked beside training: nothing is another than where training waits, but for the time."""

import csv
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commanded_encoder import CommandedEncoder, give
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from noticed import Noticed, differences
from torch import Tensor, nn

from relict_lightning import MemorizationCheckpoint, MemorizationStopping, ReplicaDetector, ReplicaMonitor
from relict_lightning.callbacks.evaluation import background
from relict_lightning.errors import ConfigurationError, RelictWarning
from relict_lightning.testing import NoisyModule

# A worker for all of them: the runs below are made once.
pytestmark = pytest.mark.xdist_group("background")


@pytest.fixture(scope="module")
def commands(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("commands")


@pytest.fixture(scope="module")
def commanded(heads, commands) -> ReplicaDetector:
    """A detector whose encoder does what the file `command` says."""
    return ReplicaDetector(CommandedEncoder(commands), transforms="none", top_k=2).fit(heads.training, heads.heldout)


@pytest.fixture(autouse=True)
def no_folder_and_no_process_is_left(tmp_path, monkeypatch) -> Iterator[None]:
    """However a run ended: nothing of a patient lies where it was, and nobody works on."""
    own = tmp_path / "temporary"
    own.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(own))
    started: list[int] = []
    start = background._started

    def remembering(*arguments: Any) -> Any:
        process = start(*arguments)
        started.append(process.pid)
        return process

    monkeypatch.setattr(background, "_started", remembering)
    yield
    assert list(own.iterdir()) == []
    assert [process for process in started if _runs(process)] == []


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _numbers(monitor: ReplicaMonitor) -> list[Any]:
    """Return the history without what it cost."""
    return [
        (
            evaluation.step,
            evaluation.epoch,
            evaluation.replica_rate,
            {name: value for name, value in evaluation.measures.items() if not name.startswith(("seconds", "memory"))},
            evaluation.context,
        )
        for evaluation in monitor.history
    ]


class Weights(Callback):
    """Takes down the weights after each step."""

    def __init__(self) -> None:
        self.after: dict[int, dict[str, Tensor]] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.after[trainer.global_step] = {name: value.clone() for name, value in pl_module.state_dict().items()}


@pytest.fixture
def train(trainer, heads, random_states) -> Callable[..., dict[str, Any]]:
    """Train from a fixed seed; return all that watching must not change."""

    def run(*watching: Callback, resumes: Path | None = None, **arguments: Any) -> dict[str, Any]:
        seed_everything(11, verbose=False)
        noticed, weights = Noticed(random_states), Weights()
        module = NoisyModule()
        trainer(*watching, weights, noticed, max_epochs=4, **arguments).fit(
            module, heads.training_loader(shuffle=True), heads.heldout_loader(), ckpt_path=resumes
        )
        return {"seen": noticed.seen, "weights": weights.after}

    return run


def _copying_from_step(step: int, heads: Any) -> Callable[..., Tensor]:
    def sample(module: Any, n: int, *, generator: torch.Generator) -> Tensor:
        images = heads.training if module.global_step >= step else heads.fresh
        return images[torch.randperm(len(images), generator=generator)[:n]]

    return sample


def test_training_is_that_of_a_run_that_nobody_watches_and_the_history_that_of_one_that_waits(
    train, heads, detector, tmp_path
):
    def watching(name: str, **arguments: Any) -> tuple[ReplicaMonitor, MemorizationCheckpoint]:
        sampler = _copying_from_step(10, heads)
        monitor = ReplicaMonitor(detector, sampler=sampler, num_samples=24, every_n_steps=3, **arguments)
        return monitor, MemorizationCheckpoint(tmp_path / name, verify=False, keep=5)

    alone = train()
    waiting, kept_waiting = watching("waiting")
    train(waiting, kept_waiting)
    beside, kept = watching("beside", background=True, report_path=tmp_path / "report.html")

    watched = train(beside, kept, logger=CSVLogger(tmp_path, name="csv"))

    assert differences(watched, alone) == []
    assert [evaluation.step for evaluation in beside.history] == [0, 3, 6, 9, 12, 15, 16]
    assert _numbers(beside) == _numbers(waiting)
    assert beside.onset == waiting.onset
    assert beside.onset.step == 12
    assert beside.last_result == waiting.last_result
    assert (beside.failures, beside.is_stale, beside.awaited_step) == (0, False, None)
    # The evaluations that training did not wait for say how long it waited for their results.
    waited = ["seconds_waiting" in evaluation.measures for evaluation in beside.history]
    assert waited == [True, True, True, True, True, True, False]
    # Weights and numbers of a step belong together, and nothing else is left.
    assert [(one.step, one.replica_rate) for one in kept.kept] == [
        (one.step, one.replica_rate) for one in kept_waiting.kept
    ]
    assert {path.name for path in (tmp_path / "beside").iterdir()} == {Path(one.path).name for one in kept.kept}
    for one in kept.kept:
        saved = torch.load(one.path, weights_only=True)
        assert saved["global_step"] == one.step
        assert differences(saved["state_dict"], watched["weights"][one.step]) == []
    assert kept.best.step == kept_waiting.best.step == 9
    assert "step=9-replicas=0-of-24.ckpt" in (tmp_path / "report.html").read_text()
    (path,) = tmp_path.rglob("metrics.csv")
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if row["relict/onset"]]
    assert [(int(row["step"]), float(row["relict/onset"])) for row in rows] == [
        (0, 0), (3, 0), (6, 0), (9, 0), (12, 1), (15, 1), (16, 1)
    ]  # fmt: skip


class Follows(Callback):
    """Takes down what is known at each step, and releases what holds the first check once training waits for it."""

    monitor: ReplicaMonitor

    def __init__(self, commands: Path, kept: Path) -> None:
        self.commands, self.kept = commands, kept
        self.known: list[tuple[int, int | None]] = []
        self.modes: set[int] = set()
        self.names: dict[int, list[str]] = {}

    def sample(self, module: Any, n: int, *, generator: torch.Generator) -> Tensor:
        command = {5: "hold", 8: "hold", 16: "fail"}.get(module.global_step, "")
        give(self.commands, command)
        return torch.rand(n, 1, 16, 16, generator=generator)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 7:
            threading.Thread(target=self._release).start()

    def _release(self) -> None:
        while not (self.commands / "holding").exists():
            time.sleep(0.01)
        # To all processes of the terminal: not for this one to act on.
        os.kill(self.monitor._evaluator._checker._child._process.pid, signal.SIGINT)
        time.sleep(0.3)
        give(self.commands, "")

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.known.append((len(self.monitor.history), self.monitor.awaited_step))
        self.names[trainer.global_step] = sorted(path.name for path in self.kept.glob("*"))
        if trainer.global_step == 9:
            give(self.commands, "die")
        folders = Path(tempfile.gettempdir()).iterdir()
        self.modes |= {stat.S_IMODE(folder.stat().st_mode) for folder in folders}


# Noise is nothing that a head looks like.
@pytest.mark.filterwarnings("ignore:The samples' intensities are not those:relict_lightning.errors.RelictWarning")
def test_training_goes_on_meanwhile_waits_where_the_next_is_due_and_goes_on_after_failures(
    train, commanded, commands, tmp_path
):
    give(commands, "")
    follows = Follows(commands, tmp_path / "kept")
    follows.monitor = monitor = ReplicaMonitor(
        commanded, sampler=follows.sample, num_samples=4, at_steps=[5, 8, 12, 16],
        evaluate_at_start=False, evaluate_at_end=False, background=True,
    )  # fmt: skip

    with pytest.warns(RelictWarning) as caught:
        train(monitor, follows, MemorizationCheckpoint(tmp_path / "kept", keep=4))

    # Two steps were made while the first check was held, and the third waited for it.
    assert follows.known[4:8] == [(0, 5), (0, 5), (0, 5), (1, 8)]
    assert [evaluation.step for evaluation in monitor.history] == [5, 12]
    assert monitor.history[0].measures["seconds_waiting"] >= 0.3
    assert monitor.history[0].epoch == 1
    # The process was killed in the second check and failed in the fourth; both are told at their steps.
    failures = [str(warning.message) for warning in caught if "failed at step" in str(warning.message)]
    assert len(failures) == monitor.failures == 2
    assert "failed at step 8 (CheckingProcessError" in failures[0]
    assert "was ended by signal 9" in failures[0]
    assert "failed at step 16 (RuntimeError). What it said is in" in failures[1]
    assert "RuntimeError: a broken encoder" in (tmp_path / "relict_failures.txt").read_text()
    assert monitor.is_stale
    # Weights are saved where samples are drawn, named once it is known what they are, and dropped where it never is.
    assert follows.names[6] == ["step=5-unchecked.ckpt"]
    assert follows.names[9] == ["step=5-replicas=0-of-4.ckpt", "step=8-unchecked.ckpt"]
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [
        "step=12-replicas=0-of-4.ckpt",
        "step=5-replicas=0-of-4.ckpt",
    ]
    assert follows.modes == {0o700}


class EndsAt(Callback):
    """Saves a checkpoint at one step, and fails at another."""

    def __init__(self, path: Path, *, saves: int, fails: int) -> None:
        self.path, self.saves, self.fails = path, saves, fails

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        # In the hook in which samples are drawn at step 5: other callbacks may not know of them yet.
        if trainer.global_step == self.saves:
            trainer.save_checkpoint(self.path)
        if trainer.global_step == self.fails:
            raise ZeroDivisionError("diverged")


@pytest.mark.parametrize(("saved_at", "goes_on"), [(5, {"background": True}), (5, {}), (6, {})])
def test_what_is_being_checked_when_a_run_is_saved_is_made_again_where_it_is_resumed(
    train, heads, commanded, commands, tmp_path, saved_at, goes_on
):
    def watching(**arguments: Any) -> tuple[ReplicaMonitor, MemorizationCheckpoint]:
        sampler = _copying_from_step(99, heads)
        settings = {"num_samples": 4, "at_steps": [5, 8, 12, 16], "evaluate_at_start": False}
        monitor = ReplicaMonitor(commanded, sampler=sampler, **settings, **arguments)
        return monitor, MemorizationCheckpoint(tmp_path / "kept", keep=5)

    give(commands, "hold")
    ends = EndsAt(tmp_path / "saved.ckpt", saves=saved_at, fails=7)
    interrupted, resumed = watching(background=True), watching(**goes_on)
    with pytest.raises(ZeroDivisionError, match="diverged"):
        train(*interrupted, ends)
    give(commands, "")

    train(*resumed, resumes=tmp_path / "saved.ckpt")

    assert interrupted[0].history == []
    assert [evaluation.step for evaluation in resumed[0].history] == [saved_at, 8, 12, 16]
    # What was saved when the samples were drawn has its rate now, or is gone.
    expected = [saved_at, 8, 12, 16]
    assert [one.step for one in resumed[1].kept] == expected
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {
        f"step={step}-replicas=0-of-4.ckpt" for step in expected
    }


class ToldToEnd(Callback):
    """Sees SIGTERM come while training waits at step 8, as Lightning's handler notes it down, and saves at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 7:
            threading.Timer(1.0, setattr, (trainer._signal_connector, "received_sigterm", True)).start()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        trainer.save_checkpoint(self.path)


def test_a_run_that_is_told_to_end_waits_no_longer_and_what_was_awaited_is_made_again(
    train, heads, commanded, commands, tmp_path
):
    def watching(**arguments: Any) -> ReplicaMonitor:
        sampler = _copying_from_step(99, heads)
        return ReplicaMonitor(
            commanded, sampler=sampler, num_samples=4, at_steps=[5, 8, 12, 16], evaluate_at_start=False, **arguments
        )

    give(commands, "hold")
    interrupted, resumed = watching(background=True), watching()
    with pytest.raises(SIGTERMException):
        train(interrupted, ToldToEnd(tmp_path / "saved.ckpt"))
    give(commands, "")

    train(resumed, resumes=tmp_path / "saved.ckpt")

    assert (interrupted.history, interrupted.failures, interrupted.awaited_step) == ([], 0, 5)
    assert [evaluation.step for evaluation in resumed.history] == [8, 12, 16]


def test_stopping_stops_at_the_first_step_at_which_onset_is_known(trainer, heads, detector, copying):
    monitor = ReplicaMonitor(detector, num_samples=24, at_steps=[5, 8], evaluate_at_start=False, background=True)
    # An epoch takes four steps; minutes would not be enough for all of these.
    run = trainer(monitor, MemorizationStopping(verbose=False), max_epochs=100_000, max_time="00:00:02:00")

    run.fit(copying((0, 1.0)), heads.training_loader(), heads.heldout_loader())

    assert [monitor.onset.step, monitor.onset.epoch] == [5, 1]
    assert run.should_stop
    # The next was due at step 8.
    assert run.global_step == 8


@pytest.mark.parametrize(
    ("watched", "validates", "steps"),
    [
        pytest.param({"every_n_epochs": 2}, True, [0, 8, 12], id="of the start"),
        pytest.param({"evaluate_at_start": False}, False, [4, 8, 12], id="of the end of the first epoch"),
        pytest.param({"at_steps": [3], "evaluate_at_start": False}, True, [3, 12], id="of a step"),
    ],
)
def test_strict_callbacks_find_a_value_at_the_end_of_the_first_epoch(
    trainer, heads, detector, copying, tmp_path, watched, validates, steps
):
    monitor = ReplicaMonitor(detector, num_samples=8, background=True, **watched)
    strict = EarlyStopping("relict/replica_rate", mode="min", patience=99)
    best = ModelCheckpoint(tmp_path / "best", monitor="relict/replica_rate")

    trainer(monitor, strict, best, max_epochs=3).fit(
        copying(), heads.training_loader(), heads.heldout_loader() if validates else None
    )

    assert [evaluation.step for evaluation in monitor.history] == steps
    assert best.best_model_score == 0.0


def test_where_the_check_of_the_start_fails_the_end_of_the_first_epoch_makes_up_for_it(
    trainer, commanded, commands, heads, copying
):
    def sample(module: Any, n: int, *, generator: torch.Generator) -> Tensor:
        give(commands, "" if module.global_step else "fail")
        return module.sample(n, generator=generator)

    monitor = ReplicaMonitor(commanded, sampler=sample, num_samples=8, every_n_epochs=2, background=True)
    strict = EarlyStopping("relict/replica_rate", mode="min", patience=99)

    with pytest.warns(RelictWarning, match="failed at step 0"):
        trainer(monitor, strict, max_epochs=3).fit(copying(), heads.training_loader())

    assert [evaluation.step for evaluation in monitor.history] == [4, 8, 12]


def test_a_dry_run_checks_while_training_waits_and_says_nothing(trainer, heads, monitor, copying):
    watching = monitor(background=True)

    trainer(watching, fast_dev_run=1).fit(copying(), heads.training_loader(), heads.heldout_loader())

    assert "seconds_waiting" not in watching.history[0].measures
    assert len(watching.history) == 2


def test_several_processes_check_while_training_waits_and_say_so_once(trainer, monkeypatch):
    run = trainer()
    monkeypatch.setattr(Trainer, "world_size", 2)

    with pytest.warns(RelictWarning, match="does not work with 2 training processes") as caught:
        can = background.can_check_in_background(run)

    assert not can
    assert len(caught) == 1


def test_an_encoder_that_cannot_be_sent_is_refused_before_the_first_step(trainer, heads, copying):
    class Local(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)

    detector = ReplicaDetector(Local(), transforms="none", top_k=2).fit(heads.training, heads.heldout)
    run = trainer(ReplicaMonitor(detector, num_samples=4, background=True))

    with pytest.raises(ConfigurationError, match=r"the encoder Local to another process, and it cannot be pickled"):
        run.fit(copying(), heads.training_loader(), heads.heldout_loader())

    assert run.global_step == 0


def test_an_encoder_of_the_training_script_is_refused_too(detector, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "Scripted", type("Scripted", (CommandedEncoder,), {}), raising=False)
    scripted = sys.modules["__main__"].Scripted
    scripted.__module__, scripted.__qualname__ = "__main__", "Scripted"
    monkeypatch.setattr(detector, "_encoder", scripted(Path("folder")))

    with pytest.raises(ConfigurationError, match=r"does not know what is defined in the training script"):
        background.BackgroundChecker(detector)


def test_the_process_ends_with_the_one_that_started_it_and_removes_the_folder(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    # Starts the process and ends at once, as if killed.
    starts = (
        "import json, os, socket, subprocess, sys\n"
        "here, there = socket.socketpair()\n"
        "command, path, folder = sys.argv[1:]\n"
        "arguments = [path, str(there.fileno()), folder, str(os.getpid()), '1']\n"
        "process = subprocess.Popen([sys.executable, '-c', command, *arguments], pass_fds=[there.fileno()])\n"
        "print(process.pid)\n"
        "os._exit(0)\n"
    )
    command = [sys.executable, "-c", starts, background._COMMAND, json.dumps(sys.path), str(folder)]

    started = int(subprocess.run(command, capture_output=False, stdout=subprocess.PIPE, check=True).stdout)

    ends = time.monotonic() + 60
    while _runs(started) and time.monotonic() < ends:
        time.sleep(0.1)
    assert not _runs(started)
    assert not folder.exists()
