"""What reaches real loggers: every number, and of patients nothing unless the user said so."""

import csv
import json
import os
import re
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import relict_lightning

PAIRS = 8

# The whole list of the documentation.
NAMES = {
    f"relict/{name}"
    for name in (
        "replica_rate", "replica_rate_low", "replica_rate_high", "replica_rate_voxel", "replica_rate_feature",
        "replica_rate_segmentation", "memorization_p_value", "closer_to_training_share", "neighbor_ratio_fraction",
        "ct_score", "unique_training_images_replicated", "max_similarity", "self_similarity", "onset",
        "heldout_false_positive_rate", "planted_copy_recall", "seconds_sampling", "seconds_checking",
        "memory_sampling_mib", "memory_checking_mib", "stale", "watch", "leaning_rate", "leaning_rate_low",
    )
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a run without pictures and one with them; `said.txt` is all that they printed."""
    folder = tmp_path_factory.mktemp("logged")
    own = {f"WANDB_{kind}_DIR": str(folder / kind.lower()) for kind in ("DATA", "CACHE", "CONFIG", "ARTIFACT")}
    environment = {
        **os.environ,
        **own,
        "PYTHONPATH": str(Path(relict_lightning.__file__).parent.parent),
        "WANDB_MODE": "offline",
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("logged_run.py")), str(folder)],
        env=environment, cwd=folder, capture_output=True, timeout=240, check=False,
    )  # fmt: skip
    (folder / "said.txt").write_bytes(process.stdout + process.stderr)
    assert process.returncode == 0, process.stderr.decode()[-3000:]
    return folder


def _csv_values(written: Path) -> dict[str, list[tuple[int, float]]]:
    (path,) = (written / "csv").rglob("metrics.csv")
    values: dict[str, list[tuple[int, float]]] = {}
    with path.open() as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value:
                    values.setdefault(name, []).append((int(row["step"]), float(value)))
    return values


def _events(written: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (path,) = (written / "tensorboard").rglob("events.out.tfevents.*")
    return EventAccumulator(str(path), size_guidance={"images": 0, "scalars": 0}).Reload()


def _log_entries(file: bytes) -> Iterator[bytes]:
    """Split a LevelDB log, the format of `.wandb` files: blocks of 32 KiB hold parts of entries."""
    entry, position = b"", len(":W&B") + 3
    while position + 7 <= len(file):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
        _, length, kind = struct.unpack_from("<IHB", file, position)
        entry += file[position + 7 : position + 7 + length]
        position += 7 + length
        # 1: a whole entry, 2: its first part, 3: a middle one, 4: its last.
        if kind in (1, 4):
            yield entry
            entry = b""


def _wandb_records(written: Path) -> Iterator[Any]:
    from wandb.proto import wandb_internal_pb2

    (path,) = written.rglob("run-*.wandb")
    for entry in _log_entries(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(entry)
        yield record


def _wandb_rows(written: Path) -> list[dict[str, object]]:
    rows = []
    for record in _wandb_records(written):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


def _ours(names) -> set[str]:
    return {name for name in names if name.startswith("relict/")}


def test_every_number_reaches_the_csv_file_at_the_step_it_belongs_to(run):
    values = _csv_values(run / "plain" / "written")

    assert _ours(values) == NAMES
    assert values["relict/replica_rate"] == [(0, 0.0), (4, 0.0), (8, 1.0)]
    assert values["relict/onset"] == [(0, 0.0), (4, 0.0), (8, 1.0)]


def test_every_number_reaches_tensorboard(run):
    events = _events(run / "plain" / "written")

    assert _ours(events.Tags()["scalars"]) == NAMES
    assert [(event.step, event.value) for event in events.Scalars("relict/replica_rate")] == [(0, 0), (4, 0), (8, 1)]


def test_every_number_reaches_an_offline_run_of_weights_and_biases(run):
    rows = _wandb_rows(run / "plain" / "written")

    assert _ours(set().union(*rows)) == NAMES
    rates = [(row["trainer/global_step"], row["relict/replica_rate"]) for row in rows if "relict/replica_rate" in row]
    assert rates == [(0, 0), (4, 0), (8, 1)]


def test_what_is_found_in_the_background_reaches_every_logger_at_the_step_that_it_belongs_to(run):
    # Later steps were logged before.
    written = run / "pictures" / "written"

    rows = _wandb_rows(written)

    expected = [(0, 0), (4, 0), (8, 1), (12, 1)]
    assert _csv_values(written)["relict/replica_rate"] == expected
    assert [(event.step, event.value) for event in _events(written).Scalars("relict/replica_rate")] == expected
    name = "relict/replica_rate"
    assert [(row["trainer/global_step"], row[name]) for row in rows if name in row] == expected
    assert _ours(_csv_values(written)) == NAMES | {"relict/seconds_waiting"}
    # It came late: for the second one training waited, and steps lie between what it says and what came before.
    steps = [row["trainer/global_step"] for row in rows if "trainer/global_step" in row]
    assert steps != sorted(steps)


def test_an_onset_alerts_whoever_follows_the_run_on_weights_and_biases(run):
    (alert,) = [record.alert for record in _wandb_records(run / "plain" / "written") if record.HasField("alert")]

    assert alert.title == "Memorization onset, step 8"
    assert alert.text.startswith("Memorization onset at step 8 (epoch 1): replica rate 48/48")
    assert alert.level == "WARN"


def test_names_have_only_characters_that_every_tracker_accepts():
    assert all(re.fullmatch(r"[A-Za-z0-9_/. -]+", name) for name in NAMES)


def test_no_patient_is_named_to_a_logger_on_the_terminal_or_in_a_checkpoint(run):
    # The index and the report hold patient data and say so; all else that was written is searched.
    of_patients = {path.parent for path in run.rglob("items.json")} | {run / "plain", run / "pictures"}
    searched = [path for path in run.rglob("*") if path.is_file() and path.parent not in of_patients]

    naming = [path for path in searched if b"PATIENT-SECRET" in path.read_bytes()]

    assert {".ckpt", ".wandb", ".csv", ".txt", ".log"} <= {path.suffix for path in searched}
    assert naming == []
    # The search would have found them: the index names patients.
    assert sum(b"PATIENT-SECRET" in path.read_bytes() for path in run.rglob("items.json")) == 4


def test_by_default_no_picture_reaches_a_logger(run):
    written = run / "plain" / "written"

    assert _events(written).Tags()["images"] == []
    assert not any("relict/pairs" in row for row in _wandb_rows(written))
    assert list(written.rglob("*.png")) == []


def test_pictures_reach_tensorboard_when_asked_for_and_have_contrast(run):
    from PIL import Image

    events = _events(run / "pictures" / "written")

    tags = events.Tags()["images"]
    assert tags == [f"relict/pair_{position}" for position in range(PAIRS)]
    for tag in tags:
        assert [event.step for event in events.Images(tag)] == [0, 4, 8, 12]
    (picture,) = [event.encoded_image_string for event in events.Images(tags[0]) if event.step == 8]
    path = run / "pair.png"
    path.write_bytes(picture)
    pixels = np.asarray(Image.open(path))
    assert pixels.dtype == np.uint8
    assert pixels.max() > 150
    assert pixels.std() > 20


def test_pictures_reach_weights_and_biases_when_asked_for_and_are_not_black(run):
    from PIL import Image

    written = run / "pictures" / "written"

    pictures = sorted(written.rglob("*.png"))
    assert len(pictures) == 4 * PAIRS
    assert all(np.asarray(Image.open(path)).std() > 20 for path in pictures)
    captions = [row["relict/pairs"]["captions"] for row in _wandb_rows(written) if "relict/pairs" in row]
    assert all(re.fullmatch(r"training image \d+, p = [\d.e-]+", caption) for row in captions for caption in row)


def test_the_report_can_be_read_by_its_owner_only(run):
    mode = stat.S_IMODE((run / "plain" / "report.html").stat().st_mode)

    assert mode == 0o600


def test_the_report_names_the_onset_and_the_checkpoint_to_go_back_to(run):
    report = (run / "plain" / "report.html").read_text()

    assert "step=4-replicas=0-of-48.ckpt" in report
    assert re.search(r"step\s*8", report)


def test_the_terminal_shows_onset_and_where_the_report_lies(run):
    said = (run / "said.txt").read_text()

    assert "Memorization onset at step 8" in said
    assert "Report, a local file that shows patients:" in said


def test_pythons_own_random_state_is_that_of_a_run_that_nobody_watches(run):
    assert json.loads((run / "python_random_state.json").read_text()) is True
