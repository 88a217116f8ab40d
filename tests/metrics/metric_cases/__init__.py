"""Every public metric, with samples that it takes and the value that its functional twin gives them."""

from metric_cases import feature, memorization, segmentation, statistics, voxel
from metric_cases.case import Case

CASES: dict[str, Case] = {
    **voxel.CASES,
    **feature.CASES,
    **segmentation.CASES,
    **memorization.CASES,
    **statistics.CASES,
}

__all__ = ["CASES", "Case"]
