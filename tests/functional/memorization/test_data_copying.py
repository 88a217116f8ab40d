import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.neighbors import NearestNeighbors

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional import assign_cells, cell_centers, ct_score, nearest_distances_in_cells


def test_the_ct_score_is_negative_where_samples_lie_closer_to_training():
    copied, unseen = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 3.0])

    # U = 0, with mean 9 / 2 and variance 3 * 3 * 7 / 12.
    assert ct_score(copied, unseen) == pytest.approx(-4.5 / (63 / 12) ** 0.5)
    assert ct_score(unseen, copied) == pytest.approx(4.5 / (63 / 12) ** 0.5)


@given(
    generated=st.lists(st.integers(0, 6), min_size=1, max_size=12),
    heldout=st.lists(st.integers(0, 6), min_size=1, max_size=12),
)
@settings(max_examples=50)
def test_the_ct_score_squared_is_the_kruskal_wallis_statistic(generated, heldout):
    score = ct_score(torch.tensor(generated).float(), torch.tensor(heldout).float())

    if len({*generated, *heldout}) == 1:
        assert score == 0
    else:
        # With two samples the tie-corrected H of Kruskal and Wallis is the squared z-score of Mann and Whitney.
        assert score**2 == pytest.approx(stats.kruskal(generated, heldout).statistic, abs=1e-9)


def test_the_ct_score_agrees_with_scipys_mann_whitney_test():
    generator = torch.Generator().manual_seed(0)
    generated, heldout = torch.rand(40, generator=generator), torch.rand(30, generator=generator) + 0.1

    expected = stats.mannwhitneyu(
        generated.numpy(), heldout.numpy(), alternative="less", use_continuity=False, method="asymptotic"
    ).pvalue

    assert stats.norm.cdf(ct_score(generated, heldout)) == pytest.approx(expected)


def test_the_ct_score_of_nothing_is_nan():
    assert math.isnan(ct_score(torch.zeros(0), torch.ones(3)))
    assert math.isnan(ct_score(torch.ones(3), torch.zeros(0)))


def test_the_ct_score_is_the_z_score_of_r():
    generated, heldout = torch.tensor([0.3, 1.2, 0.7, 0.7, 2.1, 0.2]), torch.tensor([0.7, 1.5, 2.4, 0.9, 1.8])

    # Rscript -e 'x <- c(0.3, 1.2, 0.7, 0.7, 2.1, 0.2); y <- c(0.7, 1.5, 2.4, 0.9, 1.8);
    #   cat(qnorm(wilcox.test(x, y, alternative = "less", exact = FALSE, correct = FALSE)$p.value), "\n")'
    assert ct_score(generated, heldout) == pytest.approx(-1.47405546238, abs=1e-9)


@given(shift=st.floats(0, 2), seed=st.integers(0, 100))
@settings(max_examples=30)
def test_the_ct_score_does_not_fall_as_samples_move_away(shift, seed):
    generator = torch.Generator().manual_seed(seed)
    generated, heldout = torch.rand(12, generator=generator), torch.rand(9, generator=generator)

    # Without ties; these change the variance as well.
    assume(len({*(generated + shift).tolist(), *heldout.tolist()}) == 21)
    assert ct_score(generated + shift, heldout) >= ct_score(generated, heldout) - 1e-12


@pytest.mark.parametrize("scores", [(1.0, 1.0), (0.0, 0.0), (math.inf, math.inf)])
def test_the_ct_score_of_equal_distances_is_0(scores):
    assert ct_score(torch.full((3,), scores[0]), torch.full((1,), scores[1])) == 0


def test_the_ct_score_in_cells_of_worked_distances_is_weighted_by_heldout_images():
    generated, generated_cells = torch.tensor([0.1, 0.2, 0.9, 0.8, 9.0]), torch.tensor([5, 5, 2, 2, 7])
    heldout, heldout_cells = torch.tensor([1.0, 0.1, 0.2, 0.3, 4.0]), torch.tensor([5, 2, 2, 2, 8])

    score = ct_score(generated, heldout, generated_cells=generated_cells, heldout_cells=heldout_cells)

    # Cell 5: U = 0, mean 2 / 2, variance 2 * 4 / 12, and one held-out image. Cell 2: U = 6, mean 6 / 2, variance
    # 6 * 6 / 12, and three of them. Cells 7 and 8 hold only one of the two sets.
    assert score == pytest.approx((1 * -1 / (8 / 12) ** 0.5 + 3 * 3 / 3**0.5) / 4)


def reference_score(generated, heldout, training, cells_of, *, min_share):
    # The statistic of the paper, from embeddings, by scikit-learn and SciPy. Continuous distances have no ties.
    total, weight = 0.0, 0.0
    cells = [cells_of(embeddings) for embeddings in (generated, heldout, training)]
    for cell in np.unique(cells[2]):
        samples, unseen, seen = (
            embeddings[inside == cell] for embeddings, inside in zip((generated, heldout, training), cells, strict=True)
        )
        if len(samples) / len(generated) > min_share and len(unseen):
            search = NearestNeighbors(n_neighbors=1).fit(seen)
            n, m = len(samples), len(unseen)
            u = stats.mannwhitneyu(search.kneighbors(samples)[0][:, 0], search.kneighbors(unseen)[0][:, 0]).statistic
            total += m * (u - n * m / 2) / (n * m * (n + m + 1) / 12) ** 0.5
            weight += m
    return total / weight


@pytest.mark.parametrize("structured", [False, True], ids=["random", "clustered"])
@pytest.mark.parametrize("min_share", [0.0, 0.15])
def test_the_ct_score_in_cells_agrees_with_scikit_learn_and_scipy(structured, min_share):
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(4, 6)) * (5 if structured else 0)
    generated, heldout, training = (
        rng.normal(size=(size, 6)) + centers[rng.choice(4, size, p=[0.1, 0.2, 0.3, 0.4])] for size in (60, 50, 120)
    )
    generated[:20] = training[:20] + 0.01 * rng.normal(size=(20, 6))
    sets = [torch.from_numpy(each) for each in (generated, heldout, training)]
    cells = [assign_cells(each, cell_centers(sets[2], num_cells=4)) for each in sets]

    score = ct_score(
        *(
            nearest_distances_in_cells(each, sets[2], generated_cells=cell, training_cells=cells[2])
            for each, cell in zip(sets[:2], cells[:2], strict=True)
        ),
        generated_cells=cells[0],
        heldout_cells=cells[1],
        min_share=min_share,
    )

    nearest = NearestNeighbors(n_neighbors=1).fit(cell_centers(sets[2], num_cells=4).numpy())
    expected = reference_score(
        generated, heldout, training, lambda each: nearest.kneighbors(each)[1][:, 0], min_share=min_share
    )
    assert score == pytest.approx(expected, abs=1e-9)


def test_copying_and_underfitting_that_cancel_in_one_cell_show_in_two():
    generator = torch.Generator().manual_seed(0)
    # Most patients lie in cell 0, where 40 samples copy them; most samples lie in cell 1, and are poor there.
    copies, poor = 0.2 * torch.rand(40, generator=generator), 0.35 + torch.rand(60, generator=generator)
    near, far = torch.rand(80, generator=generator), torch.rand(20, generator=generator)
    generated, generated_cells = torch.cat([copies, poor]), torch.tensor([0] * 40 + [1] * 60)
    heldout, heldout_cells = torch.cat([near, far]), torch.tensor([0] * 80 + [1] * 20)

    assert abs(ct_score(generated, heldout)) < 1
    assert ct_score(copies, near) < -5
    assert ct_score(poor, far) > 3
    assert ct_score(generated, heldout, generated_cells=generated_cells, heldout_cells=heldout_cells) < -3


@given(seed=st.integers(0, 1000), offset=st.integers(-5, 5), data=st.data())
@settings(max_examples=30)
def test_the_ct_score_in_cells_ignores_the_order_of_images_and_the_names_of_cells(seed, offset, data):
    generator = torch.Generator().manual_seed(seed)
    distances, heldout = torch.rand(12, generator=generator), torch.rand(10, generator=generator)
    cells, heldout_cells = (torch.randint(0, 3, (size,), generator=generator) for size in (12, 10))
    order = torch.tensor(data.draw(st.permutations(range(12))))

    score = ct_score(distances, heldout, generated_cells=cells, heldout_cells=heldout_cells)

    assert score == pytest.approx(
        ct_score(
            distances[order],
            heldout,
            generated_cells=offset - 2 * cells[order],
            heldout_cells=offset - 2 * heldout_cells,
        )
    )


def test_one_cell_for_all_is_no_cells():
    generator = torch.Generator().manual_seed(0)
    generated, heldout = torch.rand(8, generator=generator), torch.rand(5, generator=generator)
    cells = {"generated_cells": torch.full((8,), 3), "heldout_cells": torch.full((5,), 3)}

    assert ct_score(generated, heldout, **cells, min_share=0.99) == ct_score(generated, heldout)


def test_without_copying_the_ct_score_in_cells_is_below_its_quantile_as_often_as_it_should():
    rng = np.random.default_rng(0)
    repeats, cells = 400, torch.arange(4).repeat(25)
    below = 0
    for _ in range(repeats):
        generated, heldout = torch.from_numpy(rng.random((2, 100)))
        score = ct_score(generated, heldout, generated_cells=cells, heldout_cells=cells)
        # Four cells of equal weight, so the standard deviation is a half.
        below += score < stats.norm.ppf(0.05) / 2

    assert stats.binom.ppf(0.001, repeats, 0.05) <= below <= stats.binom.ppf(0.999, repeats, 0.05)


def test_cells_that_are_too_thin_are_left_out():
    generated, heldout = torch.tensor([0.1, 0.2, 0.3, 5.0]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    cells = {"generated_cells": torch.tensor([0, 0, 0, 1]), "heldout_cells": torch.tensor([0, 0, 1, 1])}
    first = ct_score(generated[:3], heldout[:2])

    assert ct_score(generated, heldout, **cells) == pytest.approx((first + 2 / (2 * 4 / 12) ** 0.5 / 2) / 2)
    # Its share must exceed the bound.
    assert ct_score(generated, heldout, **cells, min_share=0.25) == pytest.approx(first)
    assert math.isnan(ct_score(generated, heldout, **cells, min_share=0.75))


def test_cells_without_training_images_are_left_out():
    generated, heldout = torch.tensor([0.1, 0.2, math.inf]), torch.tensor([1.0, 2.0, math.inf])
    cells = {"generated_cells": torch.tensor([0, 0, 1]), "heldout_cells": torch.tensor([0, 0, 1])}

    assert ct_score(generated, heldout, **cells) == ct_score(generated[:2], heldout[:2])


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0), (0, 0), (3, 3)])
def test_where_no_cell_has_both_sets_the_score_is_nan(sizes):
    cells = {"generated_cells": torch.zeros(sizes[0]).long(), "heldout_cells": torch.ones(sizes[1]).long()}

    assert math.isnan(ct_score(torch.rand(sizes[0]), torch.rand(sizes[1]), **cells))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generated_distances": torch.tensor([0.1, math.nan])}, "generated_distances must not hold NaN"),
        ({"heldout_distances": torch.tensor([math.nan, 0.1, 0.1])}, "heldout_distances must not hold NaN"),
        ({"generated_cells": None}, "generated_cells is missing"),
        ({"heldout_cells": None}, "heldout_cells is missing"),
        ({"generated_cells": torch.zeros(3).long()}, "generated_distances and generated_cells must have one shape"),
        ({"heldout_cells": torch.zeros(2).long()}, "heldout_distances and heldout_cells must have one shape"),
        ({"min_share": 1.0}, r"min_share=1\.0"),
        ({"min_share": -0.1}, r"min_share=-0\.1"),
        ({"min_share": math.nan}, "min_share=nan"),
        ({"min_share": 0.1, "generated_cells": None, "heldout_cells": None}, r"min_share=0\.1 tells cells"),
    ],
)
def test_the_ct_score_refuses_what_it_cannot_rank_or_assign(changes, message):
    arguments = {
        "generated_distances": torch.ones(2),
        "heldout_distances": torch.ones(3),
        "generated_cells": torch.zeros(2).long(),
        "heldout_cells": torch.zeros(3).long(),
    } | changes

    with pytest.raises(ConfigurationError, match=message):
        inspect.unwrap(ct_score)(**arguments)
