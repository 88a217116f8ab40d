import gc
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, random_split

from relict_lightning.data import is_datamodule, open_images
from relict_lightning.errors import ConfigurationError


def numbered(m):
    """Images whose every voxel is their position."""
    return torch.arange(m, dtype=torch.float32).reshape(m, 1, 1, 1).expand(m, 1, 4, 4).clone()


def values(datamodule, role):
    (batch,) = open_images(datamodule, role=role).batches(99)
    return batch.images[:, 0, 0, 0].tolist()


class Scans(LightningDataModule):
    """Splits its images when it is set up, as most data modules do."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def prepare_data(self):
        self.calls.append("prepare_data")

    def setup(self, stage):
        self.calls.append(stage)
        self.training, self.heldout = random_split(TensorDataset(numbered(10)), [7, 3])

    def train_dataloader(self):
        return DataLoader(self.training, batch_size=2, shuffle=True, drop_last=True)

    def val_dataloader(self):
        return DataLoader(self.heldout, batch_size=2)


class Returning(LightningDataModule):
    """Returns what it is given."""

    def __init__(self, training, heldout):
        super().__init__()
        self.loaders = training, heldout

    def train_dataloader(self):
        return self.loaders[0]

    def val_dataloader(self):
        return self.loaders[1]


def loader(m, start=0):
    return DataLoader(TensorDataset(numbered(start + m)[start:]))


def test_training_and_heldout_sets_come_from_one_split():
    datamodule = Scans()

    training, heldout = values(datamodule, "training"), values(datamodule, "held-out")

    assert (len(training), len(heldout)) == (7, 3)
    assert sorted(training + heldout) == list(range(10))
    assert datamodule.calls == ["prepare_data", "fit"]


def test_every_data_module_is_set_up_once_even_in_the_place_of_an_old_one():
    for _ in range(3):
        datamodule = Scans()
        values(datamodule, "held-out")
        assert datamodule.calls == ["prepare_data", "fit"]
        del datamodule
        gc.collect()


def test_a_data_module_that_is_attached_to_a_trainer_is_taken_as_it_is():
    datamodule = Scans()
    datamodule.setup("fit")
    datamodule.trainer = object()

    assert values(datamodule, "training") == [float(index) for index in datamodule.training.indices]
    assert datamodule.calls == ["fit"]


def test_setting_up_leaves_the_global_random_state(random_state):
    before = random_state()

    values(Scans(), "training")

    assert random_state() == before


def test_a_setup_that_fails_is_tried_again():
    class Fails(Scans):
        def setup(self, stage):
            super().setup(stage)
            if len(self.calls) == 2:
                raise OSError("server away")

    datamodule = Fails()
    with pytest.raises(OSError, match="server away"):
        open_images(datamodule, role="training")

    assert len(values(datamodule, "training")) == 7


def test_a_data_module_that_compares_by_value_is_taken():
    @dataclass
    class Compared:
        images: Any

        def setup(self, stage):
            pass

        def train_dataloader(self):
            return DataLoader(self.images)

        def val_dataloader(self):
            return None

    assert values(Compared(numbered(3)), "training") == [0, 1, 2]


@pytest.mark.parametrize(
    "several",
    [
        [loader(2), loader(3)],
        {"a": loader(2), "b": loader(3)},
        CombinedLoader([loader(2), loader(3)], "sequential"),
        CombinedLoader({"a": loader(2), "b": loader(3)}, "sequential"),
    ],
    ids=["list", "dict", "combined list", "combined dict"],
)
def test_of_several_loaders_the_first_is_heldout_and_none_is_training(several):
    datamodule = Returning(several, several)

    assert values(datamodule, "held-out") == [0, 1]
    with pytest.raises(ConfigurationError, match=r"Returning.train_dataloader` returns 2 loaders.*ConcatDataset"):
        open_images(datamodule, role="training")


def test_an_iterable_set_of_a_data_module_is_taken():
    class Stream(IterableDataset):
        def __iter__(self):
            yield from numbered(3)

    assert values(Returning(DataLoader(Stream()), None), "training") == [0, 1, 2]


@pytest.mark.parametrize("nothing", [None, [], {}])
@pytest.mark.parametrize(("role", "hook"), [("training", "train_dataloader"), ("held-out", "val_dataloader")])
def test_a_hook_that_returns_nothing_is_refused_with_what_to_do(role, hook, nothing):
    argument = {"training": "training=", "held-out": "heldout="}[role]

    with pytest.raises(ConfigurationError, match=rf"Returning.{hook}` returns nothing.*or pass `{argument}`"):
        open_images(Returning(nothing, nothing), role=role)


@pytest.mark.parametrize(("role", "hook"), [("training", "train_dataloader"), ("held-out", "val_dataloader")])
def test_a_hook_that_is_not_overridden_is_refused_with_what_to_do(role, hook):
    with pytest.raises(ConfigurationError, match=rf"LightningDataModule.{hook}` is not implemented.*Let `{hook}`"):
        open_images(LightningDataModule(), role=role)


def test_an_error_of_the_data_module_comes_through():
    class Breaks(LightningDataModule):
        def train_dataloader(self):
            raise LookupError("no such table")

    with pytest.raises(LookupError, match="no such table"):
        open_images(Breaks(), role="training")


def test_what_is_no_data_loader_is_refused():
    with pytest.raises(ConfigurationError, match=r"train_dataloader` returns Tensor; expected `torch.utils.data.Data"):
        open_images(Returning(numbered(3), None), role="training")


def test_a_data_module_is_neither_samples_nor_segmentations():
    with pytest.raises(ConfigurationError, match=r"data module Scans, which holds patients.*`generated=`"):
        open_images(Scans(), role="generated")
    with pytest.raises(ConfigurationError, match=r"segmentations of the training set are given as Scans"):
        open_images(numbered(3), role="training", segmentations=Scans())


def test_models_classes_and_data_are_no_data_modules():
    assert is_datamodule(Scans())
    for other in (LightningModule(), Scans, numbered(3), [1], None, loader(2)):
        assert not is_datamodule(other)
