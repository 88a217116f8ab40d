"""Ready segmenters: images to label maps."""

from relict_lightning.segmenters.intensity import IntensitySegmenter
from relict_lightning.segmenters.label_maps import label_maps

__all__ = ["IntensitySegmenter", "label_maps"]
