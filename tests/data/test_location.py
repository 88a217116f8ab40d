import re

import numpy as np
import pytest

from relict_lightning.data import ImageFolder, images_at
from relict_lightning.errors import ConfigurationError, UnreadableDataError


def test_a_folder_is_read_file_by_file_with_the_patient_from_the_name(tmp_path):
    np.save(tmp_path / "sub-07_T1w.npy", np.zeros((1, 8, 8)))

    images = images_at(tmp_path)

    assert isinstance(images, ImageFolder)
    assert images[0]["group"] == "sub-07"


def test_pattern_and_groups_reach_the_folder(tmp_path):
    for name in ("a_T1w", "a_T2w", "b_T1w"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "image.npy", np.zeros((1, 8, 8)))

    images = images_at(tmp_path, pattern="*_T1w/*.npy", groups="parent")

    assert [images[position]["group"] for position in range(len(images))] == ["a_T1w", "b_T1w"]


@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (2, 2, 4, 5, 6)])
def test_an_array_comes_back_as_it_was_saved(tmp_path, shape):
    array = np.random.default_rng(0).random(shape)
    np.save(tmp_path / "images.npy", array)
    np.savez(tmp_path / "one.npz", anything=array)
    np.savez(tmp_path / "several.npz", images=array, ages=np.zeros(3))

    for name in ("images.npy", "one.npz", "several.npz"):
        assert np.array_equal(images_at(tmp_path / name), array)


def test_what_is_no_set_of_images_is_refused_by_name(tmp_path):
    np.save(tmp_path / "flat.npy", np.zeros((3, 8, 8)))
    np.savez(tmp_path / "two.npz", first=np.zeros(3), second=np.zeros(3))
    (tmp_path / "note.txt").write_text("text")
    (tmp_path / "broken.npy").write_bytes(b"no array")
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    messages = {
        "flat.npy": "holds an array of shape [3, 8, 8]; expected [n, channels, height, width]",
        "two.npz": "holds the arrays ['first', 'second']; expected one, or one called 'images'",
        "note.txt": "is one file and no array; expected a folder of images",
        "broken.npy": "cannot be read",
        "broken.npz": "cannot be read",
        "missing": "does not exist",
    }

    for name, message in messages.items():
        with pytest.raises(UnreadableDataError, match=re.escape(message)):
            images_at(tmp_path / name)


@pytest.mark.parametrize("option", [{"pattern": "*.nii"}, {"groups": "bids"}])
def test_an_array_has_no_file_names_to_choose_or_group_by(tmp_path, option):
    np.save(tmp_path / "images.npy", np.zeros((3, 1, 8, 8)))

    with pytest.raises(ConfigurationError, match=r"needs file names, but .* is one array"):
        images_at(tmp_path / "images.npy", **option)
