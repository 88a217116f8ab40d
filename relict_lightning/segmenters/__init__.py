"""Ready segmenters: images to label maps."""

from relict_lightning.segmenters.intensity import IntensitySegmenter

__all__ = ["IntensitySegmenter"]
