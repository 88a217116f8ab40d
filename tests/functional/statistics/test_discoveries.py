import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.feature_selection import SelectFdr

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional import benjamini_hochberg, conformal_p_value, simes_p_value

P_VALUES = st.lists(st.integers(0, 20).map(lambda i: i / 20), min_size=1, max_size=12)


def vector(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_discoveries_of_the_example_of_benjamini_and_hochberg():
    # The fifteen p-values of their section 3.2, of which the procedure rejects the four smallest at 0.05.
    p_values = vector(
        [
            0.0001,
            0.0004,
            0.0019,
            0.0095,
            0.0201,
            0.0278,
            0.0298,
            0.0344,
            0.0459,
            0.324,
            0.4262,
            0.5719,
            0.6528,
            0.759,
            1,
        ]
    )

    assert benjamini_hochberg(p_values, fdr=0.05).tolist() == [True] * 4 + [False] * 11


@given(p_values=P_VALUES, fdr=st.sampled_from([0.05, 0.1, 0.25, 0.5]))
@settings(max_examples=80)
def test_discoveries_agree_with_exact_fractions(p_values, fdr):
    exact = [Fraction(round(p * 20), 20) for p in p_values]
    level, n = Fraction(fdr).limit_denominator(100), len(p_values)
    passing = [p for rank, p in enumerate(sorted(exact), start=1) if p <= level * rank / n]
    expected = [bool(passing) and p <= passing[-1] for p in exact]

    assert benjamini_hochberg(vector(p_values), fdr=fdr).tolist() == expected
    assert benjamini_hochberg(vector(p_values).float(), fdr=fdr).tolist() == expected


@given(p_values=P_VALUES, fdr=st.sampled_from([0.05, 0.1, 0.25, 0.5]))
@settings(max_examples=50)
def test_discoveries_are_those_of_scipys_adjusted_p_values(p_values, fdr):
    adjusted = stats.false_discovery_control(p_values)

    assert benjamini_hochberg(vector(p_values), fdr=fdr).tolist() == (adjusted <= fdr + 1e-9).tolist()


@given(p_values=P_VALUES, fdr=st.sampled_from([0.05, 0.1, 0.25, 0.5]))
@settings(max_examples=50)
def test_simes_passes_exactly_where_there_is_a_discovery(p_values, fdr):
    assert (simes_p_value(vector(p_values)) <= fdr + 1e-9) == bool(benjamini_hochberg(vector(p_values), fdr=fdr).any())
    assert simes_p_value(vector(p_values)) == pytest.approx(min(stats.false_discovery_control(p_values)))


def test_nothing_tested_is_nothing_found():
    assert benjamini_hochberg(vector([])).tolist() == []
    assert simes_p_value(vector([])) == 1


@pytest.mark.parametrize("function", [benjamini_hochberg, simes_p_value])
@pytest.mark.parametrize(("p_value", "message"), [(-0.5, r"\[-0.5, 0.5\]"), (1.5, r"\[0.5, 1.5\]"), (math.nan, "NaN")])
def test_p_values_outside_their_range_are_refused(function, p_value, message):
    with pytest.raises(ConfigurationError, match=message):
        function(vector([0.5, p_value]))


@pytest.mark.parametrize("fdr", [0.0, 1.0, 5.0])
def test_an_impossible_fdr_is_refused(fdr):
    with pytest.raises(ConfigurationError, match=f"fdr={fdr}"):
        benjamini_hochberg(vector([0.5]), fdr=fdr)


def test_p_values_that_equal_their_bound_are_discoveries_though_floats_exceed_it():
    # 1/5 * 3 is 0.3 * 2, but not in floats.
    assert benjamini_hochberg(vector([1 / 5, 1 / 5, 1.0]), fdr=0.3).tolist() == [True, True, False]
    assert benjamini_hochberg(vector([1 / 5, 1 / 5, 1.0]).float(), fdr=0.3).tolist() == [True, True, False]


@pytest.mark.parametrize("fdr", [0.02, 0.031, 0.046, 0.2, 0.6])
def test_discoveries_are_those_of_the_adjusted_p_values_of_r(fdr):
    # R 4.2.2: p.adjust(c(0.01, 0.04, 0.03, 0.005, 0.5, 0.03), "BH")
    adjusted = [0.030, 0.048, 0.045, 0.030, 0.500, 0.045]

    found = benjamini_hochberg(vector([0.01, 0.04, 0.03, 0.005, 0.5, 0.03]), fdr=fdr)

    assert found.tolist() == [each <= fdr for each in adjusted]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("kind", ["random", "few small", "many small", "constant", "zero", "one"])
def test_discoveries_are_the_features_that_scikit_learn_selects(seed, kind):
    uniform = torch.rand(50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    p_values = {
        "random": uniform,
        "few small": uniform ** torch.where(torch.arange(50) < 5, 8, 1),
        "many small": uniform**4,
        "constant": torch.full((50,), 0.049, dtype=torch.float64),
        "zero": torch.zeros(50, dtype=torch.float64),
        "one": torch.ones(50, dtype=torch.float64),
    }[kind]

    selector = SelectFdr(lambda features, target: (p_values.numpy(), p_values.numpy()), alpha=0.05)
    selector.fit(np.zeros((2, 50)), np.zeros(2))

    assert benjamini_hochberg(p_values, fdr=0.05).tolist() == selector.get_support().tolist()


@given(p_values=P_VALUES, seed=st.integers(0, 100))
@settings(max_examples=50)
def test_discoveries_move_with_their_p_values(p_values, seed):
    order = torch.randperm(len(p_values), generator=torch.Generator().manual_seed(seed))

    found = benjamini_hochberg(vector(p_values), fdr=0.25)

    assert torch.equal(benjamini_hochberg(vector(p_values)[order], fdr=0.25), found[order])


@given(p_values=P_VALUES, shares=st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=12, max_size=12))
@settings(max_examples=50)
def test_smaller_p_values_and_larger_rates_lose_no_discovery(p_values, shares):
    found = benjamini_hochberg(vector(p_values), fdr=0.25)

    smaller = benjamini_hochberg(vector(p_values) * vector(shares[: len(p_values)]), fdr=0.25)

    assert (smaller >= found).all()
    assert (benjamini_hochberg(vector(p_values), fdr=0.5) >= found).all()


def test_the_expected_share_of_false_discoveries_stays_below_the_rate_for_p_values_that_share_a_control():
    generator = torch.Generator().manual_seed(0)
    false_share = []
    for _ in range(400):
        samples = torch.randn(40, generator=generator) + 4 * (torch.arange(40) < 10)
        found = benjamini_hochberg(conformal_p_value(samples, torch.randn(99, generator=generator)), fdr=0.2)
        false_share.append(float(found[10:].sum()) / max(1, int(found.sum())))

    # 30 of 40 are no copies, so the bound is 0.2 * 30 / 40.
    assert np.mean(false_share) <= 0.15 + 4 * np.std(false_share) / 20
    assert np.mean(false_share) > 0.05
