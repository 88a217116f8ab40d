import inspect
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, recall_score
from sklearn.model_selection import LeaveOneGroupOut

from relict_lightning.errors import ConfigurationError, EmptyDataError
from relict_lightning.functional import (
    balanced_accuracy_at_optimal_threshold,
    estimate_rate,
    out_of_sample_balanced_accuracy,
    sensitivity_specificity,
)

PRECISIONS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def vector(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random_ratings(seed: int, *, n: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.rand(n, generator=generator) < 0.5
    labels[:4] = torch.tensor([True, True, False, False])
    # Few distinct values, so that ties between the two ratings occur.
    return torch.randint(0, 6, (n,), generator=generator) / 4 + labels / 2, labels


def structured_ratings() -> tuple[torch.Tensor, torch.Tensor]:
    """Return sixty ratings, which R can make too."""
    # R: y <- ((1:60) * 23) %% 7 < 3; x <- ((1:60) * 37) %% 61 %/% 10 + 2 * y
    ranks = torch.arange(1, 61)
    labels = ranks * 23 % 7 < 3
    return (ranks * 37 % 61 // 10 + 2 * labels).double(), labels


def test_the_optimal_threshold_of_worked_ratings():
    scores, labels = vector([0.1, 0.3, 0.2, 0.9, 0.5]), torch.tensor([False, False, True, True, True])

    # Above 0.4: two of three copies, no other.
    assert balanced_accuracy_at_optimal_threshold(scores, labels) == (pytest.approx((2 / 3 + 1) / 2), 0.4)


@given(seed=st.integers(0, 1000))
@settings(max_examples=40)
def test_no_threshold_does_better_and_no_higher_one_as_well(seed):
    scores, labels = random_ratings(seed)
    accuracy, threshold = balanced_accuracy_at_optimal_threshold(scores, labels)

    levels = scores.unique().tolist()
    candidates = [-math.inf, *((a + b) / 2 for a, b in itertools.pairwise(levels)), math.inf]
    reached = {c: balanced_accuracy_score(labels.numpy(), (scores >= c).numpy()) for c in candidates}

    assert reached[threshold] == pytest.approx(accuracy)
    assert accuracy == pytest.approx(max(reached.values()))
    assert all(value < accuracy - 1e-9 for c, value in reached.items() if c > threshold)


@given(seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_out_of_sample_accuracy_agrees_with_leaving_out_by_hand(seed):
    scores, labels = random_ratings(seed)

    called = []
    for left_out in range(len(scores)):
        others = [i for i in range(len(scores)) if i != left_out]
        _, threshold = balanced_accuracy_at_optimal_threshold(scores[others], labels[others])
        called.append(scores[left_out].item() >= threshold)

    assert out_of_sample_balanced_accuracy(scores, labels) == pytest.approx(
        balanced_accuracy_score(labels.numpy(), called)
    )


def test_out_of_sample_accuracy_does_not_flatter_scores_that_know_nothing():
    generator = torch.Generator().manual_seed(0)
    in_sample, out_of_sample = [], []
    for _ in range(40):
        scores, labels = torch.rand(20, generator=generator), torch.arange(20) < 10
        in_sample.append(balanced_accuracy_at_optimal_threshold(scores, labels)[0])
        out_of_sample.append(out_of_sample_balanced_accuracy(scores, labels))

    assert np.mean(in_sample) > 0.6
    assert np.mean(out_of_sample) < 0.52


def test_scores_that_rank_the_wrong_way_call_nothing():
    scores, labels = vector([0.9, 0.8, 0.2, 0.1]), torch.tensor([False, False, True, True])

    assert balanced_accuracy_at_optimal_threshold(scores, labels) == (0.5, math.inf)


def test_neighbouring_floats_are_told_apart():
    lower = 1.0
    upper = math.nextafter(1.0, 2.0)

    accuracy, threshold = balanced_accuracy_at_optimal_threshold(vector([lower, upper]), torch.tensor([False, True]))

    assert (accuracy, threshold) == (1.0, upper)


def test_ratings_of_one_kind_are_refused():
    with pytest.raises(EmptyDataError, match="3 are rated copies and 0 are not"):
        balanced_accuracy_at_optimal_threshold(torch.rand(3), torch.ones(3) > 0)
    with pytest.raises(EmptyDataError, match=r"at least 2.*1 are rated copies and 2 are not"):
        out_of_sample_balanced_accuracy(torch.rand(3), torch.tensor([True, False, False]))


def test_ratings_that_are_numbers_are_refused():
    with pytest.raises(ConfigurationError, match=r"torch\.int64"):
        inspect.unwrap(balanced_accuracy_at_optimal_threshold)(torch.rand(2), torch.tensor([0, 1]))


def test_sensitivity_and_specificity_of_worked_ratings():
    scores, labels = vector([0.1, 0.5, 0.2, 0.9, 0.5]), torch.tensor([False, False, True, True, True])

    found = sensitivity_specificity(scores, labels, 0.5, confidence=0.9)

    # Two of three copies score 0.5 at least, and one of two others does not.
    assert found.sensitivity == estimate_rate(2, 3, confidence=0.9)
    assert found.specificity == estimate_rate(1, 2, confidence=0.9)
    assert found.balanced_accuracy == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found.threshold == 0.5


def test_sensitivity_specificity_and_the_optimal_threshold_agree_with_r():
    scores, labels = structured_ratings()

    accuracy, threshold = balanced_accuracy_at_optimal_threshold(scores, labels)
    found = sensitivity_specificity(scores, labels, threshold)

    # R 4.2.2 with pROC 1.18: r <- roc(y, x, levels = c(FALSE, TRUE), direction = "<")
    # coords(r, "best", best.method = "youden", ret = c("threshold", "sensitivity", "specificity", "tp", "tn"))
    # binom.test(20, 26)$conf.int; binom.test(23, 34)$conf.int
    assert threshold == 3.5
    assert accuracy == pytest.approx((0.769230769230769 + 0.676470588235294) / 2, abs=1e-14)
    assert found.balanced_accuracy == pytest.approx(accuracy, abs=1e-15)
    for rate, successes, value, low, high in (
        (found.sensitivity, 20, 0.769230769230769, 0.563524903058613, 0.910259889115425),
        (found.specificity, 23, 0.676470588235294, 0.494734699101495, 0.826116572506079),
    ):
        assert rate.successes == successes
        assert (rate.value, rate.low, rate.high) == pytest.approx((value, low, high), abs=1e-12)


@given(seed=st.integers(0, 1000), threshold=st.sampled_from([-math.inf, 0.25, 0.6, 1.0, math.inf]))
@settings(max_examples=40)
def test_sensitivity_and_specificity_agree_with_scikit_learn(seed, threshold):
    scores, labels = random_ratings(seed)
    called = (scores >= threshold).numpy()

    found = sensitivity_specificity(scores, labels, threshold)

    assert found.sensitivity.value == pytest.approx(recall_score(labels.numpy(), called))
    assert found.specificity.value == pytest.approx(recall_score(labels.numpy(), called, pos_label=0))
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels.numpy(), called))


@given(seed=st.integers(0, 1000), low=st.integers(0, 8), raised=st.integers(0, 8))
@settings(max_examples=40)
def test_a_higher_threshold_is_no_more_sensitive_and_no_less_specific(seed, low, raised):
    scores, labels = random_ratings(seed)

    lower, higher = (sensitivity_specificity(scores, labels, each / 4) for each in (low, low + raised))

    assert higher.sensitivity.value <= lower.sensitivity.value
    assert higher.specificity.value >= lower.specificity.value


@given(seed=st.integers(0, 1000))
@settings(max_examples=40)
def test_sensitivity_becomes_specificity_where_scores_and_ratings_are_turned_round(seed):
    scores, labels = random_ratings(seed)

    # No score lies at the threshold.
    found, turned = sensitivity_specificity(scores, labels, 0.6), sensitivity_specificity(-scores, ~labels, -0.6)

    assert (turned.sensitivity, turned.specificity) == (found.specificity, found.sensitivity)
    assert turned.balanced_accuracy == found.balanced_accuracy


def test_a_rating_that_does_not_occur_has_a_rate_that_could_be_anything():
    copies = sensitivity_specificity(vector([0.1, 0.9]), torch.tensor([True, True]), 0.5)
    nothing = sensitivity_specificity(vector([]), torch.zeros(0) > 0, 0.5)

    assert copies.sensitivity.value == 0.5
    for rate in (copies.specificity, nothing.sensitivity, nothing.specificity):
        assert math.isnan(rate.value)
        assert (rate.low, rate.high, rate.trials) == (0, 1, 0)
    assert math.isnan(copies.balanced_accuracy)
    assert math.isnan(nothing.balanced_accuracy)


def test_a_threshold_of_nan_is_refused():
    with pytest.raises(ConfigurationError, match="threshold must be a number, but is NaN"):
        sensitivity_specificity(vector([0.5]), torch.tensor([True]), math.nan)


@pytest.mark.parametrize("dtype", PRECISIONS)
@given(seed=st.integers(0, 1000))
@settings(max_examples=25)
def test_the_optimal_threshold_reaches_its_accuracy_in_the_precision_of_the_scores(dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(30) % 3 == 0
    # So close together that in half precision most are neighbours.
    scores = (1 + (torch.rand(30, generator=generator) + 0.3 * labels) / 100).to(dtype)

    accuracy, threshold = balanced_accuracy_at_optimal_threshold(scores, labels)

    assert sensitivity_specificity(scores, labels, threshold).balanced_accuracy == pytest.approx(accuracy)
    assert sensitivity_specificity(scores.double(), labels, threshold).balanced_accuracy == pytest.approx(accuracy)


@given(seed=st.integers(0, 1000), scale=st.sampled_from([0.25, 1.0, 8.0]), offset=st.integers(-4, 4))
@settings(max_examples=40)
def test_accuracies_depend_on_neither_scale_and_offset_nor_the_order_of_images(seed, scale, offset):
    scores, labels = random_ratings(seed)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    accuracy, threshold = balanced_accuracy_at_optimal_threshold(scores, labels)

    moved, shuffled = (scale * scores + offset)[order], labels[order]

    assert balanced_accuracy_at_optimal_threshold(moved, shuffled) == (accuracy, scale * threshold + offset)
    assert out_of_sample_balanced_accuracy(moved, shuffled) == out_of_sample_balanced_accuracy(scores, labels)


@given(seed=st.integers(0, 1000))
@settings(max_examples=30)
def test_more_noise_between_ranks_never_separates_better(seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(40) < 15
    noise = torch.randn(40, generator=generator, dtype=torch.float64)

    accuracies = [balanced_accuracy_at_optimal_threshold(labels + 0.01 * noise, labels)[0]]
    accuracies += [balanced_accuracy_at_optimal_threshold(labels + 100 * noise, labels)[0]]

    assert accuracies[0] == 1
    assert 0.5 <= accuracies[1] < 1


def test_the_whole_range_of_floats_is_halved_without_overflow():
    scores, labels = vector([-1.7e308, 1.7e308]), torch.tensor([False, True])

    assert balanced_accuracy_at_optimal_threshold(scores, labels) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("scores", "threshold"),
    [([-math.inf, 1.0], 1.0), ([1.0, math.inf], math.inf), ([-math.inf, math.inf], math.inf)],
)
def test_infinite_scores_are_told_apart(scores, threshold):
    labels = torch.tensor([False, True])

    assert balanced_accuracy_at_optimal_threshold(vector(scores), labels) == (1.0, threshold)
    assert sensitivity_specificity(vector(scores), labels, threshold).balanced_accuracy == 1


def test_equal_scores_call_nothing():
    labels = torch.tensor([False, True, True, False])

    assert balanced_accuracy_at_optimal_threshold(torch.ones(4), labels) == (0.5, math.inf)
    # Neither kind is told from the other, so nothing is called: all copies are missed.
    assert out_of_sample_balanced_accuracy(torch.ones(4), labels) == 0.5


def test_zeros_of_either_sign_are_one_score():
    assert balanced_accuracy_at_optimal_threshold(vector([-0.0, 0.0]), torch.tensor([False, True])) == (0.5, math.inf)


@given(seed=st.integers(0, 1000), count=st.integers(3, 5))
@settings(max_examples=30)
def test_leaving_out_groups_agrees_with_the_splits_of_scikit_learn(seed, count):
    scores, labels = random_ratings(seed)
    groups = torch.arange(12) % count * 7 - 3

    called = np.zeros(12, dtype=bool)
    for kept, left_out in LeaveOneGroupOut().split(scores, groups=groups):
        _, threshold = balanced_accuracy_at_optimal_threshold(scores[kept], labels[kept])
        called[left_out] = scores[left_out] >= threshold

    found = out_of_sample_balanced_accuracy(scores, labels, groups=groups)
    assert found == pytest.approx(balanced_accuracy_score(labels.numpy(), called))


@given(seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_groups_of_one_image_each_are_left_out_like_images(seed):
    scores, labels = random_ratings(seed)
    groups = torch.randperm(12, generator=torch.Generator().manual_seed(seed))

    assert out_of_sample_balanced_accuracy(scores, labels, groups=groups) == out_of_sample_balanced_accuracy(
        scores, labels
    )


def test_images_of_one_patient_give_the_threshold_away_unless_they_are_left_out_together():
    generator = torch.Generator().manual_seed(0)
    by_image, by_patient = [], []
    for _ in range(100):
        # Four samples match each of six patients, score nearly alike, and are rated alike: at random.
        patients = torch.arange(24) // 4
        labels = (torch.randperm(6, generator=generator) < 3)[patients]
        scores = torch.rand(6, generator=generator)[patients] + 1e-3 * torch.rand(24, generator=generator)
        by_image.append(out_of_sample_balanced_accuracy(scores, labels))
        by_patient.append(out_of_sample_balanced_accuracy(scores, labels, groups=patients))

    assert np.mean(by_image) > 0.58
    assert np.mean(by_patient) < 0.55


def test_ten_thousand_ratings_reach_nearly_the_accuracy_that_normal_scores_allow():
    generator = torch.Generator().manual_seed(0)
    labels = torch.rand(10_000, generator=generator) < 0.3
    scores = torch.randn(10_000, generator=generator) + labels

    # One standard deviation apart, so half a deviation from the best threshold on either side.
    expected = 0.5 * (1 + math.erf(0.5 / math.sqrt(2)))

    assert out_of_sample_balanced_accuracy(scores, labels) == pytest.approx(expected, abs=0.015)


def test_groups_without_enough_patients_are_refused():
    labels = torch.tensor([True, True, False, False])

    with pytest.raises(EmptyDataError, match="copies come from 1 and others from 2"):
        out_of_sample_balanced_accuracy(torch.rand(4), labels, groups=torch.tensor([0, 0, 1, 2]))
    with pytest.raises(ConfigurationError, match=r"groups and labels must have one shape.*\(3,\)"):
        inspect.unwrap(out_of_sample_balanced_accuracy)(torch.rand(4), labels, groups=torch.arange(3))
    with pytest.raises(ConfigurationError, match=r"groups must be integers, but have dtype torch\.float32"):
        inspect.unwrap(out_of_sample_balanced_accuracy)(torch.rand(4), labels, groups=torch.rand(4))


@pytest.mark.parametrize(
    "judge",
    [
        inspect.unwrap(balanced_accuracy_at_optimal_threshold),
        inspect.unwrap(out_of_sample_balanced_accuracy),
        lambda scores, labels: inspect.unwrap(sensitivity_specificity)(scores, labels, 0.5),
    ],
)
def test_scores_that_do_not_fit_their_ratings_are_refused(judge):
    labels = torch.tensor([True, True, False, False])

    with pytest.raises(ConfigurationError, match=r"scores and labels must have one shape.*\(3,\) and \(4,\)"):
        judge(torch.rand(3), labels)
    with pytest.raises(ConfigurationError, match="scores must not hold NaN, but 1 of 4"):
        judge(torch.tensor([0.1, math.nan, 0.3, 0.4]), labels)
    with pytest.raises(ConfigurationError, match=r"scores must have one axis.*\(2, 2\)"):
        judge(torch.rand(2, 2), labels.reshape(2, 2))
    with pytest.raises(ConfigurationError, match=r"labels must be boolean, but have dtype torch\.float32"):
        judge(torch.rand(4), torch.rand(4))
