"""Simulated heads as a map-style set, as an endless stream, and as a `LightningDataModule`."""

from collections.abc import Iterator
from typing import Any, TypedDict, final

import lightning
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, get_worker_info

from relict_lightning.errors import ConfigurationError
from relict_lightning.testing.heads import HeadSubjects, simulate_heads

# Far beyond the subjects that a run on the stream can reach, so that held-out patients are new in every mode and the
# training patients do not depend on how many are held out.
FIRST_HELDOUT_SUBJECT = 10_000_000


class HeadItem(TypedDict):
    """One subject, as a MONAI-style dictionary.

    Attributes:
        image: Float32 in [0, 1], `[1, *spatial]`.
        label: Label map without a channel axis, `[*spatial]`, as `detector.fit` and the measures take it.
        id: Id of the image, such as `sub-00017`.
        group: Id of the patient, the same as `id`, because every simulated patient has one image.
    """

    image: Float[Tensor, "1 *spatial"]
    label: UInt8[Tensor, "*spatial"]
    id: str
    group: str


def _item(subjects: HeadSubjects, position: int) -> HeadItem:
    identifier = subjects.ids[position]
    return HeadItem(image=subjects.images[position], label=subjects.labels[position], id=identifier, group=identifier)


@final
class HeadDataset(Dataset[HeadItem]):
    """Simulated subjects as a map-style data set; two reads of one item are equal.

    Args:
        subjects: The subjects, from `simulate_heads`.

    Example:
        >>> dataset = HeadDataset(simulate_heads(3))
        >>> len(dataset), dataset[2]["id"], dataset[2]["image"].shape
        (3, 'sub-00002', torch.Size([1, 64, 64]))
    """

    def __init__(self, subjects: HeadSubjects) -> None:
        self.subjects = subjects

    def __len__(self) -> int:
        """Return the number of subjects."""
        return len(self.subjects.ids)

    def __getitem__(self, position: int) -> HeadItem:
        """Return one subject."""
        return _item(self.subjects, position)


@final
class HeadStream(IterableDataset[HeadItem]):
    """Endless new subjects, in the order of their numbers.

    Iterating again starts again at `first_subject`. The workers of a `DataLoader` take turns in chunks; with chunks of
    the size of a batch, the batches come in the same order for any number of workers.

    Args:
        first_subject: Number of the first subject, at least 0.
        count: Number of subjects; endless without.
        seed: Seed of the population.
        shape: Sides in voxels, two or three.
        chunk_size: Subjects that are simulated at once, at least 1.

    Raises:
        ConfigurationError: If `chunk_size < 1`, `first_subject < 0` or `count < 0`.

    Example:
        >>> stream = iter(HeadStream(first_subject=5))
        >>> next(stream)["id"], next(stream)["id"]
        ('sub-00005', 'sub-00006')
    """

    def __init__(
        self,
        *,
        first_subject: int = 0,
        count: int | None = None,
        seed: int = 0,
        shape: tuple[int, ...] = (64, 64),
        chunk_size: int = 24,
    ) -> None:
        if chunk_size < 1:
            raise ConfigurationError(f"chunk_size must be at least 1, got chunk_size={chunk_size}.")
        if first_subject < 0 or (count is not None and count < 0):
            raise ConfigurationError(
                f"first_subject and count must be at least 0, got first_subject={first_subject}, count={count}."
            )
        self.first_subject = first_subject
        self.count = count
        self.seed = seed
        self.shape = shape
        self.chunk_size = chunk_size

    def __iter__(self) -> Iterator[HeadItem]:
        """Yield subjects; in a worker, that worker's chunks only."""
        worker = get_worker_info()
        turn, turns = (0, 1) if worker is None else (worker.id, worker.num_workers)
        start = turn * self.chunk_size
        while self.count is None or start < self.count:
            size = self.chunk_size if self.count is None else min(self.chunk_size, self.count - start)
            subjects = simulate_heads(size, seed=self.seed, first_subject=self.first_subject + start, shape=self.shape)
            for position in range(size):
                yield _item(subjects, position)
            start += turns * self.chunk_size


class _StreamLoader(DataLoader[HeadItem]):
    """Goes on with new subjects in every epoch, where a plain loader would begin the stream again."""

    def __init__(
        self, *, per_epoch: int, epoch: int, seed: int, shape: tuple[int, ...], batch_size: int, num_workers: int
    ) -> None:
        self._per_epoch = per_epoch
        self._epoch = epoch
        self._stream = HeadStream(count=per_epoch, seed=seed, shape=shape, chunk_size=batch_size)
        super().__init__(self._stream, batch_size=batch_size, num_workers=num_workers)

    def __iter__(self) -> Any:
        self._stream.first_subject = self._epoch * self._per_epoch
        self._epoch += 1
        return super().__iter__()


@final
class HeadDataModule(lightning.LightningDataModule):
    """Simulated heads for training, validation and as held-out patients.

    Args:
        num_training: Size of the training set, at least 1; few are memorized soon.
        num_heldout: Number of held-out patients, none of them in training.
        num_validation: Held-out patients in the validation loader; all of them without.
        shape: Sides in voxels, two for axial slices, three for volumes.
        batch_size: Images in a training batch.
        steps_per_epoch: Training batches in an epoch.
        fresh: Train on an endless stream of new patients that starts with the same `num_training`; nothing can be
            memorized then.
        seed: Seed of the population and of the order of the training set.
        num_workers: Worker processes of each loader.

    Attributes:
        training: The training set; in fresh mode the first `num_training` patients of the stream.
        heldout: The held-out set.

    Raises:
        ConfigurationError: If a number lies outside its range.

    Example:
        >>> data = HeadDataModule(num_training=4, num_heldout=2, batch_size=2, steps_per_epoch=3)
        >>> [len(batch["id"]) for batch in data.train_dataloader()]
        [2, 2, 2]
    """

    def __init__(
        self,
        num_training: int = 24,
        num_heldout: int = 200,
        *,
        num_validation: int | None = 24,
        shape: tuple[int, ...] = (64, 64),
        batch_size: int = 24,
        steps_per_epoch: int = 100,
        fresh: bool = False,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        least = {
            "num_training": (num_training, 1),
            "num_heldout": (num_heldout, 1),
            "num_validation": (1 if num_validation is None else num_validation, 1),
            "batch_size": (batch_size, 1),
            "steps_per_epoch": (steps_per_epoch, 1),
            "seed": (seed, 0),
            "num_workers": (num_workers, 0),
        }
        for name, (value, bound) in least.items():
            if value < bound:
                raise ConfigurationError(f"{name} must be at least {bound}, got {name}={value}.")
        self.num_validation = num_heldout if num_validation is None else min(num_validation, num_heldout)
        self.shape = tuple(shape)
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.fresh = fresh
        self.seed = seed
        self.num_workers = num_workers
        self.training = HeadDataset(simulate_heads(num_training, seed=seed, shape=self.shape))
        self.heldout = HeadDataset(
            simulate_heads(num_heldout, seed=seed, first_subject=FIRST_HELDOUT_SUBJECT, shape=self.shape)
        )

    def train_dataloader(self) -> DataLoader[HeadItem]:
        """Return a loader of `steps_per_epoch` batches, in an order that `seed` and the epoch decide."""
        epoch = 0 if self.trainer is None else self.trainer.current_epoch
        per_epoch = self.batch_size * self.steps_per_epoch
        if self.fresh:
            return _StreamLoader(
                per_epoch=per_epoch,
                epoch=epoch,
                seed=self.seed,
                shape=self.shape,
                batch_size=self.batch_size,
                num_workers=self.num_workers,
            )
        order = torch.Generator().manual_seed(self.seed + epoch)
        sampler = RandomSampler(self.training, num_samples=per_epoch, generator=order)
        return DataLoader(self.training, batch_size=self.batch_size, sampler=sampler, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader[HeadItem]:
        """Return a loader of the first `num_validation` held-out patients."""
        subjects = self.heldout.subjects
        first = HeadSubjects(
            images=subjects.images[: self.num_validation],
            labels=subjects.labels[: self.num_validation],
            ids=subjects.ids[: self.num_validation],
            spacing_mm=subjects.spacing_mm,
        )
        return DataLoader(HeadDataset(first), batch_size=self.batch_size, num_workers=self.num_workers)
