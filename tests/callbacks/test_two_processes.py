"""Processes that train together see what one would see, and go back together."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# One worker for all of them: the processes are started once.
pytestmark = pytest.mark.xdist_group("two processes")

SCRIPT = Path(__file__).with_name("watched_by_two.py")


@pytest.fixture(scope="module")
def two(tmp_path_factory, by_processes) -> list[dict[str, Any]]:
    """What each of two processes saw."""
    return _seen_by(2, by_processes, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four(tmp_path_factory, by_processes) -> list[dict[str, Any]]:
    """What each of four processes saw."""
    return _seen_by(4, by_processes, tmp_path_factory.mktemp("four"))


def _seen_by(count: int, by_processes: Callable[..., None], folder: Path) -> list[dict[str, Any]]:
    by_processes(SCRIPT, folder, count=count)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(count)]


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> dict[str, Any]:
    """What one process saw, as the others wrote it."""
    spec = importlib.util.spec_from_file_location("watched_by_two", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return json.loads(json.dumps(script.seen(*script.watch(tmp_path_factory.mktemp("one"), devices=1))))


@pytest.mark.parametrize("processes", ["two", "four"])
def test_several_processes_draw_the_samples_of_one_and_find_the_same_rates_verdicts_and_onset(one, processes, request):
    several = request.getfixturevalue(processes)

    assert one["steps"] == [0, 2, 4]
    assert one["onset"] == one["stopped at"] == 4
    for seen in several:
        assert {name: seen.get(name) for name in one} == one


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
