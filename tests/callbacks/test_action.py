"""Actions of one's own at memorization onset, and the learning rate."""

from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim import lr_scheduler as schedulers

from relict_lightning import MemorizationStopping, ReplicaMonitor
from relict_lightning.callbacks import MemorizationAction, ReduceLearningRate
from relict_lightning.errors import ConfigurationError
from relict_lightning.functional import estimate_rate
from relict_lightning.onset import EvidenceKind, Onset


class OnsetAt(ReplicaMonitor):
    """Establishes onset after a step, without a look at the model; before, it may have a suspicion."""

    watch_reason: str | None = None

    def __init__(self, step: int, *, watching_from: int | None = None) -> None:
        super().__init__()
        self.step = step
        self.watching_from = watching_from

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        pass

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.watching_from:
            self.watch_reason = "Some replicas."
        if trainer.global_step == self.step:
            self._onset_detector.onset = Onset(
                step=self.step, confirmed_step=self.step, epoch=0, evaluation=1,
                evidence=EvidenceKind.PERMUTATION, p_value=1e-6, level=0.01,
                replica_rate=estimate_rate(30, 48),
            )  # fmt: skip

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        pass

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        pass

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        pass


class Noting(MemorizationAction):
    """Takes down when it was called, and whether gradients were on."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, Any]] = []
        self.with_gradients: list[bool] = []

    def on_watch(self, trainer: Any, pl_module: Any, reason: str) -> None:
        self.calls.append(("watch", trainer.global_step, reason))

    def on_onset(self, trainer: Any, pl_module: Any, onset: Onset) -> None:
        self.calls.append(("onset", trainer.global_step, onset.step))
        self.with_gradients.append(torch.is_grad_enabled())


@pytest.mark.parametrize("listed_first", [True, False])
def test_an_action_is_called_once_at_the_first_hook_after_onset(trainer, heads, copying, listed_first):
    action, watching = Noting(), OnsetAt(3)
    order = (action, watching) if listed_first else (watching, action)

    trainer(*order, max_epochs=3).fit(copying(), heads.training_loader(), heads.heldout_loader())

    assert action.calls == [("onset", 3, 3)]


def test_an_action_sees_an_onset_that_real_evaluations_established_and_gradients_are_on(
    trainer, heads, monitor, copying
):
    action = Noting()

    trainer(monitor(), action, MemorizationStopping(), max_epochs=9).fit(
        copying((8, 1.0)), heads.training_loader(), heads.heldout_loader()
    )

    assert action.calls == [("onset", 8, 8)]
    assert action.with_gradients == [True]


def test_an_onset_in_the_final_weights_is_acted_on_as_well(trainer, heads, monitor, copying):
    action = Noting()

    trainer(monitor(every_n_epochs=2), action, max_epochs=3).fit(copying((9, 1.0)), heads.training_loader())

    assert action.calls == [("onset", 12, 12)]


def test_a_suspicion_is_passed_on_once_and_before_the_onset(trainer, heads, copying):
    action = Noting()

    trainer(OnsetAt(6, watching_from=2), action).fit(copying(), heads.training_loader())

    assert action.calls == [("watch", 2, "Some replicas."), ("onset", 6, 6)]


def test_without_onset_nothing_is_done(trainer, heads, copying):
    action = Noting()

    trainer(OnsetAt(99), action).fit(copying(), heads.training_loader())

    assert action.calls == []


def test_what_was_done_is_not_done_again_in_a_run_that_is_resumed_but_in_a_new_one(trainer, heads, copying, tmp_path):
    first = trainer(OnsetAt(2, watching_from=1), Noting(), max_epochs=1)
    first.fit(copying(), heads.training_loader())
    first.save_checkpoint(tmp_path / "after.ckpt")
    resumed, anew = Noting(), Noting()

    again = trainer(OnsetAt(99, watching_from=5), resumed, max_epochs=2)
    again.fit(copying(), heads.training_loader(), ckpt_path=tmp_path / "after.ckpt")
    for _ in range(2):
        trainer(OnsetAt(2), anew, max_epochs=1).fit(copying(), heads.training_loader())

    assert resumed.calls == []
    assert len(anew.calls) == 2


def test_an_action_that_is_new_in_a_resumed_run_acts_on_the_onset_that_was(trainer, heads, copying, tmp_path):
    first = trainer(OnsetAt(2), max_epochs=1)
    first.fit(copying(), heads.training_loader())
    first.save_checkpoint(tmp_path / "after.ckpt")
    added = Noting()

    trainer(OnsetAt(99), added, max_epochs=2).fit(copying(), heads.training_loader(), ckpt_path=tmp_path / "after.ckpt")

    assert added.calls == [("onset", 4, 2)]


def test_an_action_without_a_monitor_is_refused(trainer, heads, copying):
    with pytest.raises(ConfigurationError, match="Noting needs a ReplicaMonitor"):
        trainer(Noting()).fit(copying(), heads.training_loader())


def test_an_action_must_say_what_it_does():
    with pytest.raises(TypeError, match="abstract"):
        MemorizationAction()


class Scheduled(lightning.LightningModule):
    """Trains two groups with a scheduler, and takes down the rates of each step."""

    def __init__(self, make_scheduler: Any, *, interval: str = "step", lr: Any = 0.1) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])
        self.make_scheduler = make_scheduler
        self.interval = interval
        self.lr = lr
        self.rates: list[list[float]] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        (optimizer,) = self.trainer.optimizers
        self.rates.append([float(group["lr"]) for group in optimizer.param_groups])
        loss = sum(layer(batch.mean().reshape(1, 1)).square().mean() for layer in self.layers)
        # Never better: what waits for an improvement runs out of patience.
        self.log("worse", float(self.global_step))
        return loss

    def configure_optimizers(self) -> Any:
        groups = [{"params": layer.parameters()} for layer in self.layers]
        if not isinstance(self.lr, Tensor):
            groups[1]["lr"] = self.lr / 2
        optimizer = SGD(groups, self.lr, momentum=0.9)
        scheduler = {"scheduler": self.make_scheduler(optimizer), "interval": self.interval, "monitor": "worse"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


def _sequence(optimizer: Optimizer) -> Any:
    parts = [schedulers.LinearLR(optimizer, 0.5, total_iters=3), schedulers.CosineAnnealingLR(optimizer, 9)]
    return schedulers.SequentialLR(optimizer, parts, milestones=[7])


@pytest.mark.parametrize(
    "make_scheduler",
    [
        pytest.param(lambda o: schedulers.LambdaLR(o, lambda step: 1 / (1 + step)), id="lambda"),
        pytest.param(lambda o: schedulers.StepLR(o, 3, 0.5), id="step"),
        pytest.param(lambda o: schedulers.CosineAnnealingLR(o, 12, eta_min=0.04), id="cosine"),
        pytest.param(lambda o: schedulers.CosineAnnealingWarmRestarts(o, 4, eta_min=0.04), id="warm restarts"),
        pytest.param(lambda o: schedulers.OneCycleLR(o, 0.3, total_steps=12), id="one cycle"),
        pytest.param(lambda o: schedulers.CyclicLR(o, 0.01, 0.2, step_size_up=4), id="cyclic"),
        pytest.param(_sequence, id="sequence"),
        pytest.param(
            lambda o: schedulers.ReduceLROnPlateau(o, factor=0.5, patience=1, min_lr=0.03, eps=0.0), id="plateau"
        ),
    ],
)
def test_the_learning_rate_is_reduced_once_whatever_the_scheduler(trainer, heads, make_scheduler):
    alone, reduced = Scheduled(make_scheduler), Scheduled(make_scheduler)
    trainer(OnsetAt(5), max_epochs=3).fit(alone, heads.training_loader())

    trainer(OnsetAt(5), ReduceLearningRate(0.1), max_epochs=3).fit(reduced, heads.training_loader())

    factors = torch.tensor([1.0] * 5 + [0.1] * 7)[:, None]
    assert torch.allclose(torch.tensor(reduced.rates), torch.tensor(alone.rates) * factors, rtol=1e-4)


def test_a_learning_rate_that_groups_share_as_a_tensor_is_reduced_once_and_in_place(trainer, heads):
    module = Scheduled(lambda o: schedulers.ConstantLR(o, factor=1.0), lr=torch.tensor(0.1))

    trainer(OnsetAt(5), ReduceLearningRate(0.1)).fit(module, heads.training_loader())

    assert module.rates[4] == pytest.approx([0.1, 0.1])
    assert module.rates[5] == pytest.approx([0.01, 0.01])


def test_a_resumed_run_goes_on_with_the_reduced_rate(trainer, heads, tmp_path):
    def make(optimizer: Optimizer) -> Any:
        return schedulers.LambdaLR(optimizer, lambda step: 1.0)

    first = trainer(OnsetAt(2), ReduceLearningRate(0.1), max_epochs=1)
    first.fit(Scheduled(make), heads.training_loader())
    first.save_checkpoint(tmp_path / "after.ckpt")
    resumed = Scheduled(make)

    trainer(OnsetAt(99), ReduceLearningRate(0.1)).fit(
        resumed, heads.training_loader(), ckpt_path=tmp_path / "after.ckpt"
    )

    assert resumed.rates == [pytest.approx([0.01, 0.005])] * 4


@pytest.mark.parametrize("factor", [0.0, 1.0, -0.5, 2.0])
def test_a_factor_that_does_not_reduce_is_refused(factor):
    with pytest.raises(ConfigurationError, match=rf"factor must lie in \(0, 1\), got {factor}"):
        ReduceLearningRate(factor)
