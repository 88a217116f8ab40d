import multiprocessing
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset, IterableDataset

from relict_lightning.data import open_images
from relict_lightning.errors import ConfigurationError, InvalidImageError


def numbered(m, shape=(1, 4, 4)):
    """Images whose every voxel is their position."""
    return torch.arange(m, dtype=torch.float32).reshape(m, *(1 for _ in shape)).expand(m, *shape).clone()


def firsts(batches):
    return [value for batch in batches for value in batch.images[:, 0, 0, 0].tolist()]


class Opened(Dataset):
    """Images that say how often they were opened, and move the global random state."""

    copies: list[int] = []  # noqa: RUF012

    def __setstate__(self, state):
        self.__dict__.update(state)
        Opened.copies.append(1)

    def __getstate__(self):
        return {"m": 5}

    def __len__(self):
        return 5

    def __getitem__(self, index):
        torch.rand(1)
        return torch.full((1, 4, 4), float(index))


@settings(max_examples=30)
@given(m=st.integers(1, 9), batch_size=st.integers(1, 4), data=st.data())
def test_shares_of_a_set_are_its_whole(m, batch_size, data):
    cuts = sorted([0, m, *data.draw(st.lists(st.integers(0, m), max_size=3))])
    source = open_images(numbered(m), role="training")

    shares = [list(source.batches(batch_size, start=start, stop=stop)) for start, stop in pairwise(cuts)]

    assert [value for share in shares for value in firsts(share)] == list(range(m))
    ids = [id_ for share in shares for batch in share for id_ in batch.ids]
    assert ids == [f"training-{position}" for position in range(m)]


def test_a_share_has_the_groups_and_segmentations_of_its_positions():
    labels = torch.arange(5)[:, None, None].expand(5, 4, 4)
    source = open_images(numbered(5), role="training", groups=list("abcde"), segmentations=labels)

    (batch,) = source.batches(9, start=2, stop=4)

    assert batch.groups == ("c", "d")
    assert batch.segmentations[:, 0, 0].tolist() == [2, 3]


@pytest.mark.parametrize(
    ("start", "stop"),
    [(-1, None), (0, 6), (3, 2), (6, None), (0, -1)],
    ids=["before", "beyond", "back", "past", "minus"],
)
def test_a_share_outside_the_set_is_refused_at_once(start, stop):
    with pytest.raises(ConfigurationError, match=rf"start={start} and stop={stop}; expected 0 <= start <= stop <= 5"):
        open_images(numbered(5), role="training").batches(2, start=start, stop=stop)


def test_one_id_twice_is_refused_within_a_share_and_named_by_its_positions_in_the_set():
    items = [{"image": image, "id": name} for image, name in zip(numbered(4), "abca", strict=True)]
    source = open_images(items, role="training")

    assert firsts(source.batches(2, start=1)) == [1, 2, 3]
    items[1]["id"] = "a"
    with pytest.raises(InvalidImageError, match=r"Item 3 .* has the same id as item 1"):
        list(source.batches(2, start=1))


def test_images_are_read_at_positions_in_the_order_of_asking():
    source = open_images(
        [
            {"image": image, "label": torch.full((4, 4), 7 + position), "group": "p"}
            for position, image in enumerate(numbered(5))
        ],
        role="held-out",
    )

    batch = source.read([4, 0, 4])

    assert firsts([batch]) == [4, 0, 4]
    assert batch.ids == ("held-out-4", "held-out-0", "held-out-4")
    assert batch.groups == ("p", "p", "p")
    assert batch.segmentations[:, 0, 0].tolist() == [11, 7, 11]


def test_no_positions_give_an_empty_batch():
    batch = open_images(numbered(5), role="training").read([])

    assert batch.images.shape == (0, 1, 4, 4)
    assert batch.ids == ()


def test_numpy_integers_are_positions():
    positions = list(np.array([3, 1]))

    assert firsts([open_images(numbered(5), role="training").read(positions)]) == [3, 1]


@pytest.mark.parametrize("position", [-1, 5])
def test_a_position_outside_the_set_is_refused(position):
    with pytest.raises(ConfigurationError, match=rf"Position {position} was asked for; expected 0 to 4"):
        open_images(numbered(5), role="training").read([0, position])


def test_reading_by_position_opens_the_set_once_and_keeps_the_random_state(random_state):
    source = open_images(Opened(), role="training")
    Opened.copies.clear()
    before = random_state()

    assert firsts([source.read([1]), source.read([2]), source.read([3])]) == [1, 2, 3]

    assert len(Opened.copies) == 1
    assert random_state() == before


def test_a_forked_process_reads_from_a_copy_of_its_own():
    source = open_images(Opened(), role="training")
    source.read([1])
    Opened.copies.clear()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(
        target=lambda: queue.put((source.read([2]).ids, source.read([3]).ids, len(Opened.copies)))
    )

    process.start()
    found = queue.get(timeout=60)
    process.join(60)

    assert found == (("training-2",), ("training-3",), 1)


def test_what_was_read_is_not_changed_by_a_later_read():
    class OneBuffer(Dataset):
        def __init__(self):
            self.buffer = torch.zeros(1, 4, 4)

        def __len__(self):
            return 3

        def __getitem__(self, index):
            return self.buffer.fill_(index)

    source = open_images(OneBuffer(), role="training")

    earlier = source.read([1, 2])
    source.read([0])

    assert firsts([earlier]) == [1, 2]
    assert firsts(source.batches(3)) == [0, 1, 2]


def test_an_iterable_set_has_no_positions():
    class Stream(IterableDataset):
        def __iter__(self):
            yield from numbered(3)

    source = open_images(Stream(), role="training")

    with pytest.raises(ConfigurationError, match=r"iterable data set and cannot be read by position"):
        source.read([0])
    for share in ({"start": 1}, {"stop": 2}):
        with pytest.raises(ConfigurationError, match=r"iterable data set and cannot be read in parts"):
            source.batches(2, **share)
