import json
import os
import stat
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from relict_lightning.errors import IndexCorruptError, RelictWarning
from relict_lightning.index import Entry, open_or_put_aside, writing

FILES = ("values.npy", "items.json", "search.faiss")


def _write(directory, *, value=1.0):
    """Writes one file of each kind."""
    with writing(directory, {"count": 2}) as writer:
        writer.array("values", np.full((3, 2), value, dtype=np.float32))
        writer.table("items", {"ids": ["anna", "ben"]})
        writer.file("search.faiss", lambda path: path.write_bytes(b"a foreign format"))
    return directory


def test_what_was_written_is_read_back(tmp_path):
    directory = _write(tmp_path / "entry")

    entry = Entry(directory)

    assert entry.array("values").tolist() == [[1.0, 1.0]] * 3
    assert entry.verified("search.faiss").read_bytes() == b"a foreign format"
    assert entry.table("items") == {"ids": ["anna", "ben"]}
    assert entry.manifest["count"] == 2
    assert entry.verify() is entry


def test_arrays_are_memory_mapped_and_read_only(tmp_path):
    values = Entry(_write(tmp_path / "entry")).array("values")

    assert isinstance(values, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        values[0] = 2


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0, -1])
def test_one_flipped_bit_in_any_file_is_noticed(tmp_path, name, place):
    path = _write(tmp_path / "entry") / name
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)

    with pytest.raises(IndexCorruptError, match=f"the checksum of {name} does not match"):
        Entry(tmp_path / "entry").verify()


def test_every_flipped_bit_of_the_manifest_is_noticed_or_changes_nothing(tmp_path):
    path = _write(tmp_path / "entry") / "manifest.json"
    content = path.read_bytes()
    manifest = Entry(tmp_path / "entry").manifest
    noticed = 0
    for place in range(len(content)):
        for bit in (1, 32):
            path.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
            try:
                # A changed space between two entries is no change.
                assert Entry(tmp_path / "entry").manifest == manifest
            except IndexCorruptError:
                noticed += 1

    assert noticed > 1.5 * len(content)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_noticed(tmp_path, name):
    path = _write(tmp_path / "entry") / name
    os.truncate(path, path.stat().st_size - 1)

    with pytest.raises(IndexCorruptError, match=f"the checksum of {name} does not match"):
        Entry(tmp_path / "entry").verify()


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_noticed(tmp_path, name):
    (_write(tmp_path / "entry") / name).unlink()

    with pytest.raises(IndexCorruptError, match=f"{name} is missing"):
        Entry(tmp_path / "entry").verify()


@pytest.mark.parametrize(
    "manifest",
    ["", "{", "[]", "{}", '{"files": 3, "format_version": 2, "checksum": ""}'],
    ids=["empty", "cut", "list", "no", "odd"],
)
def test_an_unreadable_manifest_is_noticed(tmp_path, manifest):
    (_write(tmp_path / "entry") / "manifest.json").write_text(manifest)

    with pytest.raises(IndexCorruptError, match=r"manifest\.json cannot be read"):
        Entry(tmp_path / "entry")


def test_a_folder_without_a_manifest_is_not_read(tmp_path):
    (_write(tmp_path / "entry") / "manifest.json").unlink()

    with pytest.raises(IndexCorruptError, match=r"manifest.json cannot be read"):
        Entry(tmp_path / "entry")


def test_another_format_version_is_not_read(tmp_path):
    path = _write(tmp_path / "entry") / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 1}))

    with pytest.raises(IndexCorruptError, match="format version 1, this package reads 2"):
        Entry(tmp_path / "entry")


def test_a_file_that_no_checksum_covers_is_not_read(tmp_path):
    directory = _write(tmp_path / "entry")
    np.save(directory / "foreign.npy", np.zeros(2))

    with pytest.raises(IndexCorruptError, match=r"foreign.npy is not listed"):
        Entry(directory).array("foreign")


def test_a_pickled_array_is_neither_written_nor_read(tmp_path):
    objects = np.array([{}], dtype=object)

    def write():
        with writing(tmp_path / "entry", {}) as writer:
            writer.array("values", objects)

    with pytest.raises((ValueError, TypeError)):
        write()
    with writing(tmp_path / "other", {}) as writer:
        writer.file("values.npy", lambda path: np.save(path, objects, allow_pickle=True))
    with pytest.raises(ValueError, match="Python objects"):
        Entry(tmp_path / "other").array("values")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_missing_folder_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        Entry(tmp_path / "nothing")


def test_opening_a_missing_folder_gives_none(tmp_path):
    assert open_or_put_aside(tmp_path / "nothing") is None


def test_a_damaged_folder_is_kept_under_another_name_and_said_to_be(tmp_path):
    (_write(tmp_path / "entry") / "values.npy").unlink()

    with pytest.warns(RelictWarning, match=r"values.npy is missing.*was moved to .*\.damaged-entry-\d+"):
        opened = open_or_put_aside(tmp_path / "entry")

    assert opened is None
    assert [path.name.split("-")[0] for path in tmp_path.iterdir()] == [".damaged"]


def test_a_write_that_fails_leaves_nothing(tmp_path):
    def fail():
        with writing(tmp_path / "entry", {}) as writer:
            writer.array("values", np.ones(3))
            raise RuntimeError("the encoder failed")

    with pytest.raises(RuntimeError, match="the encoder failed"):
        fail()

    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_nothing_that_is_read(tmp_path):
    script = """
        import os, sys
        from pathlib import Path
        import numpy as np
        from relict_lightning.index import writing
        with writing(Path(sys.argv[1]), {}) as writer:
            writer.array("values", np.ones(3))
            writer.table("items", [])
            os.kill(os.getpid(), 9)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "entry")]

    killed = subprocess.run(command, check=False, timeout=120)

    assert killed.returncode == -9
    assert not (tmp_path / "entry").exists()
    assert open_or_put_aside(tmp_path / "entry") is None
    assert Entry(_write(tmp_path / "entry")).table("items") == {"ids": ["anna", "ben"]}


def test_of_two_writers_the_first_to_finish_stays_and_the_other_leaves_no_rest(tmp_path):
    with writing(tmp_path / "entry", {}) as slow:
        slow.array("values", np.full((3, 2), 2.0))
        before = (tmp_path / "entry").exists()
        _write(tmp_path / "entry", value=1)

    assert not before
    assert Entry(tmp_path / "entry").array("values")[0, 0] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]


def test_a_place_that_something_else_takes_is_left_alone(tmp_path):
    (tmp_path / "entry").mkdir()
    (tmp_path / "entry" / "notes.txt").write_text("mine")

    with pytest.raises(OSError, match="not empty"):
        _write(tmp_path / "entry")

    assert [path.name for path in tmp_path.rglob("*")] == ["entry", "notes.txt"]


def test_folders_are_readable_by_their_owner_only(tmp_path):
    previous = os.umask(0)
    try:
        _write(tmp_path / "cache" / "entry")
    finally:
        os.umask(previous)

    for directory in (tmp_path / "cache", tmp_path / "cache" / "entry"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
