"""Several monitors in one run, and one monitor in several runs."""

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger

from relict_lightning import MemorizationCheckpoint, MemorizationStopping, ReplicaDetector, ReplicaMonitor
from relict_lightning.callbacks.attached import attached_monitor
from relict_lightning.errors import ConfigurationError


def _steps(monitor: ReplicaMonitor) -> list[int]:
    return [evaluation.step for evaluation in monitor.history]


class ShownValues(Callback):
    """Takes down what other callbacks can read at the end of training."""

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.values = {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.fixture
def clean(heads) -> Any:
    """A sampler that never copies, whatever the model does."""
    return lambda module, n: heads.fresh[:n]


@pytest.mark.parametrize("clean_first", [True, False])
@pytest.mark.parametrize("monitored", [{}, {"every_n_steps": 4}])
def test_two_monitors_show_and_log_their_values_apart(
    trainer, heads, monitor, copying, clean, tmp_path, clean_first, monitored
):
    pair = [monitor(name="clean", sampler=clean, **monitored), monitor(name="raw", **monitored)]
    shown, logger = ShownValues(), CSVLogger(tmp_path, name="csv")

    trainer(*(pair if clean_first else pair[::-1]), shown, max_epochs=3, logger=logger).fit(
        copying((8, 1.0)), heads.training_loader(), heads.heldout_loader()
    )

    assert (shown.values["relict/clean/replica_rate"], shown.values["relict/raw/replica_rate"]) == (0.0, 1.0)
    assert (shown.values["relict/clean/onset"], shown.values["relict/raw/onset"]) == (0.0, 1.0)
    assert "relict/replica_rate" not in shown.values
    header, *_ = Path(logger.experiment.metrics_file_path).read_text().splitlines()
    assert {"relict/clean/replica_rate", "relict/raw/replica_rate"} <= set(header.split(","))


@pytest.mark.parametrize(
    ("names", "stopped_at"),
    [
        pytest.param(("clean", ""), 8, id="the one without a name copies, though it comes second"),
        pytest.param(("", "raw"), 16, id="the one without a name is clean"),
        pytest.param(("clean", "raw"), 16, id="the first is clean"),
    ],
)
def test_stopping_follows_the_monitor_without_a_name_or_else_the_first(
    trainer, heads, monitor, copying, clean, names, stopped_at
):
    pair = monitor(name=names[0], sampler=clean), monitor(name=names[1])
    run = trainer(*pair, MemorizationStopping(), max_epochs=4)

    run.fit(copying((8, 1.0)), heads.training_loader(), heads.heldout_loader())

    assert run.global_step == stopped_at


def test_stopping_reads_the_values_of_a_monitor_with_a_name(trainer, heads, monitor, copying):
    run = trainer(monitor(name="raw"), MemorizationStopping(), max_epochs=9)

    run.fit(copying((8, 1.0)), heads.training_loader(), heads.heldout_loader())

    assert run.global_step == 8


def test_the_monitor_without_a_name_is_the_attached_one_and_else_the_first(trainer, monitor):
    first, unnamed, last = monitor(name="first"), monitor(), monitor(name="last")

    assert attached_monitor(trainer(first, unnamed, last), "This test") is unnamed
    assert attached_monitor(trainer(first, last), "This test") is first


@pytest.mark.parametrize("name", ["", "ema"])
def test_two_monitors_of_one_name_are_refused_with_the_remedy(trainer, heads, monitor, copying, name):
    class Other(ReplicaMonitor):
        """Of another class, so that Lightning takes the two states for different ones."""

    run = trainer(monitor(name=name), Other(name=name))

    with pytest.raises(ConfigurationError, match=rf"have the name '{name}', .* as `ReplicaMonitor\(\.\.\., name="):
        run.fit(copying(), heads.training_loader(), heads.heldout_loader())


def test_a_second_fit_starts_afresh_and_is_not_stopped_by_the_onset_of_the_first(
    trainer, heads, monitor, copying, tmp_path
):
    watching, stopping, keeper = monitor(), MemorizationStopping(), MemorizationCheckpoint(tmp_path / "kept")
    loaders = heads.training_loader(), heads.heldout_loader()
    trainer(watching, stopping, keeper, max_epochs=9).fit(copying((8, 1.0)), *loaders)
    first = watching.onset

    again = trainer(watching, stopping, keeper, max_epochs=3)
    again.fit(copying(), *loaders)

    assert first.step == 8
    assert again.global_step == 12
    assert watching.onset is None
    assert _steps(watching) == [0, 4, 8, 12]
    assert (watching.rollback, keeper.best) == (None, None)
    assert [checkpoint.step for checkpoint in keeper.kept] == [4, 8, 12]


def test_a_second_fit_stops_at_an_onset_of_its_own(trainer, heads, monitor, copying, tmp_path):
    watching, stopping, keeper = monitor(), MemorizationStopping(), MemorizationCheckpoint(tmp_path / "kept")
    loaders = heads.training_loader(), heads.heldout_loader()
    trainer(watching, stopping, keeper, max_epochs=9).fit(copying((4, 1.0)), *loaders)

    again = trainer(watching, stopping, keeper, max_epochs=9)
    again.fit(copying((12, 1.0)), *loaders)

    assert again.global_step == 12
    assert watching.onset.step == 12
    # The third evaluation of a trained model in this run; half of 6 * 0.05 / (pi * 3)^2.
    assert watching.onset.level == pytest.approx(0.0016887, abs=1e-7)
    assert watching.rollback == keeper.best
    assert keeper.best.step == 8


@pytest.mark.parametrize("given", [True, False])
def test_a_detector_that_was_not_fitted_before_is_fitted_to_the_patients_of_each_run(
    trainer, heads, copying, tmp_path, given
):
    detector = ReplicaDetector(cache_dir=tmp_path / "given") if given else None
    watching = ReplicaMonitor(detector, num_samples=8, cache_dir=tmp_path / "cache")
    folds = [(heads.training[:30], heads.heldout), (heads.training, heads.heldout[:25])]
    seen = []

    for training, heldout in folds:
        run = trainer(watching, max_epochs=1)
        loaders = type(heads)(training=training, heldout=heldout, fresh=heads.fresh)
        run.fit(copying(), loaders.training_loader(), loaders.heldout_loader())
        seen.append((watching.detector.training_groups, watching.detector.heldout_groups))

    assert seen == [(30, 40), (40, 25)]


def test_a_detector_that_was_fitted_before_keeps_its_patients_in_every_run(trainer, heads, monitor, copying):
    watching = monitor(num_samples=8)
    loaders = type(heads)(training=heads.training[:20], heldout=heads.heldout[:30], fresh=heads.fresh)

    for _ in range(2):
        trainer(watching, max_epochs=1).fit(copying(), loaders.training_loader(), loaders.heldout_loader())

    assert (watching.detector.training_groups, watching.detector.heldout_groups) == (40, 40)
