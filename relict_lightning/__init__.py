"""Tells you when your generative model of medical images starts to hand out its training patients."""

from importlib.metadata import version

from relict_lightning.callbacks import MemorizationCheckpoint, MemorizationStopping, ReplicaMonitor
from relict_lightning.detector import ReplicaDetector

__all__ = ["MemorizationCheckpoint", "MemorizationStopping", "ReplicaDetector", "ReplicaMonitor"]

__version__ = version("relict-lightning")
