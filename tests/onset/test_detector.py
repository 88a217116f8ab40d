import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import hypergeom

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional import estimate_rate
from relict_lightning.onset import (
    EvidenceKind,
    OnsetDetector,
    WatchReason,
    copies_to_decide,
    rate_to_primitives,
    spending_level,
)
from relict_lightning.onset.spending import even_spending_level
from relict_lightning.results import DetectionResult, RateEstimate, Transform, Verdict

VERDICT = Verdict(
    score=0.0,
    p_value=1.0,
    is_replica=False,
    match=0,
    match_id="training-0",
    match_group="training-0",
    transform=Transform(),
    evidence={},
)


def _result(*, permutation=1.0, discovery=1.0, replicas=16, samples=64, leaning=None):
    return DetectionResult(
        verdicts=(VERDICT,) * samples,
        replica_rate=estimate_rate(replicas, samples),
        level_rates={},
        fdr=0.05,
        control_scores=(),
        p_value_model="conformal",
        memorization_p_value=permutation,
        attainable_p_value=0.0,
        discovery_p_value=discovery,
        measures={},
        leaning_rate=None if leaning is None else estimate_rate(leaning, samples),
    )


def _without_control():
    return replace(
        _result(), replica_rate=None, memorization_p_value=None, attainable_p_value=None, discovery_p_value=None
    )


def test_levels_sum_to_alpha():
    total = sum(spending_level(evaluation, alpha=0.05) for evaluation in range(1, 20_000))

    # The rest beyond t is below 6 alpha / (pi^2 t).
    assert 0.05 - 6 * 0.05 / (math.pi**2 * 19_999) <= total < 0.05


def test_the_first_level_is_six_over_pi_squared():
    assert spending_level(1, alpha=1.0) == pytest.approx(0.6079271, abs=1e-7)


@given(m=st.integers(1, 60), h=st.integers(1, 60), level=st.floats(1e-6, 0.5))
def test_copies_to_decide_is_the_first_number_whose_chance_is_small_enough(m, h, level):
    # j patients drawn without replacement from m + h are all training patients with this probability.
    chances = [hypergeom(m + h, m, copied).pmf(copied) for copied in range(1, m + 1)]
    enough = [copied for copied, chance in enumerate(chances, 1) if chance <= level * (1 - 1e-9)]

    decided = copies_to_decide(level, training_groups=m, heldout_groups=h)

    if decided is None:
        assert not enough
    else:
        assert chances[decided - 1] <= level * (1 + 1e-9)
        assert not enough or decided <= enough[0]


def test_a_split_without_power_is_said_to_decide_nothing():
    assert copies_to_decide(1e-9, training_groups=3, heldout_groups=2) is None


@pytest.mark.parametrize(
    ("p_values", "kind"),
    [
        ({"permutation": 0.001}, EvidenceKind.PERMUTATION),
        ({"discovery": 0.001}, EvidenceKind.CONFORMAL),
        # The one that assumes less is named where both decide.
        ({"permutation": 0.001, "discovery": 1e-9}, EvidenceKind.PERMUTATION),
    ],
)
def test_either_evidence_declares_onset_and_is_named(p_values, kind):
    onset = OnsetDetector().update(_result(**p_values), step=700, epoch=3)

    assert (onset.step, onset.epoch, onset.evaluation) == (700, 3, 1)
    assert (onset.evidence, onset.p_value) == (kind, 0.001)
    of_kind = spending_level if kind is EvidenceKind.PERMUTATION else even_spending_level
    assert onset.level == of_kind(1, alpha=0.05 / 2)
    assert onset.replica_rate.successes == 16


def test_a_model_that_copies_few_patients_often_is_caught_by_the_comparison_with_held_out_patients():
    # Half of 64 samples copy 3 of 100 patients, 100 held out: no permutation p-value can be below 0.12.
    assert copies_to_decide(0.12, training_groups=100, heldout_groups=100) == 4

    onset = OnsetDetector().update(_result(permutation=0.13, discovery=1e-7, replicas=32), step=10, epoch=0)

    assert onset.evidence is EvidenceKind.CONFORMAL


def test_an_evaluation_before_the_first_step_declares_and_spends_nothing():
    detector = OnsetDetector()

    assert detector.update(_result(permutation=1e-9, discovery=1e-9), step=0, epoch=0) is None
    assert detector.evaluations == 0


@pytest.mark.parametrize(("factor", "declared"), [(1.0, True), (1.0001, False)])
def test_a_p_value_at_its_level_suffices_and_one_above_does_not(factor, declared):
    p_value = factor * spending_level(1, alpha=0.05) / 2

    onset = OnsetDetector().update(_result(permutation=p_value), step=1, epoch=0)

    assert (onset is not None) == declared


@pytest.mark.parametrize(("evaluation", "declared"), [(1, True), (4, False)])
def test_later_evaluations_need_stronger_evidence(evaluation, declared):
    detector = OnsetDetector()
    for step in range(1, evaluation):
        detector.update(_result(), step=step, epoch=0)

    onset = detector.update(_result(permutation=0.01), step=9, epoch=0)

    assert (onset is not None) == declared


@pytest.mark.parametrize(("tolerance", "declared"), [(0.0, True), (0.15, True), (0.16, False), (0.25, False)])
def test_the_lower_bound_of_the_rate_must_exceed_the_tolerance(tolerance, declared):
    # 16 of 64 has the exact lower bound 0.1502.
    onset = OnsetDetector(tolerance=tolerance).update(_result(permutation=1e-9), step=1, epoch=0)

    assert (onset is not None) == declared


def test_no_replica_means_no_onset_whatever_the_p_value():
    assert OnsetDetector(tolerance=0.0).update(_result(permutation=1e-9, replicas=0), step=1, epoch=0) is None


def test_onset_is_declared_once_and_kept():
    detector = OnsetDetector()
    first = detector.update(_result(permutation=1e-9), step=1, epoch=0)

    second = detector.update(_result(permutation=1e-12), step=2, epoch=1)

    assert second is None
    assert detector.onset is first
    assert detector.evaluations == 2


def test_a_result_without_a_control_spends_nothing():
    detector = OnsetDetector()

    assert detector.update(_without_control(), step=1, epoch=0) is None
    assert detector.evaluations == 0
    assert detector.next_level == spending_level(1, alpha=0.05) / 2


def test_the_reason_says_step_rate_interval_evidence_and_what_it_assumes():
    onset = OnsetDetector().update(_result(permutation=0.001), step=700, epoch=3)

    assert onset.reason == (
        "Memorization onset at step 700 (epoch 3): replica rate 16/64 = 25.0 % [15.0 %, 37.4 %]; permutation p-value "
        "0.001 at evaluation 1, where 0.015 was allowed, assuming only that training and held-out patients were split "
        "at random."
    )


def test_the_reason_of_conformal_evidence_says_what_more_it_assumes():
    onset = OnsetDetector().update(_result(discovery=0.001), step=700, epoch=3)

    assert "conformal p-value 0.001" in onset.reason
    assert "assuming that samples of a model that does not memorize are no more alike" in onset.reason


def test_samples_that_lean_establish_an_onset_with_the_permutation_test_where_no_replica_can_be_named():
    onset = OnsetDetector().update(_result(permutation=0.001, replicas=0, leaning=9), step=700, epoch=3)

    assert onset.shown_rate == onset.leaning_rate == estimate_rate(9, 64)
    assert onset.replica_rate == estimate_rate(0, 64)
    assert "0/64 = 0.0 % [0.0 %, 5.6 %], but 9/64 = 14.1 % [6.6 %, 25.0 %] of the samples lean" in onset.reason


@pytest.mark.parametrize(
    "result",
    [
        pytest.param(_result(permutation=0.2, replicas=0, leaning=60), id="leaning that no test shows"),
        pytest.param(_result(discovery=1e-9, replicas=0, leaning=60), id="leaning that another test cannot show"),
        pytest.param(_result(permutation=1e-9, replicas=0, leaning=3), id="leaning within the tolerance"),
    ],
)
def test_leaning_is_not_enough(result):
    assert OnsetDetector().update(result, step=1, epoch=0) is None


def test_samples_of_evaluations_in_a_row_show_together_what_each_is_too_few_for():
    detector = OnsetDetector()
    result = _result(permutation=1e-9, replicas=2)

    declared = [detector.update(result, step=step, epoch=0) for step in (1, 2, 3)]

    # Of 64 samples 4 are needed, of 128 5, of 192 6.
    assert declared[:2] == [None, None]
    assert (declared[2].step, declared[2].pooled) == (3, 3)
    assert declared[2].shown_rate == declared[2].replica_rate == estimate_rate(6, 192)
    assert "replica rate 6/192 = 3.1 % [1.2 %, 6.7 %] over 3 evaluations in a row; permutation" in declared[2].reason


def test_samples_that_lean_are_pooled_as_well():
    detector = OnsetDetector()
    for step in (1, 2, 3):
        detector.update(_result(permutation=1e-9, replicas=0, leaning=2), step=step, epoch=0)

    assert detector.onset.leaning_rate == estimate_rate(6, 192)
    assert detector.onset.replica_rate == estimate_rate(0, 192)


def test_an_evaluation_at_which_no_test_passes_ends_the_row():
    detector = OnsetDetector()
    for step, p_value in enumerate((1e-9, 1e-9, 0.5, 1e-9, 1e-9), start=1):
        detector.update(_result(permutation=p_value, replicas=2), step=step, epoch=0)

    assert detector.onset is None


def test_no_more_than_four_evaluations_are_pooled():
    detector = OnsetDetector()
    for step, replicas in enumerate((3, 0, 0, 0, 2), start=1):
        detector.update(_result(permutation=1e-9, replicas=replicas, samples=256), step=step, epoch=0)
    assert detector.onset is None

    # Of 1,024 samples 17 are needed, which these have and the newest 256 have not.
    detector.update(_result(permutation=1e-9, replicas=6, samples=256), step=6, epoch=0)
    detector.update(_result(permutation=1e-9, replicas=5, samples=256), step=7, epoch=0)
    assert detector.onset is None
    detector.update(_result(permutation=1e-9, replicas=6, samples=256), step=8, epoch=0)

    assert detector.onset.replica_rate == estimate_rate(19, 1024)


def test_leaning_counts_only_where_the_permutation_test_passed():
    detector = OnsetDetector()
    for step in (1, 2, 3, 4):
        detector.update(_result(discovery=1e-9, replicas=0, leaning=3), step=step, epoch=0)

    assert detector.onset is None


def test_leaning_of_earlier_evaluations_confirms_nothing_where_none_is_shown():
    detector, confirmed = OnsetDetector(patience=2), OnsetDetector(patience=2)
    for each in (detector, confirmed):
        for step in (1, 2):
            each.update(_result(permutation=1e-9, replicas=0, leaning=3), step=step, epoch=0)
        assert each.watch is WatchReason.UNCONFIRMED

    detector.update(_result(discovery=1e-9, replicas=0, leaning=3), step=3, epoch=0)
    confirmed.update(_result(permutation=1e-9, replicas=0, leaning=1), step=3, epoch=0)

    assert detector.onset is None
    assert confirmed.onset.step == 2


def test_where_replicas_are_enough_leaning_says_nothing():
    onset = OnsetDetector().update(_result(permutation=0.001, leaning=30), step=700, epoch=3)

    assert onset.leaning_rate is None
    assert onset.shown_rate == onset.replica_rate == estimate_rate(16, 64)


def test_leaning_within_the_tolerance_is_part_of_why_a_run_is_watched():
    detector = OnsetDetector()
    detector.update(_result(permutation=1e-9, replicas=0, leaning=3), step=1, epoch=0)

    assert detector.watch is WatchReason.RATE_WITHIN_TOLERANCE
    assert "nor a share of 3/64" in detector.watch_reason


def test_the_forecast_counts_samples_that_lean_where_the_test_shows_that_they_do():
    detector, unshown = OnsetDetector(tolerance=0.2), OnsetDetector(tolerance=0.2)
    for step, leaning in enumerate((0, 0, 1, 3, 6, 9), start=1):
        detector.update(_result(permutation=1e-9, replicas=0, leaning=leaning), step=step, epoch=0)
        unshown.update(_result(permutation=0.5, replicas=0, leaning=leaning), step=step, epoch=0)

    assert detector.forecast is not None
    assert unshown.forecast is None


@pytest.mark.parametrize("spent", [0, 1, 5])
def test_a_restored_detector_makes_the_same_next_decision(spent):
    detector = OnsetDetector()
    for step in range(1, 1 + spent):
        detector.update(_result(), step=step, epoch=0)
    buffer = io.BytesIO()
    torch.save(detector.state_dict(), buffer)
    buffer.seek(0)

    restored = OnsetDetector()
    restored.load_state_dict(torch.load(buffer, weights_only=True))

    for p_value in (0.03, 0.002, 0.0001):
        result = _result(permutation=p_value)
        decisions = [which.update(result, step=9, epoch=1) for which in (detector, restored)]
        assert decisions[0] == decisions[1]
    assert restored.onset is not None


@pytest.mark.parametrize("counts", [{}, {"replicas": 0, "leaning": 9}], ids=["replicas", "leaning"])
def test_a_declared_onset_survives_saving(counts):
    detector = OnsetDetector()
    detector.update(_result(permutation=0.001, **counts), step=700, epoch=3)
    state = json.loads(json.dumps(detector.state_dict()))

    restored = OnsetDetector()
    restored.load_state_dict(state)

    assert restored.onset == detector.onset
    assert restored.onset.reason == detector.onset.reason
    assert restored.update(_result(permutation=1e-9), step=701, epoch=3) is None


def test_a_resumed_run_keeps_its_own_alpha_and_what_was_spent():
    detector = OnsetDetector(alpha=0.2)
    detector.update(_result(), step=1, epoch=0)

    resumed = OnsetDetector(alpha=0.01)
    resumed.load_state_dict(detector.state_dict())

    assert resumed.next_level == spending_level(2, alpha=0.01) / 2


def test_a_rate_comes_back_from_its_primitives():
    rate = estimate_rate(3, 50)

    assert RateEstimate(**rate_to_primitives(rate)) == rate


@pytest.mark.parametrize("dependent", [True, False])
def test_clean_runs_raise_an_alarm_with_at_most_the_probability_alpha(dependent):
    rng = np.random.default_rng(0)
    runs, alarms = 600, 0
    result = _result()

    for _ in range(runs):
        detector = OnsetDetector(alpha=0.2, tolerance=0.0)
        for step, (permutation, discovery) in enumerate(rng.uniform(size=(30, 2)), start=1):
            p_values = {"memorization_p_value": permutation}
            p_values["discovery_p_value"] = permutation if dependent else discovery
            detector.update(replace(result, **p_values), step=step, epoch=0)
        alarms += detector.onset is not None

    # 30 levels sum to 0.196; independent tests use nearly all of it, tests that always agree half of it.
    assert (0.05 if dependent else 0.1) < alarms / runs <= 0.2 + 3 * math.sqrt(0.2 * 0.8 / runs)


def test_a_run_that_starts_to_memorize_late_is_caught_soon_after():
    rng = np.random.default_rng(1)
    delays = []

    for _ in range(100):
        detector = OnsetDetector()
        for step in range(1, 61):
            clean = step <= 40
            result = _result(
                permutation=rng.uniform() if clean else 10 ** -rng.uniform(2, 8), replicas=0 if clean else 16
            )
            if detector.update(result, step=step, epoch=0) is not None:
                break
        delays.append(step - 41)

    assert min(delays) >= 0
    assert np.mean(delays) < 2


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, math.nan])
def test_an_alpha_out_of_range_is_refused(alpha):
    with pytest.raises(ConfigurationError, match=rf"alpha must lie in \(0, 1\), got {alpha}"):
        OnsetDetector(alpha=alpha)


@pytest.mark.parametrize("tolerance", [1.0, -0.1, math.nan])
def test_a_tolerance_out_of_range_is_refused(tolerance):
    with pytest.raises(ConfigurationError, match=rf"tolerance must lie in \[0, 1\), got {tolerance}"):
        OnsetDetector(tolerance=tolerance)
