"""Two processes that train together see what one would see, and fail together."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import relict_lightning

# One worker for all of them: the processes are started once.
pytestmark = pytest.mark.xdist_group("two processes")

SCRIPT = Path(__file__).with_name("watched_by_two.py")


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict[str, Any]]:
    """What each of two processes saw."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        # By this Lightning knows that the processes were started for it.
        "TORCHELASTIC_RUN_ID": "two",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(relict_lightning.__file__).parent.parent),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=180)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in processes:
            process.kill()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> dict[str, Any]:
    """What one process saw, as the others wrote it."""
    spec = importlib.util.spec_from_file_location("watched_by_two", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return json.loads(json.dumps(script.seen(*script.watch(tmp_path_factory.mktemp("one"), devices=1))))


def test_two_processes_draw_the_samples_of_one_and_find_the_same_rates_verdicts_and_onset(one, two):
    expected = {name: two[0].get(name) for name in one}

    assert one["steps"] == [0, 2, 4]
    assert one["onset"] == one["stopped at"] == 4
    assert expected == one


def test_both_processes_know_everything(two):
    first, second = ({name: value for name, value in seen.items() if "error" not in name} for seen in two)

    assert first == second


def test_two_processes_verify_and_restore_the_same_checkpoint(two):
    for seen in two:
        assert seen["went back"] == two[0]["went back"]
        assert seen["went back"]["kept"] == [2, 4]
        assert seen["went back"]["rates"] == [40, 80]
        assert seen["went back"]["verified"]
        assert seen["went back"]["restored"]
        assert seen["went back"]["steps in the weights"] == 4


def test_where_one_process_cannot_save_both_go_on_with_what_was_kept_before(two):
    for seen in two:
        assert seen["went back without space"] == two[0]["went back without space"]
        assert seen["went back without space"]["kept"] == [2]
        assert seen["went back without space"]["steps in the weights"] == 2


@pytest.mark.parametrize(
    ("doing", "where", "said"),
    [
        ("sampling", 1, "Sampling failed on another process"),
        ("checking", 1, "Checking the samples failed on another process"),
        ("writing", 0, "Writing to the loggers failed on another process"),
    ],
)
def test_when_one_process_fails_both_stop_within_a_minute(two, doing, where, said):
    assert two[where][f"error in {doing}"] == "ZeroDivisionError: only here"
    assert two[1 - where][f"error in {doing}"].startswith(f"OtherProcessError: {said}")
    assert max(seen[f"seconds until error in {doing}"] for seen in two) < 60
