import random

import numpy as np
import pytest
import torch
from monai.data import IterableDataset as MonaiIterableDataset
from monai.data import ShuffleBuffer
from monai.transforms import RandFlipd, ScaleIntensityd
from torch.utils.data import DataLoader, IterableDataset

from relict_lightning.data import check_repeatable, open_images
from relict_lightning.errors import (
    ConfigurationError,
    EmptyDataError,
    InvalidImageError,
    NondeterministicDataError,
)


def numbered(m, shape=(1, 4, 4)):
    """Images whose every voxel is their position."""
    return torch.arange(m, dtype=torch.float32).reshape(m, *(1 for _ in shape)).expand(m, *shape).clone()


def firsts(batches):
    return [value for batch in batches for value in batch.images[:, 0, 0, 0].tolist()]


class Stream(IterableDataset):
    """Items that pass through a function, and a count of the passes that began."""

    def __init__(self, items, transform=None):
        self.items, self.transform, self.passes = items, transform, 0

    def __iter__(self):
        self.passes += 1
        for item in self.items:
            yield item if self.transform is None else self.transform(item)


class Announced(Stream):
    """A stream that says a length, right or wrong."""

    def __init__(self, items, length):
        super().__init__(items)
        self.length = length

    def __len__(self):
        if isinstance(self.length, Exception):
            raise self.length
        return self.length


class NumpyNoise:
    def __init__(self):
        self.generator = np.random.default_rng(0)

    def __call__(self, image):
        return image + float(self.generator.normal())


def global_noise(image):
    return image + torch.randn(())


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("wrap", [lambda stream: stream, lambda stream: DataLoader(stream, batch_size=2)])
def test_every_pass_over_an_iterable_gives_all_images(wrap, num_workers):
    stream = Stream(numbered(5))
    source = open_images(wrap(stream), role="training")

    for _ in range(2):
        batches = list(source.batches(2, num_workers=num_workers))
        assert [len(batch.ids) for batch in batches] == [2, 2, 1]
        assert firsts(batches) == [0, 1, 2, 3, 4]
        assert [id_ for batch in batches for id_ in batch.ids] == [f"training-{position}" for position in range(5)]
    assert stream.passes == 0


def test_an_iterable_in_whole_batches_ends_without_an_empty_one():
    assert [len(batch.ids) for batch in open_images(Stream(numbered(4)), role="training").batches(2)] == [2, 2]


def test_two_passes_at_a_time_do_not_meet():
    source = open_images(Stream(numbered(3)), role="training")

    pairs = zip(source.batches(1), source.batches(1), strict=True)

    assert [(firsts([one]), firsts([other])) for one, other in pairs] == [([n], [n]) for n in range(3)]


def test_the_number_of_images_is_known_when_a_pass_has_ended():
    source = open_images(Stream(numbered(5)), role="training")
    batches = source.batches(2)
    next(batches)

    assert source.length is None
    with pytest.raises(ConfigurationError, match=r"training set is an iterable data set, whose number of images is"):
        len(source)
    list(batches)
    assert (source.length, len(source)) == (5, 5)


@pytest.mark.parametrize(
    ("said", "expected"), [(3, 3), (9, 9), (TypeError("no length"), None), (NotImplementedError(), None)]
)
def test_a_length_that_an_iterable_says_is_shown_and_not_believed(said, expected):
    source = open_images(Announced(numbered(5), said), role="training")

    assert source.length == expected
    with pytest.raises(ConfigurationError, match="whose number of images"):
        len(source)
    assert firsts(source.batches(2)) == [0, 1, 2, 3, 4]
    assert source.length == 5


def test_the_length_of_a_set_with_positions_is_known_at_once():
    assert open_images(numbered(3), role="training").length == 3


def test_an_empty_iterable_is_refused():
    with pytest.raises(EmptyDataError, match=r"The held-out set is empty.*`heldout=`"):
        open_images(Stream([]), role="held-out")


@pytest.mark.parametrize("transform", [NumpyNoise(), global_noise, lambda image: image + random.random()])  # noqa: S311
def test_an_iterable_that_augments_is_refused_and_left_alone(transform, random_state):
    before = random_state()
    stream = Stream(numbered(5), transform)

    with pytest.raises(NondeterministicDataError, match=r"training set gives other items.*`training=` a data set"):
        open_images(stream, role="training")

    assert random_state() == before
    assert stream.passes == 0
    if isinstance(transform, NumpyNoise):
        assert transform.generator.bit_generator.state == np.random.default_rng(0).bit_generator.state


@pytest.mark.parametrize("seed", range(3))
def test_an_iterable_that_augments_one_image_in_ten_is_found(seed):
    flip = RandFlipd("image", prob=0.1)
    flip.set_random_state(seed=seed)
    items = [{"image": torch.arange(16.0).reshape(1, 4, 4) + position} for position in range(4)]

    with pytest.raises(NondeterministicDataError):
        check_repeatable(MonaiIterableDataset(items, transform=flip))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_iterable_of_monai_passes_with_transforms_that_are_not_random(num_workers):
    items = [{"image": image + torch.eye(4)} for image in numbered(4)]

    source = open_images(MonaiIterableDataset(items, transform=ScaleIntensityd("image")), role="training")

    assert torch.equal(
        torch.cat([batch.images for batch in source.batches(3, num_workers=num_workers)]),
        torch.eye(4).expand(4, 1, 4, 4),
    )


def test_an_iterable_that_shuffles_is_refused():
    with pytest.raises(NondeterministicDataError, match=r"shuffling"):
        open_images(ShuffleBuffer(list(numbered(9)), buffer_size=9), role="training")


def test_an_iterable_that_is_used_up_is_refused():
    class Once(IterableDataset):
        def __init__(self):
            self.rest = iter(numbered(5))

        def __iter__(self):
            return self.rest

    with pytest.raises(NondeterministicDataError, match=r"a stream that is used up"):
        open_images(Once(), role="training")


def test_an_iterable_that_keeps_its_open_stream_passes():
    class Streams(IterableDataset):
        def __iter__(self):
            self.stream = (image for image in numbered(3))
            return self.stream

    assert firsts(open_images(Streams(), role="training").batches(2)) == [0, 1, 2]


def test_an_iterable_that_loses_images_between_passes_is_refused():
    class Shrinking(IterableDataset):
        count = 5

        def __iter__(self):
            yield from numbered(Shrinking.count)

    source = open_images(Shrinking(), role="training")
    list(source.batches(2))
    Shrinking.count = 4

    with pytest.raises(NondeterministicDataError, match=r"gave 4 images in this pass, and 5 in an earlier one"):
        list(source.batches(2))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_groups_and_segmentations_of_an_iterable_are_matched_by_order(num_workers):
    source = open_images(
        Stream(numbered(3)), role="training", groups=list("abb"), segmentations=torch.full((3, 4, 4), 2)
    )

    (batch,) = source.batches(3, num_workers=num_workers)

    assert batch.groups == ("a", "b", "b")
    assert batch.segmentations.unique().tolist() == [2]


@pytest.mark.parametrize(
    ("passed", "found"),
    [({"groups": list("abcd")}, "4 groups"), ({"segmentations": torch.zeros(4, 4, 4)}, "4 segmentations")],
)
def test_too_many_groups_or_segmentations_are_found_when_the_pass_ends(passed, found):
    batches = open_images(Stream(numbered(3)), role="training", **passed).batches(2)

    assert firsts([next(batches), next(batches)]) == [0, 1, 2]
    with pytest.raises(ConfigurationError, match=rf"training set has 3 images, but {found} were passed"):
        next(batches)


@pytest.mark.parametrize(
    ("passed", "found"),
    [({"groups": list("ab")}, "2 groups"), ({"segmentations": torch.zeros(2, 4, 4)}, "2 segmentations")],
)
def test_too_few_groups_or_segmentations_are_found_at_the_first_image_without(passed, found):
    batches = open_images(Stream(numbered(3)), role="training", **passed).batches(2)

    next(batches)
    with pytest.raises(ConfigurationError, match=rf"more than 2 images, but {found} were passed"):
        next(batches)


def test_segmentations_cannot_be_an_iterable():
    with pytest.raises(ConfigurationError, match=r"segmentations of the training set .* cannot be read by position"):
        open_images(numbered(3), role="training", segmentations=Stream(torch.zeros(3, 4, 4)))


def test_items_of_an_iterable_are_checked_as_others_are():
    items = [{"image": image, "id": name} for image, name in zip(numbered(4), "abca", strict=True)]
    twice = open_images(Stream(items), role="training")
    odd = open_images(Stream([torch.zeros(1, 4, 4), torch.zeros(1, 4, 4), torch.zeros(1, 4, 5)]), role="training")

    with pytest.raises(InvalidImageError, match=r"Item 3 .* has the same id as item 0"):
        list(twice.batches(2))
    with pytest.raises(InvalidImageError, match=r"Item 2 of the training set has shape \[1, 4, 5\]"):
        list(odd.batches(2))


def test_an_iterable_leaves_the_global_random_state_between_batches(random_state):
    def draws(image):
        torch.manual_seed(0), np.random.seed(0)  # noqa: NPY002
        return image + torch.rand(())

    source = open_images(Stream(numbered(4), draws), role="training")
    before = random_state()

    for _ in source.batches(1):
        assert random_state() == before


def test_an_iterable_in_batches_is_refused_as_images():
    with pytest.raises(InvalidImageError, match=r"take images out of batches"):
        open_images(Stream([torch.zeros(2, 3, 1, 4, 4)]), role="training")
