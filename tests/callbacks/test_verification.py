"""The checkpoint to go back to is verified with fresh samples, and put back where that is asked for."""

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torch.utils.data import DataLoader

from relict_lightning import MemorizationCheckpoint, MemorizationStopping, ReplicaMonitor
from relict_lightning.callbacks.rollback import checkpoint_files
from relict_lightning.callbacks.rollback.kept import KeptCheckpoint, choose_of_tried, from_primitives, to_primitives
from relict_lightning.callbacks.rollback.verification import Finding, Verification, asks_for_more, judge
from relict_lightning.errors import RelictWarning
from relict_lightning.functional import estimate_rate
from relict_lightning.onset import EvidenceKind, Onset
from relict_lightning.results import DetectionResult


def _onset(successes: int = 24, *, step: int = 12) -> Onset:
    return Onset(
        step=step, confirmed_step=step, epoch=2, evaluation=3,
        evidence=EvidenceKind.PERMUTATION, p_value=1e-6, level=0.001,
        replica_rate=estimate_rate(successes, 48),
    )  # fmt: skip


def _leaning_onset(leaning: int) -> Onset:
    return replace(_onset(0), leaning_rate=estimate_rate(leaning, 48))


def _result(
    successes: int, *, p_value: float = 0.5, discovery_p_value: float | None = 0.5, leaning: int | None = None
) -> DetectionResult:
    return DetectionResult(
        verdicts=(), replica_rate=estimate_rate(successes, 48), level_rates={}, fdr=0.05, control_scores=(),
        p_value_model="conformal", memorization_p_value=p_value, attainable_p_value=None,
        discovery_p_value=discovery_p_value, measures={},
        leaning_rate=None if leaning is None else estimate_rate(leaning, 48),
    )  # fmt: skip


class CopiesAgain(ReplicaMonitor):
    """Luck would have it that the evaluations missed copies, which fresh samples show: from `copies_from` steps on."""

    copies_from = 8

    def measure_again(self, trainer: Any, pl_module: Any) -> DetectionResult:
        scheduled = pl_module.schedule
        pl_module.schedule = ((self.copies_from, 1.0),)
        try:
            return super().measure_again(trainer, pl_module)
        finally:
            pl_module.schedule = scheduled


@pytest.fixture
def lucky(detector) -> Any:
    def make(copies_from: int, **arguments: Any) -> CopiesAgain:
        watching = CopiesAgain(detector, num_samples=48, **arguments)
        watching.copies_from = copies_from
        return watching

    return make


# Judging -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "fresh", "onset", "finding"),
    [
        pytest.param(0, _result(0), _onset(), Finding.CLEAN, id="nothing found"),
        pytest.param(1, _result(0), _onset(), Finding.CLEAN, id="one that the tolerance may explain"),
        pytest.param(0, _result(24, p_value=1e-6), _onset(), Finding.COPIES, id="copies"),
        pytest.param(0, _result(24, discovery_p_value=1e-6), _onset(), Finding.COPIES, id="copies of few"),
        pytest.param(0, _result(0, p_value=1e-6), _onset(), Finding.UNDECIDED, id="leans without copies"),
        pytest.param(0, _result(0, p_value=0.04, leaning=5), _onset(), Finding.UNDECIDED, id="five lean"),
        pytest.param(0, _result(0, p_value=0.06, leaning=5), _onset(), Finding.CLEAN, id="five may lean by chance"),
        pytest.param(0, _result(0, p_value=1e-6, leaning=1), _onset(), Finding.UNDECIDED, id="one of 48 leans"),
        pytest.param(0, _result(0, p_value=1e-6, leaning=0), _onset(), Finding.CLEAN, id="all a little, none much"),
        pytest.param(0, _result(0, discovery_p_value=1e-6), _onset(), Finding.UNDECIDED, id="unlike held-out ones"),
        pytest.param(0, _result(0, p_value=0.04, leaning=2), _onset(), Finding.CLEAN, id="two lean"),
        pytest.param(0, _result(5), _onset(), Finding.UNDECIDED, id="replicas without evidence"),
        # 0 of 96 is at most 3.8 %, and the rate at onset may be 1.3 %.
        pytest.param(0, _result(0), _onset(3), Finding.UNDECIDED, id="too few samples"),
        pytest.param(0, _result(0), _leaning_onset(24), Finding.CLEAN, id="nothing, where others leant"),
        pytest.param(0, _result(0), _leaning_onset(3), Finding.UNDECIDED, id="too few to tell from those that leant"),
        # 2 of 48 may be below 1 %, 4 of 96 not.
        pytest.param(2, _result(2), _onset(), Finding.UNDECIDED, id="too many together"),
    ],
)
def test_fresh_samples_find_a_checkpoint_clean_copying_or_neither(first, fresh, onset, finding):
    verification = judge(estimate_rate(first, 48), [fresh], onset, tolerance=0.01, alpha=0.05)

    assert verification.finding is finding
    assert verification.fresh == fresh.replica_rate
    assert verification.pooled == estimate_rate(first + fresh.replica_rate.successes, 96)


def _judged(results: list[DetectionResult], onset: Onset) -> tuple[Verification, bool]:
    verification = judge(estimate_rate(0, 48), results, onset, tolerance=0.01, alpha=0.05)
    return verification, asks_for_more(verification, results, onset, tolerance=0.01)


def test_samples_drawn_several_times_are_pooled():
    clean = _result(0)

    short, asks = _judged([clean], _onset(3))
    enough, asks_again = _judged([clean] * 6, _onset(3))

    # 0 of 336 is at most 1.1 %.
    assert (short.finding, asks) == (Finding.UNDECIDED, True)
    assert (enough.finding, asks_again) == (Finding.CLEAN, False)
    assert (enough.fresh, enough.pooled) == (estimate_rate(0, 288), estimate_rate(0, 336))


def test_leaning_that_one_set_of_samples_showed_by_chance_is_gone_in_more_of_them():
    leaning, upright = _result(0, p_value=0.01, leaning=4), _result(0, p_value=0.3, leaning=0)

    # 4 of 48 are at least 2.3 %, 4 of 144 at least 0.8 %.
    alone, asks = _judged([leaning], _onset())
    pooled, _ = _judged([leaning, upright, upright], _onset())
    both, asks_again = _judged([leaning, leaning], _onset())

    assert (alone.finding, alone.leaning, asks) == (Finding.UNDECIDED, estimate_rate(4, 48), True)
    assert (pooled.finding, pooled.leaning) == (Finding.CLEAN, None)
    assert (both.finding, both.leaning, asks_again) == (Finding.UNDECIDED, estimate_rate(8, 96), True)


def test_leaning_that_would_have_established_an_onset_asks_for_no_more_samples():
    verification, asks = _judged([_result(0, p_value=1e-6, leaning=2)], _onset())

    assert (verification.finding, verification.leaning, asks) == (Finding.UNDECIDED, estimate_rate(2, 48), False)


def test_what_makes_copies_or_failed_asks_for_no_more_samples():
    _, asks = _judged([_result(24, p_value=1e-6)], _onset(24))
    failed = Verification(finding=Finding.FAILED, failure="reading it failed")

    assert not asks
    assert not asks_for_more(failed, [], _onset(24), tolerance=0.01)


def _tried(step: int, finding: Finding, pooled: int | None = None) -> KeptCheckpoint:
    rate = None if pooled is None else estimate_rate(pooled, 96)
    return KeptCheckpoint(
        path=f"{step}.ckpt", step=step, replica_rate=estimate_rate(0, 48),
        verification=Verification(finding=finding, fresh=rate, pooled=rate),
    )  # fmt: skip


def test_of_those_tried_the_clean_one_is_chosen_else_the_best_bounded_and_none_that_makes_copies():
    copies = _tried(16, Finding.COPIES, 0)
    worse, better, failed = _tried(12, Finding.UNDECIDED, 4), _tried(8, Finding.UNDECIDED, 1), _tried(6, Finding.FAILED)

    assert choose_of_tried([copies, worse, clean := _tried(4, Finding.CLEAN, 5)]) == clean
    assert choose_of_tried([copies, worse, better, failed]) == better
    assert choose_of_tried([copies, failed]) == failed
    assert choose_of_tried([_tried(12, Finding.UNDECIDED, 1), better]).step == 12
    assert choose_of_tried([copies]) is None


def test_a_verified_checkpoint_is_written_down_and_read_again():
    leant = _tried(4, Finding.UNDECIDED, 0)
    leant = replace(leant, verification=replace(leant.verification, leaning=estimate_rate(5, 48)))
    for checkpoint in (_tried(4, Finding.CLEAN, 1), _tried(4, Finding.FAILED), leant):
        assert from_primitives(to_primitives(checkpoint)) == checkpoint


def test_a_state_from_before_there_were_verifications_is_read():
    state = to_primitives(replace(_tried(4, Finding.CLEAN, 1), verification=None))
    del state["verification"]
    keeper = MemorizationCheckpoint()

    keeper.load_state_dict({"monitor": "", "advised": True, "kept": [], "best": state})

    assert keeper.best.verification is None
    assert not keeper.best.is_verified


# Verifying -----------------------------------------------------------------------------------------------------------


def test_a_checkpoint_that_holds_is_verified_with_samples_that_no_evaluation_saw(
    trainer, heads, monitor, copying, tmp_path
):
    watching, keeper = monitor(), MemorizationCheckpoint(tmp_path / "kept")

    trainer(watching, MemorizationStopping(), keeper, max_epochs=9).fit(copying((12, 1.0)), heads.training_loader())

    assert keeper.best.step == 8
    assert keeper.best.is_verified
    assert keeper.best.verification.pooled.trials == 96
    assert watching.rollback == keeper.best
    assert [checkpoint.verification is not None for checkpoint in keeper.kept] == [False, True]
    # The evaluations stay what they were: nothing of the verification is in the history.
    assert [evaluation.step for evaluation in watching.history] == [0, 4, 8, 12]


def test_where_fresh_samples_are_copies_the_next_older_checkpoint_is_tried(
    trainer, heads, lucky, copying, tmp_path, messages
):
    watching, keeper = lucky(8), MemorizationCheckpoint(tmp_path / "kept")

    trainer(watching, MemorizationStopping(), keeper, max_epochs=9).fit(copying((12, 1.0)), heads.training_loader())

    assert keeper.best.step == 4
    assert [checkpoint.verification.finding for checkpoint in keeper.kept] == [Finding.CLEAN, Finding.COPIES]
    assert keeper.kept[1].verification.fresh.successes == 48
    (said,) = [message for message in messages if message.startswith("Go back")]
    assert "step 4, before memorization onset" in said
    assert "Verified: fresh samples 0/48 = 0.0 % [0.0 %, 7.4 %], with the first ones 0/96" in said
    assert "Also tried: step 8, makes copies: 48/48" in said


def test_where_all_that_were_kept_make_copies_there_is_none_to_go_back_to(
    trainer, heads, lucky, copying, tmp_path, messages
):
    watching, keeper = lucky(0), MemorizationCheckpoint(tmp_path / "kept", restore=True)
    module = copying((12, 1.0))

    trainer(watching, MemorizationStopping(), keeper, max_epochs=9).fit(module, heads.training_loader())

    assert keeper.best is None
    assert watching.rollback is None
    assert not keeper.restored
    assert module.steps_taken == 12
    assert any(
        message.startswith("No checkpoint is safe to go back to: fresh samples of step 8, makes copies")
        and "step 4, makes copies" in message
        for message in messages
    )


def test_without_verification_no_samples_are_drawn(trainer, heads, lucky, copying, tmp_path):
    keeper = MemorizationCheckpoint(tmp_path / "kept", verify=False)

    trainer(lucky(0), MemorizationStopping(), keeper, max_epochs=9).fit(copying((12, 1.0)), heads.training_loader())

    assert keeper.best.step == 8
    assert keeper.best.verification is None


class Spoils(Callback):
    """Does something to the kept checkpoints right before the evaluation that establishes onset."""

    def __init__(self, keeper: MemorizationCheckpoint, spoil: Any) -> None:
        self.keeper = keeper
        self.spoil = spoil

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_step == 8:
            for checkpoint in self.keeper.kept:
                self.spoil(Path(checkpoint.path))


def _overwrite_with_another_model(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    content["state_dict"]["weight"] = torch.zeros(7)
    torch.save(content, path)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        pytest.param(Path.unlink, "reading it failed, FileNotFoundError", id="missing"),
        pytest.param(lambda path: path.write_bytes(b"no"), "reading it failed, ", id="damaged"),
        pytest.param(
            _overwrite_with_another_model, "loading it failed, RuntimeError: Error(s) in", id="of another model"
        ),
    ],
)
def test_a_checkpoint_that_cannot_be_read_is_said_not_to_be_verified_and_training_goes_on(
    trainer, heads, monitor, copying, tmp_path, messages, spoil, reason
):
    keeper, module = MemorizationCheckpoint(tmp_path / "kept"), copying((12, 1.0))

    run = trainer(monitor(), Spoils(keeper, spoil), keeper, max_epochs=4)
    run.fit(module, heads.training_loader())

    assert run.global_step == module.steps_taken == 16
    assert module.weight.shape == ()
    assert keeper.best.step == 8
    (said,) = [message for message in messages if message.startswith("Go back")]
    assert f"It could not be verified: {reason}" in said
    assert "step 4, not verified" in said


def test_an_error_in_measuring_is_told_by_its_kind_alone_and_the_weights_come_back(
    trainer, heads, detector, copying, tmp_path, messages
):
    class Fails(ReplicaMonitor):
        def measure_again(self, trainer: Any, pl_module: Any) -> DetectionResult:
            assert pl_module.steps_taken in (4, 8)
            raise torch.OutOfMemoryError("while reading PATIENT-SECRET")

    keeper, module = MemorizationCheckpoint(tmp_path / "kept"), copying((12, 1.0))

    trainer(Fails(detector, num_samples=48), MemorizationStopping(), keeper, max_epochs=9).fit(
        module, heads.training_loader()
    )

    assert module.steps_taken == 12
    assert keeper.best.step == 8
    (said,) = [message for message in messages if message.startswith("Go back")]
    assert "It could not be verified: measuring failed with OutOfMemoryError." in said
    assert not any("PATIENT-SECRET" in message for message in messages)
    assert "PATIENT-SECRET" not in str(keeper.state_dict())


def test_a_checkpoint_saved_while_verifying_holds_the_weights_of_training(trainer, heads, detector, copying, tmp_path):
    class IsInterrupted(ReplicaMonitor):
        def measure_again(self, trainer: Any, pl_module: Any) -> DetectionResult:
            trainer.save_checkpoint(tmp_path / "hpc.ckpt")
            return super().measure_again(trainer, pl_module)

    run = trainer(IsInterrupted(detector, num_samples=48), MemorizationCheckpoint(tmp_path / "kept"), max_epochs=4)

    run.fit(copying((12, 1.0)), heads.training_loader())

    assert torch.load(tmp_path / "hpc.ckpt", weights_only=True)["state_dict"]["steps_taken"] == 12
    run.save_checkpoint(tmp_path / "later.ckpt")
    assert torch.load(tmp_path / "later.ckpt", weights_only=True)["state_dict"]["steps_taken"] == 16


class EndsWhileVerifying(ReplicaMonitor):
    """Its run is saved while fresh samples are drawn for the first time, or told to end then."""

    def __init__(self, *arguments: Any, path: Path | None = None, is_told_to_end: bool = False, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.path, self.is_told_to_end = path, is_told_to_end
        self.drawn_again = 0

    def measure_again(self, trainer: Any, pl_module: Any) -> DetectionResult:
        self.drawn_again += 1
        if self.is_told_to_end:
            trainer._signal_connector.received_sigterm = True
        elif self.path is not None and self.drawn_again == 1:
            trainer.save_checkpoint(self.path)
        return super().measure_again(trainer, pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("is_told_to_end", [False, True], ids=["saved", "told to end"])
def test_a_run_that_ends_while_verifying_names_its_checkpoint_when_it_is_resumed(
    trainer, heads, detector, copying, tmp_path, is_told_to_end
):
    path = tmp_path / "ended.ckpt"
    watching = EndsWhileVerifying(detector, num_samples=48, path=path, is_told_to_end=is_told_to_end)
    first = MemorizationCheckpoint(tmp_path / "kept", restore=True)
    ends = pytest.raises(SIGTERMException) if is_told_to_end else contextlib.nullcontext()
    with ends:
        trainer(watching, first, max_epochs=4).fit(copying((12, 1.0)), heads.training_loader())
    assert (first.best is None) == is_told_to_end

    resumed, keeper = (
        EndsWhileVerifying(detector, num_samples=48),
        MemorizationCheckpoint(tmp_path / "kept", restore=True),
    )
    trainer(resumed, keeper, max_epochs=5).fit(copying((12, 1.0)), heads.training_loader(), ckpt_path=path)

    assert resumed.drawn_again >= 1
    assert (keeper.best.step, keeper.best.is_verified, keeper.restored) == (8, True, True)


@pytest.mark.parametrize("comes_first", ["the other", "this one"])
def test_what_another_checkpoint_saved_before_it_was_kept_is_kept_when_the_run_is_resumed(
    trainer, heads, monitor, copying, tmp_path, comes_first
):
    def keepers() -> list[Any]:
        other = ModelCheckpoint(tmp_path / "every", filename="{step}", save_top_k=-1)
        both = [MemorizationCheckpoint(tmp_path / "kept"), other]
        return both if comes_first == "this one" else both[::-1]

    trainer(monitor(), *keepers(), max_epochs=2).fit(copying((12, 1.0)), heads.training_loader())

    both = keepers()
    trainer(monitor(), *both, max_epochs=4).fit(
        copying((12, 1.0)), heads.training_loader(), ckpt_path=tmp_path / "every" / "step=8.ckpt"
    )

    (keeper,) = [one for one in both if isinstance(one, MemorizationCheckpoint)]
    assert [checkpoint.step for checkpoint in keeper.kept] == [4, 8]
    assert keeper.best.step == 8
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_a_folder_that_cannot_be_looked_into_holds_no_checkpoint(monkeypatch, tmp_path):
    def refused(path: Path, *arguments: Any, **options: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refused)

    assert checkpoint_files._stamp(tmp_path / "kept" / "step=4.ckpt") is None
    assert not checkpoint_files._is_folder(tmp_path / "kept")


def test_the_report_names_the_checkpoint_also_where_onset_is_found_at_the_end(
    trainer, heads, monitor, copying, tmp_path
):
    keeper, path = MemorizationCheckpoint(tmp_path / "kept"), tmp_path / "report.html"

    trainer(monitor(every_n_epochs=2, report_path=path), keeper, max_epochs=3).fit(
        copying((12, 1.0)), heads.training_loader()
    )

    assert keeper.best.step == 8
    assert Path(keeper.best.path).name in path.read_text()


class LoadsItsOwnWay(SingleDeviceStrategy):
    """Like strategies that shard a model: reads the optimizer's state in the same stroke."""

    def load_checkpoint(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        raise AssertionError("It would change the optimizer.")


def test_a_strategy_that_loads_the_optimizer_with_the_weights_is_left_alone(
    trainer, heads, monitor, copying, tmp_path, messages
):
    keeper = MemorizationCheckpoint(tmp_path / "kept", restore=True)

    with pytest.warns(RelictWarning, match="cannot put weights back under LoadsItsOwnWay"):
        trainer(monitor(), MemorizationStopping(), keeper, max_epochs=9, strategy=LoadsItsOwnWay()).fit(
            copying((12, 1.0)), heads.training_loader()
        )

    assert keeper.best.step == 8
    assert not keeper.restored
    (said,) = [message for message in messages if message.startswith("Go back")]
    assert "It could not be verified: LoadsItsOwnWay loads weights with the optimizer only." in said


# Training must not notice --------------------------------------------------------------------------------------------


class Forgetful(lightning.LightningModule):
    """Noise, dropout, batch statistics, an optimizer with a memory, and an average that it keeps on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.3), nn.Conv2d(4, 1, 3, padding=1)
        )
        self.network[1].requires_grad_(False)
        self.average = [value.detach().clone() for value in self.parameters()]
        self.averages_sampled: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.network(batch + torch.randn_like(batch)) - batch).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.network(batch)

    def on_before_zero_grad(self, optimizer: Any) -> None:
        for average, value in zip(self.average, self.parameters(), strict=True):
            average.lerp_(value.detach(), 0.5)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["average"] = self.average

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.average = checkpoint["average"]

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), 0.01)

    def sample(self, n: int) -> Tensor:
        self.averages_sampled.append(float(self.average[0].sum()))
        return self.network(torch.randn(n, 1, 16, 16))


class Alarmed(ReplicaMonitor):
    """Real evaluations, and an onset that is declared at a step whatever they find."""

    def __init__(self, *arguments: Any, at: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.at = at
        self.drawn_again_at: list[int] = []

    def _evaluate(self, trainer: Any, pl_module: Any, **options: Any) -> None:
        super()._evaluate(trainer, pl_module, **options)
        if trainer.global_step >= self.at and self.onset is None:
            self._onset_detector.onset = _onset(step=trainer.global_step)

    def measure_again(self, trainer: Any, pl_module: Any) -> DetectionResult:
        self.drawn_again_at.append(trainer.global_step)
        return super().measure_again(trainer, pl_module)


class StateAtEachStep(Callback):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(([module.training for module in pl_module.modules()], torch.is_grad_enabled(), batch.clone()))


def _train(make_trainer, heads, *watching, random_states, **arguments):
    seed_everything(5, verbose=False)
    module, states = Forgetful(), StateAtEachStep()
    run = make_trainer(states, *watching, max_epochs=3, **arguments)
    run.fit(module, DataLoader(heads.training, batch_size=10, shuffle=True), heads.heldout_loader())
    optimizer = [value for state in run.optimizers[0].state_dict()["state"].values() for value in state.values()]
    tensors = [*module.state_dict().values(), *module.average, *optimizer]
    return module, tensors, states.seen, random_states()


# Samples of such a model look like nothing.
@pytest.mark.filterwarnings("ignore:The samples' intensities are not those:relict_lightning.errors.RelictWarning")
@pytest.mark.parametrize(
    ("watched", "trained", "onset_at"),
    [
        pytest.param({}, {}, 8, id="after validation"),
        pytest.param({"every_n_steps": 3}, {}, 6, id="within an epoch"),
        pytest.param({"every_n_steps": 1}, {"accumulate_grad_batches": 2}, 4, id="accumulating gradients"),
    ],
)
def test_training_goes_on_after_a_verification_as_if_nothing_had_looked(
    trainer, heads, detector, random_states, tmp_path, watched, trained, onset_at
):
    _, alone, seen_alone, random_alone = _train(trainer, heads, random_states=random_states, **trained)
    watching = Alarmed(detector, at=onset_at, num_samples=16, **watched)
    keeper = MemorizationCheckpoint(tmp_path / "kept")

    module, tensors, seen, random = _train(trainer, heads, watching, keeper, random_states=random_states, **trained)

    assert watching.drawn_again_at
    assert set(watching.drawn_again_at) == {onset_at}
    assert keeper.best is not None
    assert keeper.best.verification.finding is not Finding.FAILED
    assert all(torch.equal(here, there) for here, there in zip(tensors, alone, strict=True))
    assert random == random_alone
    for (flags, gradients, batch), (flags_alone, gradients_alone, batch_alone) in zip(seen, seen_alone, strict=True):
        assert (flags, gradients) == (flags_alone, gradients_alone)
        assert torch.equal(batch, batch_alone)
    # Fresh samples came from the average of the checkpoint, which the module keeps on its own.
    saved = torch.load(keeper.kept[-1].path, weights_only=True)["average"][0].sum()
    assert module.averages_sampled.count(float(saved)) >= 2


# Going back ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stops", [True, False])
def test_the_weights_of_the_checkpoint_are_put_back_after_all_else_read_the_final_ones(
    trainer, heads, monitor, copying, tmp_path, messages, stops
):
    class Reads(Callback):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            self.steps = int(pl_module.steps_taken)

    reads, module = Reads(), copying((12, 1.0))
    keeper = MemorizationCheckpoint(tmp_path / "kept", restore=True)
    last = ModelCheckpoint(tmp_path / "last", filename="last")
    stopping = [MemorizationStopping()] if stops else []

    run = trainer(monitor(), keeper, *stopping, last, reads, max_epochs=4)
    run.fit(module, heads.training_loader())

    assert keeper.restored
    assert module.steps_taken == run.lightning_module.steps_taken == 8
    final = 12 if stops else 16
    assert reads.steps == final
    assert torch.load(last.best_model_path, weights_only=True)["state_dict"]["steps_taken"] == final
    assert f"Restored the weights of step 8 from {keeper.best.path}." in messages


def test_without_an_onset_nothing_is_put_back(trainer, heads, monitor, copying, tmp_path):
    module, keeper = copying(), MemorizationCheckpoint(tmp_path / "kept", restore=True)

    trainer(monitor(), keeper).fit(module, heads.training_loader())

    assert module.steps_taken == 8
    assert not keeper.restored


def test_a_resumed_run_still_goes_back_and_does_not_verify_again(trainer, heads, detector, copying, tmp_path):
    loader = heads.training_loader()
    first = MemorizationCheckpoint(tmp_path / "kept")
    run = trainer(Alarmed(detector, at=8, num_samples=48), first, max_epochs=2)
    run.fit(copying(), loader)
    run.save_checkpoint(tmp_path / "after.ckpt")
    module, watching = copying(), Alarmed(detector, at=8, num_samples=48)
    resumed = MemorizationCheckpoint(tmp_path / "kept", restore=True)

    trainer(watching, resumed, max_epochs=3).fit(module, loader, ckpt_path=tmp_path / "after.ckpt")

    assert watching.drawn_again_at == []
    assert resumed.best == first.best
    assert watching.rollback.is_verified
    assert module.steps_taken == 4


def test_a_checkpoint_that_is_gone_cannot_be_put_back_and_the_run_ends_well(trainer, heads, monitor, copying, tmp_path):
    class Removes(Callback):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            Path(keeper.best.path).unlink()

    module, keeper = copying((12, 1.0)), MemorizationCheckpoint(tmp_path / "kept", restore=True)

    with pytest.warns(RelictWarning, match="could not be restored .*the model has the final weights"):
        trainer(monitor(), MemorizationStopping(), keeper, Removes(), max_epochs=9).fit(module, heads.training_loader())

    assert module.steps_taken == 12
    assert not keeper.restored


@pytest.mark.filterwarnings("ignore:The samples' intensities are not those:relict_lightning.errors.RelictWarning")
@pytest.mark.parametrize("averaging_first", [True, False])
def test_with_averaged_weights_these_are_verified_and_put_back(
    trainer, heads, detector, random_states, tmp_path, averaging_first
):
    averaging = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging")

    class Sees(Alarmed):
        def measure_again(self, trainer: Any, pl_module: Any) -> DetectionResult:
            self.verified = {name: value.clone() for name, value in pl_module.state_dict().items()}
            return super().measure_again(trainer, pl_module)

    class RawAtTheEnd(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            self.raw = {name: value.clone() for name, value in pl_module.state_dict().items()}

    def fit(*watching: Any) -> tuple[Any, dict[str, Tensor], Any]:
        seed_everything(5, verbose=False)
        module, raw, average = Plain(), RawAtTheEnd(), averaging.EMAWeightAveraging(decay=0.8)
        order = (average, *watching) if averaging_first else (*watching, average)
        run = trainer(raw, *order, max_epochs=3)
        run.fit(module, heads.training_loader())
        return module, raw.raw, run

    _, raw_alone, _ = fit()
    watching = Sees(detector, at=12, num_samples=16)
    keeper = MemorizationCheckpoint(tmp_path / "kept", restore=True)

    module, raw, run = fit(watching, keeper)

    content = torch.load(keeper.best.path, weights_only=True)
    averaged = content["state_dict"]
    assert not torch.equal(averaged["network.weight"], content["current_model_state"]["network.weight"])
    # After fit, a validation swaps the averages in: they have to be those of the checkpoint as well.
    run.validate(module, heads.heldout_loader(), verbose=False)
    assert set(module.validated) == {float(averaged["network.weight"].sum())}
    for name, value in module.state_dict().items():
        assert torch.equal(value, averaged[name])
        assert torch.equal(watching.verified[name], averaged[name])
    assert all(torch.equal(value, raw_alone[name]) for name, value in raw.items())


class Plain(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Conv2d(1, 1, 3, padding=1)
        self.validated: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.network(batch + 0.1 * torch.randn_like(batch)) - batch).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.validated.append(float(self.network.weight.sum()))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)

    def sample(self, n: int) -> Tensor:
        return self.network(torch.randn(n, 1, 16, 16))


# Saving that fails ---------------------------------------------------------------------------------------------------


class DiskIsFull(Callback):
    """Makes the strategy fail to write from a step on."""

    def __init__(self, since: int, error: Exception | None) -> None:
        self.since = since
        self.error = error

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        write = trainer.strategy.save_checkpoint

        def save_checkpoint(*arguments: Any, **options: Any) -> None:
            if trainer.global_step < self.since:
                write(*arguments, **options)
            elif self.error is not None:
                raise self.error

        trainer.strategy.save_checkpoint = save_checkpoint


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (RuntimeError("enforce fail at inline_container"), "enforce fail"),
        # Lightning passes over a missing permission without a word.
        (None, "no file was written"),
    ],
)
def test_where_a_checkpoint_cannot_be_saved_training_goes_on_with_what_was_kept(
    trainer, heads, monitor, copying, tmp_path, error, said
):
    keeper = MemorizationCheckpoint(tmp_path / "kept", keep=1)

    run = trainer(monitor(), DiskIsFull(8, error), keeper, MemorizationStopping(), max_epochs=9)

    with pytest.warns(RelictWarning, match=said) as warned:
        run.fit(copying((16, 1.0)), heads.training_loader())

    assert run.global_step == 16
    assert sum("could not be saved" in str(warning.message) for warning in warned) == 1
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["step=4-replicas=0-of-48.ckpt"]
    assert [checkpoint.step for checkpoint in keeper.kept] == [4]
    assert keeper.best.step == 4
    assert keeper.best.is_verified


def test_a_file_of_an_earlier_run_is_not_taken_for_one_that_could_not_be_written(
    trainer, heads, monitor, copying, tmp_path
):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "step=4-replicas=0-of-48.ckpt").write_bytes(b"of another run")
    keeper = MemorizationCheckpoint(tmp_path / "kept")

    with pytest.warns(RelictWarning, match="no file was written"):
        trainer(monitor(), DiskIsFull(0, None), keeper, max_epochs=1).fit(copying(), heads.training_loader())

    assert keeper.kept == []


def test_an_older_checkpoint_is_there_until_the_newer_one_is_written(trainer, heads, monitor, copying, tmp_path):
    class Lists(Callback):
        def __init__(self) -> None:
            self.lying: list[int] = []

        def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
            self.lying.append(len(list((tmp_path / "kept").glob("*"))))

    lists = Lists()

    trainer(monitor(), MemorizationCheckpoint(tmp_path / "kept", keep=1), lists, max_epochs=3).fit(
        copying(), heads.training_loader()
    )

    assert lists.lying == [0, 1, 1]
