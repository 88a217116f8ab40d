import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity as sklearn_cosine_similarity

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional import copy_likeness, cosine_similarity, neighbor_ratio

INF = float("inf")


def random_neighbors(seed: int, *, n: int = 6, k: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    distances = (torch.rand(n, k, generator=generator) + 0.01).sort(dim=1).values
    return distances, torch.randint(0, 4, (n, k), generator=generator)


def copy_likeness_in_a_loop(distances: torch.Tensor, groups: torch.Tensor) -> list[float]:
    values = []
    for row, row_groups in zip(distances.tolist(), groups.tolist(), strict=True):
        others = sorted(d for d, g in zip(row, row_groups, strict=True) if g != row_groups[0])[:5]
        values.append(1 - row[0] / np.mean(others) if others else np.nan)
    return values


def test_cosine_of_a_worked_pair():
    assert cosine_similarity(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]])).item() == pytest.approx(0.6)


def test_cosine_agrees_with_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    generated, training = torch.randn(8, 32, generator=generator), torch.randn(8, 32, generator=generator)

    expected = np.diag(sklearn_cosine_similarity(generated.numpy(), training.numpy()))

    np.testing.assert_allclose(cosine_similarity(generated, training), expected, atol=1e-6)


@given(scale=st.floats(1e-25, 1e25), seed=st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_cosine_is_blind_to_length_and_never_leaves_its_range(scale, seed):
    embeddings = torch.randn(4, 16, generator=torch.Generator().manual_seed(seed))

    similarity = cosine_similarity(embeddings * scale, embeddings)

    assert (similarity <= 1).all()
    torch.testing.assert_close(similarity, torch.ones(4))


def test_an_embedding_of_zeros_resembles_nothing():
    assert cosine_similarity(torch.zeros(1, 3), torch.ones(1, 3)).item() == 0
    assert cosine_similarity(torch.zeros(1, 3), torch.zeros(1, 3)).item() == 0


def test_embeddings_that_are_not_finite_are_refused():
    with pytest.raises(ConfigurationError, match="training must be finite, but 1 embeddings"):
        cosine_similarity(torch.ones(2, 3), torch.tensor([[1.0, 1.0, 1.0], [INF, 1.0, 1.0]]))


def test_the_neighbor_ratio_skips_other_scans_of_the_first_patient():
    distances, groups = torch.tensor([[1.0, 1.1, 4.0]]), torch.tensor([[7, 7, 3]])

    assert neighbor_ratio(distances, groups).item() == 0.25
    assert neighbor_ratio(distances, torch.tensor([[7, 3, 3]])).item() == pytest.approx(1 / 1.1)


@given(seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_neighbor_measures_agree_with_a_loop(seed):
    distances, groups = random_neighbors(seed)

    expected = []
    for row, row_groups in zip(distances.tolist(), groups.tolist(), strict=True):
        others = [d for d, g in zip(row, row_groups, strict=True) if g != row_groups[0]]
        expected.append(row[0] / others[0] if others else np.nan)

    np.testing.assert_allclose(neighbor_ratio(distances, groups), expected, rtol=1e-5)
    np.testing.assert_allclose(
        copy_likeness(distances, groups), copy_likeness_in_a_loop(distances, groups), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("measure", [neighbor_ratio, copy_likeness])
@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_neighbor_measures_are_scale_free_and_bounded(measure, scale, seed):
    distances, groups = random_neighbors(seed)

    value = measure(distances, groups)

    torch.testing.assert_close(measure(distances * scale, groups), value, equal_nan=True, atol=1e-5, rtol=1e-5)
    assert (value.isnan() | ((value >= 0) & (value <= 1))).all()


@pytest.mark.parametrize("measure", [neighbor_ratio, copy_likeness])
def test_a_missing_neighbor_changes_nothing(measure):
    distances, groups = random_neighbors(3)
    padded_distances = torch.cat([distances, torch.full((6, 2), INF)], dim=1)
    padded_groups = torch.cat([groups, torch.full((6, 2), -1)], dim=1)

    torch.testing.assert_close(measure(padded_distances, padded_groups), measure(distances, groups), equal_nan=True)


@pytest.mark.parametrize("measure", [neighbor_ratio, copy_likeness])
@pytest.mark.parametrize("distances", [torch.tensor([[0.5, 0.6]]), torch.tensor([[0.5, INF]]), torch.tensor([[0.5]])])
def test_neighbor_measures_are_nan_without_another_group(measure, distances):
    assert measure(distances, torch.zeros(distances.shape, dtype=torch.long)).isnan().all()


def test_an_exact_copy_has_ratio_0_and_likeness_1():
    distances, groups = torch.tensor([[0.0, 2.0, 3.0]]), torch.tensor([[0, 1, 2]])

    assert neighbor_ratio(distances, groups).item() == 0
    assert copy_likeness(distances, groups).item() == 1


def test_a_sample_that_lies_on_two_patients_at_once_stands_out_from_neither():
    distances, groups = torch.zeros(1, 3), torch.tensor([[0, 1, 2]])

    assert neighbor_ratio(distances, groups).item() == 1
    assert copy_likeness(distances, groups).item() == 0


def test_copy_likeness_uses_the_five_nearest_of_other_groups():
    distances = torch.tensor([[1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 2.0, 100.0]])
    groups = torch.tensor([[0, 0, 1, 2, 3, 4, 5, 6]])

    assert copy_likeness(distances, groups).item() == 0.5


def test_copy_likeness_is_negative_where_the_neighbor_in_question_is_the_farther():
    distances, groups = torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([[0, 1, 2]])

    assert copy_likeness(distances, groups).item() == -1


@pytest.mark.parametrize(
    ("distances", "message"),
    [
        (torch.tensor([[2.0, 1.0]]), "1 of 1 rows"),
        (torch.tensor([[-1.0, 1.0]]), "smallest is -1"),
        (torch.tensor([[torch.nan, 1.0]]), "1 of 2 values are NaN"),
        (torch.tensor([[INF, INF]]), "infinite first distance"),
    ],
)
def test_distances_that_make_no_sense_are_refused(distances, message):
    with pytest.raises(ConfigurationError, match=message):
        neighbor_ratio(distances, torch.tensor([[0, 1]]))


def test_distances_without_their_groups_are_refused():
    with pytest.raises(ConfigurationError, match=r"\(1, 2\) and \(1, 3\)"):
        inspect.unwrap(copy_likeness)(torch.ones(1, 2), torch.zeros(1, 3, dtype=torch.long))
