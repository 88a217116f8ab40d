"""Finding the monitor that a run is watched by."""

from lightning.pytorch import Trainer

from relict_lightning.callbacks.listed import callbacks_of
from relict_lightning.callbacks.monitor import ReplicaMonitor
from relict_lightning.errors import ConfigurationError


def attached_monitor(trainer: Trainer, owner: str) -> ReplicaMonitor:
    """Return the trainer's `ReplicaMonitor`: of several the one without a name, or else the first.

    Args:
        trainer: The trainer.
        owner: Name of the callback that asks, for the message.

    Raises:
        ConfigurationError: If the trainer has none.
    """
    monitors = [callback for callback in callbacks_of(trainer) if isinstance(callback, ReplicaMonitor)]
    if not monitors:
        raise ConfigurationError(f"{owner} needs a ReplicaMonitor among the trainer's callbacks. Add one before it.")
    return next((monitor for monitor in monitors if not monitor.name), monitors[0])
