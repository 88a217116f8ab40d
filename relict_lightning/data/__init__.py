"""Reads arrays, data sets and files (NIfTI, DICOM, pictures) into `[m, c, *spatial]` with ids and groups."""

from relict_lightning.data.batching import images_per_batch
from relict_lightning.data.folder import ImageFolder
from relict_lightning.data.isolation import random_state_kept
from relict_lightning.data.items import Role
from relict_lightning.data.location import images_at
from relict_lightning.data.readers import LoadedImage, read_image, read_label_map
from relict_lightning.data.repeatability import check_repeatable
from relict_lightning.data.source import ImageBatch, ImageSource, open_images

__all__ = [
    "ImageBatch",
    "ImageFolder",
    "ImageSource",
    "LoadedImage",
    "Role",
    "check_repeatable",
    "images_at",
    "images_per_batch",
    "open_images",
    "random_state_kept",
    "read_image",
    "read_label_map",
]
