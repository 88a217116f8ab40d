"""When memorization began: evaluations in, state of the run, onset, its reason and its forecast out; pure."""

from relict_lightning.onset.detector import OnsetDetector
from relict_lightning.onset.forecast import Forecast, ForecastScore, forecast_onset, score_forecasts
from relict_lightning.onset.planning import copies_to_exceed, found_probability, samples_to_find, smallest_rate_found
from relict_lightning.onset.record import (
    EvidenceKind,
    Onset,
    evaluation_from_primitives,
    evaluation_to_primitives,
    rate_from_primitives,
    rate_to_primitives,
)
from relict_lightning.onset.spending import copies_to_decide, even_spending_level, spending_level
from relict_lightning.onset.watch import RunState, WatchReason

__all__ = [
    "EvidenceKind",
    "Forecast",
    "ForecastScore",
    "Onset",
    "OnsetDetector",
    "RunState",
    "WatchReason",
    "copies_to_decide",
    "copies_to_exceed",
    "evaluation_from_primitives",
    "evaluation_to_primitives",
    "even_spending_level",
    "forecast_onset",
    "found_probability",
    "rate_from_primitives",
    "rate_to_primitives",
    "samples_to_find",
    "score_forecasts",
    "smallest_rate_found",
    "spending_level",
]
