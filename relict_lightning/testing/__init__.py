"""Stand-ins for patients and generators: simulated heads, planted replicas, models with a known onset.

Public, for users' own tests and for the demonstration. Nothing here is needed to watch a real model.
"""

from relict_lightning.testing.datamodule import HeadDataModule, HeadDataset, HeadItem, HeadStream
from relict_lightning.testing.detection_sets import (
    APART,
    DETECTION_SETS,
    GENERATORS,
    DetectionSet,
    make_detection_set,
)
from relict_lightning.testing.generator import HeadGenerator
from relict_lightning.testing.heads import LABELS, HeadSubjects, simulate_heads
from relict_lightning.testing.hemorrhage import simulate_hemorrhage_ct
from relict_lightning.testing.look import apply_generator_look
from relict_lightning.testing.modules import CopyingModule, NoisyModule
from relict_lightning.testing.replicas import ALTERATIONS, PlantedSamples, plant_replicas
from relict_lightning.testing.scan_parts import ScanSubjects
from relict_lightning.testing.vessels import simulate_tof_angiograms

__all__ = [
    "ALTERATIONS",
    "APART",
    "DETECTION_SETS",
    "GENERATORS",
    "LABELS",
    "CopyingModule",
    "DetectionSet",
    "HeadDataModule",
    "HeadDataset",
    "HeadGenerator",
    "HeadItem",
    "HeadStream",
    "HeadSubjects",
    "NoisyModule",
    "PlantedSamples",
    "ScanSubjects",
    "apply_generator_look",
    "make_detection_set",
    "plant_replicas",
    "simulate_heads",
    "simulate_hemorrhage_ct",
    "simulate_tof_angiograms",
]
