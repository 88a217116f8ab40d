"""Train twice with every logger, without pictures and with them, and once more to compare Python's random state.

Run as `python logged_run.py FOLDER`; in a process of its own, so that all it says can be searched.
"""

import json
import random
import sys
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from torch import Tensor
from torch.utils.data import DataLoader

from relict_lightning import MemorizationCheckpoint, MemorizationStopping, ReplicaMonitor
from relict_lightning.testing import CopyingModule, NoisyModule, simulate_heads


def _patients(images: Tensor, *, first: int) -> DataLoader:
    names = [f"PATIENT-SECRET-{first + position}" for position in range(len(images))]
    items = [{"image": image, "id": f"{name}-scan", "group": name} for image, name in zip(images, names, strict=True)]
    return DataLoader(items, batch_size=10)


def _watch(images: Tensor, folder: Path, *, log_images: bool, background: bool = False) -> None:
    written = folder / "written"
    loggers = [
        CSVLogger(written, name="csv"),
        TensorBoardLogger(written, name="tensorboard"),
        WandbLogger(save_dir=written, offline=True, project="relict"),
    ]
    monitor = ReplicaMonitor(
        num_samples=48, cache_dir=folder / "cache", log_images=log_images, report_path=folder / "report.html",
        background=background,
    )  # fmt: skip
    keepers = MemorizationCheckpoint(written / "kept"), ModelCheckpoint(written / "last")
    trainer = Trainer(
        accelerator="cpu", max_epochs=4, logger=loggers, callbacks=[monitor, MemorizationStopping(), *keepers],
        default_root_dir=written, log_every_n_steps=1,
    )  # fmt: skip
    module = CopyingModule(images[:40], images[80:], schedule=[(8, 1.0)], noise=0.01)
    trainer.fit(module, _patients(images[:40], first=100), _patients(images[40:80], first=200))
    loggers[2].experiment.finish()


def _python_state_after(images: Tensor, folder: Path, *watching: ReplicaMonitor) -> tuple[object, ...]:
    seed_everything(11, verbose=False)
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, callbacks=list(watching),
        default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(NoisyModule(), DataLoader(images[:40], batch_size=10, shuffle=True))
    return random.getstate()


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    images = simulate_heads(144, shape=(16, 16)).images
    for name in ("plain", "pictures"):
        _watch(images, folder / name, log_images=name == "pictures", background=name == "pictures")
    watching = ReplicaMonitor(num_samples=8, heldout=images[40:80], cache_dir=folder / "cache")
    alone = _python_state_after(images, folder)
    same = _python_state_after(images, folder, watching) == alone
    (folder / "python_random_state.json").write_text(json.dumps(same))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
