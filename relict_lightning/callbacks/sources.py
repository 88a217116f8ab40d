"""Where the monitor finds training and held-out images when it is not told."""

from typing import Any

from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, IterableDataset

from relict_lightning.errors import ConfigurationError


def training_source(given: Any | None, trainer: Trainer) -> Any:
    """Return the training images: what was given, or the data set of the training dataloader.

    Args:
        given: What `ReplicaDetector.fit` takes, the name of an attribute of the datamodule, or None.
        trainer: The trainer, while it fits.

    Raises:
        ConfigurationError: If there is no such attribute, not exactly one training dataloader, or a stream behind it.
    """
    if given is not None:
        return _named(given, trainer, argument="training")
    loader = trainer.train_dataloader
    if not isinstance(loader, DataLoader):
        raise ConfigurationError(
            f"Training images can be found from one torch DataLoader; this run trains from {type(loader).__name__}. "
            f"Pass `ReplicaMonitor(training=...)`: a map-style data set of all training images."
        )
    if isinstance(loader.dataset, IterableDataset):
        raise ConfigurationError(
            f"This run trains from {type(loader.dataset).__name__}, a stream, which may be endless or augmented at "
            f"random. Pass `ReplicaMonitor(training=...)`: a data set of all training images, as they are."
        )
    return loader


def load_validation(trainer: Trainer) -> None:
    """Have the trainer load its validation dataloaders now, where it would do so only at a later epoch.

    It loads them before training for the sanity check, which `num_sanity_val_steps=0` leaves out, and where the first
    epoch is validated, which `check_val_every_n_epoch` may prevent.
    """
    if trainer.enable_validation and trainer.val_dataloaders is None:
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.setup_data()
        trainer.training = True


def heldout_source(given: Any | None, trainer: Trainer) -> Any | None:
    """Return the held-out images: what was given, the data set of the first validation dataloader, or None."""
    if given is not None:
        return _named(given, trainer, argument="heldout")
    loaders = trainer.val_dataloaders
    if isinstance(loaders, (list, tuple)):
        loaders = loaders[0] if loaders else None
    return loaders if isinstance(loaders, DataLoader) else None


def _named(given: Any, trainer: Trainer, *, argument: str) -> Any:
    if not isinstance(given, str):
        return given
    datamodule = getattr(trainer, "datamodule", None)
    found = getattr(datamodule, given, None)
    if found is None:
        owner = "this run has no datamodule" if datamodule is None else f"{type(datamodule).__name__} has none"
        raise ConfigurationError(
            f'ReplicaMonitor({argument}="{given}") names an attribute of the datamodule, and {owner} of that name. '
            f"Pass the images themselves, or set the attribute in the datamodule's `setup`."
        )
    return found
