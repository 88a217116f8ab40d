"""Stopping at a known onset, and the checkpoint to go back to."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from relict_lightning import MemorizationCheckpoint, MemorizationStopping, ReplicaDetector, ReplicaMonitor
from relict_lightning.callbacks.rollback.kept import KeptCheckpoint, choose, thin_out
from relict_lightning.errors import ConfigurationError, RelictWarning
from relict_lightning.functional import estimate_rate
from relict_lightning.results import DetectionResult, Evaluation


def _kept(successes: int, trials: int = 48, *, step: int = 0) -> KeptCheckpoint:
    return KeptCheckpoint(path=f"{step}.ckpt", step=step, replica_rate=estimate_rate(successes, trials))


# Four batches make an epoch. From the step of the schedule on, every sample is a copy.
@pytest.mark.parametrize(
    ("onset", "monitored", "trained", "validates", "stopped_at"),
    [
        pytest.param(8, {}, {}, True, 8, id="epochs, validated"),
        pytest.param(8, {}, {}, False, 8, id="epochs"),
        pytest.param(9, {}, {}, True, 12, id="onset within an epoch"),
        pytest.param(9, {"every_n_epochs": 2}, {}, True, 16, id="every second epoch"),
        pytest.param(8, {}, {"check_val_every_n_epoch": 3}, True, 12, id="validated every third epoch"),
        pytest.param(5, {"every_n_steps": 3}, {}, False, 6, id="steps, in the middle of an epoch"),
        pytest.param(5, {"every_n_steps": 3}, {}, True, 6, id="steps, validated"),
    ],
)
def test_training_stops_at_the_first_evaluation_after_copying_began(
    trainer, heads, monitor, copying, onset, monitored, trained, validates, stopped_at
):
    watching = monitor(**monitored)
    run = trainer(watching, MemorizationStopping(), max_epochs=20, **trained)

    run.fit(copying((onset, 1.0)), heads.training_loader(), heads.heldout_loader() if validates else None)

    assert run.global_step == stopped_at
    assert watching.onset.step == stopped_at
    assert [evaluation.replica_rate.value for evaluation in watching.history][-2:] == [0.0, 1.0]


@pytest.mark.parametrize("monitored", [{}, {"every_n_steps": 3}])
def test_an_onset_that_takes_more_than_one_evaluation_stops_when_it_is_established(
    trainer, heads, monitor, copying, monitored
):
    watching = monitor(patience=2, **monitored)
    run = trainer(watching, MemorizationStopping(), max_epochs=9)

    run.fit(copying((5, 1.0)), heads.training_loader(), heads.heldout_loader())

    assert watching.onset.step == (6 if monitored else 8)
    assert watching.onset.confirmed_step == run.global_step == (9 if monitored else 12)


@pytest.mark.parametrize("monitored", [{}, {"every_n_steps": 3}])
def test_a_model_that_copies_nothing_is_never_stopped(trainer, heads, monitor, copying, monitored):
    watching = monitor(**monitored)
    run = trainer(watching, MemorizationStopping(), max_epochs=6)

    run.fit(copying(), heads.training_loader(), heads.heldout_loader())

    assert run.current_epoch == 6
    assert watching.onset is None


def test_the_checkpoint_to_go_back_to_is_the_last_from_before_onset_and_its_interval_lies_below(
    trainer, heads, monitor, copying, tmp_path
):
    watching, keeper = monitor(), MemorizationCheckpoint(tmp_path / "kept")

    trainer(watching, MemorizationStopping(), keeper, max_epochs=20).fit(
        copying((12, 1.0)), heads.training_loader(), heads.heldout_loader()
    )

    assert keeper.best.step == 8
    assert keeper.best.replica_rate.high < watching.onset.replica_rate.low
    assert torch.load(keeper.best.path, weights_only=True)["global_step"] == 8


def test_training_goes_on_from_the_checkpoint_to_go_back_to(trainer, heads, monitor, copying, tmp_path):
    loaders = heads.training_loader(), heads.heldout_loader()
    keeper = MemorizationCheckpoint(tmp_path / "kept")
    trainer(monitor(), MemorizationStopping(), keeper, max_epochs=20).fit(copying((12, 1.0)), *loaders)
    resumed = monitor()

    again = trainer(resumed, MemorizationStopping(), MemorizationCheckpoint(tmp_path / "kept"), max_epochs=4)
    again.fit(copying(), *loaders, ckpt_path=keeper.best.path)

    assert [evaluation.step for evaluation in resumed.history] == [0, 4, 8, 12, 16]
    assert resumed.onset is None


def test_the_messages_say_reason_rate_interval_step_and_checkpoint(
    trainer, heads, monitor, copying, tmp_path, messages
):
    keeper = MemorizationCheckpoint(tmp_path / "kept")

    trainer(monitor(), MemorizationStopping(), keeper, max_epochs=20).fit(
        copying((8, 1.0)), heads.training_loader(), heads.heldout_loader()
    )

    (onset,) = [message for message in messages if message.startswith("Memorization onset")]
    assert "at step 8 (epoch 1): replica rate 48/48 = 100.0 % [92.6 %, 100.0 %]" in onset
    assert "permutation p-value" in onset
    assert "at evaluation 2, where 0.0038 was allowed" in onset
    assert "assuming only that training and held-out patients were split at random" in onset
    (back,) = [message for message in messages if message.startswith("Go back")]
    assert back == (
        f"Go back to {tmp_path / 'kept' / 'step=4-replicas=0-of-48.ckpt'}: step 4, before memorization onset, "
        f"replica rate 0/48 = 0.0 % [0.0 %, 7.4 %]. Verified: fresh samples 0/48 = 0.0 % [0.0 %, 7.4 %], with the "
        f"first ones 0/96 = 0.0 % [0.0 %, 3.8 %]."
    )
    assert sum("memorization onset was established" in message for message in messages) == 1


def test_a_run_without_onset_ends_by_saying_so(trainer, heads, monitor, copying, messages):
    trainer(monitor(), max_epochs=2).fit(copying(), heads.training_loader(), heads.heldout_loader())

    expected = "No memorization onset in 3 evaluations; last replica rate 0/48 = 0.0 % [0.0 %, 7.4 %]."
    assert expected in messages


def test_where_copying_began_before_the_first_step_there_is_nothing_to_go_back_to(
    trainer, heads, monitor, copying, tmp_path, messages
):
    keeper = MemorizationCheckpoint(tmp_path / "kept")

    trainer(monitor(evaluate_at_start=False), MemorizationStopping(), keeper, max_epochs=3).fit(
        copying((0, 1.0)), heads.training_loader(), heads.heldout_loader()
    )

    assert keeper.best is None
    assert any("No checkpoint was saved before memorization onset" in message for message in messages)


def test_that_there_is_nothing_to_go_back_to_is_said_once(trainer, heads, monitor, copying, tmp_path, messages):
    keeper = MemorizationCheckpoint(tmp_path / "kept")
    watching = monitor(evaluate_at_start=False)

    trainer(watching, keeper, max_epochs=4).fit(copying((0, 1.0)), heads.training_loader(), heads.heldout_loader())

    assert len(watching.history) == 4
    assert sum("No checkpoint was saved before memorization onset" in message for message in messages) == 1


@pytest.mark.parametrize(
    ("keep", "verify", "steps"),
    [
        # Rates 0/48, 0/48 and so on: each newer checkpoint makes the older ones pointless, unless one is to fall back
        # on where fresh samples find copies in the newest.
        (1, True, [12]),
        (3, False, [12]),
        (2, True, [4, 12]),
        (3, True, [4, 8, 12]),
    ],
)
def test_of_equally_good_checkpoints_the_newest_is_kept_and_older_ones_to_fall_back_on(
    trainer, heads, monitor, copying, tmp_path, keep, verify, steps
):
    keeper = MemorizationCheckpoint(tmp_path / "kept", keep=keep, verify=verify)

    trainer(monitor(), keeper, max_epochs=3).fit(copying(), heads.training_loader(), heads.heldout_loader())

    assert [checkpoint.step for checkpoint in keeper.kept] == steps
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {
        f"step={step}-replicas=0-of-48.ckpt" for step in steps
    }


@pytest.mark.parametrize(("keep", "files"), [(1, 1), (2, 2), (5, 3)])
def test_no_more_checkpoints_are_kept_than_asked_for(trainer, heads, monitor, copying, tmp_path, keep, files):
    # With a tolerance of 0.99 onset is out of reach, and the rate rises from epoch to epoch.
    keeper = MemorizationCheckpoint(tmp_path / "kept", keep=keep)

    trainer(monitor(tolerance=0.99), keeper, max_epochs=3).fit(
        copying((8, 0.5), (12, 0.8)), heads.training_loader(), heads.heldout_loader()
    )

    lying = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert len(lying) == files
    assert sorted(checkpoint.path for checkpoint in keeper.kept) == [str(tmp_path / "kept" / name) for name in lying]
    assert keeper.kept[0].step == 4


class Planned(ReplicaMonitor):
    """Finds as many copies among 64 samples after each epoch as it was told to; takes down what is saved."""

    def __init__(self, *copies: int) -> None:
        super().__init__()
        self.copies = copies
        self.saved_at: list[int] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        pass

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        rate = estimate_rate(self.copies[trainer.current_epoch], 64)
        step, measures, context = trainer.global_step, {"memorization_p_value": 1.0}, {"alpha_threshold": 0.01}
        self.history.append(Evaluation(step=step, epoch=0, replica_rate=rate, measures=measures, context=context))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        pass

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
        self.saved_at.append(trainer.global_step)


@pytest.mark.parametrize(
    ("keep", "kept", "saved_at"),
    [
        pytest.param(3, [0, 3, 4], [4, 8, 12, 16, 20], id="the cleanest and the two newest"),
        pytest.param(2, [0, 4], [4, 8, 12, 16, 20], id="the cleanest and the newest"),
        pytest.param(1, [0], [4], id="the cleanest, and no worse one is written"),
    ],
)
def test_where_the_rate_rises_the_cleanest_checkpoint_is_never_dropped(
    trainer, heads, copying, tmp_path, keep, kept, saved_at
):
    watching, keeper = Planned(0, 1, 2, 3, 4), MemorizationCheckpoint(tmp_path / "kept", keep=keep)

    trainer(watching, keeper, max_epochs=5).fit(copying(), heads.training_loader())

    assert [checkpoint.replica_rate.successes for checkpoint in keeper.kept] == kept
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {
        f"step={4 * copies + 4}-replicas={copies}-of-64.ckpt" for copies in kept
    }
    assert watching.saved_at == saved_at


def test_a_cleaner_checkpoint_replaces_those_before_it(trainer, heads, copying, tmp_path):
    watching, keeper = Planned(2, 5, 9, 3, 1), MemorizationCheckpoint(tmp_path / "kept")

    trainer(watching, keeper, max_epochs=5).fit(copying(), heads.training_loader())

    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["step=20-replicas=1-of-64.ckpt"]
    assert [checkpoint.step for checkpoint in keeper.kept] == [20]


def test_of_many_equally_clean_checkpoints_those_kept_lie_further_and_further_back():
    kept: list[KeptCheckpoint] = []
    ages = []
    for step in range(1, 101):
        kept = thin_out([*kept, _kept(0, step=step)], keep=5)
        ages.append([step - checkpoint.step for checkpoint in kept])

    assert all(len(each) == 5 and each[0] == step and each[-1] == 0 for step, each in enumerate(ages[4:], start=4))
    for oldest, old, middle, young, newest in ages[30:]:
        assert oldest > old > middle > young > newest
        # Not all of them right before the newest.
        assert old >= 5


def test_the_newest_checkpoint_whose_interval_lies_below_is_chosen():
    onset_rate = estimate_rate(24, 48)
    kept = [_kept(1, step=1), _kept(2, step=2), _kept(20, step=3)]

    chosen = choose(kept, onset_rate)

    assert chosen.step == 2


def test_a_checkpoint_without_any_replica_is_preferred_to_a_newer_one_with_some():
    onset_rate = estimate_rate(24, 48)
    kept = [_kept(0, step=1), _kept(0, step=2), _kept(2, step=3)]

    assert choose(kept, onset_rate).step == 2
    # Found replicas weigh more than a leaning.
    assert choose([replace(kept[1], leans=True), kept[2]], onset_rate).step == 2


def test_where_no_interval_lies_below_the_newest_of_the_best_bounded_is_chosen():
    onset_rate = estimate_rate(3, 48)
    kept = [_kept(2, step=1), _kept(1, step=2), _kept(1, step=3), _kept(2, step=4)]

    chosen = choose(kept, onset_rate)

    assert chosen.step == 3


def test_no_checkpoint_is_chosen_where_none_was_kept():
    assert choose([], estimate_rate(3, 48)) is None


def test_a_checkpoint_keeper_saved_and_loaded_names_the_same_checkpoints(trainer, heads, monitor, copying, tmp_path):
    keeper, loaded = MemorizationCheckpoint(tmp_path / "kept"), MemorizationCheckpoint(tmp_path / "kept")
    trainer(monitor(), MemorizationStopping(), keeper, max_epochs=9).fit(
        copying((8, 1.0)), heads.training_loader(), heads.heldout_loader()
    )

    loaded.load_state_dict(keeper.state_dict())

    assert loaded.kept == keeper.kept
    assert loaded.best == keeper.best
    assert loaded.state_dict() == keeper.state_dict()


def test_stopping_saved_and_loaded_still_stops(trainer, heads, monitor, copying):
    stopper, loaded = MemorizationStopping(), MemorizationStopping()
    trainer(monitor(), stopper, max_epochs=1).fit(copying(), heads.training_loader())

    loaded.load_state_dict(stopper.state_dict())
    run = trainer(monitor(), loaded, max_epochs=9)
    run.fit(copying((4, 1.0)), heads.training_loader())

    assert run.current_epoch == 1


@pytest.mark.parametrize("callback", [MemorizationStopping, MemorizationCheckpoint])
def test_without_a_monitor_it_is_said_that_one_is_needed(trainer, heads, copying, callback):
    with pytest.raises(ConfigurationError, match=f"{callback.__name__} needs a ReplicaMonitor among the trainer's"):
        trainer(callback()).fit(copying(), heads.training_loader())


def test_stopping_without_held_out_patients_is_refused_with_the_remedy(trainer, heads, copying, tmp_path):
    watching = ReplicaMonitor(num_samples=8, cache_dir=tmp_path / "cache")

    with (
        pytest.warns(RelictWarning, match="no held-out images"),
        pytest.raises(ConfigurationError, match=r"cannot act: .*ReplicaMonitor\(heldout=\.\.\.\)"),
    ):
        trainer(watching, MemorizationStopping()).fit(copying(), heads.training_loader())


def test_stopping_before_the_monitor_is_refused(trainer, heads, copying, tmp_path):
    watching = ReplicaMonitor(num_samples=8, heldout=heads.heldout, cache_dir=tmp_path / "cache")

    with pytest.raises(ConfigurationError, match="must come after ReplicaMonitor in the trainer's callbacks"):
        trainer(MemorizationStopping(), watching).fit(copying(), heads.training_loader())


def test_checkpoints_without_held_out_patients_save_nothing_because_there_is_no_rate(
    trainer, heads, monitor, copying, tmp_path
):
    keeper = MemorizationCheckpoint(tmp_path / "kept")
    without_control: Any = ReplicaDetector().fit(heads.training)

    with pytest.warns(RelictWarning, match="no held-out images"):
        trainer(monitor(detector=without_control, num_samples=8), keeper).fit(copying(), heads.training_loader())

    assert keeper.kept == []
    assert not (tmp_path / "kept").exists()


def test_keeping_less_than_one_checkpoint_is_refused():
    with pytest.raises(ConfigurationError, match="keep must be at least 1, got 0"):
        MemorizationCheckpoint(keep=0)


def test_a_checkpoint_whose_samples_do_not_lean_is_preferred_to_a_newer_one_whose_samples_do():
    upright, leaning = _kept(0, step=1), replace(_kept(0, step=2), leans=True)

    assert not upright.is_outdone_by(leaning)
    assert leaning.is_outdone_by(replace(leaning, step=3))
    assert leaning.is_outdone_by(upright)
    assert choose([upright, leaning], estimate_rate(30, 48)) == upright
    assert choose([leaning], estimate_rate(30, 48)) == leaning


def test_copies_that_only_the_last_weights_make_are_found_at_the_end(trainer, heads, monitor, copying, tmp_path):
    watching, keeper = monitor(every_n_epochs=2), MemorizationCheckpoint(tmp_path / "kept")

    trainer(watching, MemorizationStopping(), keeper, max_epochs=3).fit(copying((9, 1.0)), heads.training_loader())

    assert watching.onset.step == 12
    assert keeper.best.step == 8
    assert watching.rollback == keeper.best


def test_an_onset_that_is_confirmed_later_is_dated_back_and_not_gone_back_to(
    trainer, heads, monitor, copying, tmp_path, messages
):
    keeper = MemorizationCheckpoint(tmp_path / "kept", keep=9)
    watching = monitor(patience=3)
    run = trainer(watching, MemorizationStopping(), keeper, max_epochs=9)

    run.fit(copying((8, 1.0)), heads.training_loader(), heads.heldout_loader())

    assert (watching.onset.step, watching.onset.confirmed_step, run.global_step) == (8, 16, 16)
    assert [checkpoint.step for checkpoint in keeper.kept] == [4]
    assert keeper.best.step == 4
    assert any("Memorization since step 8 is not confirmed yet: 1 of 3" in line for line in messages)


def test_the_state_of_the_run_is_shown_as_it_changes(trainer, heads, monitor, copying):
    seen: list[tuple[str, float]] = []

    class States(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            seen.append((watching.state.value, float(trainer.callback_metrics["relict/watch"])))

    watching = monitor(patience=2)

    trainer(watching, States(), max_epochs=4).fit(copying((8, 1.0)), heads.training_loader(), heads.heldout_loader())

    assert seen[1:] == [("watch", 1.0), ("onset", 0.0), ("onset", 0.0)]


def test_a_leaning_that_was_found_once_is_not_over_at_the_next_evaluation(
    trainer, heads, monitor, copying, tmp_path, monkeypatch
):
    detect, found = ReplicaDetector.detect, iter([1.0, 0.5, 1e-9, 0.5, 0.5])

    def detect_with_p_value(self: ReplicaDetector, *arguments: Any, **options: Any) -> DetectionResult:
        shown = {"memorization_p_value": next(found), "leaning_rate": estimate_rate(2, 48)}
        return replace(detect(self, *arguments, **options), **shown)

    monkeypatch.setattr(ReplicaDetector, "detect", detect_with_p_value)
    keeper = MemorizationCheckpoint(tmp_path / "kept", keep=9)

    trainer(monitor(), keeper, max_epochs=4).fit(copying(), heads.training_loader(), heads.heldout_loader())

    # Of those that lean the newest is as good as any.
    assert [(checkpoint.step, checkpoint.leans) for checkpoint in keeper.kept] == [(4, False), (16, True)]
