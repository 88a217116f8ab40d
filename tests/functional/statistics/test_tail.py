"""P-values beyond the largest control score."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from relict_lightning.errors import MissingControlError
from relict_lightning.functional import benjamini_hochberg, conformal_p_value, tail_p_value
from relict_lightning.functional.statistics import TAIL_CONTROLS


def test_the_tail_of_a_worked_control() -> None:
    # The ten largest of 20 exceed the eleventh, 9, by 1 ... 10: sum 55, mean 5.5, light-tailed, so shape 1 / 10.
    control = torch.arange(20.0)

    p_value = tail_p_value(torch.tensor([64.0]), control)

    assert p_value.item() == pytest.approx(11 / 21 * (1 + 55 / 55) ** -10)


def test_within_the_control_the_p_value_is_the_conformal_one() -> None:
    generator = torch.Generator().manual_seed(0)
    control, scores = torch.randn(100, generator=generator), torch.randn(50, generator=generator)
    inside = scores[scores <= control.max()]

    assert torch.equal(tail_p_value(inside, control), conformal_p_value(inside, control))


def test_below_twenty_controls_no_tail_is_fitted() -> None:
    control = torch.arange(float(TAIL_CONTROLS - 1))

    assert tail_p_value(torch.tensor([1e9]), control).item() == pytest.approx(1 / TAIL_CONTROLS)


def test_a_control_without_spread_gives_no_tail() -> None:
    assert tail_p_value(torch.tensor([1.0]), torch.zeros(50)).item() == pytest.approx(1 / 51)


def test_an_enormous_score_has_a_p_value_above_zero() -> None:
    assert tail_p_value(torch.tensor([1e300], dtype=torch.float64), torch.arange(200.0)).item() > 0


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 100.0), offset=st.floats(-10.0, 10.0))
def test_the_p_value_does_not_depend_on_scale_and_offset(seed: int, scale: float, offset: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    control = torch.rand(60, generator=generator, dtype=torch.float64)
    scores = torch.linspace(0, 4, 20, dtype=torch.float64)

    moved = tail_p_value(scale * scores + offset, scale * control + offset)

    assert torch.allclose(moved, tail_p_value(scores, control), rtol=1e-6)


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), count=st.integers(2, 300))
def test_a_larger_score_never_has_a_larger_p_value_and_none_exceeds_the_conformal_one(seed: int, count: int) -> None:
    control = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    scores = torch.linspace(-3, 12, 40)

    p_values = tail_p_value(scores, control)

    assert (p_values.diff() <= 0).all()
    assert (p_values <= conformal_p_value(scores, control)).all()


@pytest.mark.parametrize(("name", "bound"), [("normal", 0.05), ("exponential", 0.08), ("uniform", 0.05)])
def test_samples_that_are_new_patients_are_rarely_called_replicas(name: str, bound: float) -> None:
    generator = np.random.default_rng(0)
    draw = {
        "normal": generator.standard_normal,
        "exponential": generator.standard_exponential,
        "uniform": generator.random,
    }[name]

    called = 0
    for _ in range(400):
        p_values = tail_p_value(torch.from_numpy(draw(128)), torch.from_numpy(draw(100)))
        called += bool(benjamini_hochberg(p_values, fdr=0.05).any())

    assert called / 400 <= bound


def test_a_single_copy_among_128_samples_is_found_where_the_conformal_p_value_hides_it() -> None:
    generator = torch.Generator().manual_seed(0)
    control, samples = torch.randn(200, generator=generator), torch.randn(128, generator=generator)
    samples[17] = 15.0

    assert benjamini_hochberg(tail_p_value(samples, control), fdr=0.05).nonzero().flatten().tolist() == [17]
    assert not benjamini_hochberg(conformal_p_value(samples, control), fdr=0.05).any()


def test_nan_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="scores"):
        tail_p_value(torch.tensor([math.nan]), torch.arange(30.0))


@pytest.mark.parametrize(
    ("control", "scores", "expected"),
    [
        # R 4.2.2 with evd: k <- max(10, round(length(c) / 10)); d <- sort(c, decreasing = TRUE); u <- d[k + 1]
        # and e <- d[1:k] - u; xi <- min((1 - mean(e)^2 / var(e)) / 2, 0.5)
        # scale <- if (xi > 1 / k) mean(e) * (1 - xi) else mean(e)
        # (k + 1) / (length(c) + 1) * pgpd(s - u, scale = scale, shape = max(xi, 1 / k), lower.tail = FALSE)
        # c <- exp((1:40) / 3); s <- c(7e5, 2e6)
        (
            (torch.arange(1, 41).double() / 3).exp(),
            [7e5, 2e6],
            [0.012340675267520695, 0.000202680362753518],
        ),
        # c <- exp((1:40) / 1.2); s <- c(1e15, 1e17), a tail of shape 0.35
        ((torch.arange(1, 41).double() / 1.2).exp(), [1e15, 1e17], [2.65598520155998e-04, 6.11058767271492e-10]),
        # c <- (1:200) %% 61 / 10; s <- c(7, 9)
        ((torch.arange(1, 201) % 61).double() / 10, [7.0, 9.0], [1.13055683663883e-03, 1.23916841276414e-05]),
    ],
)
def test_the_tail_agrees_with_r(control: torch.Tensor, scores: list[float], expected: list[float]) -> None:
    found = tail_p_value(torch.tensor(scores, dtype=torch.float64), control)

    assert found.tolist() == pytest.approx(expected, rel=1e-9)


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), count=st.integers(20, 300), heavy=st.booleans())
def test_the_tail_agrees_with_the_pareto_distribution_of_scipy(seed: int, count: int, heavy: bool) -> None:
    generator = np.random.default_rng(seed)
    control = generator.standard_t(1.5, count) if heavy else generator.standard_exponential(count)
    scores = control.max() * np.array([1.01, 1.5, 3.0])

    ranked, k = np.sort(control)[::-1], max(10, round(0.1 * count))
    excesses = ranked[:k] - ranked[k]
    shape = min((1 - excesses.mean() ** 2 / excesses.var(ddof=1)) / 2, 0.5)
    shape, scale = (shape, excesses.mean() * (1 - shape)) if shape > 1 / k else (1 / k, excesses.mean())
    tail = (k + 1) / (count + 1) * stats.genpareto.sf(scores - ranked[k], shape, scale=scale)

    found = tail_p_value(torch.from_numpy(scores), torch.from_numpy(control))
    assert found.numpy() == pytest.approx(np.minimum(tail, 1 / (count + 1)), rel=1e-9)


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), cut=st.integers(0, 12))
def test_the_tail_depends_on_neither_batches_nor_the_order_of_the_control(seed: int, cut: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    control, scores = torch.randn(40, generator=generator), 3 * torch.randn(12, generator=generator)
    shuffled = control[torch.randperm(40, generator=generator)]

    split = torch.cat([tail_p_value(scores[:cut], shuffled), tail_p_value(scores[cut:], shuffled)])

    assert torch.equal(split, tail_p_value(scores, control))


def test_samples_and_the_control_of_a_tail_are_not_interchangeable() -> None:
    low, high = torch.arange(30.0), torch.arange(30.0) + 100

    assert tail_p_value(high, low).amax() < 1 / 31
    assert tail_p_value(low, high).amin() == 1


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_scores_whose_squares_leave_the_range_of_floats_have_the_p_values_of_others(scale: float) -> None:
    control, scores = torch.arange(40.0).double() ** 2, torch.tensor([1700.0, 3000.0]).double()

    found = tail_p_value(scale * scores, scale * control)

    assert found.tolist() == pytest.approx(tail_p_value(scores, control).tolist(), rel=1e-9)


@pytest.mark.parametrize("infinite", [-math.inf, math.inf])
@pytest.mark.parametrize("count", [1, 30])
def test_an_infinite_control_has_no_tail(infinite: float, count: int) -> None:
    control = torch.cat([torch.full((count,), infinite), torch.zeros(31 - count)])
    scores = torch.tensor([-1.0, 0.5, math.inf])

    found = tail_p_value(scores, control)

    assert (found <= conformal_p_value(scores, control)).all()
    assert (found > 0).all()
    if infinite > 0 or count == 30:
        assert torch.equal(found, conformal_p_value(scores, control))


def test_a_control_that_spans_the_whole_range_of_floats_has_no_tail() -> None:
    control = torch.tensor([-1.7e308] * 21 + [1.7e308] * 10, dtype=torch.float64)

    assert tail_p_value(torch.tensor([1.75e308], dtype=torch.float64), control).item() == pytest.approx(1 / 32)


def test_an_infinite_score_has_a_p_value_above_zero() -> None:
    assert 0 < tail_p_value(torch.tensor([math.inf]), torch.arange(30.0)).item() < 1e-300


def test_no_scores_and_no_control_are_told_apart() -> None:
    assert tail_p_value(torch.zeros(0), torch.arange(30.0)).shape == (0,)
    with pytest.raises(MissingControlError, match="control_scores is empty"):
        tail_p_value(torch.zeros(3), torch.zeros(0))
