"""P-values beyond the largest control score."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 100.0), offset=st.floats(-10.0, 10.0))
def test_the_p_value_does_not_depend_on_scale_and_offset(seed: int, scale: float, offset: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    control = torch.rand(60, generator=generator, dtype=torch.float64)
    scores = torch.linspace(0, 4, 20, dtype=torch.float64)

    moved = tail_p_value(scale * scores + offset, scale * control + offset)

    assert torch.allclose(moved, tail_p_value(scores, control), rtol=1e-6)


@settings(max_examples=25, deadline=None)
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
