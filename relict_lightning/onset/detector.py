"""When memorization began: evaluations in, state of the run, onset and its reason out. No trainer, no files, no clock.

The promise: over a whole run, however long, a model whose samples do not depend on which patients it was trained on is
declared to memorize with probability at most `alpha`. A model that overfits leans towards its training patients before
it copies any, and the test sees that too; so onset needs a share of the samples besides that is sure to exceed
`tolerance`: replicas, or, where the permutation test passes, samples that lean towards one training patient
(`leaning_rate`). For the first copies are often too blurred to be named one by one, while so many are no chance. Where
a test passes at several evaluations in a row, their samples together can show it as well (`exceeding.py`).
Each evaluation is tested at a level of its own, and all levels sum to `alpha` (alpha spending; a union bound, so it
holds whatever the dependence between evaluations).

Two kinds of evidence are tested at each evaluation, each with half of `alpha` to spend:

- The exact permutation test of `memorization_p_value` assumes nothing about the generator, only a random split. Its
  level is 3 alpha / (pi t)^2 at evaluation number t. Its power is bounded by the split: if M of N patients are training
  patients, j copied patients cannot give a smaller p-value than about (M / N)^j. So it is blind to a model that copies
  few patients often.
- The Simes test of the samples' p-values against the held-out control sees those. It assumes that samples of a model
  that does not memorize are no more like training patients than held-out patients are, and, beyond the largest control
  score, that the control's upper tail is no heavier than the fitted one; the bound `alpha` is then approximate. Blurred
  samples break the assumption from the first evaluation on, while memorization comes later. So its half of `alpha` is
  spent more evenly (`even_spending_level`), and its level is divided by the factor by which its p-values have been too
  small in this run before (`usual_surprise`). Either can only keep onset back where the assumption holds.
  In simulation (`benchmarks/onset_error.py`), none of 200 runs of 100 evaluations of blurred, collapsed, biased and
  ordinary generators had a false alarm by this test, and 5 by the other (2.5 %, which is its half of `alpha`); without
  the two, 3 and 5 of 60 runs of two kinds of blurred ones had.

Which of the two established an onset is part of its reason. Before the first step there is nothing to establish: an
evaluation of untrained weights spends nothing.

With `patience`, onset takes that many evaluations in a row that pass. The first of them must have passed, and without
patience it would have been declared: so every false alarm with patience is one without, and the promise stands.

Before onset a run can be watched (`watch.py`), and onset be forecast (`forecast.py`).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, final

from relict_lightning.errors import ConfigurationError
from relict_lightning.onset.exceeding import MOST_POOLED, Counts, exceeding
from relict_lightning.onset.forecast import (
    Forecast,
    ForecastScore,
    forecast_onset,
    forecast_to_primitives,
    score_forecasts,
)
from relict_lightning.onset.record import (
    EvidenceKind,
    Onset,
    onset_from_primitives,
    onset_to_primitives,
)
from relict_lightning.onset.spending import even_spending_level, spending_level, usual_surprise
from relict_lightning.onset.watch import TREND_WINDOW, RunState, WatchReason, rises
from relict_lightning.results import DetectionResult, RateEstimate

_SHARE, _SIMILARITY = "closer_to_training_share", "max_similarity"
# Of the balanced share: as near to training as to held-out patients.
_NO_NEARER = 0.5

# Of a test that passed: its kind, p-value and level.
_Passed = tuple[EvidenceKind, float, float]


@final
class OnsetDetector:
    """Watches evaluations and declares onset once.

    Args:
        alpha: Bound on the probability of a false alarm over the whole run.
        tolerance: Replica rate that is put up with; the lower bound of the rate must exceed it at onset.
        patience: Evaluations in a row at which the evidence must pass, at least 1. More cannot raise the probability of
            a false alarm.

    Raises:
        ConfigurationError: If `alpha` lies outside (0, 1), `tolerance` outside [0, 1), or `patience` is below 1.

    Attributes:
        evaluations: How many evaluations were tested.
        onset: The onset, None while there is none; it is never undone.
        watch: Why the run is watched, None where it is not, and after onset.
        watch_reason: The same as a sentence for people, with its numbers.
        forecast: When onset is expected, after the last evaluation; None without a rise, and after onset.
        forecasts: Every forecast made, in order.
    """

    def __init__(self, *, alpha: float = 0.05, tolerance: float = 0.01, patience: int = 1) -> None:
        if not 0 < alpha < 1:
            raise ConfigurationError(f"alpha must lie in (0, 1), got {alpha}.")
        if not 0 <= tolerance < 1:
            raise ConfigurationError(f"tolerance must lie in [0, 1), got {tolerance}.")
        if patience < 1:
            raise ConfigurationError(f"patience must be at least 1, got {patience}.")
        self.alpha = alpha
        self.tolerance = tolerance
        self.patience = patience
        self.evaluations = 0
        self.onset: Onset | None = None
        self.watch: WatchReason | None = None
        self.watch_reason: str | None = None
        self.forecast: Forecast | None = None
        self.forecasts: list[Forecast] = []
        # The first of the evaluations in a row that passed, and their number.
        self._pending: Onset | None = None
        self._passed = 0
        # The last of the evaluations in a row at which a test passed and few were copies.
        self._row: list[Counts] = []
        self._conformal: list[float] = []
        # Step, copies and samples of each evaluation, for the forecast.
        self._counts: list[tuple[int, int, int]] = []
        self._trends: dict[str, list[float]] = {_SHARE: [], _SIMILARITY: []}

    @property
    def state(self) -> RunState:
        """How the run stands."""
        if self.onset is not None:
            return RunState.ONSET
        return RunState.CLEAN if self.watch is None else RunState.WATCH

    @property
    def next_level(self) -> float:
        """The level at which the permutation test is made at the next evaluation."""
        return spending_level(self.evaluations + 1, alpha=self.alpha / 2)

    @property
    def next_conformal_level(self) -> float:
        """The level at which the test against held-out patients is made at the next evaluation."""
        return even_spending_level(self.evaluations + 1, alpha=self.alpha / 2) / math.exp(
            usual_surprise(self._conformal)
        )

    def update(self, result: DetectionResult, *, step: int, epoch: int) -> Onset | None:
        """Take one evaluation in and return the onset if it is declared now.

        A result without a control, and one from before the first step, count as no evaluation.

        Args:
            result: What the detector found.
            step: Optimizer step of the evaluation.
            epoch: Its epoch.
        """
        if step == 0:
            return None
        for name, values in self._trends.items():
            # NaN, where there is none, would not equal itself in a saved state.
            if math.isfinite(value := result.measures.get(name, math.nan)):
                values.append(float(value))
                del values[:-TREND_WINDOW]
        rate = result.replica_rate
        if rate is None:
            self._watch_over(result, passed=[])
            return None
        passed = self._spend(result)
        if self.onset is not None:
            return None
        leaning = _shown_leaning(result, passed)
        counts = Counts(
            replicas=rate.successes, leaning=0 if leaning is None else leaning.successes, samples=rate.trials
        )
        self._row = [*self._row, counts][-MOST_POOLED:] if passed else []
        shown = exceeding(self._row, tolerance=self.tolerance) if passed else None
        if shown is not None:
            if shown.pooled == 1:
                # Its many copies must not confirm, with patience, what the next evaluation does not show.
                self._row = []
            evidence, p_value, level = passed[0]
            self._pending = self._pending or Onset(
                step=step,
                epoch=epoch,
                evaluation=self.evaluations,
                evidence=evidence,
                p_value=p_value,
                level=level,
                replica_rate=shown.replica_rate,
                confirmed_step=step,
                leaning_rate=shown.leaning_rate,
                pooled=shown.pooled,
            )
            self._passed += 1
            if self._passed >= self.patience:
                self.onset = replace(self._pending, confirmed_step=step)
                self.watch = self.watch_reason = self.forecast = None
                return self.onset
        else:
            self._pending, self._passed = None, 0
        self._foresee(counts, step=step)
        self._watch_over(result, passed=passed)
        return None

    def score_forecasts(self) -> list[ForecastScore]:
        """Return what became of each forecast made before onset; empty without onset."""
        return [] if self.onset is None else score_forecasts(self.forecasts, onset_step=self.onset.step)

    def _spend(self, result: DetectionResult) -> list[_Passed]:
        """Make this evaluation's tests at their levels, and return those that pass."""
        tests = (
            (EvidenceKind.PERMUTATION, result.memorization_p_value, self.next_level),
            (EvidenceKind.CONFORMAL, result.discovery_p_value, self.next_conformal_level),
        )
        self.evaluations += 1
        if result.discovery_p_value is not None:
            self._conformal.append(result.discovery_p_value)
        return [(kind, p_value, level) for kind, p_value, level in tests if p_value is not None and p_value <= level]

    def _foresee(self, counts: Counts, *, step: int) -> None:
        """Take a count of copies in, and forecast onset from all so far."""
        # A run that goes back to an earlier step counts again what it counted before.
        if self._counts and step <= self._counts[-1][0]:
            return
        self._counts.append((step, max(counts.replicas, counts.leaning), counts.samples))
        self.forecast = forecast_onset(self._counts, tolerance=self.tolerance, patience=self.patience)
        if self.forecast is not None:
            self.forecasts.append(self.forecast)

    def _watch_over(self, result: DetectionResult, *, passed: list[_Passed]) -> None:
        """Say whether the run is worth watching, and why."""
        found = None if self.onset is not None else self._suspicion(result, passed)
        self.watch, self.watch_reason = (None, None) if found is None else found

    def _suspicion(self, result: DetectionResult, passed: list[_Passed]) -> tuple[WatchReason, str] | None:
        """Return the gravest reason to watch the run, and its sentence."""
        shares, similarities = self._trends[_SHARE], self._trends[_SIMILARITY]
        if self._pending is not None:
            return WatchReason.UNCONFIRMED, (
                f"Memorization since step {self._pending.step} is not confirmed yet: {self._passed} of {self.patience} "
                f"evaluations in a row passed."
            )
        if passed:
            kind, p_value, level = passed[0]
            leaning = _shown_leaning(result, passed)
            return WatchReason.RATE_WITHIN_TOLERANCE, (
                f"The {kind.value} test passed (p-value {p_value:.2g}, {level:.2g} allowed), but a replica rate of "
                f"{result.replica_rate} is not shown to exceed the tolerated {self.tolerance:g}"
                + (f", nor a share of {leaning} that leans towards one training patient." if leaning else ".")
            )
        # Half of the level each, so that both together have it.
        p_values = [p for p in (result.memorization_p_value, result.discovery_p_value) if p is not None]
        if result.replica_rate is not None and min(p_values, default=1.0) <= self.alpha / 2:
            return WatchReason.UNSPENT_TEST, (
                f"A p-value of {min(p_values):.2g} would be significant were this the only evaluation; of a clean "
                f"run, up to {self.alpha:g} of the evaluations have such a one."
            )
        if rises(shares) and shares[-1] > _NO_NEARER:
            return WatchReason.TRAINING_SHARE_RISES, (
                f"A rising share of samples, now {shares[-1]:.2f}, lies closer to training than to held-out patients."
            )
        if rises(similarities):
            return WatchReason.SIMILARITY_RISES, (
                f"The largest similarity to a training image rises, to {similarities[-1]:.2f}; that of samples that "
                f"only get better rises as well."
            )
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return the state as primitives, which checkpoints keep under `weights_only` loading."""
        return {
            "alpha": self.alpha,
            "tolerance": self.tolerance,
            "patience": self.patience,
            "evaluations": self.evaluations,
            "onset": self.onset and onset_to_primitives(self.onset),
            "pending": self._pending and onset_to_primitives(self._pending),
            "passed": self._passed,
            "row": [asdict(counts) for counts in self._row],
            "conformal": list(self._conformal),
            "counts": [list(count) for count in self._counts],
            "trends": {name: list(values) for name, values in self._trends.items()},
            "watch": self.watch and self.watch.value,
            "watch_reason": self.watch_reason,
            "forecast": self.forecast and forecast_to_primitives(self.forecast),
            "forecasts": [forecast_to_primitives(forecast) for forecast in self.forecasts],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state.

        `alpha`, `tolerance` and `patience` stay as constructed; what was spent stays spent, and what was decided stays
        decided. States of versions that did not watch or forecast load too.
        """
        self.evaluations = int(state["evaluations"])
        self.onset = state["onset"] and onset_from_primitives(state["onset"])
        pending, forecast = state.get("pending"), state.get("forecast")
        self._pending = pending and onset_from_primitives(pending)
        self._passed = int(state.get("passed", 0))
        self._row = [Counts(**counts) for counts in state.get("row", ())]
        self._conformal = [float(p_value) for p_value in state.get("conformal", ())]
        self._counts = [(int(step), int(found), int(drawn)) for step, found, drawn in state.get("counts", ())]
        trends = state.get("trends", {})
        self._trends = {name: [float(value) for value in trends.get(name, ())] for name in (_SHARE, _SIMILARITY)}
        watch = state.get("watch")
        self.watch, self.watch_reason = watch and WatchReason(watch), state.get("watch_reason")
        self.forecast = forecast and Forecast(**forecast)
        self.forecasts = [Forecast(**each) for each in state.get("forecasts", ())]


def _shown_leaning(result: DetectionResult, passed: list[_Passed]) -> RateEstimate | None:
    """Return the share of samples that lean, where the permutation test has shown that they do."""
    shown = any(kind is EvidenceKind.PERMUTATION for kind, _, _ in passed)
    return result.leaning_rate if shown else None
