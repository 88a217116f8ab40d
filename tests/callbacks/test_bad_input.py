"""What a user meets who attaches the monitor to something that it cannot watch."""

from typing import Any

import lightning
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from relict_lightning import ReplicaDetector, ReplicaMonitor
from relict_lightning.errors import (
    ConfigurationError,
    EmptyDataError,
    NondeterministicDataError,
    RelictWarning,
    SamplerError,
)
from relict_lightning.testing import HeadStream

# Names that need no control.
COSTS = {"seconds_sampling", "seconds_checking", "memory_sampling_mib", "memory_checking_mib"}
UNCONTROLLED = {"neighbor_ratio_fraction", "max_similarity", "self_similarity", *COSTS}


def test_without_held_out_patients_it_is_said_what_works_and_what_does_not(trainer, heads, copying, tmp_path):
    watching = ReplicaMonitor(num_samples=8, cache_dir=tmp_path / "cache")

    with pytest.warns(RelictWarning) as caught:
        trainer(watching).fit(copying(), heads.training_loader())

    (message,) = [str(warning.message) for warning in caught if warning.category is RelictWarning]
    works, does_not = message.split("What does not:")
    assert "most similar training images" in works
    assert all(name in works for name in UNCONTROLLED - COSTS)
    assert all(what in does_not for what in ("replica rate", "p-value", "onset", "stopping", "rollback"))
    assert "Pass `heldout=`" in does_not
    assert {frozenset(evaluation.measures) for evaluation in watching.history} == {frozenset(UNCONTROLLED)}
    assert watching.onset is None


def test_a_fitted_detector_without_held_out_patients_is_pointed_out_as_well(trainer, heads, monitor, copying):
    watching = monitor(detector=ReplicaDetector().fit(heads.training), num_samples=8)

    with pytest.warns(RelictWarning, match="no held-out images"):
        trainer(watching).fit(copying(), heads.training_loader())

    assert watching.history[-1].replica_rate is None


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (
            lambda n: torch.full((n, 1, 16, 16), torch.nan),
            r"NaN or infinite values in 8 of 8 images\. Look for a diverged",
        ),
        (lambda n: torch.rand(n, 1, 8, 8), r"shape \(8, 1, 16, 16\), .*got \(8, 1, 8, 8\)\. Decode latents"),
        (lambda n: torch.rand(n, 16, 16, 1), r"got \(8, 16, 16, 1\)\..* put channels first"),
        (lambda n: torch.rand(n - 1, 1, 16, 16), r"asked for 8 images and returned 7\. Return exactly n"),
        (lambda n: torch.zeros(n, 1, 16, 16, dtype=torch.uint8), r"floating-point .* got torch\.uint8"),
    ],
)
def test_a_sampler_that_returns_something_else_is_refused_with_the_remedy(
    trainer, heads, monitor, copying, returned, message
):
    watching = monitor(sampler=lambda module, n: returned(n), num_samples=8)

    with pytest.raises(SamplerError, match=message):
        trainer(watching).fit(copying(), heads.training_loader())


def test_a_model_without_a_sample_method_is_told_what_to_add(trainer, heads, monitor):
    class Mute(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.layer(batch.mean().reshape(1, 1)).sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    with pytest.raises(
        SamplerError, match=r"Mute has no method `sample\(n, \*, generator\)`.*ReplicaMonitor\(sampler="
    ):
        trainer(monitor(num_samples=8)).fit(Mute(), heads.training_loader())


def test_a_training_set_with_random_augmentation_is_refused_with_the_remedy(trainer, heads, copying, tmp_path):
    class Augmented(Dataset):
        def __len__(self) -> int:
            return len(heads.training)

        def __getitem__(self, position: int) -> Tensor:
            return heads.training[position] + 0.1 * torch.randn(1, 16, 16)

    watching = ReplicaMonitor(num_samples=8, heldout=heads.heldout, cache_dir=tmp_path / "cache")

    with pytest.raises(
        NondeterministicDataError, match=r"differs between two reads, as with random augmentation.*Pass `training=`"
    ):
        trainer(watching).fit(copying(), DataLoader(Augmented(), batch_size=10))


def test_one_training_image_is_too_few(trainer, heads, copying, tmp_path):
    watching = ReplicaMonitor(num_samples=8, heldout=heads.heldout, cache_dir=tmp_path / "cache")

    with pytest.raises(EmptyDataError, match=r"1 image\(s\) of 1 patient; at least 2 patients are needed"):
        trainer(watching).fit(copying(), DataLoader(heads.training[:1]))


def test_a_stream_of_training_images_needs_a_training_set_beside_it(trainer, heads, copying, tmp_path):
    watching = ReplicaMonitor(num_samples=8, heldout=heads.heldout, cache_dir=tmp_path / "cache")
    stream = DataLoader(HeadStream(shape=(16, 16), count=20), batch_size=10)

    with pytest.raises(ConfigurationError, match=r"trains from HeadStream, a stream.*Pass `ReplicaMonitor\(training="):
        trainer(watching).fit(copying(), stream)


def test_a_stream_with_a_training_set_beside_it_is_watched(trainer, heads, copying, tmp_path):
    watching = ReplicaMonitor(
        num_samples=8, training=heads.training, heldout=heads.heldout, cache_dir=tmp_path / "cache"
    )
    stream = DataLoader(HeadStream(shape=(16, 16), count=20), batch_size=10)

    trainer(watching, max_epochs=1).fit(copying(), stream)

    assert [evaluation.step for evaluation in watching.history] == [0, 2]


def test_several_training_loaders_need_a_training_set_beside_them(trainer, heads, copying, tmp_path):
    watching = ReplicaMonitor(num_samples=8, heldout=heads.heldout, cache_dir=tmp_path / "cache")

    with pytest.raises(ConfigurationError, match=r"from one torch DataLoader; this run trains from dict\. Pass"):
        trainer(watching).fit(copying(), {"image": heads.training_loader(), "other": heads.training_loader()})


class Patients(lightning.LightningDataModule):
    """Finds out in `setup` what its patients are."""

    def __init__(self, heads: Any) -> None:
        super().__init__()
        self.heads = heads

    def setup(self, stage: str) -> None:
        self.plain, self.never_seen = self.heads.training, self.heads.heldout

    def train_dataloader(self) -> DataLoader:
        return self.heads.training_loader()


def test_images_are_found_by_the_names_of_the_datamodules_attributes(trainer, heads, copying, tmp_path):
    watching = ReplicaMonitor(num_samples=8, training="plain", heldout="never_seen", cache_dir=tmp_path / "cache")

    trainer(watching, max_epochs=1).fit(copying(), datamodule=Patients(heads))

    assert (watching.detector.training_groups, watching.detector.heldout_groups) == (40, 40)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"training": "trainset"}, r'ReplicaMonitor\(training="trainset"\).*Patients has none of that name'),
        ({"heldout": "valset"}, r'ReplicaMonitor\(heldout="valset"\).*Patients has none of that name'),
    ],
)
def test_a_name_that_the_datamodule_does_not_have_is_refused(trainer, heads, copying, tmp_path, named, message):
    watching = ReplicaMonitor(num_samples=8, cache_dir=tmp_path / "cache", **named)

    with pytest.raises(ConfigurationError, match=message):
        trainer(watching).fit(copying(), datamodule=Patients(heads))


def test_a_name_without_a_datamodule_is_refused(trainer, heads, copying, tmp_path):
    watching = ReplicaMonitor(num_samples=8, heldout="valset", cache_dir=tmp_path / "cache")

    with pytest.raises(ConfigurationError, match="this run has no datamodule of that name"):
        trainer(watching).fit(copying(), heads.training_loader())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 1}, "num_samples must be at least 2, got 1"),
        ({"sample_batch_size": 0}, "sample_batch_size must be at least 1, got 0"),
        ({"every_n_epochs": 0}, "every_n_epochs must be at least 1, got 0"),
        ({"every_n_steps": 0}, "every_n_steps must be at least 1, got 0"),
        ({"max_overhead": 0}, "max_overhead must be above 0, got 0"),
        ({"on_error": "ignore"}, "on_error must be 'warn' or 'raise', got 'ignore'"),
        ({"alpha": 1.0}, r"alpha must lie in \(0, 1\), got 1.0"),
        ({"tolerance": 1.0}, r"tolerance must lie in \[0, 1\), got 1.0"),
        ({"name": "val/ema"}, r"name may have only letters, digits, '_', '\.' and '-', got 'val/ema'"),
        ({"name": "ema\n"}, r"got 'ema\\n'"),
    ],
)
def test_arguments_outside_their_range_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        ReplicaMonitor(**arguments)
