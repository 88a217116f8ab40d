"""Checking an evaluation's samples in a process of its own, on the CPU, while training goes on.

A process and not a thread: the global random states, and what training does with its cores, stay its own. A fresh one,
started with a command of its own, because one that is spawned in the usual way runs the training script once more.
"""

import json
import os
import pickle
import pickletools
import shutil
import subprocess
import sys
import tempfile
import warnings
import weakref
from collections.abc import Callable, Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import final

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from relict_lightning.callbacks.evaluation.checking import Checked
from relict_lightning.callbacks.evaluation.checking_process import DETECTOR, MODULES, Answer
from relict_lightning.callbacks.evaluation.drawing import DrawnSamples
from relict_lightning.callbacks.evaluation.occasion import is_dry_run
from relict_lightning.detector import ReplicaDetector
from relict_lightning.errors import CheckingProcessError, ConfigurationError, RelictWarning

_SAMPLES = "samples.pt"
_SECONDS_BETWEEN_LOOKS = 0.1
_SECONDS_TO_END = 10
# Signals to end go to all processes of a terminal or a job. What becomes of this one, the training process decides.
_COMMAND = """
import json, signal, sys
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
sys.path[:] = json.loads(sys.argv[1])
from relict_lightning.callbacks.evaluation.checking_process import main
main(int(sys.argv[2]), sys.argv[3], parent=int(sys.argv[4]), threads=int(sys.argv[5]))
"""
_NO_GPU = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "ROCR_VISIBLE_DEVICES": ""}


def can_check_in_background(trainer: Trainer) -> bool:
    """Return whether samples of this run can be checked in the background; warn where they cannot."""
    if is_dry_run(trainer):
        return False
    reason = None
    if trainer.world_size > 1:
        reason = f"with {trainer.world_size} training processes, which share the reference"
    elif sys.platform == "win32":
        reason = "on Windows"
    if reason is not None:
        rank_zero_warn(
            f"ReplicaMonitor(background=True) does not work {reason}. Samples are checked while training waits, as "
            f"with background=False; the numbers are the same.",
            category=RelictWarning,
        )
    return reason is None


@final
class BackgroundChecker:
    """Hands samples to a process that checks them, one set at a time, and takes what it finds.

    The process is started for the first set, and anew for the first one after a failure. It reads the detector from a
    folder that its owner alone can read, and that is removed with the process: by `close`, and where that is not
    called, with this object, at the end of the interpreter, or by the process itself where the interpreter is killed.

    Args:
        detector: The fitted detector, of one process.

    Raises:
        ConfigurationError: If its encoder or segmenter cannot be sent to another process.
    """

    def __init__(self, detector: ReplicaDetector) -> None:
        self._detector = detector
        self._child: _Child | None = None
        _pickled_modules(detector)

    def start(self) -> None:
        """Start the process, unless it runs already: it takes seconds until it is ready, and samples may come before.

        Raises:
            OSError: If the detector cannot be written, or the process not be started.
        """
        if self._child is not None and not self._child.runs:
            self.close()
        if self._child is None:
            self._child = _Child(self._detector)

    def submit(self, samples: DrawnSamples) -> None:
        """Have samples checked.

        Args:
            samples: The samples. What was submitted before has been received.
        """
        self.start()
        self._running.send(samples)

    def has_arrived(self) -> bool:
        """Return whether `receive` returns, or raises, at once."""
        return self._running.looks(seconds=0.0)

    def wait(self, *, unless: Callable[[], bool]) -> bool:
        """Wait until `has_arrived`, and return whether it has.

        Args:
            unless: Asked again and again; there is no more waiting once it says so.
        """
        while not self._running.looks(seconds=_SECONDS_BETWEEN_LOOKS):
            if unless():
                return False
        return True

    def receive(self) -> Checked:
        """Return what was found of the samples that were submitted last; warns of what the process warned of.

        Raises:
            CheckingProcessError: If the process ended. Any other error is one that checking the samples failed by.
        """
        try:
            answer = self._running.answer()
        except BaseException:
            self.close()
            raise
        for category, text in answer.warned:
            warnings.warn(text, category, stacklevel=2)
        if answer.checked is None:
            self.close()
            error = answer.error or CheckingProcessError("The process that checks samples found nothing.")
            raise error from CheckingProcessError(f"Where it failed, in another process:\n{answer.trace}")
        return answer.checked

    def close(self) -> None:
        """End the process, whatever it is doing, and remove its folder."""
        if self._child is not None:
            self._child.end()
            self._child = None

    @property
    def _running(self) -> "_Child":
        if self._child is None:
            raise CheckingProcessError("No samples are being checked in the background.")
        return self._child


@final
class _Child:
    """A process that checks samples, and its folder."""

    def __init__(self, detector: ReplicaDetector) -> None:
        # Readable by its owner only, as mkdtemp makes it: what lies in it is patient data.
        self._folder = Path(tempfile.mkdtemp(prefix="relict-background-"))
        here, there = Pipe()
        try:
            copied = detector.copy_on_cpu()
            (self._folder / MODULES).write_bytes(_pickled_modules(copied))
            copied.save(self._folder / DETECTOR)
            self._process = _started(there, self._folder)
        except BaseException:
            here.close()
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        finally:
            there.close()
        self._connection = here
        self.end = weakref.finalize(self, _end, os.getpid(), self._process, here, self._folder)

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def send(self, samples: DrawnSamples) -> None:
        # Through a file: a pipe would keep training waiting until the process is ready to read.
        content = {"images": samples.images.clone(), "label_maps": samples.label_maps}
        torch.save(content, self._folder / _SAMPLES)
        self._connection.send_bytes(_SAMPLES.encode())

    def looks(self, *, seconds: float) -> bool:
        """Return whether there is an answer within some seconds, or will never be one."""
        return self._connection.poll(seconds)

    def answer(self) -> Answer:
        try:
            answer: Answer = pickle.loads(self._connection.recv_bytes())  # noqa: S301 - from a process of one's own
        except (EOFError, OSError) as error:
            try:
                status = self._process.wait(_SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                status = None
            raise CheckingProcessError(
                f"The process that checks samples in the background {_ending(status)} before it was done. Where that "
                f"was for want of memory, pass `ReplicaMonitor(background=False)`, or fewer samples."
            ) from error
        return answer


def _started(connection: Connection, folder: Path) -> "subprocess.Popen[bytes]":
    """Start the process with its end of a connection."""
    threads = str(_threads())
    arguments = [json.dumps(sys.path), str(connection.fileno()), str(folder), str(os.getpid()), threads]
    environment: Mapping[str, str] = {**os.environ, **_NO_GPU, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    # What it warns of at its start, this process has warned of before.
    return subprocess.Popen(  # noqa: S603 - this interpreter
        [sys.executable, "-W", "ignore", "-c", _COMMAND, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        pass_fds=[connection.fileno()],
    )


def _threads() -> int:
    """Return how many threads to check with: half of the cores that this process may use, the others are training's."""
    # `os.sched_getaffinity` knows of jobs that are given some of a machine's cores; not every system has it.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores // 2, torch.get_num_threads()))


def _end(owner: int, process: "subprocess.Popen[bytes]", connection: Connection, folder: Path) -> None:
    if os.getpid() != owner:
        # A forked copy of the training process, such as one that loads data.
        return
    connection.close()
    process.kill()
    process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def _ending(status: int | None) -> str:
    """Return how a process ended, in words."""
    if status is None:
        return "closed its connection"
    return f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"


def _pickled_modules(detector: ReplicaDetector) -> bytes:
    """Return encoder and segmenter as another process can read them.

    Raises:
        ConfigurationError: If it could not.
    """
    advice = (
        "ReplicaMonitor(background=True) hands {kind} to another process{reason}. Define its class, and functions that "
        "it holds, at the top level of a module that can be imported, or pass `background=False`."
    )
    for kind, module in zip(("encoder", "segmenter"), detector.modules, strict=True):
        name = f"the {kind} {type(module).__name__}"
        try:
            written = pickle.dumps(module)
        except Exception as error:
            reason = f", and it cannot be pickled ({type(error).__name__}: {error})"
            raise ConfigurationError(advice.format(kind=name, reason=reason)) from error
        if any(argument in ("__main__", "__mp_main__") for _, argument, _ in pickletools.genops(written)):
            reason = ", which does not know what is defined in the training script or in a notebook"
            raise ConfigurationError(advice.format(kind=name, reason=reason))
    return pickle.dumps(detector.modules)
