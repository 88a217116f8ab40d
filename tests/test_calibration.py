import numpy as np
import pytest

from relict_lightning.calibration import Rule, calibrate, calibrate_on_ratings, choose_rule
from relict_lightning.errors import ConfigurationError
from relict_lightning.functional import estimate_rate


def _column(*values):
    return np.array(values, dtype=np.float64)[:, None]


def _calibrated(likeness, control, *, led=False):
    """Every measure is a level of its own."""
    columns = tuple(f"level {number}" for number in range(control.shape[1]))
    return calibrate(likeness, control, Rule(columns=columns, led=led))


def test_p_values_of_one_level_worked_by_hand():
    calibrated = _calibrated(_column(0.35, 0.5, 0.05), _column(0.1, 0.2, 0.3, 0.4))

    # One of four is above 0.35, none above 0.5. Below the median nothing counts as likeness, so all tie.
    assert calibrated.p_values.tolist() == [2 / 5, 1 / 5, 1.0]
    assert calibrated.level_p_values[:, 0].tolist() == [2 / 5, 1 / 5, 1.0]


def test_scores_count_robust_standard_deviations_of_the_control():
    calibrated = _calibrated(_column(0.35, 0.05), _column(0.1, 0.2, 0.3, 0.4))

    # Median 0.25, median absolute deviation 0.1, over 0.67449, which is that of a standard normal.
    assert calibrated.scores == pytest.approx([0.1 / 0.148260222, 0])
    assert calibrated.control_scores == pytest.approx([0, 0, 0.05 / 0.148260222, 0.15 / 0.148260222])


def test_a_copy_at_one_of_three_levels_keeps_the_root_of_a_third_of_its_score():
    control = np.random.default_rng(0).uniform(0, 0.2, (99, 3))
    one = np.array([[0.9, 0.0, 0.0]])

    calibrated = _calibrated(one, control)

    alone = _calibrated(one[:, :1], control[:, :1])
    assert calibrated.scores == pytest.approx(alone.scores / np.sqrt(3))
    assert calibrated.p_values[0] < 1 / 100
    assert calibrated.level_p_values[0, 1:].tolist() == [1, 1]


def test_where_structures_lead_another_level_counts_up_to_as_much_as_they_do():
    control = np.random.default_rng(0).uniform(0, 0.2, (99, 3))
    location, spread = (
        np.median(control, axis=0),
        1.48260222 * np.median(np.abs(control - np.median(control, axis=0)), axis=0),
    )
    # In standard deviations: structures alone, all others alone, and some of each.
    deviations = np.array([[0.0, 0.0, 6.0], [9.0, 9.0, 0.0], [9.0, 1.0, 2.0]])

    calibrated = _calibrated(location + spread * deviations, control, led=True)

    assert calibrated.scores == pytest.approx([6.0, 0.0, np.sqrt(4 + (4 + 1) / 2)])
    assert calibrated.p_values[1] == 1.0


def test_a_level_counts_by_its_largest_measure():
    control = np.random.default_rng(0).uniform(0, 0.2, (99, 3))
    samples = np.array([[0.9, 0.0, 0.1], [0.0, 0.9, 0.1]])
    rule = Rule(columns=("voxel", "voxel", "segmentation"))

    calibrated = calibrate(samples, control, rule)

    assert rule.levels == ("voxel", "segmentation")
    assert calibrated.level_p_values.shape == (2, 2)
    assert (calibrated.level_p_values[:, 0] < 1 / 100).all()
    assert (calibrated.level_p_values[:, 1] > 0.3).all()


@pytest.mark.parametrize(("lost", "led"), [(0, True), (2, True), (3, False)])
def test_structures_lead_where_that_loses_at_most_one_in_ten_planted_copies(lost, led):
    control = np.random.default_rng(0).uniform(0, 0.2, (99, 2))
    planted = np.full((20, 2), 0.9)
    planted[:lost, 1] = 0.0

    assert choose_rule(planted, control, ("voxel", "segmentation"), kinds=["plain"] * 20).led == led


def test_structures_do_not_lead_where_copies_are_missed_whoever_leads():
    control = np.random.default_rng(0).uniform(0, 0.2, (99, 2))
    planted = np.full((20, 2), 0.9)
    planted[:3] = 0.0

    assert not choose_rule(planted, control, ("voxel", "segmentation"), kinds=["plain"] * 20).led


@pytest.mark.parametrize(("lost", "led"), [(0, True), (1, True), (2, False)])
def test_structures_lead_where_that_loses_at_most_half_of_the_copies_of_every_kind(lost, led):
    control = np.random.default_rng(0).uniform(0, 0.2, (99, 2))
    planted = np.full((30, 2), 0.9)
    planted[:lost, 1] = 0.0

    kinds = ["shift"] * 2 + ["plain"] * 28
    assert choose_rule(planted, control, ("voxel", "segmentation"), kinds=kinds).led == led


@pytest.mark.parametrize(
    ("controls", "by_structures", "led"),
    # The first lies at the 98th percentile of the control; the control of the last two has no p-value below 0.1.
    [(199, 0.197, False), (199, 0.5, True), (9, 0.5, True), (9, 0.0, False)],
)
def test_structures_do_not_lead_where_they_find_copies_only_just(controls, by_structures, led):
    control = np.stack([np.linspace(0, 0.2, controls)] * 2, axis=1)
    planted = np.tile([0.9, by_structures], (20, 1))

    assert choose_rule(planted, control, ("voxel", "segmentation"), kinds=["plain"] * 20).led == led


def test_a_control_that_does_not_vary_does_not_blow_scores_up():
    calibrated = _calibrated(_column(0.505), _column(0.5, 0.5, 0.5))

    assert calibrated.scores == pytest.approx([0.5])


@pytest.mark.parametrize(("levels", "size", "led"), [(1, 9, False), (3, 19, False), (3, 19, True), (3, 40, True)])
def test_p_values_of_exchangeable_samples_are_super_uniform(levels, size, led):
    rng = np.random.default_rng(0)
    repeats = 2500
    p_values = np.empty(repeats)

    for repeat in range(repeats):
        # Correlated levels with heavy tails and unequal scales, which the fusion must not turn into evidence.
        common = rng.standard_t(2, (size + 1, 1))
        bag = np.tanh((common + rng.standard_t(2, (size + 1, levels))) * np.array([1.0, 0.1, 5.0])[:levels])
        p_values[repeat] = _calibrated(bag[:1], bag[1:], led=led).p_values[0]

    for level in (1 / (size + 1), 0.1, 0.2, 0.5):
        four_deviations = 4 * np.sqrt(level * (1 - level) / repeats)
        assert (p_values <= level).mean() <= level + four_deviations


def test_the_smallest_p_value_is_reached_as_often_as_promised():
    rng = np.random.default_rng(1)

    p_values = [
        _calibrated(bag[:1], bag[1:]).p_values[0] for bag in (rng.standard_normal((20, 3)) for _ in range(2500))
    ]

    # Without ties the bound is met, so the test wastes no power: 1/20 of the null samples are the largest of 20.
    assert np.mean(np.array(p_values) <= 1 / 20) == pytest.approx(1 / 20, abs=4 * np.sqrt(0.05 * 0.95 / 2500))


@pytest.mark.parametrize(("size", "extrapolates"), [(19, False), (20, True), (80, True)])
def test_copies_get_the_smallest_conformal_p_value_and_less_where_the_control_has_a_tail(size, extrapolates):
    rng = np.random.default_rng(2)
    control, copies = rng.uniform(-0.1, 0.3, (size, 3)), rng.uniform(0.6, 1.0, (20, 3))

    calibrated = _calibrated(copies, control)

    assert calibrated.extrapolates == extrapolates
    assert ((calibrated.p_values < 1 / (size + 1)) == extrapolates).all()
    assert (calibrated.p_values <= 1 / (size + 1)).all()
    assert (calibrated.p_values > 0).all()
    assert calibrated.scores.min() > calibrated.control_scores.max()


def test_a_control_whose_largest_scores_tie_is_no_obstacle():
    control = np.repeat([[0.1], [0.3]], [20, 10], axis=0)

    calibrated = _calibrated(_column(0.3, 0.9), control)

    assert calibrated.p_values[0] == pytest.approx(11 / 31)
    assert 0 < calibrated.p_values[1] <= 1 / 31


def test_the_order_of_the_control_and_of_the_samples_does_not_matter():
    rng = np.random.default_rng(3)
    samples, control = rng.standard_normal((7, 3)), rng.standard_normal((30, 3))

    calibrated, shuffled = _calibrated(samples, control), _calibrated(samples[::-1], rng.permutation(control))

    np.testing.assert_allclose(shuffled.p_values[::-1], calibrated.p_values)
    np.testing.assert_allclose(shuffled.scores[::-1], calibrated.scores)
    np.testing.assert_allclose(shuffled.level_p_values[::-1], calibrated.level_p_values)


def test_samples_do_not_influence_each_others_p_values():
    rng = np.random.default_rng(4)
    samples, control = rng.standard_normal((7, 3)), rng.standard_normal((30, 3))

    alone = [_calibrated(sample[None], control).p_values[0] for sample in samples]

    np.testing.assert_array_equal(_calibrated(samples, control).p_values, alone)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["sample", "control"])
def test_likeness_that_is_not_finite_is_refused(value, where):
    samples, control = _column(0.1, 0.2), _column(0.1, 0.2)
    (samples if where == "sample" else control)[1] = value

    with pytest.raises(ConfigurationError, match="copy-likeness must be finite"):
        _calibrated(samples, control)


def test_ratings_that_a_threshold_separates_have_full_accuracy():
    calibration = calibrate_on_ratings(np.array([0.1, 0.2, 0.3, 0.8, 0.9]), np.array([False, False, False, True, True]))

    assert (calibration.balanced_accuracy, calibration.out_of_sample_balanced_accuracy) == (1.0, 1.0)
    assert 0.3 < calibration.threshold <= 0.8
    assert (calibration.rated, calibration.replicas) == (5, 2)
    assert (calibration.sensitivity, calibration.specificity) == (estimate_rate(2, 2), estimate_rate(3, 3))
    assert calibration.area_under_roc.value == 1
    assert 0 < calibration.area_under_roc.low < 1


def test_sensitivity_and_specificity_are_those_of_the_best_threshold_and_the_area_needs_none():
    calibration = calibrate_on_ratings(
        np.array([0.1, 0.2, 0.6, 0.3, 0.8, 0.9]), np.array([False, False, False, True, True, True])
    )

    # Above 0.7: two of three replicas, no other. One of nine pairs is ranked the wrong way.
    assert (calibration.sensitivity, calibration.specificity) == (estimate_rate(2, 3), estimate_rate(3, 3))
    assert calibration.balanced_accuracy == pytest.approx((2 / 3 + 1) / 2)
    assert calibration.area_under_roc.value == pytest.approx(8 / 9)


def test_the_accuracy_in_sample_flatters():
    rng = np.random.default_rng(0)
    calibrations = [calibrate_on_ratings(rng.standard_normal(30), np.arange(30) % 2 == 0) for _ in range(20)]

    in_sample = np.mean([calibration.balanced_accuracy for calibration in calibrations])
    out_of_sample = np.mean([calibration.out_of_sample_balanced_accuracy for calibration in calibrations])

    assert in_sample > 0.57
    assert out_of_sample < 0.55


@pytest.mark.parametrize("replicas", [0, 1, 4, 5])
def test_too_few_ratings_of_a_kind_are_refused(replicas):
    with pytest.raises(ConfigurationError, match=rf"got {replicas} and {5 - replicas}\. Rate more pairs"):
        calibrate_on_ratings(np.arange(5.0), np.arange(5) < replicas)


def test_ratings_of_scores_that_are_nan_are_refused():
    with pytest.raises(ConfigurationError, match="scores must not hold NaN, but 1 of 4"):
        calibrate_on_ratings(np.array([0.1, np.nan, 0.3, 0.4]), np.array([True, True, False, False]))
