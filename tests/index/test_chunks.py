import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relict_lightning.errors import IndexCorruptError
from relict_lightning.index.chunks import Chunk, ChunkedRows, chunk_name, chunks_in, verify_all
from relict_lightning.index.durable import write_array


def _chunk(folder, values, *, key="key"):
    path, _ = write_array(folder, values, name=lambda checksum: chunk_name("volumes", key, checksum))
    return Chunk(path, len(values))


def test_a_chunk_is_found_by_column_and_key(tmp_path):
    chunk = _chunk(tmp_path, np.ones((3, 2)), key="abc")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "digests.npy").write_bytes(b"")

    assert list(chunks_in(tmp_path)) == [("volumes", "abc", chunk.source)]
    assert list(chunks_in(tmp_path / "nothing")) == []


@pytest.mark.parametrize("harm", ["flip", "cut", "grow", "delete"])
def test_a_changed_chunk_is_refused_and_set_aside(tmp_path, harm):
    chunk = _chunk(tmp_path, np.ones((3, 2)))
    content = chunk.source.read_bytes()
    if harm == "delete":
        chunk.source.unlink()
    else:
        changed = {"flip": content[:-1] + b"\x01", "cut": content[:-8], "grow": content + b"\x00"}
        chunk.source.write_bytes(changed[harm])

    with pytest.raises(IndexCorruptError, match=r"volumes-key-.*Fit again.*keeps the rest"):
        chunk.read()

    assert list(chunks_in(tmp_path)) == []
    assert len(list(tmp_path.glob(".damaged-*"))) == (harm != "delete")


def test_a_chunk_of_another_length_is_refused(tmp_path):
    path = _chunk(tmp_path, np.ones((3, 2))).source

    with pytest.raises(IndexCorruptError, match="it has 3 rows, expected 4"):
        Chunk(path, 4).read()


def test_the_first_damaged_one_of_many_is_named(tmp_path):
    chunks = [_chunk(tmp_path, np.full((2, 2), value), key=str(value)) for value in range(9)]
    chunks[5].source.write_bytes(b"")

    with pytest.raises(IndexCorruptError, match="volumes-5-"):
        verify_all(chunks)


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=6),
    resident=st.booleans(),
    data=st.data(),
)
def test_rows_in_chunks_are_the_rows_of_one_array(tmp_path_factory, sizes, resident, data):
    folder = tmp_path_factory.mktemp("chunks")
    values = np.random.default_rng(0).random((sum(sizes), 2, 3)).astype(np.float32)
    parts = np.split(values, np.cumsum(sizes)[:-1])
    chunks = [_chunk(folder, part, key=str(number)) for number, part in enumerate(parts)]
    rows = ChunkedRows(chunks, (2, 3), resident_bytes=values.nbytes if resident else 0)
    positions = np.array(data.draw(st.lists(st.integers(0, len(values) - 1), max_size=9)), dtype=int)

    before = rows[positions]
    blocks = list(rows.blocks())

    assert rows.shape == values.shape
    assert len(blocks) == (1 if resident else len(sizes))
    np.testing.assert_array_equal(before, values[positions])
    np.testing.assert_array_equal(rows[positions], values[positions])
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), values)
    assert [start for start, _ in blocks] == [0, *np.cumsum([len(block) for _, block in blocks])[:-1]]


def test_chunks_of_narrow_labels_are_read_in_the_widest_of_them():
    chunks = [Chunk(np.array([[1]], dtype=np.uint8), 1), Chunk(np.array([[70_000]], dtype=np.uint32), 1)]

    labels = ChunkedRows(chunks, (1,))[np.array([0, 1])]

    assert labels.tolist() == [[1], [70_000]]


def test_no_chunks_are_no_rows():
    rows = ChunkedRows([], (5,), resident_bytes=100)

    assert rows.shape == (0, 5)
    assert list(rows.blocks()) == []
    assert rows[np.array([], dtype=int)].shape == (0, 5)
