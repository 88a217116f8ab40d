"""Confirmation, watches and forecasts of the detector, and what its saved states keep."""

import io
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional import estimate_rate
from relict_lightning.onset import OnsetDetector
from relict_lightning.onset.spending import even_spending_level
from relict_lightning.onset.watch import RunState, WatchReason
from relict_lightning.results import DetectionResult

COPIES, FEW, NONE = {"permutation": 1e-9}, {"permutation": 1e-9, "replicas": 2}, {"replicas": 0}


def _result(*, permutation=1.0, discovery=1.0, replicas=16, samples=64, has_control=True, **measures):
    return DetectionResult(
        verdicts=(),
        replica_rate=estimate_rate(replicas, samples) if has_control else None,
        level_rates={},
        fdr=0.05,
        control_scores=(),
        p_value_model="conformal" if has_control else None,
        memorization_p_value=permutation if has_control else None,
        attainable_p_value=0.0 if has_control else None,
        discovery_p_value=discovery if has_control else None,
        measures=measures,
    )


def _saw(evaluations, **settings_):
    detector = OnsetDetector(**settings_)
    for position, evaluation in enumerate(evaluations, start=1):
        detector.update(_result(**evaluation), step=100 * position, epoch=position)
    return detector


# Confirmation ---------------------------------------------------------------------------------------------------------


def test_with_patience_onset_is_the_first_of_the_evaluations_in_a_row():
    detector = _saw([NONE, COPIES, COPIES, COPIES], patience=3)

    onset = detector.onset
    assert (onset.step, onset.epoch, onset.evaluation, onset.confirmed_step) == (200, 2, 2, 400)
    assert "onset at step 200 (epoch 2), confirmed at step 400: replica rate" in onset.reason


def test_without_patience_onset_is_confirmed_at_once():
    onset = _saw([COPIES]).onset

    assert onset.step == onset.confirmed_step == 100
    assert "confirmed" not in onset.reason


@pytest.mark.parametrize("between", [NONE, FEW, {}])
def test_an_evaluation_that_does_not_pass_begins_the_count_anew(between):
    detector = _saw([COPIES, between, COPIES], patience=2)
    assert detector.onset is None

    detector.update(_result(**COPIES), step=900, epoch=9)

    assert (detector.onset.step, detector.onset.confirmed_step) == (300, 900)


def test_an_evaluation_without_a_control_does_not_break_the_row():
    onset = _saw([COPIES, {"has_control": False}, COPIES], patience=2).onset

    assert (onset.step, onset.confirmed_step) == (100, 300)


@given(
    p_values=st.lists(st.sampled_from([1e-12, 1e-3, 0.5]), max_size=12),
    patience=st.integers(2, 4),
)
@settings(max_examples=40)
def test_whoever_is_declared_with_patience_is_declared_without_and_at_that_evaluation_or_before(p_values, patience):
    evaluations = [{"permutation": p_value} for p_value in p_values]
    at_once, later = _saw(evaluations).onset, _saw(evaluations, patience=patience).onset

    if later is not None:
        assert at_once.step <= later.step
        assert later.confirmed_step == later.step + 100 * (patience - 1)


# Levels of the test against held-out patients -------------------------------------------------------------------------


def test_a_run_whose_p_values_were_small_before_needs_smaller_ones():
    detector = _saw([{"discovery": math.exp(-3), **NONE}] * 4)

    expected = even_spending_level(5, alpha=0.025) * math.exp(-2)
    assert detector.next_conformal_level == pytest.approx(expected)


def test_what_was_unusual_all_along_is_no_onset_and_what_changes_is():
    # The level of the sixth evaluation is 7.7e-4, before what has been usual in the run lowers it.
    blurred = {"discovery": 5e-4, "replicas": 8}
    before = [{"discovery": 0.002, **NONE}] * 5

    assert _saw([*before, blurred]).onset is None
    assert _saw([{"discovery": 0.5, **NONE}] * 5 + [blurred]).onset is not None
    assert _saw([*before, {"discovery": 1e-7, "replicas": 8}]).onset is not None


@given(
    earlier=st.lists(st.floats(1e-12, 1.0), max_size=6),
    position=st.integers(0, 5),
    factor=st.floats(0.01, 1.0),
)
@settings(max_examples=40)
def test_stronger_evidence_now_never_hides_an_onset(earlier, position, factor):
    p_value = 1e-3 * 0.1**position
    before = [{"discovery": each, **NONE} for each in earlier]

    weak, strong = (_saw([*before, {"discovery": each}]).onset for each in (p_value, factor * p_value))

    assert weak is None or strong is not None


# States and watches ---------------------------------------------------------------------------------------------------


def test_a_run_that_shows_nothing_is_clean():
    detector = _saw([NONE, NONE])

    assert (detector.state, detector.watch, detector.watch_reason) == (RunState.CLEAN, None, None)


def test_evidence_that_is_not_confirmed_is_watched():
    detector = _saw([COPIES, COPIES], patience=3)

    assert (detector.state, detector.watch) == (RunState.WATCH, WatchReason.UNCONFIRMED)
    assert detector.watch_reason == (
        "Memorization since step 100 is not confirmed yet: 2 of 3 evaluations in a row passed."
    )


def test_evidence_with_too_few_replicas_is_watched():
    detector = _saw([FEW])

    assert (detector.state, detector.watch) == (RunState.WATCH, WatchReason.RATE_WITHIN_TOLERANCE)
    assert detector.watch_reason == (
        "The permutation test passed (p-value 1e-09, 0.015 allowed), but a replica rate of 2/64 = 3.1 % [0.4 %, "
        "10.8 %] is not shown to exceed the tolerated 0.01."
    )


@pytest.mark.parametrize("kind", ["permutation", "discovery"])
@pytest.mark.parametrize(("p_value", "reason"), [(0.025, WatchReason.UNSPENT_TEST), (0.026, None)])
def test_a_p_value_that_only_the_unspent_level_allows_is_watched(kind, p_value, reason):
    assert _saw([{}] * 3 + [{kind: p_value}]).watch == reason


def test_the_unspent_level_is_said_to_be_passed_by_clean_runs_too():
    assert _saw([{}] * 3 + [{"permutation": 0.02}]).watch_reason == (
        "A p-value of 0.02 would be significant were this the only evaluation; of a clean run, up to 0.05 of the "
        "evaluations have such a one."
    )


@pytest.mark.parametrize(
    ("measure", "first", "reason"),
    [
        ("closer_to_training_share", 0.52, WatchReason.TRAINING_SHARE_RISES),
        # Up to 0.4, so that samples are still nearer to held-out patients.
        ("closer_to_training_share", 0.2, None),
        ("max_similarity", 0.2, WatchReason.SIMILARITY_RISES),
    ],
)
def test_a_trend_is_watched(measure, first, reason):
    rising = [{measure: first + 0.04 * position, **NONE} for position in range(6)]

    assert _saw(rising).watch == reason
    assert _saw(rising[::-1]).watch is None


def test_a_similarity_that_rises_is_watched_without_a_control():
    detector = _saw([{"max_similarity": 0.1 * position, "has_control": False} for position in range(6)])

    assert detector.watch is WatchReason.SIMILARITY_RISES
    assert detector.watch_reason == (
        "The largest similarity to a training image rises, to 0.50; that of samples that only get better rises as well."
    )
    assert detector.evaluations == 0


def test_the_gravest_reason_is_named():
    rising = [{"closer_to_training_share": 0.5 + 0.04 * position, **NONE} for position in range(6)]

    assert _saw([*rising, {**FEW, "closer_to_training_share": 0.9}]).watch is WatchReason.RATE_WITHIN_TOLERANCE


def test_a_watch_goes_with_its_reason():
    assert _saw([FEW, NONE]).state is RunState.CLEAN


def test_onset_is_never_undone():
    detector = _saw([COPIES, NONE, FEW])

    assert (detector.state, detector.watch, detector.watch_reason) == (RunState.ONSET, None, None)


# Forecasts ------------------------------------------------------------------------------------------------------------


def test_replicas_that_become_more_forecast_onset_and_the_forecasts_are_scored():
    detector = _saw([{"replicas": count} for count in (0, 0, 0, 0, 1, 2, 2)])
    assert detector.forecast.made_at == 700
    assert [forecast.made_at for forecast in detector.forecasts][-1] == 700
    assert detector.score_forecasts() == []

    detector.update(_result(permutation=1e-9, replicas=6), step=800, epoch=8)

    scores = detector.score_forecasts()
    assert [score.forecast for score in scores] == detector.forecasts
    assert all(score.onset_step == 800 for score in scores)
    assert detector.forecast is None


def test_without_replicas_nothing_is_forecast():
    assert _saw([NONE] * 5).forecast is None


# Saved states ---------------------------------------------------------------------------------------------------------


def _saved(detector):
    buffer = io.BytesIO()
    torch.save(json.loads(json.dumps(detector.state_dict())), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def _everything(detector):
    return {name: value for name, value in vars(detector).items() if name not in ("alpha", "tolerance", "patience")}


@pytest.mark.parametrize(
    "seen",
    [
        [],
        [COPIES],
        [NONE, FEW],
        [{"discovery": 0.01, **NONE}] * 3,
        [{"replicas": count, "max_similarity": 0.1 * count} for count in (0, 0, 0, 1, 2)],
    ],
)
@pytest.mark.parametrize("patience", [1, 2])
def test_a_restored_detector_makes_the_same_next_decisions(seen, patience):
    detector = _saw(seen, patience=patience)
    restored = OnsetDetector(patience=patience)
    restored.load_state_dict(_saved(detector))
    assert _everything(restored) == _everything(detector)

    for step, then in enumerate(({"discovery": 1e-3}, {"discovery": 1e-5}, COPIES, COPIES), start=len(seen) + 1):
        decisions = [which.update(_result(**then), step=100 * step, epoch=9) for which in (detector, restored)]
        assert decisions[0] == decisions[1]
    assert restored.onset is not None
    assert _everything(restored) == _everything(detector)


def test_a_state_of_an_earlier_version_loads():
    onset = {
        "step": 700, "epoch": 3, "evaluation": 2, "evidence": "conformal", "p_value": 0.001, "level": 0.004,
        "replica_rate": {
            "value": 0.25, "low": 0.15, "high": 0.37, "successes": 16, "trials": 64, "confidence": 0.95,
        },
    }  # fmt: skip
    detector = OnsetDetector()

    detector.load_state_dict({"alpha": 0.05, "tolerance": 0.01, "evaluations": 4, "onset": onset})

    assert (detector.evaluations, detector.onset.step, detector.onset.confirmed_step) == (4, 700, 700)
    assert (detector.state, detector.forecasts) == (RunState.ONSET, [])


def test_settings_changed_on_resume_keep_what_was_spent_and_decided():
    pending = _saw([NONE, COPIES, COPIES], patience=3)

    resumed = OnsetDetector(alpha=0.2, tolerance=0.1, patience=5)
    resumed.load_state_dict(pending.state_dict())
    assert (resumed.alpha, resumed.tolerance, resumed.patience) == (0.2, 0.1, 5)
    assert resumed.evaluations == 3
    for step in (400, 500, 600):
        resumed.update(_result(**COPIES), step=step, epoch=step // 100)

    assert (resumed.onset.step, resumed.onset.confirmed_step) == (200, 600)


def test_a_decided_onset_stays_when_the_tolerance_is_raised():
    resumed = OnsetDetector(tolerance=0.9, patience=9)

    resumed.load_state_dict(_saw([COPIES]).state_dict())

    assert resumed.onset.step == 100


@pytest.mark.parametrize("patience", [0, -1])
def test_a_patience_below_one_is_refused(patience):
    with pytest.raises(ConfigurationError, match=f"patience must be at least 1, got {patience}"):
        OnsetDetector(patience=patience)
