"""Parts of the model that are named by strings, so that a sampler can be written in a configuration file."""

from typing import Any

import torch
from torch import nn

from relict_lightning.errors import SamplerError

_MISSING = object()
_MOST_NAMES = 12


def find_attribute(module: Any, name: str, *, of: str) -> Any:
    """Return an attribute of the module; dots lead to attributes of attributes, as in `ema.module`.

    Args:
        module: The model under training.
        name: Name of the attribute.
        of: What the name was given as, for the message, such as `DiffusionSampler(network=...)`.

    Raises:
        SamplerError: If there is none of that name.
    """
    found = _followed(module, name)
    if found is _MISSING:
        children = list(module.named_children())[:_MOST_NAMES] if isinstance(module, nn.Module) else []
        has = ", ".join(child for child, _ in children)
        raise SamplerError(
            f"{of} names the attribute {name!r} of the model, and {type(module).__name__} has none of that name. "
            f"Its parts are: {has or 'none'}. Pass the name of the one that is meant."
        )
    return found


def find_in_run(module: Any, name: str, *, of: str) -> Any:
    """Return an attribute of the run's datamodule, or, where that has none of the name, of the module.

    Raises:
        SamplerError: If neither has one.
    """
    trainer = attached_trainer(module)
    datamodule = getattr(trainer, "datamodule", None)
    for owner in (datamodule, module):
        found = _followed(owner, name)
        if found is not _MISSING and found is not None:
            return found
    where = f"{type(module).__name__} has none of that name" + (
        ", and this run has no datamodule" if datamodule is None else f", nor has {type(datamodule).__name__}"
    )
    raise SamplerError(
        f"{of} names the attribute {name!r} of the datamodule or the model; {where}. Pass the data themselves, or set "
        f"the attribute in the datamodule's `setup`."
    )


def attached_trainer(module: Any) -> Any | None:
    """Return the trainer that the module is attached to, None without one."""
    try:
        return getattr(module, "trainer", None)
    except RuntimeError:
        # A LightningModule says so of itself that is used without a trainer.
        return None


def device_of(module: Any) -> torch.device:
    """Return the device that the module computes on."""
    # Offloaded weights lie elsewhere; a LightningModule knows where its strategy computes.
    device = getattr(module, "device", None)
    if isinstance(device, torch.device):
        return device
    parameter = next(iter(module.parameters()), None) if isinstance(module, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device


def dtype_of(network: Any) -> torch.dtype:
    """Return the floating-point type of a network's weights; torch's default without any."""
    owner = network if isinstance(network, nn.Module) else getattr(network, "__self__", None)
    weights = owner.parameters() if isinstance(owner, nn.Module) else iter(())
    return next((weight.dtype for weight in weights if weight.is_floating_point()), torch.get_default_dtype())


def _followed(owner: Any, name: str) -> Any:
    for part in name.split("."):
        owner = getattr(owner, part, _MISSING)
        if owner is _MISSING:
            return _MISSING
    return owner
