import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from relict_lightning.errors import ConfigurationError, EmptyDataError
from relict_lightning.functional import area_under_roc
from relict_lightning.results import RocAreaEstimate


def vector(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def ratings(copies: int, others: int) -> torch.Tensor:
    return torch.arange(copies + others) < copies


def bounds(estimate: RocAreaEstimate) -> tuple[float, float, float]:
    return estimate.low, estimate.value, estimate.high


def random_ratings(seed: int, *, n: int = 30, levels: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.rand(n, generator=generator) < 0.4
    labels[:4] = torch.tensor([True, True, False, False])
    # Float64, because scikit-learn and SciPy compute in the precision of the scores.
    return torch.randint(0, levels, (n,), generator=generator).double() / 4 + labels / 2, labels


def test_the_area_of_worked_ratings_counts_pairs_and_half_of_the_ties():
    # Of two copies and three others: 0.8 beats all three, 0.5 beats one and ties with one.
    found = area_under_roc(vector([0.8, 0.5, 0.5, 0.2, 0.7]), ratings(2, 3))

    assert found.value == (3 + 1.5) / 6
    # The shares of the others below the copies are 1 and 1/2, of the copies above the others 3/4, 1 and 1/2, with
    # variances 1/8 and 1/16.
    deviation = math.sqrt(1 / 8 / 2 + 1 / 16 / 3)
    assert found.low == pytest.approx(0.75 - 1.959963984540054 * deviation)
    assert found.high == 1


STRUCTURED = torch.arange(1, 61)
# R: y <- ((1:60) * 23) %% 7 < 3; for the thousand, y <- ((1:1000) * 7) %% 10 < 3
STRUCTURED_LABELS = STRUCTURED * 23 % 7 < 3
THOUSAND = torch.arange(1, 1001)
THOUSAND_LABELS = THOUSAND * 7 % 10 < 3
THOUSAND_SCORES = (THOUSAND * 619 % 1009) / torch.tensor(100.0).double() + 1.5 * THOUSAND_LABELS


@pytest.mark.parametrize(
    ("scores", "labels", "confidence", "expected"),
    [
        # R 4.2.2 with pROC 1.18, printed with 15 digits:
        # ci.auc(roc(y, x, levels = c(FALSE, TRUE), direction = "<"), method = "delong", conf.level = confidence)
        # x <- c(0.9, 0.8, 0.8, 0.7, 0.55, 0.6, 0.4, 0.8, 0.3, 0.6, 0.2, 0.1, 0.5, 0.05); y <- 1:14 <= 7
        *(
            (
                vector([0.9, 0.8, 0.8, 0.7, 0.55, 0.6, 0.4, 0.8, 0.3, 0.6, 0.2, 0.1, 0.5, 0.05]),
                ratings(7, 7),
                confidence,
                expected,
            )
            for confidence, expected in (
                (0.95, (0.596462387523702, 0.826530612244898, 1.0)),
                (0.8, (0.676097085966247, 0.826530612244898, 0.976964138523549)),
            )
        ),
        # x <- ((1:60) * 37) %% 61 / 10
        (
            (STRUCTURED * 37 % 61).double() / 10,
            STRUCTURED_LABELS,
            0.95,
            (0.410636247625154, 0.558823529411765, 0.707010811198375),
        ),
        # x <- ((1:60) * 37) %% 61 %/% 10 + 2 * y
        (
            (STRUCTURED * 37 % 61 // 10 + 2 * STRUCTURED_LABELS).double(),
            STRUCTURED_LABELS,
            0.95,
            (0.721397660878468, 0.822398190045249, 0.923398719212030),
        ),
        # x <- ((1:1000) * 619) %% 1009 / 100 + 1.5 * y, and the same x with !y
        (THOUSAND_SCORES, THOUSAND_LABELS, 0.99, (0.589192751241287, 0.637876190476190, 0.686559629711094)),
        (THOUSAND_SCORES, ~THOUSAND_LABELS, 0.99, (0.313440370288906, 0.362123809523810, 0.410807248758713)),
    ],
)
def test_the_area_and_its_interval_agree_with_proc(scores, labels, confidence, expected):
    assert bounds(area_under_roc(scores, labels, confidence=confidence)) == pytest.approx(expected, abs=1e-12)


@given(seed=st.integers(0, 1000), levels=st.sampled_from([2, 9, 1000]))
@settings(max_examples=50)
def test_the_area_agrees_with_scikit_learn_and_the_statistic_of_mann_and_whitney(seed, levels):
    scores, labels = random_ratings(seed, levels=levels)

    found = area_under_roc(scores, labels).value

    assert found == pytest.approx(roc_auc_score(labels.numpy(), scores.numpy()), abs=1e-12)
    wins = stats.mannwhitneyu(scores[labels].numpy(), scores[~labels].numpy(), method="asymptotic").statistic
    assert found == pytest.approx(wins / int(labels.sum()) / int((~labels).sum()), abs=1e-12)


@given(seed=st.integers(0, 1000), levels=st.sampled_from([3, 9, 1000]))
@settings(max_examples=50)
def test_the_interval_is_that_of_comparing_every_copy_with_every_other(seed, levels):
    scores, labels = random_ratings(seed, levels=levels)
    copies, others = scores[labels].numpy()[:, None], scores[~labels].numpy()

    wins = (copies > others) + 0.5 * (copies == others)
    variance = wins.mean(axis=1).var(ddof=1) / wins.shape[0] + wins.mean(axis=0).var(ddof=1) / wins.shape[1]
    found = area_under_roc(scores, labels, confidence=0.9)

    margin = stats.norm.ppf(0.95) * math.sqrt(variance)
    if variance > 0:
        assert bounds(found) == pytest.approx(
            (max(0, wins.mean() - margin), wins.mean(), min(1, wins.mean() + margin)), abs=1e-12
        )


@pytest.mark.parametrize(
    ("copies", "others", "lower_of_separated", "lower_of_equal"),
    [
        # R 4.2.2: N <- (m + n) / 2 - 1; V <- function(a) a * (1 - a) * (1 + N * (1 - a) / (2 - a) + N * a / (1 + a))
        # z <- qnorm(0.975); uniroot(function(a) 1 - a - z * sqrt(V(a) / (m * n)), c(0, 0.999), tol = 1e-14)$root
        # uniroot(function(a) 0.5 - a - z * sqrt(V(a) / (m * n)), c(0, 0.5), tol = 1e-14)$root
        (5, 5, 0.642702823931043, 0.205613057289471),
        (10, 40, 0.875069715597871, 0.315048631359673),
    ],
)
def test_separated_and_equal_scores_have_the_interval_of_newcombe(copies, others, lower_of_separated, lower_of_equal):
    labels = ratings(copies, others)
    scores = torch.arange(copies + others).flip(0).double()

    assert bounds(area_under_roc(scores, labels)) == pytest.approx((lower_of_separated, 1, 1), abs=1e-9)
    assert bounds(area_under_roc(-scores, labels)) == pytest.approx((0, 0, 1 - lower_of_separated), abs=1e-9)
    equal = area_under_roc(torch.ones(copies + others), labels)
    assert bounds(equal) == pytest.approx((lower_of_equal, 0.5, 1 - lower_of_equal), abs=1e-9)


def test_a_single_copy_has_the_interval_of_newcombe():
    # R as above with m = 1, n = 4, and function(a) a - 0.75 - z * sqrt(V(a) / (m * n)) for the upper bound.
    expected = (0.203497511246768, 0.75, 0.970677458379179)
    scores = vector([0.5, 0.1, 0.2, 0.3, 0.9])

    assert bounds(area_under_roc(scores, ratings(1, 4))) == pytest.approx(expected, abs=1e-9)
    assert bounds(area_under_roc(-scores, ~ratings(1, 4))) == pytest.approx(expected, abs=1e-9)


@given(copies=st.integers(1, 60), others=st.integers(1, 60), confidence=st.sampled_from([0.5, 0.95, 0.9999]))
@settings(max_examples=40)
def test_the_lower_bound_of_separated_scores_is_below_1_and_rises_with_ratings(copies, others, confidence):
    low = area_under_roc(ratings(copies, others).double(), ratings(copies, others), confidence=confidence).low

    more = area_under_roc(
        ratings(copies + 1, others + 1).double(), ratings(copies + 1, others + 1), confidence=confidence
    )

    assert 0 < low < more.low < 1


@given(seed=st.integers(0, 1000))
@settings(max_examples=40)
def test_the_area_of_ratings_turned_round_is_the_rest(seed):
    scores, labels = random_ratings(seed)
    low, value, high = bounds(area_under_roc(scores, labels))

    assert bounds(area_under_roc(scores, ~labels)) == pytest.approx((1 - high, 1 - value, 1 - low), abs=1e-12)
    assert bounds(area_under_roc(-scores, ~labels)) == pytest.approx((low, value, high), abs=1e-12)


@given(seed=st.integers(0, 1000))
@settings(max_examples=40)
def test_the_area_depends_on_the_order_of_scores_alone(seed):
    scores, labels = random_ratings(seed)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))

    found = area_under_roc(scores, labels)

    assert area_under_roc(scores[order], labels[order]) == found
    assert area_under_roc(scores.exp() * 3 - 7, labels) == found
    assert area_under_roc(scores.half(), labels) == found


@given(seed=st.integers(0, 1000))
@settings(max_examples=40)
def test_the_interval_holds_the_area_widens_with_confidence_and_narrows_with_ratings(seed):
    scores, labels = random_ratings(seed, n=20)
    found = area_under_roc(scores, labels, confidence=0.8)

    surer = area_under_roc(scores, labels, confidence=0.99)
    more = area_under_roc(scores.repeat(4), labels.repeat(4), confidence=0.8)

    assert 0 <= surer.low <= found.low <= found.value <= found.high <= surer.high <= 1
    assert more.value == pytest.approx(found.value)
    assert more.high - more.low < found.high - found.low


@given(seed=st.integers(0, 1000))
@settings(max_examples=30)
def test_more_of_the_same_noise_never_raises_the_area(seed):
    labels = ratings(10, 20)
    noise = torch.randn(30, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    areas = [area_under_roc(labels + size * noise, labels).value for size in (0, 0.5, 1, 2, 4)]

    assert areas[0] == 1
    assert areas == sorted(areas, reverse=True)


def test_scores_that_know_nothing_have_an_interval_that_holds_one_half_as_often_as_promised():
    generator = torch.Generator().manual_seed(0)
    labels = ratings(20, 30)

    intervals = [area_under_roc(torch.rand(50, generator=generator), labels) for _ in range(500)]

    covered = np.mean([each.low <= 0.5 <= each.high for each in intervals])
    assert covered == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 500))


def test_infinite_scores_have_a_place_in_the_order_of_the_curve():
    assert area_under_roc(vector([math.inf, 0.0, 0.5, -math.inf]), ratings(2, 2)).value == 0.75


def test_the_area_is_printed_with_its_interval():
    found = area_under_roc(vector([0.8, 0.4, 0.7, 0.1, 0.4, 0.3]), ratings(3, 3), confidence=0.9)

    assert str(found) == f"0.944 [{found.low:.3f}, 1.000]"
    assert found.confidence == 0.9


@pytest.mark.parametrize(
    ("scores", "labels", "confidence", "error", "message"),
    [
        (torch.rand(3), ratings(3, 0), 0.95, EmptyDataError, "3 are rated copies and 0 are not"),
        (torch.rand(0), ratings(0, 0), 0.95, EmptyDataError, "0 are rated copies and 0 are not"),
        (torch.rand(3), ratings(1, 1), 0.95, ConfigurationError, r"scores and labels must have one shape"),
        (
            torch.tensor([0.1, math.nan]),
            ratings(1, 1),
            0.95,
            ConfigurationError,
            "scores must not hold NaN, but 1 of 2",
        ),
        (torch.rand(2), torch.tensor([0, 1]), 0.95, ConfigurationError, r"labels must be boolean.*torch\.int64"),
        (torch.rand(2, 2), ratings(2, 2).reshape(2, 2), 0.95, ConfigurationError, r"scores must have one axis"),
        (torch.rand(2), ratings(1, 1), 1.0, ConfigurationError, r"confidence=1\.0"),
        (torch.rand(2), ratings(1, 1), math.nan, ConfigurationError, "confidence=nan"),
    ],
)
def test_ratings_without_an_area_are_refused(scores, labels, confidence, error, message):
    with pytest.raises(error, match=message):
        inspect.unwrap(area_under_roc)(scores, labels, confidence=confidence)
