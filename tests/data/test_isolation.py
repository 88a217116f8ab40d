import random
import threading
from functools import partial

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, PersistentDataset
from monai.data import Dataset as MonaiDataset
from monai.transforms import Compose, Identityd, RandFlipd, RandGaussianNoised, ScaleIntensityd
from torch.utils.data import Dataset, TensorDataset

from relict_lightning.data import check_repeatable, open_images, random_state_kept
from relict_lightning.data.isolation import Snapshot
from relict_lightning.data.process_state import global_random_state
from relict_lightning.errors import ConfigurationError, NondeterministicDataError


class Transformed(Dataset):
    """Images that pass through a function."""

    def __init__(self, transform, images=None):
        self.images = torch.rand(6, 1, 8, 8) if images is None else images
        self.transform = transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(self.images[index])


class NumpyNoise:
    def __init__(self):
        self.generator = np.random.default_rng(0)

    def __call__(self, image):
        return image + float(self.generator.normal())


class TorchNoise:
    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, image):
        return image + torch.randn(image.shape, generator=self.generator)


class PythonNoise:
    def __init__(self):
        self.draw = random.Random(0).random  # noqa: S311

    def __call__(self, image):
        return image + self.draw()


def global_noise(image):
    return image + torch.randn(()) + np.random.normal()  # noqa: NPY002


def snapshot(dataset):
    return Snapshot(dataset, name="training set", argument="training=")


def dictionaries(m=6):
    generator = torch.Generator().manual_seed(1)
    return [{"image": torch.rand(1, 8, 8, generator=generator)} for _ in range(m)]


def state_of(transform):
    kind, keys, *rest = transform.R.get_state()
    return kind, keys.tobytes(), rest


@pytest.mark.parametrize("kind", [MonaiDataset, partial(CacheDataset, progress=False)])
def test_reading_leaves_the_random_state_of_monai_transforms(kind):
    flip = RandFlipd("image", prob=0.5)
    flip.set_random_state(seed=3)
    dataset = kind(dictionaries(), transform=Compose([ScaleIntensityd("image"), flip]))
    before = state_of(flip)

    with pytest.raises(NondeterministicDataError, match=r"differs between two reads"):
        open_images(dataset, role="training")

    assert state_of(flip) == before
    dataset[0]
    assert state_of(flip) != before


def test_reading_the_stream_leaves_the_random_state_of_transforms_without_effect():
    # A flip of symmetric images draws numbers and changes nothing.
    flip = RandFlipd("image", prob=0.5, spatial_axis=0)
    flip.set_random_state(seed=3)
    dataset = MonaiDataset([{"image": torch.full((1, 8, 8), float(value))} for value in range(6)], transform=flip)
    before = state_of(flip)

    source = open_images(dataset, role="training")
    values = [batch.images[:, 0, 0, 0].tolist() for batch in source.batches(6)]

    assert values == [[0, 1, 2, 3, 4, 5]]
    assert state_of(flip) == before


@pytest.mark.parametrize("transform", [Compose([Identityd("image")]), ScaleIntensityd("image")])
def test_deterministic_monai_transforms_pass(transform, tmp_path):
    items = dictionaries()
    expected = torch.stack([torch.as_tensor(transform(dict(item))["image"]) for item in items]).as_subclass(
        torch.Tensor
    )

    for dataset in (
        MonaiDataset(items, transform=transform),
        CacheDataset(items, transform=transform, progress=False),
        CacheDataset(items, transform=transform, progress=False, runtime_cache="threads"),
        PersistentDataset(items, transform=transform, cache_dir=tmp_path),
    ):
        assert torch.equal(next(open_images(dataset, role="training").batches(6)).images, expected)


@pytest.mark.parametrize("noise", [NumpyNoise(), TorchNoise(), PythonNoise(), global_noise])
def test_noise_of_every_origin_is_refused_and_the_data_set_left_alone(noise):
    dataset = Transformed(noise)
    torch.manual_seed(5), np.random.seed(5)  # noqa: NPY002
    expected = dataset[0]
    twin = Transformed(type(noise)() if isinstance(noise, NumpyNoise | TorchNoise | PythonNoise) else noise)
    twin.images = dataset.images

    torch.manual_seed(5), np.random.seed(5)  # noqa: NPY002
    with pytest.raises(NondeterministicDataError, match=r"Pass `training=` a data set without random transforms"):
        open_images(twin, role="training")

    assert torch.equal(twin[0], expected)


@pytest.mark.parametrize("seed", range(5))
def test_an_augmentation_of_one_image_in_ten_is_found(seed):
    flip = RandFlipd("image", prob=0.1)
    flip.set_random_state(seed=seed)

    with pytest.raises(NondeterministicDataError):
        check_repeatable(MonaiDataset(dictionaries(), transform=flip))


def test_a_random_segmentation_is_refused():
    noise = NumpyNoise()

    class Labelled(Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            labels = torch.full((8, 8), int(10 * noise.generator.normal()))
            return {"image": torch.zeros(1, 8, 8), "label": labels}

    with pytest.raises(NondeterministicDataError):
        open_images(Labelled(), role="training")


def test_a_cache_that_hands_out_its_own_tensor_does_not_hide_a_change():
    dataset = Transformed(lambda image: image.add_(1), images=torch.zeros(4, 1, 8, 8))

    with pytest.raises(NondeterministicDataError):
        check_repeatable(dataset)


@pytest.mark.parametrize("fails", [True, False])
def test_the_global_random_state_is_put_back(fails):
    before = global_random_state()

    try:
        with random_state_kept():
            torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002, S311
            if fails:
                raise KeyError
    except KeyError:
        pass

    assert global_random_state() == before


def test_streaming_leaves_the_global_random_state_between_batches(random_state):
    def reseeds(image):
        torch.manual_seed(0)
        return image + torch.rand(())

    source = open_images(Transformed(reseeds), role="training")
    before = random_state()

    for _ in source.batches(2):
        assert random_state() == before


def test_an_error_of_the_data_set_comes_through_with_the_random_state_put_back(random_state):
    def breaks(image):
        torch.rand(3)
        raise LookupError("no such scan")

    dataset = Transformed(breaks)
    before = random_state()

    with pytest.raises(LookupError, match=r"no such scan"):
        open_images(dataset, role="training")
    assert random_state() == before


def test_a_copy_shares_images_and_owns_counters():
    class Counting(Dataset):
        def __init__(self):
            self.images = torch.zeros(6, 1, 32, 32)
            self.arrays = [np.zeros((1, 32, 32))]
            self.count = torch.zeros(1)
            self.counts = np.zeros(3)
            self.seen = []

        def __len__(self):
            return 6

        def __getitem__(self, index):
            self.count += 1
            self.counts += 1
            self.seen.append(index)
            return self.images[index]

    dataset = Counting()
    copy = snapshot(dataset).copy()
    copy[0]

    assert copy.images.data_ptr() == dataset.images.data_ptr()
    assert copy.arrays[0] is dataset.arrays[0]
    assert (copy.count.item(), copy.counts.tolist(), copy.seen) == (1, [1, 1, 1], [0])
    assert (dataset.count.item(), dataset.counts.tolist(), dataset.seen) == (0, [0, 0, 0], [])


def test_a_memory_map_is_shared_and_not_loaded(tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((4, 1, 64, 64), dtype=np.float32))
    images = np.load(tmp_path / "images.npy", mmap_mode="r")

    class Mapped(Dataset):
        def __init__(self):
            self.images = images

        def __len__(self):
            return 4

        def __getitem__(self, index):
            return self.images[index]

    taken = snapshot(Mapped())

    assert taken.copy().images is images
    assert len(taken.state) < 1000


def test_later_changes_of_the_data_set_do_not_reach_the_stream():
    items = dictionaries()
    dataset = MonaiDataset(items)
    source = open_images(dataset, role="training")
    first = next(source.batches(6)).images

    dataset.data = dataset.data[::-1]

    assert torch.equal(next(source.batches(6)).images, first)


def test_a_data_set_with_an_open_file_is_read_through_a_file_of_its_own(tmp_path):
    (tmp_path / "raw.bin").write_bytes(np.arange(6 * 16, dtype=np.float32).tobytes())

    class Raw(Dataset):
        def __init__(self):
            self.file = (tmp_path / "raw.bin").open("rb")
            self.lock = threading.Lock()

        def __len__(self):
            return 6

        def __getitem__(self, index):
            with self.lock:
                self.file.seek(index * 64)
                return np.frombuffer(self.file.read(64), dtype=np.float32).reshape(1, 4, 4)

    dataset = Raw()
    dataset.file.seek(8)
    assert snapshot(dataset).copy().file.tell() == 8

    source = open_images(dataset, role="training")
    (batch,) = source.batches(6)

    assert batch.images.flatten().tolist() == list(range(96))
    assert dataset.file.tell() == 8
    dataset.file.close()


def test_a_data_set_that_cannot_be_copied_is_refused_with_the_reason():
    dataset = Transformed(Identityd("image"))
    dataset.stream = (value for value in range(3))

    with pytest.raises(ConfigurationError, match=r"training set \(Transformed\).*cannot pickle 'generator'.*first use"):
        open_images(dataset, role="training")


def test_a_data_set_of_a_subset_passes():
    subset = torch.utils.data.Subset(TensorDataset(torch.arange(5.0).reshape(5, 1, 1, 1)), [3, 1])

    assert next(open_images(subset, role="training").batches(2)).images.flatten().tolist() == [3, 1]


def test_the_noise_of_monai_is_refused():
    dataset = MonaiDataset(dictionaries(), transform=RandGaussianNoised("image", prob=1.0))

    with pytest.raises(NondeterministicDataError, match=r"Item 0 of the held-out set .*`heldout=`"):
        open_images(dataset, role="held-out")
