"""Where the reference lies, and that it is built once."""

import re
import stat
from pathlib import Path

import pytest

from relict_lightning import ReplicaMonitor


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.rglob("*") if path.is_file()
    }  # fmt: skip


def test_a_second_run_reuses_the_reference_says_so_and_rebuilds_nothing(trainer, heads, copying, tmp_path, messages):
    def run() -> ReplicaMonitor:
        watching = ReplicaMonitor(num_samples=8, cache_dir=tmp_path / "cache")
        trainer(watching, max_epochs=1).fit(copying(), heads.training_loader(), heads.heldout_loader())
        return watching

    first = run()
    built = _files(tmp_path / "cache")
    second = run()

    references = [message for message in messages if message.startswith("Replica reference")]
    assert "40 training and 40 held-out patients built in" in references[0]
    assert re.search(r"reused from the cache in \d+\.\d\d s, \d+\.\d\d s saved", references[1])
    assert f"{tmp_path / 'cache'}, which holds patient data" in references[1]
    assert built
    assert _files(tmp_path / "cache") == built
    assert [e.replica_rate for e in second.history] == [e.replica_rate for e in first.history]
    assert second.last_result.control_scores == pytest.approx(first.last_result.control_scores)


def test_other_training_images_are_not_taken_for_the_cached_ones(trainer, heads, copying, tmp_path, messages):
    for training in (heads.training, heads.training.flip(-1)):
        watching = ReplicaMonitor(num_samples=8, training=training, cache_dir=tmp_path / "cache")
        trainer(watching, max_epochs=1).fit(copying(), heads.training_loader(), heads.heldout_loader())

    references = [message for message in messages if message.startswith("Replica reference")]
    assert ["built in" in reference for reference in references] == [True, True]


def test_without_a_cache_folder_the_reference_lies_in_the_trainers_folder(trainer, heads, copying, tmp_path):
    trainer(ReplicaMonitor(num_samples=8), max_epochs=1).fit(copying(), heads.training_loader(), heads.heldout_loader())

    entries = list((tmp_path / "relict_cache").iterdir())
    assert entries
    assert {stat.S_IMODE(entry.stat().st_mode) for entry in entries if entry.is_dir()} == {0o700}


def test_what_the_split_can_decide_is_said_in_numbers(trainer, heads, monitor, copying, messages):
    trainer(monitor(), max_epochs=1).fit(copying(), heads.training_loader(), heads.heldout_loader())

    # 40 of 80 patients are training patients: (40 * 39 * ... * 35) / (80 * 79 * ... * 75) = 0.0128 <= 0.0304 / 2.
    assert any("by the permutation test once 6 different patients are copied" in message for message in messages)


def test_a_report_is_written_at_the_end_for_its_owner_only(trainer, heads, monitor, copying, tmp_path, messages):
    path = tmp_path / "report.html"

    trainer(monitor(report_path=path), max_epochs=1).fit(copying(), heads.training_loader(), heads.heldout_loader())

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert f"Report, a local file that shows patients: {path}." in messages
