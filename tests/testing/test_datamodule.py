import itertools
import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from relict_lightning.errors import ConfigurationError
from relict_lightning.testing import HeadDataModule, HeadDataset, HeadStream, simulate_heads

SHAPE = (16, 16)


def _ids(loader) -> list[str]:
    return [identifier for batch in loader for identifier in batch["id"]]


def test_an_item_holds_image_label_id_and_group():
    subjects = simulate_heads(3, shape=SHAPE)
    item = HeadDataset(subjects)[1]

    assert torch.equal(item["image"], subjects.images[1])
    assert torch.equal(item["label"], subjects.labels[1])
    assert item["id"] == item["group"] == "sub-00001"


def test_a_data_set_ends_where_its_subjects_end():
    dataset = HeadDataset(simulate_heads(3, shape=SHAPE))

    assert len(list(dataset)) == len(dataset) == 3


def test_the_stream_begins_with_the_subjects_of_the_data_set():
    subjects = simulate_heads(7, shape=SHAPE)
    stream = list(itertools.islice(HeadStream(shape=SHAPE, chunk_size=3), 7))

    assert [item["id"] for item in stream] == list(subjects.ids)
    assert torch.equal(torch.stack([item["image"] for item in stream]), subjects.images)


def test_a_counted_stream_ends_in_the_middle_of_a_chunk():
    stream = HeadStream(shape=SHAPE, chunk_size=3, first_subject=2, count=4)

    assert [item["id"] for item in stream] == ["sub-00002", "sub-00003", "sub-00004", "sub-00005"]


def test_workers_of_a_stream_share_it_without_a_duplicate_and_keep_the_order_of_batches():
    stream = HeadStream(shape=SHAPE, chunk_size=4, count=14)
    simulate_heads(1, shape=SHAPE)

    alone = _ids(DataLoader(stream, batch_size=4))
    shared = _ids(DataLoader(stream, batch_size=4, num_workers=2))

    assert sorted(shared) == sorted(set(shared)) == sorted(alone)
    assert shared[:12] == alone[:12]


def test_a_training_epoch_has_the_batches_asked_for_and_every_patient_equally_often():
    data = HeadDataModule(num_training=4, num_heldout=2, shape=SHAPE, batch_size=4, steps_per_epoch=5)
    batches = [batch["id"] for batch in data.train_dataloader()]

    assert len(batches) == 5
    assert all(sorted(batch) == sorted(data.training.subjects.ids) for batch in batches)


def test_a_small_training_set_fills_a_larger_batch():
    data = HeadDataModule(num_training=2, num_heldout=2, shape=SHAPE, batch_size=6, steps_per_epoch=1)
    (batch,) = data.train_dataloader()

    assert batch["image"].shape == (6, 1, *SHAPE)


@pytest.mark.parametrize("fresh", [False, True])
def test_one_seed_gives_one_order_and_two_epochs_differ(fresh):
    options = {"num_training": 6, "num_heldout": 2, "shape": SHAPE, "batch_size": 3, "steps_per_epoch": 4}
    loaders = [HeadDataModule(**options, fresh=fresh, seed=5).train_dataloader() for _ in range(2)]
    epochs = [[_ids(loader), _ids(loader)] for loader in loaders]

    assert epochs[0] == epochs[1]
    assert epochs[0][0] != epochs[0][1]


def test_the_order_of_training_does_not_depend_on_the_global_random_state():
    data = HeadDataModule(num_training=6, num_heldout=2, shape=SHAPE, batch_size=3, steps_per_epoch=4)
    torch.manual_seed(0)
    first = _ids(data.train_dataloader())
    torch.manual_seed(1)

    assert _ids(data.train_dataloader()) == first


def test_fresh_training_begins_with_the_training_set_and_never_repeats_a_patient():
    data = HeadDataModule(num_training=6, num_heldout=4, shape=SHAPE, batch_size=6, steps_per_epoch=2, fresh=True)
    loader = data.train_dataloader()
    seen = _ids(loader) + _ids(loader)

    assert tuple(seen[:6]) == data.training.subjects.ids
    assert len(set(seen)) == len(seen) == 24


@pytest.mark.parametrize("fresh", [False, True])
def test_no_heldout_patient_is_in_training(fresh):
    data = HeadDataModule(num_training=6, num_heldout=9, shape=SHAPE, batch_size=6, steps_per_epoch=3, fresh=fresh)

    assert not set(data.heldout.subjects.ids) & set(_ids(data.train_dataloader()))


def test_training_patients_do_not_depend_on_the_number_held_out():
    few = HeadDataModule(num_training=3, num_heldout=1, shape=SHAPE)
    many = HeadDataModule(num_training=3, num_heldout=5, shape=SHAPE)

    assert torch.equal(few.training.subjects.images, many.training.subjects.images)


def test_validation_is_on_the_first_heldout_patients():
    data = HeadDataModule(num_training=3, num_heldout=9, num_validation=5, shape=SHAPE, batch_size=4)

    assert tuple(_ids(data.val_dataloader())) == data.heldout.subjects.ids[:5]


def test_validation_is_on_all_heldout_patients_without_a_number():
    data = HeadDataModule(num_training=3, num_heldout=9, num_validation=None, shape=SHAPE)

    assert tuple(_ids(data.val_dataloader())) == data.heldout.subjects.ids


def test_data_sets_and_streams_pickle_for_workers():
    dataset = HeadDataset(simulate_heads(2, shape=SHAPE))
    stream = HeadStream(shape=SHAPE, count=2)

    assert torch.equal(pickle.loads(pickle.dumps(dataset))[1]["image"], dataset[1]["image"])  # noqa: S301
    assert next(iter(pickle.loads(pickle.dumps(stream))))["id"] == "sub-00000"  # noqa: S301


def test_the_data_module_is_configurable_from_yaml():
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(HeadDataModule, "data")

    built = parser.instantiate(parser.parse_args(["--data.shape=[16,16]", "--data.num_training=3"]))

    assert built.data.training[2]["image"].shape == (1, 16, 16)


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_training", 0), ("num_heldout", 0), ("num_validation", 0), ("batch_size", 0), ("steps_per_epoch", 0)],
)
def test_the_data_module_names_the_number_that_is_too_small(name, value):
    with pytest.raises(ConfigurationError, match=f"{name} must be at least 1, got {name}={value}"):
        HeadDataModule(**{name: value})


def test_a_stream_rejects_an_empty_chunk_and_a_negative_start():
    with pytest.raises(ConfigurationError, match="chunk_size=0"):
        HeadStream(chunk_size=0)
    with pytest.raises(ConfigurationError, match="first_subject=-1"):
        HeadStream(first_subject=-1)
