import numpy as np
import pytest

from relict_lightning.errors import ConfigurationError, IndexCorruptError
from relict_lightning.index.approximate import ApproximateIndex, choose_kind
from relict_lightning.index.exact import ExactIndex
from relict_lightning.index.rows import MemoryRows

COUNT, DIMENSIONS = 12_000, 16


def _unit(values):
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def scene():
    """Clustered vectors, and copies of some of them."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((60, DIMENSIONS))
    vectors = _unit(centres[generator.integers(0, 60, COUNT)] + 0.6 * generator.standard_normal((COUNT, DIMENSIONS)))
    copies = _unit(vectors[:40] + 0.01 * generator.standard_normal((40, DIMENSIONS)))
    return MemoryRows(vectors), copies, generator.integers(0, 900, COUNT)


@pytest.fixture(scope="module", params=["flat", "ivf_flat", "ivf_pq"])
def index(request, scene):
    return ApproximateIndex.build(scene[0], request.param)


def test_copies_are_found_with_their_exact_similarity(scene, index):
    vectors, copies, _ = scene
    expected = ExactIndex(vectors).search(copies, 1)

    similarity, positions = index.search(copies, 1)

    np.testing.assert_array_equal(positions, expected[1])
    np.testing.assert_array_equal(similarity, expected[0])


def test_the_report_holds_the_recall_that_was_measured(index):
    report = index.report

    assert report.sampled == 128
    assert report.recall >= 0.99
    assert (report.lists > 0) == (report.kind != "flat")
    assert 1 <= report.probes <= max(1, report.lists)


def test_hits_of_groups_are_the_best_of_different_groups(scene, index):
    vectors, copies, codes = scene

    similarity, positions = index.search(copies, 5, codes=codes)

    assert similarity.shape == (40, 5)
    assert all(len(set(codes[row])) == 5 for row in positions)
    assert (np.diff(similarity, axis=1) <= 0).all()
    np.testing.assert_array_equal(positions[:, 0], ExactIndex(vectors).search(copies, 1)[1][:, 0])


def test_more_hits_than_candidates_are_all_vectors(scene, index):
    vectors, copies, codes = scene
    everything = len(np.unique(codes))

    _, positions = index.search(copies[:2], everything, codes=codes)

    assert positions.shape == (2, everything)
    np.testing.assert_array_equal(positions, ExactIndex(vectors).search(copies[:2], everything, codes=codes)[1])


def test_a_range_search_misses_nothing(scene, index):
    vectors, copies, _ = scene

    found = index.range_search(copies, 0.9)

    for one, other in zip(found, ExactIndex(vectors).range_search(copies, 0.9), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_written_index_finds_the_same(tmp_path, scene, index):
    vectors, copies, _ = scene
    index.write(tmp_path / "index.faiss")

    again = ApproximateIndex.read(tmp_path / "index.faiss", vectors, index.report)

    np.testing.assert_array_equal(again.search(copies, 4)[1], index.search(copies, 4)[1])
    with pytest.raises(IndexCorruptError, match=r"holds 12000 vectors of 16 numbers, but there are 2 of 16"):
        ApproximateIndex.read(tmp_path / "index.faiss", MemoryRows(vectors.values[:2]), index.report)


def test_few_vectors_cannot_be_compressed():
    vectors = MemoryRows(_unit(np.random.default_rng(0).standard_normal((50, 8))))

    with pytest.raises(ConfigurationError, match=r"at least 9984 vectors, but there are 50\. Search them exactly"):
        ApproximateIndex.build(vectors, "ivf_pq")
    with pytest.raises(ConfigurationError, match="kind='exact'"):
        ApproximateIndex.build(vectors, "exact")


def test_vectors_are_searched_exactly_while_they_fit_the_memory():
    assert choose_kind(1_000_000, 512, memory_bytes=2_048_000_000) == "exact"
    assert choose_kind(1_000_000, 512, memory_bytes=2_047_999_999) == "ivf_pq"
    # So few are searched exactly from the disk in no time, and are too few to train codes on.
    assert choose_kind(5_000, 512, memory_bytes=1) == "exact"
