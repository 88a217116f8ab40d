import inspect
import itertools
import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional import attainable_memorization_p_value, leaning_rate, memorization_p_value


@st.composite
def splits(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    total = draw(st.integers(2, 7))
    training = draw(st.integers(1, total))
    n = draw(st.integers(0, 8))
    # Coarse weights tie often, which is where an off-by-one in a tail shows.
    weights = draw(st.lists(st.integers(0, 4).map(lambda i: i / 4) | st.floats(0, 1), min_size=n, max_size=n))
    groups = draw(st.lists(st.integers(0, total - 1), min_size=n, max_size=n))
    return torch.tensor(weights, dtype=torch.float64), torch.tensor(groups, dtype=torch.long), training, total


def statistic(weights: torch.Tensor, groups: torch.Tensor, training: tuple[int, ...]) -> int:
    largest = max(weights.tolist(), default=1.0) or 1.0
    return sum(
        round(weight / largest * 255)
        for weight, group in zip(weights.tolist(), groups.tolist(), strict=True)
        if group in training
    )


def p_value_of(weights: torch.Tensor, groups: torch.Tensor, training: tuple[int, ...], total: int) -> float:
    is_training = torch.tensor([group in training for group in groups.tolist()], dtype=torch.bool)
    return memorization_p_value(
        weights, groups, training_groups=len(training), total_groups=total, is_training=is_training
    )


def test_three_hits_on_two_training_patients_of_ten_are_counted_by_hand():
    groups, is_training = torch.tensor([4, 4, 7]), torch.ones(3) > 0

    # Both patients are among the five training patients with probability 5/10 * 4/9.
    p_value = memorization_p_value(torch.ones(3), groups, training_groups=5, total_groups=10, is_training=is_training)

    assert p_value == pytest.approx(5 / 10 * 4 / 9)


@given(split=splits(), data=st.data())
@settings(max_examples=60)
def test_the_p_value_is_the_share_of_all_splits_that_are_as_extreme(split, data):
    weights, groups, training, total = split
    every_split = list(itertools.combinations(range(total), training))
    observed = data.draw(st.sampled_from(every_split))

    sums = [statistic(weights, groups, other) for other in every_split]
    expected = np.mean([value >= statistic(weights, groups, observed) for value in sums])

    assert p_value_of(weights, groups, observed, total) == pytest.approx(expected, rel=1e-9)


@given(split=splits())
@settings(max_examples=40)
def test_under_the_null_the_p_value_is_valid_at_every_level(split):
    weights, groups, training, total = split
    p_values = np.array([p_value_of(weights, groups, s, total) for s in itertools.combinations(range(total), training)])

    for level in np.unique(p_values):
        assert (p_values <= level * (1 + 1e-9)).mean() <= level * (1 + 1e-9)


@given(split=splits())
@settings(max_examples=40)
def test_the_attainable_p_value_is_the_smallest_over_all_splits(split):
    weights, groups, training, total = split
    smallest = min(p_value_of(weights, groups, s, total) for s in itertools.combinations(range(total), training))

    attainable = attainable_memorization_p_value(weights, groups, training_groups=training, total_groups=total)

    assert attainable == pytest.approx(smallest, rel=1e-9)


def test_the_attainable_p_value_is_a_product_over_the_patients_hit():
    weights, groups = torch.ones(5), torch.tensor([3, 1, 4, 1, 5])

    attainable = attainable_memorization_p_value(weights, groups, training_groups=90, total_groups=100)

    assert attainable == pytest.approx(90 / 100 * 89 / 99 * 88 / 98 * 87 / 97)


@given(seed=st.integers(0, 1000))
@settings(max_examples=15)
def test_with_one_weight_and_one_hit_each_the_test_is_fishers(seed):
    rng = np.random.default_rng(seed)
    total, training, n = 300, 180, 40
    groups = torch.tensor(rng.choice(total, n, replace=False))
    is_training = groups < training

    p_value = memorization_p_value(
        torch.ones(n), groups, training_groups=training, total_groups=total, is_training=is_training
    )

    expected = stats.hypergeom.sf(int(is_training.sum()) - 1, total, training, n)
    assert p_value == pytest.approx(expected, rel=1e-9)


def test_tiny_p_values_keep_their_precision():
    groups = torch.arange(60)

    p_value = memorization_p_value(
        torch.ones(60), groups, training_groups=100, total_groups=1000, is_training=torch.ones(60) > 0
    )

    assert p_value == pytest.approx(math.comb(940, 40) / math.comb(1000, 100), rel=1e-9)
    assert p_value < 1e-60


@pytest.mark.parametrize("collapsed", [False, True])
def test_models_that_memorize_nothing_are_called_at_the_level_at_most(collapsed):
    rng = np.random.default_rng(0)
    total, training, n, repeats = 60, 40, 32, 300
    rejections = 0
    for _ in range(repeats):
        # A collapsed generator hits few patients, and a blurred one hits some far more often than others.
        hits = rng.choice(total, n, p=rng.dirichlet(np.full(total, 0.05 if collapsed else 1.0)))
        split = tuple(rng.choice(total, training, replace=False).tolist())
        weights = torch.tensor(rng.beta(0.5, 2, n))
        rejections += p_value_of(weights, torch.tensor(hits), split, total) <= 0.05

    # Under a true level of 0.05 more than this happens once in a thousand runs.
    assert rejections <= stats.binom.ppf(0.999, repeats, 0.05)


def test_copies_are_seen_through_the_weights():
    rng = np.random.default_rng(0)
    copies, others = rng.choice(50, 6, replace=False), rng.choice(100, 58)
    groups = torch.tensor(np.concatenate([copies, others]))
    likeness = torch.cat([torch.full((6,), 0.95), torch.full((58,), 0.05)])

    weighted, unweighted = (
        memorization_p_value(w, groups, training_groups=50, total_groups=100, is_training=groups < 50)
        for w in (likeness, torch.ones(64))
    )

    assert weighted < 0.05 < unweighted


@given(split=splits(), offset=st.integers(-1000, 1000), data=st.data())
@settings(max_examples=25)
def test_the_p_value_ignores_the_order_of_samples_and_the_names_of_patients(split, offset, data):
    weights, groups, training, total = split
    order = torch.tensor(data.draw(st.permutations(range(len(weights)))), dtype=torch.long)
    is_training = groups < training
    counts = {"training_groups": training, "total_groups": total}

    assert memorization_p_value(weights, groups, is_training=is_training, **counts) == memorization_p_value(
        weights[order], groups[order] * 3 + offset, is_training=is_training[order], **counts
    )


@pytest.mark.parametrize("n", [0, 5])
def test_without_weight_there_is_no_evidence(n):
    groups, is_training = torch.arange(n), torch.ones(n) > 0
    counts = {"training_groups": 8, "total_groups": 10}

    assert memorization_p_value(torch.zeros(n), groups, is_training=is_training, **counts) == 1
    assert attainable_memorization_p_value(torch.zeros(n), groups, **counts) == 1


def test_without_heldout_patients_there_is_no_evidence():
    assert memorization_p_value(
        torch.ones(3), torch.arange(3), training_groups=10, total_groups=10, is_training=torch.ones(3) > 0
    ) == pytest.approx(1)


def test_many_samples_are_coarser_and_still_a_permutation_test():
    rng = np.random.default_rng(0)
    n, total, training = 512, 2000, 1000
    groups = torch.tensor(rng.choice(total, n, replace=False))
    weights = torch.tensor(rng.random(n))
    is_training = groups < training

    started = time.perf_counter()
    p_value = memorization_p_value(
        weights, groups, training_groups=training, total_groups=total, is_training=is_training
    )
    seconds = time.perf_counter() - started

    # 29 steps between 0 and the largest are left, and a normal approximation holds for so many patients.
    quantized = np.rint(weights.numpy() / float(weights.max()) * 29)
    observed = quantized[is_training.numpy()].sum()
    population = np.zeros(total)
    population[groups.numpy()] = quantized
    deviation = (population.var() * training * (total - training) / (total - 1)) ** 0.5
    assert p_value == pytest.approx(
        stats.norm.sf((observed - 0.5 - training * population.mean()) / deviation), abs=0.005
    )
    assert seconds < 5


def test_a_patient_on_both_sides_of_the_split_is_refused():
    with pytest.raises(ConfigurationError, match="such as group 7"):
        memorization_p_value(
            torch.ones(2),
            torch.tensor([7, 7]),
            training_groups=5,
            total_groups=10,
            is_training=torch.tensor([True, False]),
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": torch.tensor([0.5, 1.5])}, r"\[0.5, 1.5\]"),
        ({"weights": torch.tensor([0.5, math.nan])}, "weights must not hold NaN"),
        ({"weights": torch.ones(3)}, r"\(3,\) and \(2,\)"),
        ({"is_training": torch.ones(3) > 0}, r"\(2,\) and \(3,\)"),
        ({"training_groups": 0}, "training_groups=0"),
        ({"training_groups": 11}, "training_groups=11"),
        ({"training_groups": 1, "total_groups": 1}, "2 groups, but total_groups=1"),
        ({"training_groups": 1, "total_groups": 3}, "1 training groups, but the neighbours belong to 2"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(changes, message):
    arguments = {
        "weights": torch.ones(2),
        "neighbor_groups": torch.tensor([1, 2]),
        "training_groups": 5,
        "total_groups": 10,
        "is_training": torch.ones(2) > 0,
    }

    with pytest.raises(ConfigurationError, match=message):
        inspect.unwrap(memorization_p_value)(**(arguments | changes))


@pytest.mark.parametrize("weight", [1.0, 0.03, 1e-6])
def test_the_unit_of_the_weights_does_not_matter_however_many_samples_there_are(weight):
    # 500 samples leave 16 steps only. Of 60 patients, half of them trained on, all 30 neighbours are training patients.
    groups = torch.arange(500) % 30

    p_value = memorization_p_value(
        torch.full((500,), weight), groups, training_groups=30, total_groups=60,
        is_training=torch.ones(500, dtype=torch.bool),
    )  # fmt: skip

    assert p_value == pytest.approx(1 / math.comb(60, 30))


def test_two_views_of_a_sample_count_as_one_sum():
    # Two samples, each of which is nearest to patient 4 in one view and to patient 7 in the other.
    groups, is_training = torch.tensor([4, 7, 7, 4]), torch.ones(4) > 0

    p_value = memorization_p_value(torch.ones(4), groups, training_groups=5, total_groups=10, is_training=is_training)

    assert p_value == pytest.approx(5 / 10 * 4 / 9)


def test_many_samples_of_small_weights_keep_their_differences():
    # One sample alone has the full weight. Of 1,000 others, those of the training patients weigh a hundredth, those of
    # the held-out ones a two-hundredth: rounded to whole multiples of the largest, nothing would be left of either.
    groups = torch.arange(1001) % 100
    is_training = groups < 50
    weights = torch.where(is_training, 0.01, 0.005).double()
    weights[0] = 1.0

    p_value = memorization_p_value(weights, groups, training_groups=50, total_groups=100, is_training=is_training)

    assert p_value < 1e-6


@pytest.mark.parametrize(
    ("towards_training", "towards_heldout", "training", "total", "leaning"),
    [
        pytest.param(9, 0, 5, 10, 9, id="nobody leans by chance"),
        pytest.param(9, 4, 5, 10, 5, id="as many of either"),
        pytest.param(9, 4, 8, 10, 0, id="chance prefers the larger set"),
        pytest.param(9, 4, 2, 10, 8, id="one of four"),
        pytest.param(9, 5, 2, 10, 8, id="little more than one, rounded"),
        pytest.param(9, 7, 2, 10, 7, id="little less than two, rounded"),
        pytest.param(9, 2, 2, 10, 8, id="half of one, rounded to leave less"),
        pytest.param(9, 0, 10, 10, 0, id="nothing tells chance"),
        pytest.param(0, 0, 5, 10, 0, id="nobody"),
    ],
)
def test_of_samples_that_lean_chance_is_taken_off(towards_training, towards_heldout, training, total, leaning):
    is_training = torch.tensor([True] * towards_training + [False] * towards_heldout + [True, False])
    is_copylike = torch.tensor([True] * (towards_training + towards_heldout) + [False, False])

    rate = leaning_rate(is_copylike, is_training, training_groups=training, total_groups=total)

    assert (rate.successes, rate.trials) == (leaning, len(is_training))


@given(seed=st.integers(0, 999), n=st.integers(1, 200), training=st.integers(1, 9))
@settings(max_examples=30)
def test_the_rate_never_falls_where_a_sample_leans_towards_training_instead(seed, n, training):
    generator = torch.Generator().manual_seed(seed)
    is_copylike, is_training = torch.rand((2, n), generator=generator) < 0.5
    moved = is_training.clone()
    moved[int(torch.randint(n, (1,), generator=generator))] = True
    counts = {"training_groups": training, "total_groups": 10}

    rate, after = (leaning_rate(is_copylike, labels, **counts).successes for labels in (is_training, moved))

    assert 0 <= rate <= after <= int((is_copylike & moved).sum())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_training": torch.ones(2) > 0}, "is_copylike and is_training"),
        ({"training_groups": 0}, "training_groups=0"),
        ({"training_groups": 11}, "training_groups=11 and total_groups=10"),
    ],
)
def test_the_rate_refuses_what_cannot_be(changes, message):
    arguments = {"is_copylike": torch.ones(3) > 0, "is_training": torch.ones(3) > 0}
    with pytest.raises(ConfigurationError, match=message):
        inspect.unwrap(leaning_rate)(**({**arguments, "training_groups": 5, "total_groups": 10} | changes))
