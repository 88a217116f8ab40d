"""Runs a script as several processes that know of each other, as `torchrun` would.

They are forked from one that has imported the package, which takes longer than most of these scripts, and before any of
its threads has started.
"""

import contextlib
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import relict_lightning


def run_ranks(script: Path, *arguments: object, count: int, environment: Mapping[str, str] | None = None) -> None:
    """Run a script `count` times at once, and fail with what one says that fails.

    Args:
        script: The script.
        arguments: What each gets. `RANK` and `WORLD_SIZE` are in its environment.
        count: How many processes.
        environment: What else is in it.
    """
    process = subprocess.Popen(
        [sys.executable, __file__, str(script), *map(str, arguments)],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(relict_lightning.__file__).parent.parent),
            "OMP_NUM_THREADS": "1",
            "WORLD_SIZE": str(count),
            **(environment or {}),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A group of its own, so that all can be ended.
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors[-3000:]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _main(script: str, arguments: list[str]) -> None:
    running = set()
    for rank in range(int(os.environ["WORLD_SIZE"])):
        process = os.fork()
        if process == 0:
            _be(rank, script, arguments)
            return
        running.add(process)
    while running:
        process, status = os.wait()
        running.remove(process)
        if (code := os.waitstatus_to_exitcode(status)) != 0:
            # The others may wait for it without end.
            for other in running:
                os.kill(other, signal.SIGKILL)
            sys.exit(f"A process ended with status {code}.")


def _be(rank: int, script: str, arguments: list[str]) -> None:
    from lightning.pytorch.utilities import rank_zero_only

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    # Lightning has read it when it was imported.
    rank_zero_only.rank = rank
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2:])
