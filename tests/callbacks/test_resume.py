"""A run that goes on from a checkpoint goes on with its history, its spent alpha and its onset."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, LambdaCallback

from relict_lightning import MemorizationCheckpoint, MemorizationStopping
from relict_lightning.errors import RelictWarning


def _numbers(monitor: Any) -> list[tuple[int, int, Any, dict[str, float]]]:
    """Return the history without what it cost."""
    return [
        (
            evaluation.step,
            evaluation.epoch,
            evaluation.replica_rate,
            {name: value for name, value in evaluation.measures.items() if not name.startswith(("seconds", "memory"))},
        )
        for evaluation in monitor.history
    ]


@pytest.fixture
def halfway(trainer, heads, monitor, copying, tmp_path):
    """The checkpoint of a watched run after two epochs in which nothing was copied."""
    run = trainer(monitor(), max_epochs=2)
    run.fit(copying((12, 1.0)), heads.training_loader(), heads.heldout_loader())
    path = tmp_path / "halfway.ckpt"
    run.save_checkpoint(path)
    return path


def test_a_resumed_run_makes_the_evaluations_and_the_onset_of_a_run_that_was_not_interrupted(
    trainer, heads, monitor, copying, halfway
):
    loaders = heads.training_loader(), heads.heldout_loader()
    whole, resumed = monitor(), monitor()
    trainer(whole, max_epochs=4).fit(copying((12, 1.0)), *loaders)

    trainer(resumed, max_epochs=4).fit(copying((12, 1.0)), *loaders, ckpt_path=halfway)

    assert [evaluation.step for evaluation in resumed.history] == [0, 4, 8, 12, 16]
    assert _numbers(resumed) == _numbers(whole)
    assert resumed.onset == whole.onset
    # The one before the first step spends nothing.
    assert resumed.onset.evaluation == 3


def test_a_resumed_run_does_not_evaluate_at_its_start_again(trainer, heads, monitor, copying, halfway):
    class AtStart(Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            self.evaluations = len(resumed.history)

    resumed, seen = monitor(), AtStart()

    trainer(resumed, seen, max_epochs=3).fit(
        copying(), heads.training_loader(), heads.heldout_loader(), ckpt_path=halfway
    )

    assert seen.evaluations == 3


def test_alpha_that_was_spent_before_stays_spent(trainer, heads, monitor, copying, halfway):
    resumed = monitor()

    trainer(resumed, max_epochs=4).fit(
        copying((12, 1.0)), heads.training_loader(), heads.heldout_loader(), ckpt_path=halfway
    )

    # Half of 6 * 0.05 / (pi * 3)^2: the third evaluation of a trained model, not the first one of the second half.
    assert resumed.onset.level == pytest.approx(0.0016887, abs=1e-7)


def test_held_out_patients_are_found_in_a_resumed_run_that_builds_its_reference(
    trainer, heads, monitor, copying, halfway, tmp_path
):
    # Without a sanity check, and as the third epoch is not validated, the trainer has not loaded the validation data
    # when training starts.
    resumed = monitor(detector=None, cache_dir=tmp_path / "cache")

    trainer(resumed, MemorizationStopping(), max_epochs=4, check_val_every_n_epoch=2, num_sanity_val_steps=0).fit(
        copying(), heads.training_loader(), heads.heldout_loader(), ckpt_path=halfway
    )

    assert resumed.detector.heldout_groups == 40


def test_checkpoints_load_with_weights_only_and_hold_primitives(halfway):
    saved = torch.load(halfway, weights_only=True)

    (state,) = saved["callbacks"].values()
    leaves = torch.utils._pytree.tree_leaves(state)
    assert len(state["history"]) == 3
    assert {type(leaf) for leaf in leaves} <= {str, int, float, bool, type(None)}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"alpha": 0.01}, r"had alpha=0\.05 with alpha=0\.01\. Evaluations from here on"),
        ({"tolerance": 0.2}, r"had tolerance=0\.01 with tolerance=0\.2\."),
        ({"num_samples": 24}, r"had num_samples=48 with num_samples=24\."),
        ({"seed": 3}, r"had seed=0 with seed=3\."),
        # Steps 0, 4 and 8 were evaluated; epoch 3 is not due, and the last weights are evaluated at the end.
        ({"every_n_epochs": 5}, r"had every_n_epochs=1 with every_n_epochs=5\."),
    ],
)
def test_a_changed_setting_is_pointed_out_and_the_history_still_loads(
    trainer, heads, monitor, copying, halfway, setting, message
):
    resumed = monitor(**setting)

    with pytest.warns(RelictWarning, match=message):
        trainer(resumed, max_epochs=3).fit(
            copying(), heads.training_loader(), heads.heldout_loader(), ckpt_path=halfway
        )

    assert [evaluation.step for evaluation in resumed.history] == [0, 4, 8, 12]


def test_a_run_resumed_after_onset_stops_at_once_and_keeps_its_onset(trainer, heads, monitor, copying, tmp_path):
    loaders = heads.training_loader(), heads.heldout_loader()
    first = monitor()
    run = trainer(first, max_epochs=3)
    run.fit(copying((8, 1.0)), *loaders)
    run.save_checkpoint(tmp_path / "late.ckpt")
    resumed = monitor()

    again = trainer(resumed, MemorizationStopping(), max_epochs=9)
    again.fit(copying((8, 1.0)), *loaders, ckpt_path=tmp_path / "late.ckpt")

    assert first.onset.step == 8
    assert resumed.onset == first.onset
    assert again.current_epoch == 4


def test_kept_checkpoints_are_taken_over_as_far_as_they_still_exist(trainer, heads, monitor, copying, tmp_path):
    loaders = heads.training_loader(), heads.heldout_loader()
    first = MemorizationCheckpoint(tmp_path / "kept")
    run = trainer(monitor(), first, max_epochs=2)
    run.fit(copying((12, 1.0)), *loaders)
    run.save_checkpoint(tmp_path / "halfway.ckpt")

    def taken_over() -> list[Any]:
        keeper, kept = MemorizationCheckpoint(tmp_path / "kept"), []
        looks = LambdaCallback(on_train_batch_start=lambda *_: kept.append(list(keeper.kept)))
        trainer(monitor(), keeper, looks, max_epochs=3).fit(
            copying((12, 1.0)), *loaders, ckpt_path=tmp_path / "halfway.ckpt"
        )
        return kept[0]

    both = taken_over()
    (tmp_path / "kept" / "step=8-replicas=0-of-48.ckpt").unlink()
    one = taken_over()

    assert both == first.kept
    assert [checkpoint.step for checkpoint in both] == [4, 8]
    assert [checkpoint.step for checkpoint in one] == [4]


def test_two_monitors_keep_two_histories(trainer, heads, monitor, copying, tmp_path):
    loaders = heads.training_loader(), heads.heldout_loader()

    def two() -> list[Any]:
        return [monitor(num_samples=8, name=name, every_n_epochs=n) for name, n in (("", 1), ("second", 2))]

    first = two()
    run = trainer(*first, max_epochs=2)
    run.fit(copying(), *loaders)
    run.save_checkpoint(tmp_path / "two.ckpt")
    resumed = two()

    trainer(*resumed, max_epochs=2).fit(copying(), *loaders, ckpt_path=tmp_path / "two.ckpt")

    assert [len(monitor.history) for monitor in resumed] == [3, 2]


def test_strict_early_stopping_survives_a_checkpoint_that_was_saved_during_validation(
    trainer, heads, monitor, copying, tmp_path
):
    # Such a run is resumed at the end of the epoch, where no validation comes first.
    loaders = heads.training_loader(), heads.heldout_loader()
    keeper = MemorizationCheckpoint(tmp_path / "kept")
    trainer(monitor(), keeper, max_epochs=2).fit(copying(), *loaders)
    early_stopping = EarlyStopping("relict/replica_rate", mode="min", patience=99, strict=True)

    again = trainer(monitor(), early_stopping, MemorizationCheckpoint(tmp_path / "kept"), max_epochs=4)
    again.fit(copying(), *loaders, ckpt_path=keeper.kept[-1].path)

    assert again.current_epoch == 4
    assert early_stopping.best_score == 0.0


def test_checkpoints_are_taken_over_by_a_keeper_that_keeps_another_number(trainer, heads, monitor, copying, tmp_path):
    loaders = heads.training_loader(), heads.heldout_loader()
    first, resumed = (MemorizationCheckpoint(tmp_path / "kept", keep=keep) for keep in (3, 2))
    run = trainer(monitor(), first, max_epochs=2)
    run.fit(copying(), *loaders)
    run.save_checkpoint(tmp_path / "halfway.ckpt")

    trainer(monitor(), resumed, max_epochs=2).fit(copying(), *loaders, ckpt_path=tmp_path / "halfway.ckpt")

    assert resumed.kept == first.kept
    assert [checkpoint.step for checkpoint in resumed.kept] == [4, 8]


def test_that_there_is_nothing_to_go_back_to_is_not_said_again_by_a_resumed_run(
    trainer, heads, monitor, copying, tmp_path, messages
):
    loaders = heads.training_loader(), heads.heldout_loader()
    run = trainer(monitor(evaluate_at_start=False), MemorizationCheckpoint(tmp_path / "kept"), max_epochs=2)
    run.fit(copying((0, 1.0)), *loaders)
    run.save_checkpoint(tmp_path / "late.ckpt")

    again = trainer(monitor(evaluate_at_start=False), MemorizationCheckpoint(tmp_path / "kept"), max_epochs=4)
    again.fit(copying((0, 1.0)), *loaders, ckpt_path=tmp_path / "late.ckpt")

    assert again.current_epoch == 4
    assert sum("No checkpoint was saved before memorization onset" in message for message in messages) == 1
