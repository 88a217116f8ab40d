"""Every kind of run in one table: evaluated where due, read while fresh, and trained as if nobody looked."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from noticed import Noticed, Recorded, differences
from torch import Tensor, nn
from torch.utils.data import DataLoader

from relict_lightning.testing import CopyingModule, NoisyModule

pytestmark = [
    # A model that has hardly been trained may return anything.
    pytest.mark.filterwarnings("ignore:The samples' intensities are not those:relict_lightning.errors.RelictWarning"),
    # Weights are saved as they are after the step, which is what is meant.
    pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization and every_n_train_steps"),
]

RATE = "relict/replica_rate"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A kind of run, and where its evaluations are due. Four batches make an epoch.

    Attributes:
        by_epochs: Steps at which an evaluation is due with `every_n_epochs=1`, the one before training included.
        by_steps: The same with `every_n_steps=3`.
        ends_at: The last step, which is evaluated as well.
        trained: Arguments of the trainer.
        validates: Whether there is a validation loop.
        steps_by_hand: Whether two optimizers are stepped by hand.
        averages: Where in the list averaging stands: before the monitor or after it; empty without.
        resumes_from: Step at which a run saves a checkpoint, from which another goes on.
    """

    by_epochs: list[int]
    by_steps: list[int]
    ends_at: int
    trained: dict[str, Any] = field(default_factory=dict)
    validates: bool = True
    steps_by_hand: bool = False
    averages: str = ""
    resumes_from: int = 0

    def due(self, schedule: str) -> list[int]:
        """Return the steps at which a schedule is due."""
        return self.by_steps if schedule == "by_steps" else self.by_epochs

    def evaluated(self, schedule: str) -> list[int]:
        """Return the steps that are evaluated, the last weights included."""
        return sorted({*self.due(schedule), self.ends_at})


# Three epochs of one step a batch.
_PLAIN = {"by_epochs": [0, 4, 8, 12], "by_steps": [0, 3, 6, 9, 12], "ends_at": 12}
RUNS = {
    "automatic": Run(**_PLAIN),
    # Two steps a batch: due at 3, 6, 9, ..., they are found at 4, 6, 10, ...
    "GAN": Run(
        by_epochs=[0, 8, 16, 24], by_steps=[0, 4, 6, 10, 12, 16, 18, 22, 24], ends_at=24, steps_by_hand=True
    ),
    "accumulation": Run(
        by_epochs=[0, 2, 4, 6], by_steps=[0, 3, 6], ends_at=6, trained={"accumulate_grad_batches": 2}
    ),
    "validated twice an epoch": Run(**_PLAIN, trained={"val_check_interval": 0.5}),
    "no validation": Run(**_PLAIN, validates=False),
    "validated every third epoch": Run(
        by_epochs=[0, 12], by_steps=[0, 3, 6, 9, 12, 15], ends_at=16,
        trained={"check_val_every_n_epoch": 3, "max_epochs": 4},
    ),
    "max_steps": Run(by_epochs=[0, 4], by_steps=[0, 3, 6], ends_at=6, trained={"max_steps": 6, "max_epochs": -1}),
    "fast_dev_run": Run(by_epochs=[0, 1], by_steps=[0], ends_at=1, trained={"fast_dev_run": True}),
    "resumed in mid-epoch": Run(**_PLAIN, resumes_from=6),
    "averages before the monitor": Run(**_PLAIN, averages="before"),
    "averages after the monitor": Run(**_PLAIN, averages="after"),
}  # fmt: skip
SCHEDULES = ["by_epochs", "by_steps"]

every_run = pytest.mark.parametrize(
    ("run", "schedule"),
    [pytest.param(run, schedule, id=f"{name}, {schedule}") for name, run in RUNS.items() for schedule in SCHEDULES],
)


def _monitored(schedule: str) -> dict[str, Any]:
    return {"num_samples": 8, **({"every_n_steps": 3} if schedule == "by_steps" else {})}


# How the rows are run -----------------------------------------------------------------------------------------------


class SavesAt(Callback):
    """Saves a checkpoint in the middle of an epoch."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def _fit(
    make_trainer: Callable[..., Trainer],
    run: Run,
    make_module: Callable[[], lightning.LightningModule],
    make_callbacks: Callable[[], list[Callback]],
    loaders: Callable[[], tuple[Any, Any]],
    folder: Path,
) -> tuple[Trainer, list[Callback]]:
    """Run a row from a fixed seed; the first of the callbacks is what averaging stands before or after."""

    def fit(*savers: Callback, **arguments: Any) -> tuple[Trainer, list[Callback]]:
        seed_everything(11, verbose=False)
        callbacks = make_callbacks()
        averaging = [EMAWeightAveraging(decay=0.5)] if run.averages else []
        ordered = [*averaging, *callbacks] if run.averages == "before" else [*callbacks[:1], *averaging, *callbacks[1:]]
        trainer = make_trainer(*ordered, *savers, **{"max_epochs": 3, **run.trained})
        training, validation = loaders()
        trainer.fit(make_module(), training, validation if run.validates else None, **arguments)
        return trainer, callbacks

    if not run.resumes_from:
        return fit()
    path = folder / "halfway.ckpt"
    fit(SavesAt(run.resumes_from, path))
    return fit(ckpt_path=path)


# Fresh values -------------------------------------------------------------------------------------------------------


class CopyingGan(CopyingModule):
    """Two optimizers, stepped by hand in every batch."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.automatic_optimization = False
        self.critic = nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        for part, optimizer in zip((self.weight, self.critic), self.optimizers(), strict=True):
            optimizer.zero_grad()
            self.manual_backward((part - batch.mean()) ** 2)
            optimizer.step()
            self.steps_taken += 1

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD([part], 0.1) for part in (self.weight, self.critic)]


class Reads(EarlyStopping):
    """Strict early stopping that takes down what it goes by: the rate, whether it is new, and at which step."""

    def __init__(self) -> None:
        super().__init__(RATE, mode="min", patience=99, strict=True)
        self.read: dict[int, tuple[float, bool]] = {}

    def _run_early_stopping_check(self, trainer: Trainer) -> None:
        shown = trainer.callback_metrics
        # Where it looks more than once after a step, the value that was new counts.
        if not self.read.get(trainer.global_step, (0.0, False))[1]:
            self.read[trainer.global_step] = float(shown[RATE]), bool(shown["relict/evaluated"])
        super()._run_early_stopping_check(trainer)


@every_run
def test_due_points_are_evaluated_and_what_acts_on_the_rate_reads_that_of_its_weights(
    trainer, heads, monitor, tmp_path, run, schedule
):
    steps = run.evaluated(schedule)
    # The second, fourth, ... evaluation finds copies only, the others none; weights a step earlier or later copy
    # nothing. Averages lag a step behind the weights, that of the number of steps among them.
    lag = 1 if run.averages else 0
    alternating = [pair for step in steps[1::2] for pair in ((step - lag, 1.0), (step - lag + 1, 0.0))]
    rates = {step: float(position % 2) for position, step in enumerate(steps)}
    # Before training nobody acts; at its end, where nothing was due, only what looks at the monitor itself.
    acted_on = {step: rates[step] for step in run.due(schedule) if step > run.resumes_from}
    every = {"every_n_train_steps": 1} if schedule == "by_steps" else {}

    def callbacks() -> list[Callback]:
        keeper = ModelCheckpoint(
            tmp_path / "kept", monitor=RATE, save_top_k=-1, auto_insert_metric_name=False,
            enable_version_counter=False, filename=f"{{step}} {{{RATE}:.2f}} {{relict/evaluated:.0f}}", **every,
        )  # fmt: skip
        return [monitor(**_monitored(schedule)), Reads(), keeper]

    def module() -> CopyingModule:
        kind = CopyingGan if run.steps_by_hand else CopyingModule
        return kind(heads.training, heads.fresh, schedule=alternating, noise=0.01)

    def loaders() -> tuple[Any, Any]:
        return heads.training_loader(), heads.heldout_loader()

    _, (watching, stopping, _) = _fit(trainer, run, module, callbacks, loaders, tmp_path)

    assert {evaluation.step: evaluation.replica_rate.value for evaluation in watching.history} == rates
    # Early stopping reads at the ends of epochs and of validations, where steps are told apart by number.
    assert stopping.read
    assert all(read == rates[step] for step, (read, is_new) in stopping.read.items() if is_new or step in acted_on)
    if schedule == "by_epochs":
        assert {step for step, (_, is_new) in stopping.read.items() if is_new} == acted_on.keys()
    saved = {}
    for path in (tmp_path / "kept").glob("*.ckpt"):
        step, rate, is_new = path.stem.split()
        if int(step) in acted_on:
            saved[int(step)] = float(rate)
            assert int(torch.load(path, weights_only=True)["state_dict"]["steps_taken"]) == int(step) - lag
        else:
            assert is_new == "0" or int(step) <= run.resumes_from
    # A dry run saves nothing.
    assert saved == ({} if "fast_dev_run" in run.trained else acted_on)


# Neutrality ---------------------------------------------------------------------------------------------------------


class Gan(lightning.LightningModule):
    """Two optimizers stepped by hand, noise in every step, and a frozen part that must stay in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1))
        self.critic = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(256, 1))
        self.frozen = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.Dropout(0.5)).requires_grad_(False)

    def on_train_epoch_start(self) -> None:
        self.frozen.eval()

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        generators, critics = self.optimizers()
        fake = self.frozen(self.generator(torch.randn_like(batch)))
        critics.zero_grad()
        self.manual_backward((self.critic(fake.detach()) - self.critic(batch)).mean())
        critics.step()
        generators.zero_grad()
        self.manual_backward(-self.critic(fake).mean())
        generators.step()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.critic(self.generator(torch.randn_like(batch))).mean())

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(part.parameters(), 0.01) for part in (self.generator, self.critic)]

    def sample(self, n: int) -> Tensor:
        return self.generator(torch.randn(n, 1, 16, 16))


@every_run
def test_training_is_bit_identical_to_that_of_a_run_that_nobody_watches(
    trainer, heads, monitor, random_states, tmp_path, run, schedule
):
    def train(*watching: Callback) -> dict[str, Any]:
        read: list[int] = []
        noticed: list[Noticed] = []

        def callbacks() -> list[Callback]:
            noticed.append(Noticed(random_states))
            return [*watching, noticed[-1]]

        def loaders() -> tuple[Any, Any]:
            return DataLoader(Recorded(heads.training, read), batch_size=10, shuffle=True), heads.heldout_loader()

        # Where nobody watches, averaging stands before or after what takes notes.
        fitted, _ = _fit(trainer, run, Gan if run.steps_by_hand else NoisyModule, callbacks, loaders, tmp_path)
        averaging = [callback for callback in fitted.callbacks if isinstance(callback, EMAWeightAveraging)]
        return {
            "read": read,
            "seen": [one.seen for one in noticed],
            "weights": fitted.lightning_module.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in fitted.optimizers],
            "averages": [callback._average_model.state_dict() for callback in averaging],
            "random states": random_states(),
            "epochs": (fitted.current_epoch, fitted.global_step),
        }

    alone = train()
    watching = monitor(**_monitored(schedule))
    watched = train(watching)

    assert [evaluation.step for evaluation in watching.history] == run.evaluated(schedule)
    assert differences(watched, alone) == []
