"""Processes that build one cache, to be killed, or to build it at once.

Run as `python builders.py kill FOLDER COUNT`, which kills as many builds at random moments and finishes each, or as
`python builders.py build FOLDER`, which builds once. Either writes what happened as JSON to the standard output.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
from built_references import above_half, build
from torch import nn

from relict_lightning.index import contents

IMAGES = torch.rand((40, 1, 16, 16), generator=torch.Generator().manual_seed(0))


class SlowEncoder(nn.Module):
    """Takes its time, so that there is something to interrupt."""

    def __init__(self, seconds):
        super().__init__()
        # Not configuration: what is waited for changes nothing.
        self.pause = lambda: time.sleep(seconds)
        self.shown = []

    def forward(self, images):
        self.pause()
        self.shown.append(len(images))
        return images.flatten(1)


def small_chunks():
    """Chunks of four images, so that few images are many files."""
    contents.chunk_rows = lambda _: 4


def built(folder, *, seconds=0.005):
    """Builds, and returns the encoder and the reference."""
    encoder = SlowEncoder(seconds)
    # The hash is taken before the encoder is used.
    reference = build(IMAGES, encoder=encoder, segment=above_half, segmenter="halves", scale=None, cache_dir=folder)
    return encoder, reference


def files(folder):
    """Names of all finished files. Those of chunks tell their content."""
    return sorted(str(path.relative_to(folder)) for path in folder.glob("[!.]*/*"))


def _in_child(act):
    pid = os.fork()
    if pid == 0:
        try:
            act()
        finally:
            os._exit(0)
    return pid


def _wait_for(cache, victim, number):
    """Waits until a build has written so many chunks, or is done; returns its exit status if it is."""
    while len(list(cache.glob(".building-*/*.npy"))) < number:
        pid, status = os.waitpid(victim, os.WNOHANG)
        if pid:
            return status
        time.sleep(0.0005)
    return None


def kill(folder, count):
    """Returns what came of builds that were killed, and how many of them had begun to write."""
    undisturbed = folder / "undisturbed"
    os.waitpid(_in_child(lambda: built(undisturbed)), 0)
    expected = files(undisturbed)
    chance = random.Random(0)  # noqa: S311 - no secret
    outcome = {"expected": len(expected), "same": 0, "killed": 0, "had written": 0, "rests": 0}
    for number in range(count):
        cache = folder / str(number)
        victim = _in_child(lambda cache=cache: built(cache))
        status = _wait_for(cache, victim, chance.randrange(50))
        # Somewhere between one file and the next.
        time.sleep(chance.uniform(0, 0.003))
        if status is None:
            os.kill(victim, signal.SIGKILL)
            status = os.waitpid(victim, 0)[1]
        outcome["killed"] += os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        outcome["had written"] += cache.exists() and any(cache.glob(".building-*/*.npy"))
        os.waitpid(_in_child(lambda cache=cache: built(cache)), 0)
        outcome["same"] += files(cache) == expected
        outcome["rests"] += len([path for path in cache.glob(".*") if not path.name.startswith(".lock")])
        shutil.rmtree(cache)
    return outcome


def main(mode, folder, *arguments):
    torch.set_num_threads(1)
    small_chunks()
    if mode == "kill":
        sys.stdout.write(json.dumps(kill(Path(folder), int(arguments[0]))))
        return
    encoder, reference = built(Path(folder), seconds=0.1)
    similarity, positions = reference.feature.search(IMAGES[:5].flatten(1).numpy(), 3)
    hits = [positions.tolist(), similarity.tolist()]
    sys.stdout.write(json.dumps({"shown": sum(encoder.shown), "hits": hits, "from_cache": reference.from_cache}))


if __name__ == "__main__":
    main(*sys.argv[1:])
