from dataclasses import asdict, replace

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relict_lightning.errors import (
    CacheWriteError,
    ConfigurationError,
    IndexCorruptError,
    InvalidImageError,
    RelictWarning,
)
from relict_lightning.index.approximate import ApproximateIndex, SearchReport, choose_kind
from relict_lightning.index.exact import ExactIndex
from relict_lightning.index.rows import MemoryRows, Rows
from relict_lightning.index.search import pair_similarity

KINDS = ["flat", "ivf_flat", "ivf_pq"]


class CountedRows(Rows):
    """Rows in pieces, which say how many were read at once, in pieces and by position."""

    def __init__(self, values, size):
        self.values, self.size = values, size
        self.passes, self.most_taken = 0, 0

    @property
    def shape(self):
        return self.values.shape

    def __getitem__(self, positions):
        self.most_taken = max(self.most_taken, len(positions))
        return self.values[positions]

    def blocks(self):
        self.passes += 1
        for start in range(0, len(self.values), self.size):
            piece = self.values[start : start + self.size].view()
            piece.flags.writeable = False
            yield start, piece


def _unit(count, dimensions, seed):
    vectors = np.random.default_rng(seed).standard_normal((count, dimensions)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _clusters(count, dimensions, *, clusters, seed):
    """Return unit vectors around some centres."""
    centers = _unit(clusters, dimensions, seed)
    of_center = np.random.default_rng(seed).integers(0, clusters, count)
    vectors = centers[of_center] + 0.7 * _unit(count, dimensions, seed + 1)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _copies(vectors, positions, seed):
    """Return vectors at a similarity of about 0.9 to stored ones."""
    copies = 0.9 * vectors[positions] + 0.436 * _unit(len(positions), vectors.shape[1], seed)
    return copies / np.linalg.norm(copies, axis=1, keepdims=True)


def _same(found, expected):
    for left, right in zip(found, expected, strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


@pytest.fixture(scope="module")
def vectors():
    return _clusters(6_000, 16, clusters=40, seed=0).astype(np.float32)


@pytest.fixture(scope="module")
def built(vectors):
    return {kind: ApproximateIndex.build(MemoryRows(vectors), kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_planted_copies_are_found_as_often_as_the_report_says(kind, built, vectors):
    positions = np.arange(0, 6_000, 10)
    queries = _copies(vectors, positions, seed=5)
    nearest = ExactIndex(MemoryRows(vectors)).search(queries, 1)[0]

    found = (built[kind].search(queries, 1)[0] == nearest).mean()

    assert built[kind].report.recall >= 0.99
    assert found >= built[kind].report.recall - 0.02


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grouped", [False, True])
def test_every_hit_has_the_similarity_of_its_pair_to_the_bit_and_hits_are_in_order(kind, grouped, built, vectors):
    queries = _unit(20, 16, 3)
    codes = np.arange(6_000) % 900 if grouped else None

    similarity, positions = built[kind].search(queries, 7, codes=codes)

    expected = pair_similarity(queries, vectors, query=np.repeat(np.arange(20), 7), vector=positions.ravel())
    np.testing.assert_array_equal(similarity.ravel(), expected)
    assert (similarity.dtype, positions.dtype) == (np.float32, np.int64)
    assert (np.diff(similarity, axis=1) <= 0).all()
    for row in positions:
        assert len(set(row if codes is None else codes[row])) == 7


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("grouped", [False, True])
def test_where_faiss_holds_everything_the_hits_are_those_of_exact_search(k, grouped, built, vectors):
    queries = np.concatenate([_unit(20, 16, 3), vectors[:5]])
    codes = np.random.default_rng(0).integers(0, 700, 6_000) if grouped else None

    found = built["flat"].search(queries, k, codes=codes)

    _same(found, ExactIndex(MemoryRows(vectors)).search(queries, k, codes=codes))


@settings(max_examples=40)
@given(
    m=st.integers(1, 90),
    d=st.integers(1, 7),
    k=st.integers(1, 95),
    groups=st.sampled_from([0, 1, 3, 40]),
    kind=st.sampled_from(["flat", "ivf_flat"]),
    seed=st.integers(0, 99),
)
def test_each_query_gets_as_many_hits_as_exact_search_gives_and_no_position_twice(m, d, k, groups, kind, seed):
    rows = MemoryRows(_unit(m, d, seed))
    queries = _unit(4, d, seed + 1)
    queries[0] = 0
    codes = np.random.default_rng(seed).integers(0, groups, m) if groups else None

    similarity, positions = ApproximateIndex.build(rows, kind).search(queries, k, codes=codes)

    assert positions.shape == ExactIndex(rows).search(queries, k, codes=codes)[1].shape
    assert ((positions >= 0) & (positions < m)).all()
    assert np.isfinite(similarity).all()
    assert all(len(set(row)) == len(row) for row in positions)


@pytest.mark.parametrize("kind", KINDS)
def test_more_candidates_are_asked_for_until_they_lie_in_enough_groups(kind):
    # Of 6,400 vectors, the 300 nearest to each query are of one patient, and the others of their own.
    vectors = _unit(6_400, 16, 0)
    query = vectors[:1].copy()
    crowd = query + 0.05 * _unit(300, 16, 1)
    vectors[100:400] = crowd / np.linalg.norm(crowd, axis=1, keepdims=True)
    codes = np.arange(6_400)
    codes[100:400] = codes[0]
    index = ApproximateIndex.build(MemoryRows(vectors), kind)
    asked = _asked_for(index)
    exactly = _exact_passes(index)

    found = index.search(query, 2, codes=codes)

    assert asked[:3] == [40, 80, 160]
    assert codes[found[1][0]].tolist() == [0, ExactIndex(MemoryRows(vectors)).search(query, 2, codes=codes)[1][0, 1]]
    # More than an eighth of all vectors is never asked for.
    assert max(asked) <= 800
    assert len(exactly) <= 1


def test_queries_whose_candidates_run_out_are_searched_exactly_and_only_they(vectors):
    # One list is looked through, and that of the first query holds 3 vectors.
    lonely = np.zeros((3, 17), dtype=np.float32)
    lonely[:, 16] = 1
    rows = MemoryRows(np.concatenate([lonely, np.pad(vectors, ((0, 0), (0, 1)))]))
    index = ApproximateIndex.build(rows, "ivf_flat", target_recall=0.1)
    exactly = _exact_passes(index)
    queries = rows.values[[0, 50, 60]]

    found = index.search(queries, 5)

    assert index.report.probes == 1
    assert [len(rows) for rows in exactly] == [1]
    _same([found[0][:1], found[1][:1]], ExactIndex(rows).search(queries[:1], 5))


def test_fewer_groups_than_hits_wanted_need_no_exact_search():
    vectors = _unit(6_000, 16, 0)
    index = ApproximateIndex.build(MemoryRows(vectors), "flat")
    exactly = _exact_passes(index)

    similarity, positions = index.search(vectors[:4], 9, codes=np.arange(6_000) % 3)

    assert similarity.shape == positions.shape == (4, 3)
    assert exactly == []


def test_equal_vectors_by_the_thousand_give_as_many_hits_as_asked_for():
    vectors = np.repeat(_unit(3, 8, 0), 400, axis=0)
    index = ApproximateIndex.build(MemoryRows(vectors), "ivf_pq")

    similarity, positions = index.search(vectors[[0, 500]], 4, codes=np.arange(1_200) // 400)

    assert positions.shape == (2, 3)
    np.testing.assert_allclose(similarity[:, 0], 1, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_range_search_is_exact(kind, built, vectors):
    queries = _copies(vectors, np.arange(10), seed=1)

    found = built[kind].range_search(queries, 0.8)

    assert len(found[0]) > 10
    _same(found, ExactIndex(MemoryRows(vectors)).range_search(queries, 0.8))


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_that_are_nan_are_never_hits(kind):
    vectors = _unit(600, 8, 0)
    vectors[10:40] = np.nan
    index = ApproximateIndex.build(MemoryRows(vectors), kind)

    similarity, positions = index.search(_unit(9, 8, 1), 570)

    assert len(index) == 600
    assert np.isfinite(similarity).all()
    assert not ((positions >= 10) & (positions < 40)).any()


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_that_is_read_finds_what_the_one_written_finds(kind, built, vectors, tmp_path):
    queries = _unit(20, 16, 3)
    path = tmp_path / "index.faiss"

    built[kind].write(path)
    read = ApproximateIndex.read(path, MemoryRows(vectors), SearchReport(**asdict(built[kind].report)))

    assert read.report == built[kind].report
    _same(read.search(queries, 5), built[kind].search(queries, 5))


def test_a_file_of_other_vectors_is_rejected(built, vectors, tmp_path):
    path, report = tmp_path / "index.faiss", built["ivf_pq"].report
    built["ivf_pq"].write(path)

    with pytest.raises(IndexCorruptError, match=r"holds 6000 vectors of 16 numbers.* but 5999 of 16"):
        ApproximateIndex.read(path, MemoryRows(vectors[1:]), report)
    with pytest.raises(IndexCorruptError, match="but 6000 of 15"):
        ApproximateIndex.read(path, MemoryRows(vectors[:, 1:]), report)
    with pytest.raises(IndexCorruptError, match=f"{report.lists} lists .* in 7 lists"):
        ApproximateIndex.read(path, MemoryRows(vectors), replace(report, lists=7))


def test_an_index_by_distance_is_rejected(vectors):
    by_distance = faiss.IndexFlatL2(16)
    by_distance.add(vectors)
    report = SearchReport(kind="flat", lists=0, probes=0, code_bytes=64, recall=1.0, sampled=0)

    with pytest.raises(IndexCorruptError):
        ApproximateIndex(MemoryRows(vectors), by_distance, report)


def test_a_file_that_is_missing_or_cut_is_rejected(built, vectors, tmp_path):
    path, report = tmp_path / "index.faiss", built["ivf_pq"].report
    with pytest.raises(IndexCorruptError, match="cannot be read"):
        ApproximateIndex.read(path, MemoryRows(vectors), report)
    built["ivf_pq"].write(path)
    path.write_bytes(path.read_bytes()[:5_000])

    with pytest.raises(IndexCorruptError, match="cannot be read"):
        ApproximateIndex.read(path, MemoryRows(vectors), report)


def test_a_folder_that_is_missing_is_an_error_of_the_cache(built, tmp_path):
    with pytest.raises(CacheWriteError, match="cannot be written"):
        built["flat"].write(tmp_path / "missing" / "index.faiss")


def test_vectors_are_read_in_blocks_and_trained_on_in_a_bounded_sample():
    rows = CountedRows(_clusters(17_000, 8, clusters=100, seed=0).astype(np.float32), 3_000)

    index = ApproximateIndex.build(rows, "ivf_pq")

    # To add the vectors, and to know the hits that recall is measured against.
    assert rows.passes == 2
    assert rows.most_taken == 2**14
    assert index.report.code_bytes == 8


def test_the_cut_into_blocks_does_not_matter(vectors):
    cut = ApproximateIndex.build(CountedRows(vectors, 1_100), "ivf_flat", seed=3)
    whole = ApproximateIndex.build(MemoryRows(vectors), "ivf_flat", seed=3)

    assert cut.report == whole.report
    _same(cut.search(_unit(5, 16, 1), 5), whole.search(_unit(5, 16, 1), 5))


def test_more_lists_are_looked_through_where_the_target_asks_for_it(vectors):
    reports = [
        ApproximateIndex.build(MemoryRows(_unit(6_000, 16, 0)), "ivf_flat", target_recall=target).report
        for target in (0.1, 0.9, 1.0)
    ]

    assert [report.sampled for report in reports] == [128] * 3
    assert reports[0].probes < reports[1].probes <= reports[2].probes <= reports[2].lists
    assert reports[0].recall < reports[1].recall <= reports[2].recall
    assert reports[1].recall >= 0.9


def test_a_target_that_cannot_be_met_is_told():
    # Two bytes do not tell 20,000 vectors on a circle apart: many are nearly as similar to a query as the nearest one.
    angle = np.random.default_rng(0).uniform(0, 2 * np.pi, 20_000)
    vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)

    with pytest.warns(RelictWarning, match=r"of 128 planted copies, and not of 100.0%"):
        index = ApproximateIndex.build(MemoryRows(vectors), "ivf_pq", target_recall=1.0)

    assert index.report.probes == index.report.lists
    assert index.report.recall < 1.0


@pytest.mark.parametrize(
    ("d", "size"), [(1, 1), (5, 5), (37, 37), (48, 48), (64, 32), (128, 32), (160, 40), (202, 101)]
)
def test_a_compressed_vector_takes_a_sixteenth_and_more_where_it_is_short_or_its_length_has_few_divisors(d, size):
    index = ApproximateIndex.build(MemoryRows(_unit(256, d, 0)), "ivf_pq", target_recall=0.01)

    assert index.report.code_bytes == size


def test_vectors_too_few_to_train_with_are_rejected():
    with pytest.raises(ConfigurationError, match=r"'ivf_pq' is trained on at least 256 vectors, but 255 of 255"):
        ApproximateIndex.build(MemoryRows(_unit(255, 8, 0)), "ivf_pq")
    with pytest.raises(ConfigurationError, match=r"at least 1 vectors, but 0 of 0"):
        ApproximateIndex.build(MemoryRows(_unit(0, 8, 0)), "ivf_flat")


@pytest.mark.parametrize(("kind", "count"), [("flat", 0), ("flat", 1), ("ivf_flat", 1), ("ivf_flat", 40)])
def test_small_sets_are_searched_too(kind, count):
    rows = MemoryRows(_unit(count, 8, 0))

    _same(ApproximateIndex.build(rows, kind).search(rows.values[:3], 1), ExactIndex(rows).search(rows.values[:3], 1))


def test_training_on_few_vectors_writes_nothing_to_the_terminal(capfd):
    ApproximateIndex.build(MemoryRows(_unit(300, 8, 0)), "ivf_pq")

    assert capfd.readouterr() == ("", "")


def test_arguments_out_of_range_are_rejected():
    rows = MemoryRows(_unit(300, 8, 0))

    for target in (0.0, 1.1, float("nan")):
        with pytest.raises(ConfigurationError, match="target_recall is a share"):
            ApproximateIndex.build(rows, "flat", target_recall=target)
    with pytest.raises(ConfigurationError, match=r"shape \[3\]"):
        ApproximateIndex.build(MemoryRows(np.ones(3, np.float32)), "flat")
    with pytest.raises(InvalidImageError):
        ApproximateIndex.build(rows, "flat").search(np.full((1, 8), np.nan), 1)


def test_vectors_are_compressed_only_where_they_do_not_fit_and_are_enough():
    assert choose_kind(1_000, 512, memory_bytes=4 * 1_000 * 512) == "exact"
    assert choose_kind(1_000, 512, memory_bytes=4 * 1_000 * 512 - 1) == "ivf_pq"
    assert choose_kind(256, 512, memory_bytes=0) == "ivf_pq"
    assert choose_kind(255, 512, memory_bytes=0) == "exact"


def test_building_and_searching_leave_threads_and_random_states_alone():
    threads, at_faiss, state = torch.get_num_threads(), faiss.omp_get_max_threads(), torch.get_rng_state()
    drawn = np.random.get_state()[1].copy()  # noqa: NPY002 - the global state is what must not change

    ApproximateIndex.build(MemoryRows(_unit(300, 8, 0)), "ivf_pq").search(_unit(2, 8, 1), 2)

    assert (torch.get_num_threads(), faiss.omp_get_max_threads()) == (threads, at_faiss)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], drawn)  # noqa: NPY002


def _asked_for(index):
    """Return a list that gets how many candidates each later search of an index asks FAISS for."""
    asked, proposer = [], index._proposer

    class Counting:
        def search(self, queries, count):
            asked.append(count)
            return proposer.search(queries, count)

    index._proposer = Counting()
    return asked


def _exact_passes(index):
    """Return a list that gets the queries of each later exact search that an index falls back on."""
    passes, exact = [], index._exact

    class Counting:
        def search(self, queries, k, *, codes=None):
            passes.append(queries)
            return exact.search(queries, k, codes=codes)

    index._exact = Counting()
    return passes
