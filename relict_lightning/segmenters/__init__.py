"""Ready segmenters: images to label maps."""

from relict_lightning.segmenters.intensity import IntensitySegmenter
from relict_lightning.segmenters.label_maps import label_maps
from relict_lightning.segmenters.trained import TrainedSegmenter

__all__ = ["IntensitySegmenter", "TrainedSegmenter", "label_maps"]
