"""The Lightning callbacks: hooks only."""

from relict_lightning.callbacks.action import MemorizationAction, ReduceLearningRate
from relict_lightning.callbacks.checkpoint import MemorizationCheckpoint
from relict_lightning.callbacks.monitor import ReplicaMonitor
from relict_lightning.callbacks.stopping import MemorizationStopping

__all__ = [
    "MemorizationAction",
    "MemorizationCheckpoint",
    "MemorizationStopping",
    "ReduceLearningRate",
    "ReplicaMonitor",
]
