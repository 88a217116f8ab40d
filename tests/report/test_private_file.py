import os
import stat

import pytest

from relict_lightning.errors import UnreadableDataError
from relict_lightning.report.private_file import write_private


def test_the_file_and_the_folders_made_for_it_are_for_their_owner_only(tmp_path):
    old_mask = os.umask(0)
    try:
        written = write_private(tmp_path / "new" / "report.html", "text")
    finally:
        os.umask(old_mask)

    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    assert stat.S_IMODE(written.parent.stat().st_mode) == 0o700


def test_a_file_that_others_could_read_is_replaced_by_one_that_they_cannot(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    path.chmod(0o644)

    write_private(path, "new")

    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UnreadableDataError, match=r"report\.html: No space left on device"):
        write_private(path, "new")

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["file/report.html", "folder"])
def test_a_path_that_cannot_be_a_file_is_refused_by_name(tmp_path, name):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()

    with pytest.raises(OSError, match=f"Cannot write .*{name}"):
        write_private(tmp_path / name, "text")
