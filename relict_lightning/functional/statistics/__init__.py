"""Rates, p-values and thresholds: what the numbers promise. Rates and p-values are fractions in [0, 1]."""

from relict_lightning.functional.statistics.discoveries import benjamini_hochberg
from relict_lightning.functional.statistics.intervals import clopper_pearson_interval, estimate_rate
from relict_lightning.functional.statistics.p_values import conformal_p_value, simes_p_value
from relict_lightning.functional.statistics.planning import (
    discovery_probability,
    maximum_samples,
    minimum_discoveries,
    required_heldout,
    required_samples,
)
from relict_lightning.functional.statistics.ratings import (
    balanced_accuracy_at_optimal_threshold,
    out_of_sample_balanced_accuracy,
    sensitivity_specificity,
)
from relict_lightning.functional.statistics.roc import area_under_roc
from relict_lightning.functional.statistics.tail import TAIL_CONTROLS, tail_p_value

__all__ = [
    "TAIL_CONTROLS",
    "area_under_roc",
    "balanced_accuracy_at_optimal_threshold",
    "benjamini_hochberg",
    "clopper_pearson_interval",
    "conformal_p_value",
    "discovery_probability",
    "estimate_rate",
    "maximum_samples",
    "minimum_discoveries",
    "out_of_sample_balanced_accuracy",
    "required_heldout",
    "required_samples",
    "sensitivity_specificity",
    "simes_p_value",
    "tail_p_value",
]
