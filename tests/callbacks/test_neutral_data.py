"""Augmentations draw the same random numbers and batches are the same, whether somebody looks or not."""

from typing import Any

import pytest
from lightning.pytorch import Callback, seed_everything
from monai.data import CacheDataset
from monai.data import DataLoader as MonaiLoader
from monai.data import Dataset as MonaiDataset
from monai.transforms import Compose, RandFlipd, RandGaussianNoised, ScaleIntensityd
from noticed import Noticed, differences
from torch import Tensor
from torch.utils.data import DataLoader

from relict_lightning import ReplicaMonitor
from relict_lightning.testing import NoisyModule

# A model that has hardly been trained may return anything.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The samples' intensities are not those:relict_lightning.errors.RelictWarning"
)


class Batches(Callback):
    """Keeps what was trained on."""

    def __init__(self) -> None:
        self.images: list[Tensor] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.images.append(batch["image"].as_tensor().clone())


def _dataset(images: Tensor, *, caches: bool, augments: bool) -> MonaiDataset:
    chosen = [ScaleIntensityd(keys="image")]
    if augments:
        chosen += [RandFlipd(keys="image", prob=0.5), RandGaussianNoised(keys="image", prob=0.5, std=0.1)]
    transform = Compose(chosen)
    transform.set_random_state(seed=5)
    items = [{"image": image} for image in images]
    return CacheDataset(items, transform, progress=False) if caches else MonaiDataset(items, transform)


@pytest.mark.parametrize(
    ("augments", "caches", "make_loader", "num_workers"),
    [
        *((True, caches, MonaiLoader, num_workers) for caches in (False, True) for num_workers in (0, 2)),
        (True, False, DataLoader, 0),
        (True, False, DataLoader, 2),
        (False, False, MonaiLoader, 0),
        (False, True, MonaiLoader, 2),
    ],
)
def test_batches_and_weights_are_those_of_a_run_that_nobody_watches(
    trainer, heads, random_states, tmp_path, num_workers, make_loader, caches, augments
):
    def train(*watching: Callback) -> dict[str, Any]:
        seed_everything(11, verbose=False)
        noticed, batches, module = Noticed(random_states), Batches(), NoisyModule()
        loader = make_loader(
            _dataset(heads.training, caches=caches, augments=augments),
            batch_size=20, shuffle=True, num_workers=num_workers,
        )  # fmt: skip
        trainer(*watching, noticed, batches).fit(module, loader)
        return {"batches": batches.images, "weights": module.state_dict(), "seen": noticed.seen}

    alone = train()
    # Without random transforms the training set itself is read for the reference, which is built during the run.
    watching = ReplicaMonitor(
        num_samples=8,
        training=heads.training if augments else None,
        heldout=heads.heldout,
        cache_dir=tmp_path / "cache",
    )

    watched = train(watching)

    assert [evaluation.step for evaluation in watching.history] == [0, 2, 4]
    assert differences(watched, alone) == []
