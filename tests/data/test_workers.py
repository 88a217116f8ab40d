import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from monai.data import CacheDataset
from monai.transforms import RandFlipd
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from relict_lightning.data import open_images, workers
from relict_lightning.data.workers import iterate_ahead, map_ahead
from relict_lightning.errors import ConfigurationError, InvalidImageError, UnreadableDataError


class Made(Dataset):
    """Images made by a function of their position."""

    def __init__(self, make, m=7):
        self.make, self.m = make, m

    def __len__(self):
        return self.m

    def __getitem__(self, index):
        return self.make(index)


class MadeInOrder(IterableDataset):
    """The same, one after the other."""

    def __init__(self, make, m=7):
        self.make, self.m = make, m

    def __iter__(self):
        return map(self.make, range(self.m))


def image_of(value):
    return torch.full((1, 4, 4), float(value))


def process_of(_):
    return image_of(os.getpid())


def labelled(index):
    return {
        "image": image_of(index) / 3,
        "label": torch.full((4, 4), index),
        "id": f"scan-{index}",
        "group": index // 2,
    }


def children():
    return len(multiprocessing.active_children())


def text_and_class(error):
    return type(error), str(error)


@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.parametrize("kind", [Made, MadeInOrder])
def test_workers_give_what_the_main_process_reads(kind, num_workers):
    source = open_images(kind(labelled), role="training")

    pairs = list(zip(source.batches(2), source.batches(2, num_workers=num_workers), strict=True))

    assert len(pairs) == 4
    for here, there in pairs:
        assert torch.equal(here.images, there.images)
        assert torch.equal(here.segmentations, there.segmentations)
        assert (here.ids, here.groups) == (there.ids, there.groups)
        assert there.images.is_contiguous()
        there.images.add_(1)


@pytest.mark.parametrize(("kind", "most"), [(Made, 2), (MadeInOrder, 1)])
def test_images_are_read_in_worker_processes(kind, most):
    source = open_images(kind(process_of), role="training")

    processes = {value for batch in source.batches(1, num_workers=2) for value in batch.images[:, 0, 0, 0].tolist()}

    assert os.getpid() not in processes
    assert len(processes) == most


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_share_is_read_by_workers_as_well(num_workers):
    source = open_images(Made(image_of), role="training")

    batches = list(source.batches(2, num_workers=num_workers, start=3, stop=6))

    assert [batch.ids for batch in batches] == [("training-3", "training-4"), ("training-5",)]
    assert [batch.images[0, 0, 0, 0].item() for batch in batches] == [3, 5]


def test_an_empty_share_starts_no_worker():
    assert list(open_images(Made(image_of), role="training").batches(2, num_workers=2, start=3, stop=3)) == []


def test_workers_leave_random_states_alone(random_state):
    flip = RandFlipd("image", prob=0.5, spatial_axis=0)
    flip.set_random_state(seed=3)
    dataset = CacheDataset([{"image": image_of(value)} for value in range(6)], transform=flip, progress=False)
    source = open_images(dataset, role="training")
    state, before = flip.R.get_state()[1].tobytes(), random_state()

    for _ in source.batches(2, num_workers=2):
        assert random_state() == before

    assert flip.R.get_state()[1].tobytes() == state
    assert random_state() == before


def test_a_negative_number_of_workers_is_refused_at_once():
    with pytest.raises(ConfigurationError, match=r"num_workers=-1; expected 0"):
        open_images(Made(image_of), role="training").batches(2, num_workers=-1)


class NeedsTwo(Exception):  # noqa: N818
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def breaking(make):
    def read(index):
        return make() if index == 5 else image_of(index)

    return read


def raising(error):
    def make():
        raise error

    return make


@pytest.mark.parametrize("kind", [Made, MadeInOrder])
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(1, 4, 5),
        lambda: torch.full((1, 4, 4), torch.nan),
        lambda: "/nowhere/scan.nii",
        raising(LookupError("no such scan")),
    ],
    ids=["shape", "nan", "file", "foreign"],
)
def test_an_error_in_a_worker_is_the_one_of_the_main_process(kind, make):
    source = open_images(kind(breaking(make)), role="training")
    with pytest.raises(Exception, match=r".") as here:
        list(source.batches(2))

    batches = source.batches(2, num_workers=2)
    assert [next(batches).ids[0], next(batches).ids[0]] == ["training-0", "training-2"]
    with pytest.raises(Exception, match=r".") as there:
        next(batches)

    assert text_and_class(there.value) == text_and_class(here.value)
    assert "reading.py" in str(there.value.__cause__)
    assert children() == 0


def test_an_error_that_cannot_travel_is_told_in_words():
    source = open_images(Made(breaking(raising(NeedsTwo("one", "two")))), role="training")

    with pytest.raises(UnreadableDataError, match=r"failed with NeedsTwo: one and two. Read with num_workers=0"):
        list(source.batches(2, num_workers=1))


def test_a_duplicate_id_is_found_across_workers():
    def twice(index):
        return {"image": image_of(index), "id": str(index % 6)}

    with pytest.raises(InvalidImageError, match=r"Item 6 .* has the same id as item 0"):
        list(open_images(Made(twice), role="training").batches(2, num_workers=2))


@pytest.mark.parametrize("kind", [Made, MadeInOrder])
def test_workers_end_when_the_consumer_stops_early(kind):
    # Large enough that workers are stopped while they write into a full pipe.
    source = open_images(kind(lambda index: torch.full((1, 512, 512), float(index)), m=1000), role="training")
    batches = source.batches(1, num_workers=2)
    next(batches)
    assert children() > 0
    started = time.monotonic()

    batches.close()

    assert children() == 0
    assert time.monotonic() - started < 5


def test_a_killed_worker_is_reported_and_does_not_hang():
    def dies(index):
        if index == 3 and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return image_of(index)

    source = open_images(Made(dies, m=5), role="training")

    with pytest.raises(
        UnreadableDataError, match=r"worker process that reads images ended unexpectedly.*num_workers=0"
    ):
        list(source.batches(1, num_workers=1))


def test_a_set_with_an_open_picture_is_read_by_one_process(tmp_path):
    Image.new("L", (4, 4), 7).save(tmp_path / "open.png")

    class Holds(Dataset):
        def __init__(self):
            self.picture = Image.open(tmp_path / "open.png")

        def __len__(self):
            return 3

        def __getitem__(self, index):
            return process_of(index)

    dataset = Holds()
    (batch,) = open_images(dataset, role="training").batches(3, num_workers=2)
    dataset.picture.close()

    assert batch.images.unique().tolist() == [os.getpid()]


def test_every_worker_opens_files_of_its_own(tmp_path):
    (tmp_path / "raw.bin").write_bytes(np.arange(200 * 16, dtype=np.float32).tobytes())

    class Raw(Dataset):
        def __init__(self):
            self.file = (tmp_path / "raw.bin").open("rb", buffering=0)

        def __len__(self):
            return 200

        def __getitem__(self, index):
            self.file.seek(index * 64)
            time.sleep(random.Random(index).random() / 1000)  # noqa: S311
            return np.frombuffer(self.file.read(64), dtype=np.float32).reshape(1, 4, 4)

    dataset = Raw()
    source = open_images(dataset, role="training")
    images = torch.cat([batch.images for batch in source.batches(1, num_workers=2)])
    dataset.file.close()

    assert images.flatten().tolist() == list(range(200 * 16))


def test_more_workers_than_cores_start_without_a_warning():
    cores = len(os.sched_getaffinity(0))

    assert list(map_ahead(lambda: str, range(cores + 2), num_workers=cores + 2)) == [
        str(job) for job in range(cores + 2)
    ]


def read_as_a_worker(source, queue):
    queue.put([batch.ids for batch in source.batches(2, num_workers=2)])


def test_a_process_that_is_a_worker_itself_reads_without_workers():
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    source = open_images(torch.zeros(3, 1, 4, 4), role="training")
    process = context.Process(target=read_as_a_worker, args=(source, queue), daemon=True)

    process.start()
    ids = queue.get(timeout=60)
    process.join(60)

    assert ids == [("training-0", "training-1"), ("training-2",)]


def test_workers_that_are_spawned_are_sent_what_can_be_pickled(monkeypatch):
    monkeypatch.setattr(workers, "_START_METHOD", "spawn")
    source = open_images(list(torch.zeros(3, 1, 4, 4)), role="training")

    assert [batch.ids for batch in source.batches(2, num_workers=1)] == [("training-0", "training-1"), ("training-2",)]


def test_workers_that_are_spawned_refuse_what_cannot_be_pickled(monkeypatch):
    monkeypatch.setattr(workers, "_START_METHOD", "spawn")

    with pytest.raises(ConfigurationError, match=r"1 worker processes cannot be started.*without lambdas"):
        list(map_ahead(lambda: abs, [1, 2], num_workers=1))


def test_a_stream_is_drawn_no_further_than_two_results_ahead():
    counter = multiprocessing.get_context("fork").Value("i", 0)

    def count():
        while True:
            counter.value += 1
            yield counter.value

    values = iterate_ahead(count)
    assert next(values) == 1
    time.sleep(0.3)

    assert counter.value <= 4
    values.close()


AFTER_OPENMP = """
import faiss, pickle, random, numpy as np, torch
from torch.utils.data import Dataset
from relict_lightning.data import open_images

class Means(Dataset):
    volume = torch.rand(1, 64, 64, 64, generator=torch.Generator().manual_seed(0))
    def __len__(self):
        return 20
    def __getitem__(self, index):
        return (self.volume + index / 7).mean().expand(1, 4, 4) + (torch.eye(300) @ torch.eye(300))[0, 1]

torch.set_num_threads(2)
faiss.omp_set_num_threads(2)
index = faiss.IndexFlatIP(32)
vectors = np.random.default_rng(0).random((5000, 32), dtype=np.float32)
index.add(vectors)
index.search(vectors, 3)
torch.rand(600, 600) @ torch.rand(600, 600)
torch.rand(1000, 1000).sum()
def state():
    return pickle.dumps((random.getstate(), np.random.get_state(), torch.get_rng_state().numpy()))
before = state()
source = open_images(Means(), role="training")
here = torch.cat([batch.images for batch in source.batches(3)])
there = torch.cat([batch.images for batch in source.batches(3, num_workers=2)])
print("equal", torch.equal(here, there), "kept", state() == before, "threads", torch.get_num_threads())
"""


def test_workers_neither_hang_nor_differ_after_openmp_was_used():
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}

    done = subprocess.run(
        [sys.executable, "-c", AFTER_OPENMP], env=environment, capture_output=True, text=True, timeout=120, check=False
    )

    assert done.stdout == "equal True kept True threads 2\n", done.stderr
