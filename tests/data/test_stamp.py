import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from relict_lightning.data import ImageFolder, open_images


def write(path, value=0, shape=(1, 4, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.full(shape, value, dtype=np.float32))
    return path


def touch(path):
    """Changes the modification time by a nanosecond, as a rewrite at least does."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1000))


def stamp(source, **passed):
    return open_images(source, role="training", **passed).stamp()


@pytest.fixture
def files(tmp_path):
    return [write(tmp_path / "images" / f"{name}.npy", value) for value, name in enumerate("abc")]


def paths_of(files):
    return list(files)


def texts_of(files):
    return [str(path) for path in files]


def dictionaries_of(files):
    return [{"image": path, "id": path.stem, "group": 7} for path in files]


def folder_of(files):
    return ImageFolder(files[0].parent)


def subset_of(files):
    return Subset(ImageFolder(files[0].parent), [0, 1, 2])


def loader_of(files):
    return DataLoader(ImageFolder(files[0].parent), shuffle=True)


KINDS = [paths_of, texts_of, dictionaries_of, folder_of, subset_of, loader_of]


@pytest.mark.parametrize("kind", KINDS)
def test_a_stamp_stays_while_files_stay(kind, files):
    assert stamp(kind(files)) == stamp(kind(files))
    assert len(stamp(kind(files))) == 64


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("position", [0, 2])
def test_a_stamp_changes_with_the_time_of_any_file(kind, files, position):
    before = stamp(kind(files))

    touch(files[position])

    assert stamp(kind(files)) != before


@pytest.mark.parametrize("kind", KINDS)
def test_a_stamp_changes_with_the_size_of_a_file(kind, files):
    before, times = stamp(kind(files)), files[1].stat().st_mtime_ns

    files[1].write_bytes(files[1].read_bytes() + b"\0")
    os.utime(files[1], ns=(times, times))

    assert stamp(kind(files)) != before


@pytest.mark.parametrize("kind", [folder_of, loader_of])
def test_the_stamp_of_a_folder_changes_with_its_files(kind, files):
    before = stamp(kind(files))
    added = write(files[0].parent / "d.npy")
    after = stamp(kind(files))
    renamed = added.rename(files[0].parent / "e.npy")

    assert len({before, after, stamp(kind(files))}) == 3
    renamed.unlink()
    assert stamp(kind(files)) == before


def test_a_stamp_depends_on_order_ids_and_groups(files):
    items = dictionaries_of(files)
    others = [
        items[::-1],
        items[:2],
        [{**item, "id": f"{item['id']}-2"} for item in items],
        [{**item, "group": 8} for item in items],
        [{"image": item["image"], "id": item["id"]} for item in items],
        [item["image"] for item in items],
    ]

    assert len({stamp(other) for other in [items, *others]}) == 7
    assert stamp(files, groups=[1, 1, 2]) != stamp(files, groups=[1, 2, 2]) != stamp(files)


def test_training_and_heldout_sets_of_the_same_files_have_ids_and_stamps_of_their_own(files):
    assert open_images(files, role="held-out").stamp() != stamp(files)


def test_the_group_rule_of_a_folder_changes_its_stamp(files):
    assert stamp(ImageFolder(files[0].parent, groups="stem")) != stamp(ImageFolder(files[0].parent, groups="parent"))


@pytest.mark.parametrize("kind", ["folder", "dictionaries", "passed"])
def test_a_stamp_covers_label_files(kind, files, tmp_path):
    labels = [write(tmp_path / "labels" / path.name, 1) for path in files]

    def stamp_now():
        if kind == "folder":
            return stamp(ImageFolder(files[0].parent, labels=labels[0].parent))
        if kind == "dictionaries":
            return stamp([{"image": image, "label": label} for image, label in zip(files, labels, strict=True)])
        return stamp(files, segmentations=labels)

    before = stamp_now()
    touch(labels[2])

    assert before not in (None, stamp_now(), stamp(files))


def test_labels_beside_images_and_labels_passed_are_told_apart(files):
    assert stamp([{"image": path, "label": path} for path in files]) != stamp(files, segmentations=files)


def test_a_series_counts_all_its_files(tmp_path, write_dicom):
    for z in range(3):
        write_dicom(tmp_path / "p1" / f"{z}.dcm", np.zeros((4, 4), dtype=np.int16), series="1.2.3", z=z)
    sources = [lambda: [tmp_path / "p1"], lambda: ImageFolder(tmp_path)]
    before = [stamp(source()) for source in sources]

    touch(tmp_path / "p1" / "2.dcm")
    touched = [stamp(source()) for source in sources]
    write_dicom(tmp_path / "p1" / "3.dcm", np.zeros((4, 4), dtype=np.int16), series="1.2.3", z=3)
    longer = [stamp(source()) for source in sources]

    for stamps in zip(before, touched, longer, strict=True):
        assert len({*stamps, None}) == 4


def test_a_map_of_a_file_has_the_stamp_of_the_file_and_of_the_part_that_is_seen(tmp_path):
    path = write(tmp_path / "images.npy", shape=(6, 1, 4, 4))
    images = np.load(path, mmap_mode="r")
    views = [images, images[:3], images[3:], images[::2], images[..., ::-1], images[:, :, :2]]

    stamps = [stamp(view) for view in views]
    assert len({*stamps, None}) == 7
    assert stamps == [stamp(view) for view in views]
    assert stamp(np.load(path, mmap_mode="r")) == stamps[0]
    touch(path)
    assert stamp(images) != stamps[0]


@pytest.mark.parametrize("mode", ["r+", "c"])
def test_a_map_that_can_be_written_to_has_no_stamp(tmp_path, mode):
    path = write(tmp_path / "images.npy", shape=(6, 1, 4, 4))

    assert stamp(np.load(path, mmap_mode=mode)) is None


def test_what_is_not_known_to_be_files_has_no_stamp(files):
    class Reads(Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return files[index]

    class Paths(list):
        def __getitem__(self, index):
            return torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(index))

    images = torch.zeros(3, 1, 4, 4)
    mapped = np.load(files[0], mmap_mode="r")
    sources = [
        images,
        images.numpy(),
        list(images),
        TensorDataset(images),
        Reads(),
        Paths(files),
        [*files, images[0]],
        [{"image": path, "label": torch.zeros(4, 4)} for path in files],
        Subset(TensorDataset(images), [0]),
        (mapped + 1)[None],
    ]

    assert [stamp(source) for source in sources] == [None] * len(sources)
    assert stamp(files, segmentations=torch.zeros(3, 4, 4)) is None


def test_a_class_label_is_no_file(files):
    assert stamp([{"image": path, "label": 3} for path in files]) == stamp([{"image": path} for path in files])


def test_a_missing_file_leaves_no_stamp(files):
    source = open_images(files, role="training")
    files[2].unlink()

    assert source.stamp() is None


def test_a_stamp_reads_no_image(files, monkeypatch):
    source = open_images(ImageFolder(files[0].parent), role="training")

    def refuse(*_, **__):
        raise AssertionError("read")

    monkeypatch.setattr("relict_lightning.data.folder.read_image", refuse)
    monkeypatch.setattr("relict_lightning.data.items.read_image", refuse)

    assert source.stamp() is not None


def test_a_relative_path_has_the_stamp_of_the_absolute_one_in_any_process(files, monkeypatch):
    code = f"""
from relict_lightning.data.stamp import stamp_of
print(stamp_of({texts_of(files)!r}, role="training"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    monkeypatch.chdir(files[0].parent)

    assert stamp([Path(path.name) for path in files]) == done.stdout.strip()
