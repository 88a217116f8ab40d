import math

import numpy as np
import pytest

from relict_lightning.errors import ConfigurationError
from relict_lightning.onset.forecast import Forecast, forecast_onset, forecast_to_primitives, score_forecasts

RISING = [(100, 0, 64), (200, 0, 64), (300, 0, 64), (400, 1, 64), (500, 2, 64)]
MADE = Forecast(made_at=500, step=1400.0, low=1100.0, high=2500.0, confidence=0.8)


@pytest.mark.parametrize(
    "counts",
    [
        [],
        [(100, 2, 64)],
        [(100, 0, 64), (200, 0, 64), (300, 0, 64)],
        # A false replica now and then, and a rate that falls.
        [(100, 0, 64), (200, 1, 64), (300, 0, 64), (400, 0, 64)],
        [(100, 3, 64), (200, 2, 64), (300, 1, 64)],
        [(100, 2, 64), (200, 2, 64), (300, 2, 64)],
    ],
)
def test_without_a_rise_nothing_is_forecast(counts):
    assert forecast_onset(counts, tolerance=0.01) is None


def test_where_the_samples_are_too_few_to_exceed_the_tolerance_nothing_is_forecast():
    counts = [(100, 0, 4), (200, 0, 4), (300, 4, 4)]

    # Not even 16 of 16 exceed it.
    assert forecast_onset(counts, tolerance=0.8) is None
    assert forecast_onset(counts, tolerance=0.5) is not None


def test_a_forecast_lies_ahead_and_inside_its_interval():
    forecast = forecast_onset(RISING, tolerance=0.01)

    assert forecast.made_at == 500
    assert 500 < forecast.low < forecast.step < forecast.high


def test_the_same_counts_give_the_same_forecast():
    assert forecast_onset(RISING, tolerance=0.01) == forecast_onset(RISING, tolerance=0.01)


def test_a_forecast_does_not_depend_on_the_unit_of_steps():
    scaled = forecast_onset([(10 * step, found, drawn) for step, found, drawn in RISING], tolerance=0.01)

    assert scaled.step == pytest.approx(10 * forecast_onset(RISING, tolerance=0.01).step)


def test_more_replicas_bring_onset_nearer_and_a_higher_tolerance_moves_it_away():
    more = [*RISING[:-1], (500, 3, 64)]
    step = forecast_onset(RISING, tolerance=0.01).step

    assert forecast_onset(more, tolerance=0.01).step < step < forecast_onset(RISING, tolerance=0.1).step


def test_a_higher_confidence_has_a_wider_interval_about_the_same_step():
    narrow, wide = (forecast_onset(RISING, tolerance=0.01, confidence=share) for share in (0.5, 0.9))

    assert wide.low <= narrow.low < narrow.step == wide.step < narrow.high <= wide.high


def test_patience_puts_onset_off():
    assert forecast_onset(RISING, tolerance=0.01, patience=3).step > forecast_onset(RISING, tolerance=0.01).step


def test_many_counts_of_the_model_give_the_step_that_the_model_says():
    # The rate is 4 % at step 5000, where half of the evaluations of 10,000 samples exceed a tolerance near 4 %.
    counts = []
    for step in range(500, 4001, 500):
        odds = 0.04 / 0.96 * (step / 5000) ** 2
        counts.append((step, round(10_000 * odds / (1 + odds)), 10_000))
    # Clopper-Pearson: 400 of 10,000 has the lower bound 3.62 %.
    forecast = forecast_onset(counts, tolerance=0.0362)

    assert forecast.low <= 5000 <= forecast.high
    assert forecast.step == pytest.approx(5000, rel=0.05)


def test_intervals_hold_onset_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(60):
        start, slope = rng.uniform(5, 25), rng.uniform(1.5, 5)
        counts, made = [], []
        for evaluation in range(1, 60):
            odds = 0.04 / 0.96 * (evaluation / start) ** slope
            found = int(rng.binomial(64, odds / (1 + odds)))
            counts.append((100 * evaluation, found, 64))
            if found >= 4:
                break
            if not made and (forecast := forecast_onset(counts, tolerance=0.01)) is not None:
                made.append(forecast)
        inside += [score.inside for score in score_forecasts(made, onset_step=100 * evaluation)]

    assert len(inside) > 30
    assert 0.65 <= np.mean(inside) <= 0.98


def test_onset_takes_in_proportion_more_steps_for_more_images():
    assert MADE.scaled(2.0) == Forecast(made_at=500, step=2800.0, low=2200.0, high=5000.0, confidence=0.8)


def test_a_score_says_whether_onset_lay_inside_and_how_far_off_the_step_was():
    late, early = (score_forecasts([MADE], onset_step=step)[0] for step in (700, 2500))

    assert (late.inside, late.log2_error) == (False, 1.0)
    assert early.inside
    assert early.log2_error == pytest.approx(math.log2(1400 / 2500))


def test_forecasts_made_at_onset_or_after_are_not_scored():
    assert score_forecasts([MADE], onset_step=500) == []


def test_a_forecast_comes_back_from_its_primitives():
    assert Forecast(**forecast_to_primitives(MADE)) == MADE


@pytest.mark.parametrize(
    ("high", "said"),
    [(2500.0, "step 1400 (80 %: 1100 to 2500)"), (math.inf, "step 1400 (80 %: 1100 or later)")],
)
def test_a_forecast_is_said_with_its_interval(high, said):
    assert str(Forecast(made_at=500, step=1400.0, low=1100.0, high=high, confidence=0.8)) == said


@pytest.mark.parametrize("counts", [[(0, 1, 64)], [(200, 1, 64), (100, 2, 64)], [(100, 1, 64), (100, 2, 64)]])
def test_steps_that_do_not_ascend_are_refused(counts):
    with pytest.raises(ConfigurationError, match="positive and ascend"):
        forecast_onset(counts, tolerance=0.01)


@pytest.mark.parametrize("factor", [0.0, -1.0, math.inf, math.nan])
def test_a_factor_that_is_not_positive_is_refused(factor):
    with pytest.raises(ConfigurationError, match=f"factor={factor}"):
        MADE.scaled(factor)


def test_an_onset_before_the_first_step_is_refused():
    with pytest.raises(ConfigurationError, match="onset_step=0"):
        score_forecasts([MADE], onset_step=0)
