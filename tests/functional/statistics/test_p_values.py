import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from relict_lightning.errors import ConfigurationError, MissingControlError
from relict_lightning.functional import benjamini_hochberg, conformal_p_value, simes_p_value


def vector(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def ties(seed: int, n: int) -> torch.Tensor:
    return torch.randint(0, 9, (n,), generator=torch.Generator().manual_seed(seed)) / 4


def test_conformal_p_values_of_worked_scores():
    p_values = conformal_p_value(torch.tensor([0.9, 0.5, 0.0]), torch.tensor([0.6, 0.1, 0.5]))

    assert p_values.tolist() == [0.25, 0.75, 1.0]


@given(seed=st.integers(0, 1000), m=st.integers(1, 20))
@settings(max_examples=30)
def test_conformal_p_values_agree_with_counting(seed, m):
    generator = torch.Generator().manual_seed(seed)
    scores, control = (
        torch.randint(0, 5, (6,), generator=generator) / 3,
        torch.randint(0, 5, (m,), generator=generator) / 3,
    )

    expected = [(1 + sum(h >= s for h in control.tolist())) / (1 + m) for s in scores.tolist()]

    assert conformal_p_value(scores, control).tolist() == pytest.approx(expected, abs=1e-15)


@given(values=st.lists(st.integers(0, 5), min_size=2, max_size=12), numerator=st.integers(1, 20))
@settings(max_examples=50)
def test_conformal_p_values_of_exchangeable_scores_are_valid(values, numerator):
    # Each of the values takes its turn as the sample, the others are the control.
    p_values = [
        conformal_p_value(vector([values[i]]), vector(values[:i] + values[i + 1 :])).item() for i in range(len(values))
    ]
    alpha = numerator / 20

    assert np.mean([p <= alpha for p in p_values]) <= alpha + 1e-12


def test_no_scores_give_no_p_values():
    assert conformal_p_value(torch.zeros(0), torch.ones(3)).shape == (0,)


def test_a_p_value_without_a_control_is_refused():
    with pytest.raises(MissingControlError, match="control_scores is empty"):
        conformal_p_value(torch.ones(2), torch.zeros(0))


@pytest.mark.parametrize(("scores", "control"), [([math.nan], [1.0]), ([1.0], [math.nan])])
def test_scores_that_are_nan_are_refused(scores, control):
    with pytest.raises(ConfigurationError, match="1 of 1 values are NaN"):
        conformal_p_value(vector(scores), vector(control))


def test_conformal_p_values_agree_with_r():
    control = (torch.arange(1, 26) * 7 % 11).double()

    # R 4.2.2: control <- ((1:25) * 7) %% 11; scores <- c(10, 4.5, 0, -1, 11)
    # and sapply(scores, function(s) (1 + sum(control >= s)) / (1 + length(control)))
    expected = [0.1538461538461539, 0.5769230769230769, 1.0, 1.0, 0.0384615384615385]

    assert conformal_p_value(vector([10, 4.5, 0, -1, 11]), control).tolist() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("control", ["random", "ties", "constant", "stairs"])
def test_conformal_p_values_agree_with_the_percentiles_of_scipy(control):
    generator = torch.Generator().manual_seed(0)
    values = {
        "random": torch.randn(37, generator=generator, dtype=torch.float64),
        "ties": ties(0, 37).double(),
        "constant": torch.ones(37, dtype=torch.float64),
        "stairs": torch.arange(37).double() / 10,
    }[control]
    scores = torch.cat([values[::3], torch.linspace(-3, 5, 20, dtype=torch.float64)])

    below = np.array([stats.percentileofscore(values.numpy(), score, kind="strict") for score in scores.tolist()])

    assert conformal_p_value(scores, values).numpy() == pytest.approx((1 + 37 * (1 - below / 100)) / 38, abs=1e-12)


@given(seed=st.integers(0, 1000), cut=st.integers(0, 9))
@settings(max_examples=30)
def test_conformal_p_values_depend_on_neither_batches_nor_the_order_of_the_control(seed, cut):
    scores, control = ties(seed, 9), ties(seed + 1, 15)
    shuffled = control[torch.randperm(15, generator=torch.Generator().manual_seed(seed))]

    p_values = conformal_p_value(scores, control)

    split = torch.cat([conformal_p_value(scores[:cut], shuffled), conformal_p_value(scores[cut:], shuffled)])
    assert torch.equal(split, p_values)


@given(seed=st.integers(0, 1000), scale=st.sampled_from([0.25, 1.0, 8.0]), offset=st.integers(-4, 4))
@settings(max_examples=30)
def test_conformal_p_values_depend_on_the_order_of_scores_alone(seed, scale, offset):
    scores, control = ties(seed, 9).double(), ties(seed + 1, 15).double()

    p_values = conformal_p_value(scores, control)

    assert torch.equal(conformal_p_value(scale * scores + offset, scale * control + offset), p_values)
    assert torch.equal(conformal_p_value(scores.exp(), control.exp()), p_values)


@given(seed=st.integers(0, 1000))
@settings(max_examples=30)
def test_a_larger_score_has_no_larger_p_value_and_a_larger_control_score_no_smaller(seed):
    scores, control = ties(seed, 9), ties(seed + 1, 15)

    p_values = conformal_p_value(scores, control)

    assert (conformal_p_value(scores + 0.5, control) <= p_values).all()
    assert (conformal_p_value(scores, control + 0.5) >= p_values).all()
    assert (p_values >= 1 / 16).all()
    assert (p_values <= 1).all()


def test_samples_and_control_are_not_interchangeable():
    low, high = vector([0.1, 0.2, 0.3]), vector([0.8, 0.9, 1.0])

    assert conformal_p_value(high, low).tolist() == [0.25] * 3
    assert conformal_p_value(low, high).tolist() == [1.0] * 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_p_values_are_float64_whatever_the_scores_are(dtype):
    p_values = conformal_p_value(torch.tensor([0.5, 2.0], dtype=dtype), torch.tensor([0.5, 1.0], dtype=dtype))

    assert p_values.dtype == torch.float64
    assert p_values.tolist() == [1.0, 1 / 3]


def test_infinite_scores_have_a_place_in_the_order():
    p_values = conformal_p_value(vector([math.inf, 0.0, -math.inf]), vector([-math.inf, 1.0, math.inf]))

    assert p_values.tolist() == [0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (conformal_p_value, (torch.zeros(2, 2), torch.zeros(3)), r"scores must have one axis.*\(2, 2\)"),
        (conformal_p_value, (torch.zeros(2), torch.zeros(3, 1)), r"control_scores must have one axis.*\(3, 1\)"),
        (conformal_p_value, (torch.tensor(0.5), torch.zeros(3)), r"scores must have one axis.*\(\)"),
        (simes_p_value, (torch.zeros(2, 2),), r"p_values must have one axis.*\(2, 2\)"),
        (benjamini_hochberg, (torch.zeros(2, 2),), r"p_values must have one axis.*\(2, 2\)"),
    ],
)
def test_tables_in_the_place_of_vectors_are_refused(function, arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        inspect.unwrap(function)(*arguments)


def test_the_simes_p_value_of_the_example_of_benjamini_and_hochberg_agrees_with_r():
    p_values = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.324, 0.4262, 0.5719, 0.6528]

    # R 4.2.2: min(p.adjust(c(p_values, 0.759, 1), "BH"))
    assert simes_p_value(vector([*p_values, 0.759, 1])) == pytest.approx(0.0015, abs=1e-15)


@given(p_values=st.lists(st.floats(0, 1), min_size=1, max_size=12), seed=st.integers(0, 100))
@settings(max_examples=50)
def test_the_simes_p_value_lies_between_the_smallest_one_and_that_of_bonferroni_in_any_order(p_values, seed):
    shuffled = vector(p_values)[torch.randperm(len(p_values), generator=torch.Generator().manual_seed(seed))]

    found = simes_p_value(vector(p_values))

    assert simes_p_value(shuffled) == found
    # A product and a quotient by the same number may differ from it in the last digit.
    rounding = 1 + 1e-12
    assert min(p_values) <= found * rounding
    assert found <= min(1.0, len(p_values) * min(p_values)) * rounding


def test_the_simes_p_value_of_uniform_p_values_is_as_large_as_it_says():
    generator = torch.Generator().manual_seed(0)
    found = np.array([simes_p_value(torch.rand(20, generator=generator)) for _ in range(2000)])

    # For independent uniform p-values the test is exact.
    for level in (0.05, 0.2, 0.5):
        assert (found <= level).mean() == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / 2000))
