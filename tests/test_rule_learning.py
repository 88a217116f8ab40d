import dataclasses

import numpy as np
import pytest

from relict_lightning.calibration import Rule, calibrate
from relict_lightning.errors import ConfigurationError
from relict_lightning.rule_learning import learn_rule

COLUMNS = ("voxel", "feature", "segmentation")
RULE = Rule(columns=COLUMNS)


def _samples(rng, count, *, replicas, shown_by=(0.12, 0.12, 0.12), noise=(0.1, 0.1, 0.1)):
    """Likeness of samples, and which are replicas: those are more alike at each level by what it shows."""
    is_replica = np.arange(count) < replicas
    likeness = rng.normal(0, noise, (count, 3)) + is_replica[:, None] * np.array(shown_by)
    return likeness, is_replica


def _learned(samples, control, *, groups=None, rule=RULE, seed=0):
    likeness, is_replica = samples
    groups = np.arange(len(likeness)) if groups is None else groups
    return learn_rule(likeness, control, is_replica=is_replica, groups=groups, rule=rule, seed=seed)


def _one_telling_level(seed=0, count=120):
    """Only the last level tells replicas; of the others samples have much more than held-out images have."""
    rng = np.random.default_rng(seed)
    return _samples(rng, count, replicas=count // 2, shown_by=(0, 0, 0.3), noise=(1.0, 1.0, 0.1))


def _control(size=100):
    return np.random.default_rng(99).normal(0, 0.1, (size, 3))


def test_levels_that_mislead_are_weighed_down_and_the_rule_is_taken():
    learned = _learned(_one_telling_level(), _control())

    assert learned.is_better
    assert learned.rule.weights == tuple(learned.weights[level] for level in COLUMNS)
    assert learned.weights["segmentation"] > 5 * max(learned.weights["voxel"], learned.weights["feature"])
    assert learned.learned_area.value > 0.95 > learned.label_free_area.value + 0.1
    assert learned.gain == pytest.approx(learned.learned_area.value - learned.label_free_area.value)
    assert 0 < learned.gain_low < learned.gain
    assert (learned.rated, learned.replicas) == (120, 60)


def test_what_is_promised_out_of_sample_holds_on_new_samples():
    control = _control()
    learned = _learned(_one_telling_level(), control)
    likeness, is_replica = _one_telling_level(seed=1, count=4000)

    scores = calibrate(likeness, control, learned.rule).scores

    area = (scores[is_replica][:, None] > scores[~is_replica][None]).mean()
    assert area == pytest.approx(learned.learned_area.value, abs=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_ratings_that_know_nothing_change_nothing(seed):
    rng = np.random.default_rng(seed)
    likeness, is_replica = _samples(rng, 80, replicas=40, shown_by=(0, 0, 0))

    learned = _learned((likeness, is_replica), _control())

    assert not learned.is_better
    assert learned.rule == RULE
    assert learned.learned_area.low < 0.5 < learned.learned_area.high


def test_a_rule_that_is_as_good_already_stays():
    samples = _samples(np.random.default_rng(0), 60, replicas=30, shown_by=(2, 2, 2))

    learned = _learned(samples, _control())

    assert learned.label_free_area.value == 1.0
    assert not learned.is_better
    assert learned.rule == RULE


def test_a_rule_is_seldom_taken_by_chance_where_all_levels_tell_alike():
    taken = [
        _learned(_samples(np.random.default_rng(seed), 40, replicas=20), _control(), seed=seed).is_better
        for seed in range(20)
    ]

    # At one-sided 95 % it would be one in 20, were both rules equally good; four standard deviations more.
    assert np.mean(taken) <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 20)


def test_an_earlier_learned_rule_is_not_what_the_next_is_compared_with():
    learned = _learned(_one_telling_level(), _control())

    again = _learned(_one_telling_level(), _control(), rule=learned.rule)

    assert again == learned


def test_samples_that_match_one_patient_are_never_learned_from_and_scored_at_once():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(24), 5)
    # A patient's samples lie close together and far from the others, whatever the rating: learning them by heart would
    # pay, were some of them scored.
    likeness = rng.normal(0, 1, (24, 3))[groups] + rng.normal(0, 0.01, (120, 3))
    is_replica = (np.arange(24) % 2 == 0)[groups]

    learned = _learned((likeness, is_replica), _control(), groups=groups)

    assert not learned.is_better
    assert learned.learned_area.value < 0.75


def test_more_likeness_never_lowers_a_learned_score():
    control = _control()
    rule = _learned(_one_telling_level(), control).rule
    likeness = np.random.default_rng(3).normal(0, 0.5, (50, 3))

    scores, higher = (
        calibrate(values, control, rule).scores for values in (likeness, likeness + np.array([0.2, 0, 0]))
    )

    assert (higher >= scores).all()


def test_p_values_of_a_learned_rule_are_super_uniform():
    rule = _learned(_one_telling_level(), _control()).rule
    rng = np.random.default_rng(0)
    p_values = np.array([calibrate(bag[:1], bag[1:], rule).p_values[0] for bag in rng.standard_t(2, (2000, 20, 3))])

    for level in (1 / 20, 0.1, 0.5):
        assert (p_values <= level).mean() <= level + 4 * np.sqrt(level * (1 - level) / 2000)


@pytest.mark.parametrize("seed", range(5))
def test_where_few_patients_have_most_samples_all_of_them_are_scored_out_of_sample(seed):
    # Four patients with 20 other samples each, and five with 2 copies and 3 others.
    groups = np.concatenate([np.repeat(np.arange(4), 20), np.repeat(np.arange(4, 9), 5)])
    is_replica = np.concatenate([np.zeros(80, dtype=bool), np.tile([True, True, False, False, False], 5)])
    likeness = np.zeros((105, 3))
    likeness[is_replica, 2] = 5.0

    learned = _learned((likeness, is_replica), _control(), groups=groups, seed=seed)

    assert learned.learned_area.value == 1.0


def test_the_same_ratings_teach_the_same_rule():
    first, second = (_learned(_one_telling_level(), _control(), seed=3) for _ in range(2))

    assert dataclasses.asdict(first) == dataclasses.asdict(second)


@pytest.mark.parametrize(
    ("is_replica", "groups", "message"),
    [
        (np.arange(40) < 9, np.arange(40), "got 9 and 31"),
        (np.arange(40) < 31, np.arange(40), "got 31 and 9"),
        (np.arange(40) < 20, np.arange(40) // 10, "got 2 patients rated as replicas"),
        (np.arange(39) < 20, np.arange(40), r"ratings \[39\] of 40 samples"),
        (np.full(40, 0.5), np.arange(40), "True for a replica; got values such as .*0.5"),
        (np.array(["yes", "no"] * 20), np.arange(40), "True for a replica; got values such as .*yes"),
    ],
)
def test_ratings_that_cannot_teach_are_refused(is_replica, groups, message):
    likeness = np.zeros((40, 3))

    with pytest.raises(ConfigurationError, match=message):
        learn_rule(likeness, _control(), is_replica=is_replica, groups=groups, rule=RULE)
