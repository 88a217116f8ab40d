"""Takes the training and the held-out set from a LightningDataModule, without knowing Lightning."""

import weakref
from collections.abc import Mapping
from typing import Any, TypeGuard

from torch import nn
from torch.utils.data import DataLoader

from relict_lightning.data.items import ARGUMENTS, Role
from relict_lightning.data.process_state import random_state_kept
from relict_lightning.errors import ConfigurationError

_HOOKS = ("setup", "train_dataloader", "val_dataloader")

# By identity, because a data module that is a dataclass has no hash.
_SET_UP: "weakref.WeakValueDictionary[int, Any]" = weakref.WeakValueDictionary()


def is_datamodule(source: object) -> TypeGuard[Any]:
    """Return whether an object is a data module: an object with Lightning's hooks that is no model.

    Example:
        >>> is_datamodule([1, 2])
        False
    """
    # A LightningModule has the same hooks, but setting it up would change what is trained.
    if isinstance(source, type | nn.Module):
        return False
    return all(callable(getattr(source, hook, None)) for hook in _HOOKS)


def loader_of(datamodule: Any, *, role: Role) -> DataLoader[Any]:
    """Return the data loader that a data module has for a set: for training, or the first one for validation.

    A data module that is attached to a trainer is taken as it is. Any other one is prepared and set up (`fit`) before
    it is asked for the first time, as a trainer would; the global random state stays as it was.

    Args:
        datamodule: An object for which `is_datamodule` is true.
        role: `training` or `held-out`.

    Returns:
        The loader.

    Raises:
        ConfigurationError: If it has no such loader, or several for training, or something that is no data loader; or
            if `role` is `generated`.

    Example:
        >>> class Data:
        ...     def setup(self, stage): self.images = [1, 2, 3]
        ...     def train_dataloader(self): return DataLoader(self.images[:2])
        ...     def val_dataloader(self): return DataLoader(self.images[2:])
        >>> loader_of(Data(), role="held-out").dataset
        [3]
    """
    if role == "generated":
        raise ConfigurationError(
            f"The generated set is given as the data module {type(datamodule).__qualname__}, which holds patients; "
            f"expected samples of a model. Pass `{ARGUMENTS[role]}` an array `[n, c, *spatial]`."
        )
    hook = "train_dataloader" if role == "training" else "val_dataloader"
    remedy = f"Let `{hook}` return a data loader, or pass `{ARGUMENTS[role]}` the images themselves."
    asked = f"`{type(datamodule).__qualname__}.{hook}`"
    with random_state_kept():
        _set_up_once(datamodule)
        try:
            found = getattr(datamodule, hook)()
        except Exception as error:
            # Lightning's own base class raises it where a hook is not overridden.
            if type(error).__name__ != "MisconfigurationException":
                raise
            raise ConfigurationError(
                f"{asked} is not implemented ({error}); expected the {role} set. {remedy}"
            ) from error
    # Several loaders may come in Lightning's `CombinedLoader`.
    found = found if isinstance(found, DataLoader) else getattr(found, "iterables", found)
    if isinstance(found, list | tuple | Mapping):
        if role == "training" and found:
            raise ConfigurationError(
                f"{asked} returns {len(found)} loaders in a {type(found).__qualname__}; expected one data loader, "
                f"because it does not say which images are trained on. Pass `{ARGUMENTS[role]}` all of them, as one "
                f"data set (`torch.utils.data.ConcatDataset`)."
            )
        found = next(iter(found.values() if isinstance(found, Mapping) else found), None)
    if found is None:
        raise ConfigurationError(f"{asked} returns nothing; expected the {role} set. {remedy}")
    if not isinstance(found, DataLoader):
        raise ConfigurationError(
            f"{asked} returns {type(found).__qualname__}; expected `torch.utils.data.DataLoader`, whose data set is "
            f"read. {remedy}"
        )
    return found


def _set_up_once(datamodule: Any) -> None:
    if getattr(datamodule, "trainer", None) is not None or _SET_UP.get(id(datamodule)) is datamodule:
        return
    prepare_data = getattr(datamodule, "prepare_data", None)
    if callable(prepare_data):
        prepare_data()
    datamodule.setup("fit")
    _SET_UP[id(datamodule)] = datamodule
