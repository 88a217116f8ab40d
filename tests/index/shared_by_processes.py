"""One of several processes that share a reference: builds it, looks things up, and writes what it found.

Run by `run_ranks` as `shared_by_processes.py FOLDER IMAGES...`; what it found of each number of training images
goes to a folder of that name.
"""

import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed
from built_references import above_half, build
from torch import nn
from torch.utils.data import IterableDataset

from relict_lightning import ReplicaDetector
from relict_lightning.errors import OtherProcessError
from relict_lightning.index import contents
from relict_lightning.processes import Processes


class Streamed(IterableDataset):
    """Images that come in order only."""

    def __init__(self, images):
        self.images = images

    def __iter__(self):
        return iter(self.images)


class FailsOnOne(nn.Module):
    """An encoder that fails on one process, after some images."""

    def __init__(self, rank, *, failing):
        super().__init__()
        self.fails = lambda: rank == failing

    def forward(self, images):
        if self.fails():
            raise ZeroDivisionError("only here")
        return images.flatten(1)


def scene(count):
    """Training images with copies and repeated patients, held-out images, samples."""
    generator = torch.Generator().manual_seed(0)
    training = torch.rand((count, 1, 12, 12), generator=generator)
    # Equal images and images without anything, so that there are ties.
    training[count // 2] = training[0]
    training[-1] = 0.5
    heldout = torch.rand((30, 1, 12, 12), generator=generator)
    noise = 0.02 * torch.rand((4, 1, 12, 12), generator=generator)
    samples = torch.cat([training[:4] + noise, torch.rand((4, 1, 12, 12), generator=generator)])
    return training, [f"patient {position // 2}" for position in range(count)], heldout, samples


def hits_of(reference, samples):
    """What is looked up in a reference, as arrays."""
    queries = samples.flatten(1).numpy() - 0.5
    everyone = np.arange(len(reference))
    found = {}
    for k in (1, 3, len(reference) + 5):
        found[f"nearest {k}"] = reference.feature.search(queries, k)
        found[f"groups {k}"] = reference.feature.search(queries, k, codes=reference.group_codes)
    found["range"] = reference.feature.range_search(queries, 0.1)
    found["stored"] = (reference.fetch_volumes(everyone), reference.fetch_label_maps(everyone))
    return {name: [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays] for name, arrays in found.items()}


def verdicts_of(detector, samples):
    """What a detector says of samples, as primitives."""
    result = detector.detect(samples)
    pairs = detector.matched_pairs(samples, result, [0, 3])
    said = [(v.match, v.match_id, v.p_value, v.score, v.is_replica, str(v.evidence)) for v in result.verdicts]
    return [said, str(result.replica_rate), dict(result.measures), result.memorization_p_value], [
        pair.training for pair in pairs
    ]


def everything(processes, folder, count, *, only_first=False):
    """Everything that one or several processes find."""
    training, groups, heldout, samples = scene(count)
    options = {"encoder": nn.Flatten(), "segment": above_half, "segmenter": "halves", "scale": None, "groups": groups}
    found = {
        "memory": hits_of(build(training, processes=processes, **options), samples),
        "cache": hits_of(build(training, processes=processes, cache_dir=folder / "cache", **options), samples),
        "again": hits_of(build(training, processes=processes, cache_dir=folder / "cache", **options), samples),
        "streamed": hits_of(build(Streamed(training), processes=processes, **options), samples),
        "reference": hits_of(build(training, processes=processes, store="reference", **options), samples),
    }
    detector = ReplicaDetector(cache_dir=folder / "cache").share(processes)
    detector.fit(training, heldout, training_groups=groups)
    said, pairs = verdicts_of(detector, samples)
    detector.save(folder / "saved")
    loaded, _ = verdicts_of(ReplicaDetector.load(folder / "saved"), samples)
    return {"hits": found, "said": said, "pairs": pairs, "loaded": loaded}


def main(rank, count, folder, *numbers):
    torch.set_num_threads(1)
    contents.chunk_rows = lambda _: 4
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=count
    )
    processes = Processes.current()
    for images in numbers:
        report = everything(processes, folder / str(images), images)
        training, *_ = scene(images)
        try:
            build(training, processes=processes, encoder=FailsOnOne(rank, failing=count - 1), scale=None)
        except (ZeroDivisionError, OtherProcessError) as error:
            report["error"] = f"{type(error).__name__}: {error}"
        torch.save(report, folder / str(images) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), Path(sys.argv[1]), *map(int, sys.argv[2:]))
