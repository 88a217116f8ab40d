"""Evaluations happen where they are due, once, and other callbacks see each value while it is fresh."""

from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor

from relict_lightning.callbacks.schedule import Schedule
from relict_lightning.errors import ConfigurationError

RATE = "relict/replica_rate"


def _steps(monitor: Any) -> list[int]:
    return [evaluation.step for evaluation in monitor.history]


def _made(schedule: Schedule, completed: int) -> bool:
    """Return whether an evaluation is due, and is made."""
    is_due = schedule.is_due(completed)
    if is_due:
        schedule.take(completed)
    return is_due


# Four batches make an epoch, so epochs end at steps 4, 8, 12, ...
@pytest.mark.parametrize(
    ("monitored", "trained", "validates", "steps"),
    [
        pytest.param({}, {"max_epochs": 3, "limit_val_batches": 0}, True, [0, 4, 8, 12], id="validation switched off"),
        pytest.param({"evaluate_at_start": False}, {"max_epochs": 2}, True, [4, 8], id="not at the start"),
        # The last weights are evaluated at the end where nothing was due, unless that is switched off.
        pytest.param(
            {"every_n_epochs": 2, "evaluate_at_end": False}, {"max_epochs": 5}, True, [0, 8, 16], id="not at the end"
        ),
        pytest.param({"every_n_epochs": 2}, {"max_epochs": 5}, True, [0, 8, 16, 20], id="second, validated"),
        pytest.param({"every_n_epochs": 2}, {"max_epochs": 5}, False, [0, 8, 16, 20], id="every second epoch"),
        pytest.param({}, {"max_epochs": 5, "check_val_every_n_epoch": 2}, True, [0, 8, 16, 20], id="in turns"),
        pytest.param(
            {}, {"max_epochs": 4, "check_val_every_n_epoch": 2, "num_sanity_val_steps": 0}, True, [0, 8, 16],
            id="validated every second, no sanity check",
        ),
        # Due after epochs 3 and 6; validation comes after epochs 2, 4, 6.
        pytest.param(
            {"every_n_epochs": 3}, {"max_epochs": 6, "check_val_every_n_epoch": 2}, True, [0, 16, 24],
            id="every third, validated every second",
        ),
        pytest.param(
            {}, {"max_epochs": 3, "val_check_interval": 3, "check_val_every_n_epoch": None}, True, [0, 6, 9, 12],
            id="validated every third step",
        ),
        pytest.param({}, {"max_steps": 6, "max_epochs": -1}, False, [0, 4, 6], id="max_steps within an epoch"),
        pytest.param({"every_n_steps": 2}, {"max_steps": 5, "max_epochs": -1}, False, [0, 2, 4, 5], id="max_steps"),
        pytest.param({"at_steps": [7, 2, 2]}, {"max_epochs": 2}, True, [0, 2, 7, 8], id="listed steps"),
        # Periods between evaluations of trained weights: 2, 4, 8.
        pytest.param(
            {"every_n_steps": 1, "adaptive": True}, {"max_epochs": 4}, False, [0, 1, 3, 7, 15, 16], id="ever rarer"
        ),
        # Eight batches make four steps.
        pytest.param(
            {"every_n_steps": 2}, {"max_epochs": 2, "accumulate_grad_batches": 2}, False, [0, 2, 4], id="accumulation"
        ),
        pytest.param({}, {"max_epochs": 2, "accumulate_grad_batches": 4}, True, [0, 1, 2], id="one step an epoch"),
        pytest.param({}, {"max_epochs": 2, "num_sanity_val_steps": -1}, True, [0, 4, 8], id="whole sanity check"),
    ],
)  # fmt: skip
def test_evaluations_happen_at_due_points_and_at_both_ends_and_nowhere_else(
    trainer, heads, monitor, copying, monitored, trained, validates, steps
):
    watching = monitor(num_samples=8, **monitored)

    trainer(watching, **trained).fit(copying(), heads.training_loader(), heads.heldout_loader() if validates else None)

    assert _steps(watching) == steps


class TwoOptimizers(lightning.LightningModule):
    """A GAN's rhythm: both optimizers step in every batch, so `global_step` grows by two."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = torch.nn.Linear(1, 1)
        self.critic = torch.nn.Linear(1, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        for part, optimizer in zip((self.generator, self.critic), self.optimizers(), strict=True):
            optimizer.zero_grad()
            self.manual_backward(part(batch.mean().reshape(1, 1)).sum())
            optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(part.parameters(), 0.01) for part in (self.generator, self.critic)]

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        return torch.rand(n, 1, 16, 16, generator=generator)


@pytest.mark.parametrize(
    ("every_n_steps", "steps"),
    [
        # Steps come as 2, 4, ..., 16. Due at 3, 6, 9, 12, 15.
        (1, [0, 2, 4, 6, 8, 10, 12, 14, 16]),
        (5, [0, 6, 10, 16]),
    ],
)
def test_with_two_optimizers_stepped_by_hand_no_due_step_is_missed(trainer, heads, monitor, every_n_steps, steps):
    watching = monitor(num_samples=8, every_n_steps=every_n_steps)

    trainer(watching).fit(TwoOptimizers(), heads.training_loader())

    assert _steps(watching) == steps


def test_the_last_weights_are_evaluated_also_after_an_onset_that_was_not_acted_on(trainer, heads, monitor, copying):
    watching = monitor(every_n_epochs=2)

    trainer(watching, max_epochs=3).fit(copying((8, 1.0)), heads.training_loader(), heads.heldout_loader())

    assert watching.onset.step == 8
    assert _steps(watching) == [0, 8, 12]


def test_the_sanity_check_is_not_evaluated(trainer, heads, monitor, copying):
    class DuringSanityCheck(Callback):
        def on_sanity_check_end(self, trainer: Any, pl_module: Any) -> None:
            self.evaluations = len(watching.history)

    watching, seen = monitor(num_samples=8), DuringSanityCheck()

    trainer(watching, seen, max_epochs=1).fit(copying(), heads.training_loader(), heads.heldout_loader())

    assert seen.evaluations == 0


def test_validating_on_its_own_needs_no_training_data_and_evaluates_nothing(trainer, heads, monitor, copying):
    watching = monitor(num_samples=8)

    trainer(watching).validate(copying(), heads.heldout_loader(), verbose=False)

    assert watching.history == []


def test_fast_dev_run_draws_few_samples_and_writes_no_report(trainer, heads, monitor, copying, tmp_path):
    watching = monitor(report_path=tmp_path / "report.html", log_images=True)

    trainer(watching, fast_dev_run=True).fit(copying(), heads.training_loader(), heads.heldout_loader())

    assert watching.history[-1].replica_rate.trials == 4
    assert not (tmp_path / "report.html").exists()


class ValuesAtEpochEnds(Callback):
    """Takes down what other callbacks can read at the end of each epoch."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.values: list[float] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.values.append(float(trainer.callback_metrics[self.name]))


@pytest.mark.parametrize("validates", [True, False])
def test_evaluated_tells_new_values_from_values_that_are_shown_again(trainer, heads, monitor, copying, validates):
    flags, rates = ValuesAtEpochEnds("relict/evaluated"), ValuesAtEpochEnds(RATE)
    watching = monitor(every_n_epochs=2)

    trainer(watching, flags, rates, max_epochs=4).fit(
        copying((8, 1.0)), heads.training_loader(), heads.heldout_loader() if validates else None
    )

    assert flags.values == [0.0, 1.0, 0.0, 1.0]
    assert rates.values == [0.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("monitored", [{}, {"every_n_steps": 8}])
def test_epochs_without_validation_show_the_last_value_again_and_say_so(trainer, heads, monitor, copying, monitored):
    flags, rates = ValuesAtEpochEnds("relict/evaluated"), ValuesAtEpochEnds(RATE)

    trainer(monitor(**monitored), flags, rates, max_epochs=5, check_val_every_n_epoch=2).fit(
        copying((8, 1.0)), heads.training_loader(), heads.heldout_loader()
    )

    assert rates.values == [0.0, 1.0, 1.0, 1.0, 1.0]
    # At a step, the step's own value is what stands there; its epoch ends without a new one.
    assert flags.values == ([0.0] * 5 if monitored else [0.0, 1.0, 0.0, 1.0, 0.0])


# The model copies from step 8 on, which is the end of the second epoch.
@pytest.mark.parametrize(
    ("monitored", "trained", "validates", "stopped_after"),
    [
        pytest.param({}, {}, True, 2, id="validation each epoch"),
        pytest.param({}, {}, False, 2, id="no validation loop"),
        pytest.param({}, {"check_val_every_n_epoch": 2}, True, 2, id="validated every second epoch"),
        pytest.param({}, {"val_check_interval": 0.5}, True, 2, id="validated twice an epoch"),
        pytest.param({"every_n_epochs": 3}, {}, True, 3, id="values shown again"),
        pytest.param({"every_n_steps": 8}, {}, False, 2, id="steps"),
    ],
)
def test_early_stopping_reads_the_value_of_this_epoch(
    trainer, heads, monitor, copying, monitored, trained, validates, stopped_after
):
    early_stopping = EarlyStopping(RATE, mode="max", stopping_threshold=0.5, patience=99, strict=True)
    run = trainer(monitor(**monitored), early_stopping, max_epochs=9, **trained)

    run.fit(copying((8, 1.0)), heads.training_loader(), heads.heldout_loader() if validates else None)

    assert run.current_epoch == stopped_after


@pytest.mark.parametrize("validates", [True, False])
def test_model_checkpoint_ranks_by_the_rate_of_the_weights_that_it_saves(
    trainer, heads, monitor, copying, validates, tmp_path
):
    keeper = ModelCheckpoint(tmp_path / "best", monitor=RATE, mode="max", save_top_k=1, filename="{step}")

    trainer(monitor(), keeper, max_epochs=3).fit(
        copying((8, 1.0)), heads.training_loader(), heads.heldout_loader() if validates else None
    )

    assert keeper.best_model_score == 1.0
    assert keeper.best_model_path.endswith("step=8.ckpt")


@pytest.mark.parametrize("validates", [True, False])
@pytest.mark.parametrize("monitored", [{}, {"every_n_epochs": 5}, {"every_n_steps": 6}])
def test_strict_early_stopping_and_checkpoints_find_the_rate_in_the_first_epoch_and_after_resume(
    trainer, heads, monitor, copying, validates, monitored, tmp_path
):
    def run(max_epochs: int) -> tuple[Any, list[Any]]:
        keeper = ModelCheckpoint(tmp_path / "best", monitor=RATE, save_last=True)
        early_stopping = EarlyStopping(RATE, mode="min", patience=99, strict=True)
        callbacks = [monitor(num_samples=8, **monitored), early_stopping, keeper]
        return trainer(*callbacks, max_epochs=max_epochs), callbacks

    loaders = heads.training_loader(), heads.heldout_loader() if validates else None
    first, _ = run(max_epochs=1)
    first.fit(copying(), *loaders)

    second, callbacks = run(max_epochs=3)
    second.fit(copying(), *loaders, ckpt_path=tmp_path / "best" / "last.ckpt")

    assert second.current_epoch == 3
    assert callbacks[1].best_score == 0.0
    assert callbacks[2].best_model_score == 0.0


def test_model_checkpoint_by_steps_finds_the_rate_of_the_start_from_the_first_step_on(
    trainer, heads, monitor, copying, tmp_path
):
    keeper = ModelCheckpoint(tmp_path / "best", monitor=RATE, every_n_train_steps=2, filename="{step}")
    flags = ValuesAtEpochEnds("relict/evaluated")

    trainer(monitor(num_samples=8, every_n_steps=6), keeper, flags, max_epochs=1).fit(
        copying(), heads.training_loader(), heads.heldout_loader()
    )

    assert keeper.best_model_path.endswith("step=2.ckpt")
    assert flags.values == [0.0]


def test_an_adaptive_schedule_is_dense_from_the_first_sign_on(trainer, heads, monitor, copying):
    watching = monitor(num_samples=24, every_n_steps=1, adaptive=True)

    trainer(watching, max_epochs=4).fit(copying((5, 1.0)), heads.training_loader())

    # Quiet at 1 and 3; the copies of step 5 are seen at step 7. Quiet until then, 15 would be next.
    assert _steps(watching) == [0, 1, 3, *range(7, 17)]


def test_minutes_count_over_the_whole_run(trainer, heads, monitor, copying, monkeypatch):
    now = iter(range(10_000))
    # A clock that goes on by a minute each time that it is looked at.
    clock = SimpleNamespace(perf_counter=lambda: 60.0 * next(now))
    monkeypatch.setattr("relict_lightning.callbacks.clock.time", clock)
    watching = monitor(num_samples=8, every_n_minutes=6, evaluate_at_start=False, evaluate_at_end=False)

    trainer(watching, max_epochs=5).fit(copying(), heads.training_loader())

    # One look after each step: the first due point is the sixth minute, and an evaluation takes no look of its own.
    assert _steps(watching) == [6, 12, 18]


def test_a_bound_on_the_time_makes_evaluations_wait_and_says_so(trainer, heads, monitor, copying, messages):
    bounded = monitor(num_samples=8, every_n_steps=1, max_overhead=1e-6)

    trainer(bounded, max_epochs=2).fit(copying(), heads.training_loader())

    # The ends are evaluated in any case.
    assert _steps(bounded) == [0, 8]
    (waits,) = [line for line in messages if "is due at step 1 waits" in line]
    assert "at most 1e-06 seconds per second of training" in waits
    assert any(line.startswith("Evaluations waited to keep monitoring below") for line in messages)


def test_a_bound_that_is_wide_enough_changes_nothing(trainer, heads, monitor, copying, messages):
    bounded = monitor(num_samples=8, every_n_steps=3, max_overhead=1e6)

    trainer(bounded, max_epochs=2).fit(copying(), heads.training_loader())

    assert _steps(bounded) == [0, 3, 6, 8]
    assert not any("wait" in line for line in messages)


def test_an_adaptive_schedule_leaves_out_up_to_seven_of_eight_due_points():
    schedule = Schedule(every_n_steps=10, adaptive=True)
    evaluated = []

    for step in range(1, 500):
        if _made(schedule, step):
            evaluated.append(step)
            schedule.follow(signs=step >= 390)

    assert evaluated == [10, 30, 70, 150, 230, 310, 390, 400, 410, 420, 430, 440, 450, 460, 470, 480, 490]


def test_an_adaptive_schedule_saved_and_loaded_makes_the_same_next_decisions():
    schedule, resumed = Schedule(every_n_epochs=1, adaptive=True), Schedule(every_n_epochs=1, adaptive=True)
    _made(schedule, 1)
    schedule.follow(signs=False)

    resumed.load_state_dict(schedule.state_dict())

    assert (schedule.next_due, resumed.next_due) == (3, 3)


def test_listed_steps_are_due_once_each_and_then_never_again():
    schedule = Schedule(at_steps=[5, 3])

    assert [step for step in range(10) if _made(schedule, step)] == [3, 5]
    assert schedule.next_due == float("inf")


def test_a_schedule_of_an_older_version_is_taken_over():
    resumed = Schedule(every_n_steps=2)

    resumed.load_state_dict({"accounted_for": 50, "counts_steps": True})

    assert resumed.next_due == 52


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"every_n_epochs": 3}, "every 3 epochs"),
        ({"every_n_minutes": 2.5}, "every 2.5 minutes"),
        ({"at_steps": [20, 10]}, "at steps 10, 20"),
        ({"every_n_steps": 5, "adaptive": True}, "every 5 steps, up to 8 times as rarely while nothing happens"),
    ],
)
def test_a_schedule_in_words(arguments, text):
    assert str(Schedule(**arguments)) == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every_n_minutes": 0}, "every_n_minutes must be finite and above 0, got 0"),
        ({"every_n_minutes": float("nan")}, "every_n_minutes must be finite and above 0, got nan"),
        ({"at_steps": []}, r"at_steps must hold steps of at least 1, got \[\]"),
        ({"at_steps": [4, 0]}, r"at_steps must hold steps of at least 1, got \[0, 4\]"),
        ({"at_steps": [4], "every_n_steps": 2}, "At most one of .* may be given, got every_n_steps and at_steps"),
        ({"at_steps": [4], "adaptive": True}, "; at_steps has no period"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        Schedule(**arguments)


def test_a_schedule_saved_and_loaded_makes_the_same_next_decisions():
    schedule, resumed = Schedule(every_n_epochs=3), Schedule(every_n_epochs=3)
    for epoch in (1, 2, 3, 4):
        _made(schedule, epoch)

    resumed.load_state_dict(schedule.state_dict())

    epochs = range(4, 13)
    assert [_made(schedule, epoch) for epoch in epochs] == [_made(resumed, epoch) for epoch in epochs]


def test_a_schedule_goes_on_with_another_period_from_what_was_accounted_for():
    schedule, resumed = Schedule(every_n_epochs=4), Schedule(every_n_epochs=3)
    _made(schedule, 8)

    resumed.load_state_dict(schedule.state_dict())

    # Eight epochs are accounted for; the next multiple of 3 is 9.
    assert [epoch for epoch in range(8, 14) if _made(resumed, epoch)] == [9, 12]


def test_epochs_of_a_saved_schedule_are_not_taken_for_steps():
    resumed = Schedule(every_n_steps=2)
    saved = Schedule(every_n_epochs=1)
    _made(saved, 50)

    resumed.load_state_dict(saved.state_dict())

    assert _made(resumed, 2)


@pytest.mark.parametrize("period", ["every_n_epochs", "every_n_steps"])
def test_a_period_below_one_is_refused(period):
    with pytest.raises(ConfigurationError, match=f"{period} must be at least 1, got 0"):
        Schedule(**{period: 0})
