"""Augmentations draw the same random numbers, whether somebody looks at the model or not."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from monai.data import CacheDataset, Dataset
from monai.data import DataLoader as MonaiLoader
from monai.transforms import Compose, EnsureTyped, RandFlipd, RandGaussianNoised
from torch import Tensor
from torch.utils.data import DataLoader

from relict_lightning import ReplicaMonitor
from relict_lightning.errors import DataError
from relict_lightning.testing import NoisyModule

# A model that has hardly been trained may return anything.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The samples' intensities are not those:relict_lightning.errors.RelictWarning"
)
