import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relict_lightning.errors import IndexStaleError, InvalidImageError
from relict_lightning.index import FlatIndex


def _unit(count, dimensions, seed):
    vectors = np.random.default_rng(seed).standard_normal((count, dimensions)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@settings(max_examples=30, deadline=None)
@given(m=st.integers(1, 40), n=st.integers(1, 8), k=st.integers(1, 45), d=st.integers(2, 12), seed=st.integers(0, 99))
def test_search_finds_what_the_whole_matrix_product_finds(m, n, k, d, seed):
    vectors, queries = _unit(m, d, seed), _unit(n, d, seed + 1)
    product = queries.astype(np.float64) @ vectors.T.astype(np.float64)

    similarity, positions = FlatIndex.from_vectors(vectors).search(queries, k)

    assert similarity.shape == positions.shape == (n, min(k, m))
    np.testing.assert_allclose(similarity, -np.sort(-product, axis=1)[:, :k], atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(product, positions, axis=1), similarity, atol=1e-5)


def test_no_position_points_outside_when_more_hits_are_asked_for_than_there_are():
    _, positions = FlatIndex.from_vectors(_unit(3, 4, 0)).search(_unit(2, 4, 1), 10)

    assert sorted(positions[0].tolist()) == sorted(positions[1].tolist()) == [0, 1, 2]


def test_similarity_never_exceeds_one():
    vectors = _unit(500, 3, 0) * np.float32(1 + 1e-6)

    similarity, _ = FlatIndex.from_vectors(vectors).search(vectors, 1)

    assert similarity.max() == 1.0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_queries_that_are_not_finite_are_refused_by_position(value):
    queries = _unit(4, 3, 1)
    queries[2, 1] = value

    with pytest.raises(InvalidImageError, match=r"those of images \[2\] are not"):
        FlatIndex.from_vectors(_unit(5, 3, 0)).search(queries, 2)


def test_search_leaves_the_number_of_threads_alone():
    threads = torch.get_num_threads()

    FlatIndex.from_vectors(_unit(5, 3, 0)).search(_unit(2, 3, 1), 2)

    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("dimensions", [2, 4])
def test_queries_of_another_dimension_are_refused_with_both_numbers(dimensions):
    index = FlatIndex.from_vectors(_unit(5, 3, 0))

    with pytest.raises(IndexStaleError, match=f"holds vectors of 3 numbers, but the encoder returned {dimensions} for"):
        index.search(_unit(2, dimensions, 1), 2)
