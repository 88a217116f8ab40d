import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional import closer_to_training_share, neighbor_ratio_fraction, replica_rate


def test_the_replica_rate_of_worked_scores():
    rate = replica_rate(torch.tensor([0.2, 0.9, 0.95, 0.3]), 0.9)

    assert (rate.successes, rate.trials, rate.value) == (2, 4, 0.5)
    assert (rate.low, rate.high) == pytest.approx((0.0676, 0.9324), abs=1e-4)


@given(scores=st.lists(st.integers(0, 10), max_size=30), threshold=st.integers(0, 10).map(float))
@settings(max_examples=30)
def test_the_replica_rate_falls_with_the_threshold_and_ignores_order(scores, threshold):
    forward, backward = torch.tensor(scores).float(), torch.tensor(scores[::-1]).float()

    assert replica_rate(forward, threshold).successes == sum(score >= threshold for score in scores)
    assert replica_rate(forward, threshold).successes >= replica_rate(forward, threshold + 1).successes
    assert replica_rate(forward, threshold).successes == replica_rate(backward, threshold).successes


def test_the_replica_rate_of_no_samples_is_nan():
    assert math.isnan(replica_rate(torch.zeros(0), 0.5).value)


def test_the_replica_rate_refuses_nan():
    with pytest.raises(ConfigurationError, match="1 of 2 values are NaN"):
        replica_rate(torch.tensor([0.5, math.nan]), 0.5)
    with pytest.raises(ConfigurationError, match="threshold"):
        replica_rate(torch.tensor([0.5]), math.nan)


def test_the_neighbor_ratio_fraction_leaves_out_samples_without_a_ratio():
    assert neighbor_ratio_fraction(torch.tensor([0.1, 0.5, 0.9, math.nan, 0.2])) == 0.5
    assert neighbor_ratio_fraction(torch.tensor([0.5, 0.9]), threshold=0.5) == 0
    assert math.isnan(neighbor_ratio_fraction(torch.tensor([math.nan])))


@given(ratios=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=30), threshold=st.floats(0.01, 1))
@settings(max_examples=30)
def test_the_neighbor_ratio_fraction_agrees_with_numpy(ratios, threshold):
    expected = np.mean(np.array(ratios, dtype=np.float32) < np.float32(threshold))

    assert neighbor_ratio_fraction(torch.tensor(ratios), threshold=threshold) == pytest.approx(expected)


def test_the_neighbor_ratio_fraction_refuses_what_is_no_ratio():
    with pytest.raises(ConfigurationError, match=r"smallest is -0\.5"):
        neighbor_ratio_fraction(torch.tensor([-0.5, 0.1]))
    with pytest.raises(ConfigurationError, match=r"threshold=0\.0"):
        neighbor_ratio_fraction(torch.tensor([0.1]), threshold=0.0)


def test_the_share_closer_to_training_of_worked_distances():
    training, heldout = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([2.0, 2.0, 2.0, 5.0])

    assert closer_to_training_share(training, heldout) == 0.625
    assert closer_to_training_share(heldout, training) == 0.375


@given(pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=20))
@settings(max_examples=30)
def test_the_shares_closer_to_either_set_sum_to_1(pairs):
    training, heldout = torch.tensor(pairs).float().unbind(1)

    total = closer_to_training_share(training, heldout) + closer_to_training_share(heldout, training)

    assert total == pytest.approx(1)
    assert closer_to_training_share(training, training) == 0.5


def test_the_share_closer_to_training_of_no_samples_is_nan():
    assert math.isnan(closer_to_training_share(torch.zeros(0), torch.zeros(0)))


def test_the_share_closer_to_training_needs_both_distances_of_every_sample():
    with pytest.raises(ConfigurationError, match=r"\(2,\) and \(3,\)"):
        inspect.unwrap(closer_to_training_share)(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ConfigurationError, match="heldout_distances"):
        closer_to_training_share(torch.zeros(1), torch.tensor([math.nan]))


@given(data=st.data(), confidence=st.sampled_from([0.8, 0.95, 0.99]))
@settings(max_examples=30)
def test_the_interval_of_the_replica_rate_is_scipys_exact_one(data, confidence):
    is_replica = data.draw(st.lists(st.booleans(), min_size=1, max_size=40))

    rate = replica_rate(torch.tensor(is_replica).float(), 0.5, confidence=confidence)

    exact = stats.binomtest(sum(is_replica), len(is_replica)).proportion_ci(confidence, method="exact")
    assert (rate.low, rate.high) == pytest.approx((exact.low, exact.high), abs=1e-9)


def test_the_interval_of_the_replica_rate_is_that_of_r():
    rate = replica_rate(torch.tensor([0.2, 0.9, 0.95, 0.3]), 0.9)

    # Rscript -e 'cat(binom.test(2, 4)$conf.int)'
    assert (rate.low, rate.high) == pytest.approx((0.06758599, 0.932414), abs=1e-6)


def test_infinite_scores_count_on_their_side_of_the_threshold():
    assert replica_rate(torch.tensor([math.inf, -math.inf, 0.0]), 0.5).successes == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_floating_dtype_gives_the_same_shares(dtype):
    first, second = torch.tensor([0.25, 0.5, 0.75], dtype=dtype), torch.tensor([0.5, 0.5, 0.5], dtype=dtype)

    assert replica_rate(first, 0.5).successes == 2
    assert neighbor_ratio_fraction(first, threshold=0.5) == pytest.approx(1 / 3)
    assert closer_to_training_share(first, second) == 0.5


@given(pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=20))
@settings(max_examples=30)
def test_the_share_closer_to_training_is_half_of_one_minus_the_mean_sign(pairs):
    training, heldout = torch.tensor(pairs).float().unbind(1)

    expected = (1 - np.sign(training.numpy() - heldout.numpy()).mean()) / 2

    assert closer_to_training_share(training, heldout) == pytest.approx(expected)
