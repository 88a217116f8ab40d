"""The process that checks samples beside training: it reads a detector, waits for samples, and sends what it finds.

It never uses a GPU, leaves half of the cores to training, is told to end by nobody but the process that started it, and
ends with that one, however that one ends.
"""

import os
import pickle
import shutil
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeAlias, final

import torch

from relict_lightning.callbacks.evaluation.checking import Checked, check
from relict_lightning.detector import ReplicaDetector
from relict_lightning.errors import CheckingProcessError

DETECTOR, MODULES = "detector", "modules.pickle"
"""What the folder holds from the start: the saved detector, and its encoder and segmenter as `load` takes them."""

_SECONDS_BETWEEN_LOOKS = 0.5
# What training's own processes have to do goes first.
_NICENESS = 5

Warned: TypeAlias = list[tuple[type[Warning], str]]


@final
@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the process sends back for one set of samples.

    Attributes:
        checked: What was found; None where it failed.
        error: What it failed by; None where it did not.
        trace: Where it failed, in words.
        warned: Kinds and texts of the warnings meanwhile.
    """

    checked: Checked | None
    error: Exception | None
    trace: str
    warned: Warned


def main(descriptor: int, folder: str, *, parent: int, threads: int) -> None:
    """Serve until the process at the other end of the connection ends this one, or is gone itself.

    Args:
        descriptor: File descriptor of the connection.
        folder: The folder with the detector. Samples lie there too, and are removed once they are read.
        parent: Process that samples come from.
        threads: Threads to compute with.
    """
    ending = threading.Thread(target=_end_with, args=(parent, folder), daemon=True)
    ending.start()
    torch.set_num_threads(threads)
    if hasattr(os, "nice"):
        os.nice(_NICENESS)
    connection = Connection(descriptor)
    try:
        serve(connection, Path(folder))
    except (EOFError, OSError):
        # The other end is closed, by a process that is about to end this one, or is just about to be gone: to leave
        # now would be to leave the folder. Where it is neither, it learns of it by this end.
        connection.close()
        ending.join()


def serve(connection: Connection, folder: Path) -> None:
    """Answer for one set of samples after the other.

    Args:
        connection: Gets the names of files of samples, and the answers.
        folder: The folder with the detector and the files.

    Raises:
        EOFError: If the other end is closed.
    """
    detector: list[ReplicaDetector] = []

    def checked(path: Path) -> Checked:
        if not detector:
            detector.append(_load(folder))
        samples = torch.load(path, weights_only=True)
        path.unlink()
        return check(detector[0], samples["images"], samples["label_maps"])

    while True:
        path = folder / connection.recv_bytes().decode()
        connection.send_bytes(pickle.dumps(_answer(partial(checked, path))))


def _load(folder: Path) -> ReplicaDetector:
    encoder, segmenter = pickle.loads((folder / MODULES).read_bytes())  # noqa: S301 - written by the parent process
    return ReplicaDetector.load(folder / DETECTOR, encoder=encoder, segmenter=segmenter)


def _answer(act: Callable[[], Checked]) -> Answer:
    """Return what `act` returns or fails by, and what it warns of."""
    checked: Checked | None = None
    error: Exception | None = None
    trace = ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        try:
            checked = act()
        except Exception as failure:  # noqa: BLE001 - raised again by the process that samples come from
            error, trace = _as_sent(failure), traceback.format_exc()
    warned = [(warning.category, str(warning.message)) for warning in caught]
    return Answer(checked=checked, error=error, trace=trace, warned=warned)


def _as_sent(error: Exception) -> Exception:
    """Return an error that can be sent: itself, or else one that names its kind."""
    try:
        can_be_sent = type(pickle.loads(pickle.dumps(error))) is type(error)  # noqa: S301 - made in this line
    except Exception:  # noqa: BLE001 - an error may hold anything
        can_be_sent = False
    return error if can_be_sent else CheckingProcessError(f"Checking the samples failed by a {type(error).__name__}.")


def _end_with(parent: int, folder: str) -> None:
    """End this process, also in the middle of its work, once its parent is gone; remove what that one cannot any more.

    A closed connection would not tell: other processes that the parent has started may hold it open.
    """
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)
