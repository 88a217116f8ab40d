"""What goes wrong in one of two processes, and clocks that differ, do not part them."""

import json
from pathlib import Path
from typing import Any

import pytest

# One worker for all of them: the processes are started once.
pytestmark = pytest.mark.xdist_group("agreed by two")

SCRIPT = Path(__file__).with_name("agreed_by_two.py")
STAGES = [
    ("sampling", 1, "Sampling failed on another process"),
    ("encoding", 1, "Checking the samples failed on another process"),
    ("searching", 1, "Checking the samples failed on another process"),
    ("writing", 0, "Writing to the loggers failed on another process"),
]


@pytest.fixture(scope="module")
def two(tmp_path_factory, by_processes) -> list[dict[str, Any]]:
    """What each of two processes saw."""
    folder = tmp_path_factory.mktemp("two")
    by_processes(SCRIPT, folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("stage", [stage for stage, _, _ in STAGES])
def test_where_one_process_fails_both_go_on_and_say_which_numbers_are_stale(two, stage):
    calm = [seen["nothing fails"] for seen in two]
    # Written or not, what was found at step 2 is known.
    is_lost = stage != "writing"

    for rank in (0, 1):
        seen = two[rank][f"{stage}, warn"]
        assert seen["steps"] == ([0, 4, 6, 8] if is_lost else [0, 2, 4, 6, 8])
        assert seen["shown"]["2"] == ([0.0, 1.0] if is_lost else [1.0, 0.0])
        assert seen["shown"]["4"] == [1.0, 0.0]
        assert (seen["failures"], seen["is stale"]) == (1, False)
        assert seen["trained"] == 8
        assert seen["parameters"] == calm[0]["parameters"]
        assert seen["buffers"] == calm[rank]["buffers"]
        assert seen["seconds"] < 60


@pytest.mark.parametrize(("stage", "where", "said"), STAGES)
def test_where_one_process_fails_both_stop_if_that_is_wanted(two, stage, where, said):
    first, second = (two[rank][f"{stage}, raise"] for rank in (where, 1 - where))

    assert first["error"] == "ZeroDivisionError: only here"
    assert second["error"].startswith(f"OtherProcessError: {said}")
    assert max(first["seconds"], second["seconds"]) < 60


@pytest.mark.parametrize(
    ("schedule", "steps"),
    [
        # The first process's seconds count, one a step: due every seven and a half of them.
        ("minutes", [0, 8, 15, 23, 30]),
        # An evaluation takes two seconds, and training twice as long as all of them and one more: 2 + 4 / 0.5, then
        # 4 + 6 / 0.5, and so on.
        ("overhead", [0, 10, 16, 22, 28]),
    ],
)
def test_what_hangs_on_clocks_that_differ_is_decided_alike(two, schedule, steps):
    assert [seen["timed"][schedule] for seen in two] == [steps, steps]
