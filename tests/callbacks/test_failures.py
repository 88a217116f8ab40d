"""Looking at a run may fail; the run goes on, and nobody is told a wrong number."""

import stat
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger, Logger
from torch import Tensor, nn

from relict_lightning import MemorizationCheckpoint, MemorizationStopping, ReplicaDetector
from relict_lightning.errors import RelictWarning, SamplerError


class Shown(Callback):
    """Takes down what other callbacks read at the end of each epoch."""

    def __init__(self) -> None:
        self.values: list[tuple[float, ...]] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        names = ("replica_rate", "evaluated", "stale")
        self.values.append(tuple(float(trainer.callback_metrics[f"relict/{name}"]) for name in names))


def _failing_at(*steps: int, error: Exception) -> Callable[..., Tensor]:
    """Return a sampler that fails at some steps."""

    def sample(module: Any, n: int, *, generator: torch.Generator) -> Tensor:
        if module.global_step in steps:
            raise error
        return module.sample(n, generator=generator)

    return sample


@pytest.mark.parametrize("validates", [True, False])
def test_training_goes_on_with_the_last_numbers_which_are_marked_as_stale(
    trainer, heads, monitor, copying, messages, validates
):
    shown = Shown()
    watching = monitor(sampler=_failing_at(8, 12, error=RuntimeError("no memory")))
    run = trainer(watching, shown, max_epochs=4)

    with pytest.warns(
        RelictWarning, match=r"failed at step 8 \(RuntimeError\)\. What it said is in .*Training goes on"
    ) as caught:
        run.fit(copying((8, 1.0)), heads.training_loader(), heads.heldout_loader() if validates else None)

    # Said once, though it failed twice.
    assert len([warning for warning in caught if warning.category is RelictWarning]) == 1
    assert run.global_step == 16
    assert [evaluation.step for evaluation in watching.history] == [0, 4, 16]
    assert shown.values == [(0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.0, 0.0, 1.0), (1.0, 1.0, 0.0)]
    assert (watching.failures, watching.is_stale) == (2, False)
    assert any("failed 2 times" in line for line in messages)


def test_a_failure_at_a_step_is_marked_too_and_onset_is_found_at_the_next(trainer, heads, monitor, copying):
    watching = monitor(every_n_steps=4, sampler=_failing_at(8, error=RuntimeError("no memory")))
    run = trainer(watching, MemorizationStopping(), max_epochs=9)

    with pytest.warns(RelictWarning, match="failed at step 8"):
        run.fit(copying((8, 1.0)), heads.training_loader())

    assert watching.onset.step == run.global_step == 12
    # A level is spent for each evaluation that was made.
    assert watching.onset.evaluation == 2


def test_a_sampler_that_fails_from_the_start_does_not_kill_training(trainer, heads, monitor, copying, tmp_path):
    callbacks = (
        monitor(sampler=_failing_at(0, 4, 8, error=RuntimeError("no memory"))),
        MemorizationStopping(),
        MemorizationCheckpoint(tmp_path / "kept"),
    )
    run = trainer(*callbacks)

    with pytest.warns(RelictWarning, match="failed at step 0"):
        run.fit(copying(), heads.training_loader(), heads.heldout_loader())

    assert run.global_step == 8
    assert callbacks[0].history == []


def test_a_sampler_that_goes_wrong_later_is_reported_and_does_not_kill_training(trainer, heads, monitor, copying):
    def diverging(module: Any, n: int) -> Tensor:
        return torch.full((n, 1, 16, 16), torch.nan) if module.global_step else heads.fresh[:n]

    run = trainer(monitor(sampler=diverging, num_samples=8))

    with pytest.warns(RelictWarning, match="NaN or infinite values in 8 of 8 images"):
        run.fit(copying(), heads.training_loader(), heads.heldout_loader())

    assert run.global_step == 8


def test_what_may_name_a_patient_is_told_in_a_local_file_only(trainer, heads, monitor, copying, tmp_path, capsys):
    error = FileNotFoundError("no mask of /data/Miller_Anna.nii.gz")
    watching = monitor(num_samples=8, sampler=_failing_at(4, 8, error=error))

    with pytest.warns(RelictWarning) as caught:
        trainer(watching).fit(copying(), heads.training_loader(), heads.heldout_loader())

    (said,) = [str(warning.message) for warning in caught if warning.category is RelictWarning]
    path = tmp_path / "relict_failures.txt"
    assert f"failed at step 4 (FileNotFoundError). What it said is in {path}, a local file" in said
    captured = capsys.readouterr()
    assert "Miller" not in said + captured.out + captured.err
    written = path.read_text()
    assert written.startswith("An evaluation of ReplicaMonitor failed at step 4.\nTraceback")
    assert written.count("FileNotFoundError: no mask of /data/Miller_Anna.nii.gz") == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_failure_is_told_also_where_nothing_can_be_written(trainer, heads, monitor, copying, tmp_path):
    (tmp_path / "relict_failures.txt").mkdir()
    watching = monitor(num_samples=8, sampler=_failing_at(4, error=RuntimeError("no memory")))

    with pytest.warns(
        RelictWarning, match=r"\(RuntimeError\)\. What it said could not be written to .*Training goes on"
    ):
        trainer(watching).fit(copying(), heads.training_loader(), heads.heldout_loader())


@pytest.mark.parametrize("monitored", [{"every_n_epochs": 2}, {"every_n_steps": 7}])
def test_where_the_start_fails_the_end_of_the_first_epoch_makes_up_for_it(trainer, heads, monitor, copying, monitored):
    watching = monitor(num_samples=8, sampler=_failing_at(0, error=RuntimeError("no memory")), **monitored)
    strict = EarlyStopping("relict/replica_rate", mode="min", patience=99)

    with pytest.warns(RelictWarning, match="failed at step 0"):
        trainer(watching, strict, max_epochs=3).fit(copying(), heads.training_loader(), heads.heldout_loader())

    due = [8, 12] if "every_n_epochs" in monitored else [7, 12]
    assert [evaluation.step for evaluation in watching.history] == [4, *due]


def test_errors_stop_training_where_that_is_wanted(trainer, heads, monitor, copying):
    watching = monitor(num_samples=8, on_error="raise", sampler=_failing_at(4, error=RuntimeError("no memory")))

    with pytest.raises(RuntimeError, match="no memory"):
        trainer(watching).fit(copying(), heads.training_loader(), heads.heldout_loader())


class FailingEncoder(nn.Module):
    """Embeds by coarse voxels; fails when told to."""

    fails = False

    def forward(self, images: Tensor) -> Tensor:
        if FailingEncoder.fails:
            raise RuntimeError("a broken encoder")
        return nn.functional.adaptive_avg_pool2d(images, 8).flatten(1)


def test_an_encoder_that_fails_does_not_kill_training(trainer, heads, monitor, copying, monkeypatch):
    detector = ReplicaDetector(FailingEncoder()).fit(heads.training, heads.heldout)
    watching, run = monitor(detector=detector, num_samples=8), trainer()
    monkeypatch.setattr(FailingEncoder, "fails", True)
    run.callbacks.insert(0, watching)

    with pytest.warns(RelictWarning, match=r"failed at step 0 \(RuntimeError\)"):
        run.fit(copying(), heads.training_loader(), heads.heldout_loader())

    assert run.global_step == 8


class FullDisk(CSVLogger):
    """A logger that cannot write what the monitor gives it."""

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        if any(name.startswith("relict/") for name in metrics):
            raise OSError("No space left on device")
        super().log_metrics(metrics, step)


def test_a_logger_that_fails_loses_no_evaluation(trainer, heads, monitor, copying, tmp_path):
    logger: Logger = FullDisk(tmp_path)
    watching = monitor()

    with pytest.warns(RelictWarning, match=r"Writing to the loggers failed at step 0 \(OSError\)"):
        trainer(watching, logger=logger, max_epochs=3).fit(
            copying((8, 1.0)), heads.training_loader(), heads.heldout_loader()
        )

    assert [evaluation.step for evaluation in watching.history] == [0, 4, 8, 12]
    assert watching.onset.step == 8
    assert (watching.failures, watching.is_stale) == (4, False)


def test_a_logger_that_fails_stops_training_where_that_is_wanted(trainer, heads, monitor, copying, tmp_path):
    run = trainer(monitor(num_samples=8, on_error="raise"), logger=FullDisk(tmp_path))

    with pytest.raises(OSError, match="No space left"):
        run.fit(copying(), heads.training_loader(), heads.heldout_loader())


def test_a_wrong_setting_stops_before_the_first_step(trainer, heads, monitor, copying):
    run = trainer(monitor(sampler="draw", num_samples=8))

    with pytest.raises(SamplerError, match=r"has no method `draw"):
        run.fit(copying(), heads.training_loader(), heads.heldout_loader())

    assert run.global_step == 0
