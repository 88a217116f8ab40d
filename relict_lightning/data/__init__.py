"""Reads arrays, data sets and files (NIfTI, DICOM, pictures) into `[m, c, *spatial]` with ids and groups."""

from relict_lightning.data.batching import images_per_batch
from relict_lightning.data.datamodule import is_datamodule
from relict_lightning.data.folder import ImageFolder
from relict_lightning.data.items import Role
from relict_lightning.data.location import images_at
from relict_lightning.data.opening import open_images
from relict_lightning.data.process_state import random_state_kept
from relict_lightning.data.readers import LoadedImage, read_image, read_label_map
from relict_lightning.data.repeatability import check_repeatable
from relict_lightning.data.source import ImageBatch, ImageSource

__all__ = [
    "ImageBatch",
    "ImageFolder",
    "ImageSource",
    "LoadedImage",
    "Role",
    "check_repeatable",
    "images_at",
    "images_per_batch",
    "is_datamodule",
    "open_images",
    "random_state_kept",
    "read_image",
    "read_label_map",
]
