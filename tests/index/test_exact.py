import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relict_lightning.errors import ConfigurationError, IndexCorruptError, IndexStaleError, InvalidImageError
from relict_lightning.index.exact import ExactIndex
from relict_lightning.index.rows import MemoryRows, Rows
from relict_lightning.index.search import merge_hits, pair_similarity


class CutRows(Rows):
    """Rows in pieces of given sizes, the last one repeated."""

    def __init__(self, values, sizes):
        self.values, self.sizes = values, sizes

    @property
    def shape(self):
        return self.values.shape

    def __getitem__(self, positions):
        return self.values[positions]

    def blocks(self):
        start, sizes = 0, list(self.sizes)
        while start < len(self.values):
            size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
            piece = self.values[start : start + size].view()
            piece.flags.writeable = False
            yield start, piece
            start += size


def _unit(count, dimensions, seed, *, kinds=0):
    """Return unit vectors; with `kinds`, only so many distinct ones and a few that are zero."""
    generator = np.random.default_rng(seed)
    vectors = generator.standard_normal((kinds or count, dimensions)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    if kinds:
        vectors[0] = 0
        vectors = vectors[generator.integers(0, kinds, count)]
    return vectors


def _brute_force(queries, vectors, k, codes=None):
    """Return the same hits, by a full sort of all pairs in double precision."""
    similarity, positions = [], []
    for query in queries:
        values = (
            np.array([(query.astype(np.float64) * vector).sum() for vector in vectors]).astype(np.float32).clip(-1, 1)
        )
        order = np.lexsort((np.arange(len(vectors)), -values)).tolist()
        seen, hits = set(), []
        for position in order:
            code = position if codes is None else codes[position]
            if code not in seen:
                seen.add(code)
                hits.append(position)
        positions.append(hits[:k])
        similarity.append(values[hits[:k]])
    return np.array(similarity, dtype=np.float32), np.array(positions)


def _same(found, expected):
    for left, right in zip(found, expected, strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


sets = st.fixed_dictionaries(
    {
        "m": st.integers(1, 60),
        "n": st.integers(1, 9),
        "d": st.integers(2, 12),
        "kinds": st.sampled_from([0, 2, 5]),
        "seed": st.integers(0, 99),
    }
)


def _drawn(m, n, d, kinds, seed):
    vectors = _unit(m, d, seed, kinds=kinds)
    queries = _unit(n, d, seed + 1)
    # Some queries are stored vectors, and one is zero.
    queries[::3] = vectors[: len(queries[::3])][: len(queries)] if m >= len(queries[::3]) else vectors[0]
    if n > 4:
        queries[4] = 0
    return queries, vectors, np.random.default_rng(seed).integers(0, max(1, m // 3), m)


@settings(max_examples=60)
@given(drawn=sets, k=st.integers(1, 65), grouped=st.booleans())
def test_search_finds_what_a_sort_of_all_pairs_finds(drawn, k, grouped):
    queries, vectors, codes = _drawn(**drawn)
    codes = codes if grouped else None

    found = ExactIndex(MemoryRows(vectors)).search(queries, k, codes=codes)

    _same(found, _brute_force(queries, vectors, k, codes))


@settings(max_examples=40)
@given(drawn=sets, threshold=st.sampled_from([-1.5, -1.0, -0.2, 0.0, 0.3, 0.9, 1.0, 1.1]))
def test_range_search_finds_every_pair_above_the_threshold_in_order(drawn, threshold):
    queries, vectors, _ = _drawn(**drawn)
    similarity, positions = _brute_force(queries, vectors, len(vectors))
    query, rank = np.nonzero(similarity >= threshold)

    found = ExactIndex(MemoryRows(vectors)).range_search(queries, threshold)

    _same(found, (query, positions[query, rank], similarity[query, rank]))


@settings(max_examples=40)
@given(
    drawn=sets, sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4), k=st.integers(1, 8), grouped=st.booleans()
)
def test_the_cut_into_blocks_does_not_matter_to_the_bit(drawn, sizes, k, grouped):
    queries, vectors, codes = _drawn(**drawn)
    codes = codes if grouped else None
    cut, whole = ExactIndex(CutRows(vectors, sizes)), ExactIndex(MemoryRows(vectors))

    _same(cut.search(queries, k, codes=codes), whole.search(queries, k, codes=codes))
    _same(cut.range_search(queries, 0.4), whole.range_search(queries, 0.4))


@settings(max_examples=40)
@given(drawn=sets, k=st.integers(1, 8), share=st.floats(0, 1), grouped=st.booleans())
def test_two_shards_merged_equal_one_index_to_the_bit(drawn, k, share, grouped):
    queries, vectors, codes = _drawn(**drawn)
    half = int(share * len(vectors))
    parts = []
    for begin, end in ((0, half), (half, len(vectors))):
        shard = ExactIndex(MemoryRows(vectors[begin:end]))
        similarity, positions = shard.search(queries, k, codes=codes[begin:end] if grouped else None)
        parts.append((similarity, positions + begin))
    similarity, positions = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))

    merged = merge_hits(similarity, positions, k, codes=codes if grouped else None)

    _same(merged, ExactIndex(MemoryRows(vectors)).search(queries, k, codes=codes if grouped else None))


@settings(max_examples=30)
@given(drawn=sets, k=st.integers(1, 8), offset=st.integers(-5, 5))
def test_the_names_of_groups_do_not_matter(drawn, k, offset):
    queries, vectors, codes = _drawn(**drawn)
    renamed = np.random.default_rng(0).permutation(codes.max() + 1)[codes] * 7 + offset
    index = ExactIndex(MemoryRows(vectors))

    _same(index.search(queries, k, codes=renamed), index.search(queries, k, codes=codes))


@settings(max_examples=20)
@given(drawn=sets, k=st.integers(1, 8))
def test_each_query_is_answered_alone_as_among_others(drawn, k):
    queries, vectors, codes = _drawn(**drawn)
    index = ExactIndex(MemoryRows(vectors))
    similarity, positions = index.search(queries, k, codes=codes)

    for number, query in enumerate(queries):
        _same(index.search(query[None], k, codes=codes), (similarity[[number]], positions[[number]]))


def _large(kind):
    """Return vectors of several blocks that are hard to select from, and queries, two of them far from the others."""
    vectors, queries = _unit(20_000, 32, 0), _unit(6, 32, 1)
    queries[4], queries[5] = vectors[777], 0
    if kind == "sorted by similarity":
        vectors = vectors[np.argsort(vectors @ queries[0])]
    elif kind == "half of one image":
        vectors[1::2] = vectors[777]
    elif kind == "half blank":
        vectors[1::2] = 0
    elif kind == "all of one image":
        vectors[:] = vectors[777]
    elif kind == "a thousand almost equal images":
        vectors[3:15_000:15] = vectors[777] + np.float32(1e-7) * vectors[3:15_000:15]
    return queries, vectors


KINDS = ["random", "sorted by similarity", "half of one image", "half blank", "all of one image"]
KINDS.append("a thousand almost equal images")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group_size", [None, 1, 3, 700])
def test_search_of_many_blocks_finds_what_a_full_sort_finds(kind, group_size):
    queries, vectors = _large(kind)
    codes = None if group_size is None else np.arange(len(vectors)) // group_size
    every = np.arange(len(vectors))

    similarity, positions = ExactIndex(MemoryRows(vectors)).search(queries, 5, codes=codes)

    for number in range(len(queries)):
        values = pair_similarity(queries, vectors, query=np.full(len(vectors), number), vector=every)
        order = np.lexsort((every, -values))
        if codes is not None:
            order = order[np.sort(np.unique(codes[order], return_index=True)[1])]
        np.testing.assert_array_equal(positions[number], order[:5])
        np.testing.assert_array_equal(similarity[number], values[order[:5]])


@pytest.mark.parametrize("kind", KINDS)
def test_search_decides_few_pairs_in_double_precision_whatever_the_vectors_are(kind, monkeypatch):
    queries, vectors = _large(kind)
    pairs = []

    def counted(*arguments, query, **others):
        pairs.append(len(query))
        return pair_similarity(*arguments, query=query, **others)

    monkeypatch.setattr("relict_lightning.index.exact.pair_similarity", counted)
    ExactIndex(MemoryRows(vectors)).search(queries, 5)

    # Of 120,000 pairs. The first 512 columns may all be equal, and six blocks bring a few more each.
    assert sum(pairs) < 12_000


def test_more_queries_than_are_multiplied_at_once_find_their_own_vectors():
    vectors = _unit(1_000, 16, 0)

    similarity, positions = ExactIndex(MemoryRows(vectors)).search(vectors[:301], 1)

    assert positions[:, 0].tolist() == list(range(301))
    np.testing.assert_allclose(similarity, 1, atol=1e-6)


def test_vectors_in_double_precision_and_in_columns_are_taken_as_they_are():
    vectors, queries = _unit(50, 6, 0), _unit(4, 6, 1)
    expected = ExactIndex(MemoryRows(vectors)).search(queries, 3)

    _same(ExactIndex(MemoryRows(np.asfortranarray(vectors))).search(queries.astype(np.float64), 3), expected)


def test_similarity_never_exceeds_one_and_equals_stand_by_position():
    vectors = np.tile(np.array([[0.6, 0.8]], dtype=np.float32) * np.float32(1 + 1e-5), (7, 1))

    similarity, positions = ExactIndex(MemoryRows(vectors)).search(vectors[:1], 3)

    assert similarity.tolist() == [[1.0, 1.0, 1.0]]
    assert positions.tolist() == [[0, 1, 2]]


def test_hits_of_groups_are_the_best_vector_of_each():
    vectors = np.array([[1, 0], [0.8, 0.6], [0.6, 0.8], [0, 1]], dtype=np.float32)
    index = ExactIndex(MemoryRows(vectors))

    similarity, positions = index.search(vectors[:1], 5, codes=np.array([4, 4, 9, 9]))

    assert positions.tolist() == [[0, 2]]
    np.testing.assert_array_equal(similarity, np.float32([[1, 0.6]]))


def test_hits_are_asked_of_the_queries_about_the_vectors():
    vectors = np.array([[1, 0], [0.6, 0.8], [0, 1]], dtype=np.float32)
    queries = np.array([[0, 1], [1, 0]], dtype=np.float32)

    query, position, similarity = ExactIndex(MemoryRows(vectors)).range_search(queries, 0.5)

    assert (query.tolist(), position.tolist()) == ([0, 0, 1, 1], [2, 1, 0, 1])
    np.testing.assert_array_equal(similarity, np.float32([1, 0.8, 1, 0.6]))


def test_no_query_and_no_vector_give_no_hit():
    full, empty = ExactIndex(MemoryRows(_unit(5, 3, 0))), ExactIndex(MemoryRows(_unit(0, 3, 0)))

    assert len(empty) == 0
    assert [part.shape for part in full.search(_unit(0, 3, 0), 2)] == [(0, 2)] * 2
    assert [part.shape for part in full.search(_unit(0, 3, 0), 9, codes=np.array([0, 0, 1, 1, 2]))] == [(0, 3)] * 2
    assert [part.shape for part in empty.search(_unit(4, 3, 0), 2)] == [(4, 0)] * 2
    assert [part.shape for part in empty.range_search(_unit(4, 3, 0), 0.5)] == [(0,)] * 3
    assert [part.shape for part in full.range_search(_unit(0, 3, 0), 0.5)] == [(0,)] * 3


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_queries_that_are_not_finite_are_refused_by_position(value):
    queries = _unit(4, 3, 1)
    queries[2, 1] = value
    index = ExactIndex(MemoryRows(_unit(5, 3, 0)))

    with pytest.raises(InvalidImageError, match=r"those of images \[2\] are not"):
        index.search(queries, 2)
    with pytest.raises(InvalidImageError, match=r"those of images \[2\] are not"):
        index.range_search(queries, 0.5)


@pytest.mark.parametrize("dimensions", [2, 4])
def test_queries_of_another_dimension_are_refused_with_both_numbers(dimensions):
    index = ExactIndex(MemoryRows(_unit(5, 3, 0)))

    with pytest.raises(IndexStaleError, match=f"holds vectors of 3 numbers, but the encoder returned {dimensions} for"):
        index.search(_unit(2, dimensions, 1), 2)


def test_bad_arguments_are_refused_with_their_values():
    index, queries = ExactIndex(MemoryRows(_unit(5, 3, 0))), _unit(2, 3, 1)

    with pytest.raises(ConfigurationError, match="at least 1 hit, but k=0"):
        index.search(queries, 0)
    with pytest.raises(ConfigurationError, match=r"codes of shape \[5\], got \[4\]"):
        index.search(queries, 1, codes=np.zeros(4, dtype=np.int64))
    with pytest.raises(ConfigurationError, match="threshold=nan"):
        index.range_search(queries, float("nan"))
    with pytest.raises(IndexStaleError, match=r"returned \[3\] for"):
        index.search(queries[0], 1)
    with pytest.raises(ConfigurationError, match=r"vectors \[m, d\], but got shape \[2, 3, 4\]"):
        ExactIndex(MemoryRows(np.zeros((2, 3, 4), dtype=np.float32)))


def test_a_vector_that_is_not_finite_hides_no_other_and_is_no_hit():
    vectors, queries = _unit(3_000, 8, 0), _unit(5, 8, 1)
    expected = ExactIndex(MemoryRows(vectors)).search(queries, 3)
    vectors = np.concatenate([vectors, np.full((40, 8), np.nan, dtype=np.float32)])

    _same(ExactIndex(MemoryRows(vectors)).search(queries, 3), expected)


def test_vectors_of_which_some_queries_have_too_few_are_called_corrupt():
    vectors = np.array([[1, 0], [np.inf, 0]], dtype=np.float32)
    queries = np.array([[1, 0], [0, 1]], dtype=np.float32)

    with pytest.raises(IndexCorruptError, match="Some queries have 2 hits, and some only 1"):
        ExactIndex(MemoryRows(vectors)).search(queries, 2)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_search_multiplies_in_full_precision_and_leaves_the_setting_alone(precision):
    vectors, queries = _unit(2_000, 64, 0), _unit(8, 64, 1)
    expected = ExactIndex(MemoryRows(vectors)).search(queries, 4)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = ExactIndex(MemoryRows(vectors)).search(queries, 4)
        after = torch.get_float32_matmul_precision()
    finally:
        torch.set_float32_matmul_precision(before)

    _same(found, expected)
    assert after == precision


def test_search_leaves_threads_and_random_state_alone():
    threads, state = torch.get_num_threads(), torch.get_rng_state()

    ExactIndex(MemoryRows(_unit(5, 3, 0))).search(_unit(2, 3, 1), 2)

    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


@settings(max_examples=30)
@given(d=st.integers(1, 600), p=st.integers(1, 700), seed=st.integers(0, 9))
def test_the_similarity_of_a_pair_does_not_depend_on_the_other_pairs(d, p, seed):
    queries, vectors = _unit(3, d, seed), _unit(20, d, seed + 1)
    generator = np.random.default_rng(seed)
    query, vector = generator.integers(0, 3, p), generator.integers(0, 20, p)

    together = pair_similarity(queries, vectors, query=query, vector=vector)

    for number in generator.integers(0, p, 3):
        alone = pair_similarity(
            queries[query[[number]]].copy(), vectors[vector[[number]]].copy(), query=np.array([0]), vector=np.array([0])
        )
        assert alone[0] == together[number]
