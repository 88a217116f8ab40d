"""How alike two label maps are."""

from relict_lightning.functional.segmentation.overlap import dice, mean_dice

__all__ = ["dice", "mean_dice"]
