"""Stand-ins for patients and generators: simulated heads, planted replicas, models with a known onset.

Public, for users' own tests and for the demonstration. Nothing here is needed to watch a real model.
"""

from relict_lightning.testing.datamodule import HeadDataModule, HeadDataset, HeadItem, HeadStream
from relict_lightning.testing.generator import HeadGenerator
from relict_lightning.testing.heads import LABELS, HeadSubjects, simulate_heads
from relict_lightning.testing.modules import CopyingModule, NoisyModule
from relict_lightning.testing.replicas import ALTERATIONS, PlantedSamples, plant_replicas

__all__ = [
    "ALTERATIONS",
    "LABELS",
    "CopyingModule",
    "HeadDataModule",
    "HeadDataset",
    "HeadGenerator",
    "HeadItem",
    "HeadStream",
    "HeadSubjects",
    "NoisyModule",
    "PlantedSamples",
    "plant_replicas",
    "simulate_heads",
]
