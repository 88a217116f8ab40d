import nibabel
import numpy as np
import pytest
from PIL import Image

from relict_lightning.data import read_image, read_label_map
from relict_lightning.errors import UnreadableDataError


def write_nifti(path, array, affine=None):
    nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 2.0, 3.0, 1.0]) if affine is None else affine), path)
    return path


def noise(shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_comes_back_as_written(tmp_path, suffix):
    volume = noise((3, 4, 5))
    loaded = read_image(write_nifti(tmp_path / f"brain{suffix}", volume))

    np.testing.assert_array_equal(loaded.array, volume[None])
    assert loaded.array.dtype == np.float32
    assert loaded.spacing_mm == (1.0, 2.0, 3.0)


def test_one_brain_stored_in_two_orientations_reads_the_same(tmp_path):
    volume = noise((3, 4, 5))
    as_ras = nibabel.Nifti1Image(volume, np.diag([1.0, 2.0, 3.0, 1.0]))
    to_psl = nibabel.orientations.axcodes2ornt(("P", "S", "L"))
    nibabel.save(as_ras, tmp_path / "ras.nii.gz")
    nibabel.save(as_ras.as_reoriented(to_psl), tmp_path / "psl.nii.gz")
    assert nibabel.load(tmp_path / "psl.nii.gz").shape != volume.shape

    ras, psl = read_image(tmp_path / "ras.nii.gz"), read_image(tmp_path / "psl.nii.gz")

    np.testing.assert_array_equal(ras.array, psl.array)
    assert psl.spacing_mm == pytest.approx((1.0, 2.0, 3.0))


def test_scaled_integers_become_their_values(tmp_path):
    image = nibabel.Nifti1Image(np.arange(8, dtype=np.int16).reshape(2, 2, 2), np.eye(4))
    image.header.set_slope_inter(2.0, -5.0)
    nibabel.save(image, tmp_path / "ct.nii")

    assert read_image(tmp_path / "ct.nii").array.ravel().tolist() == [-5, -3, -1, 1, 3, 5, 7, 9]


def test_the_fourth_nifti_axis_becomes_channels(tmp_path):
    volume = noise((3, 4, 5, 2))

    array = read_image(write_nifti(tmp_path / "multi.nii.gz", volume)).array

    np.testing.assert_array_equal(array, np.moveaxis(volume, -1, 0))


def test_a_nifti_slice_is_a_2d_image(tmp_path):
    loaded = read_image(write_nifti(tmp_path / "slice.nii.gz", noise((3, 1, 5))))

    assert loaded.array.shape == (1, 3, 5)
    assert loaded.spacing_mm == (1.0, 3.0)


def test_a_nifti_with_five_axes_is_refused(tmp_path):
    with pytest.raises(UnreadableDataError, match=r"shape \(2, 2, 2, 1, 3\); expected three spatial axes"):
        read_image(write_nifti(tmp_path / "vector.nii", noise((2, 2, 2, 1, 3))))


@pytest.mark.parametrize("keep", [10, 400, 5000, -4])
def test_a_truncated_nifti_is_refused_by_name(tmp_path, keep):
    path = write_nifti(tmp_path / "cut.nii.gz", noise((16, 16, 16)))
    path.write_bytes(path.read_bytes()[:keep])

    with pytest.raises(UnreadableDataError, match=r"cut.nii.gz cannot be read.*Write it again"):
        read_image(path)


def test_a_damaged_nifti_is_refused_by_name(tmp_path):
    path = write_nifti(tmp_path / "bad.nii.gz", noise((16, 16, 16)))
    content = bytearray(path.read_bytes())
    content[3000:3040] = bytes(40)
    path.write_bytes(content)

    with pytest.raises(UnreadableDataError, match=r"bad.nii.gz cannot be read"):
        read_image(path)


def test_a_grey_picture_has_one_channel_and_a_colour_picture_three(tmp_path):
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    colour = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(colour).save(tmp_path / "colour.png")

    np.testing.assert_array_equal(read_image(tmp_path / "grey.png").array, grey[None])
    np.testing.assert_array_equal(read_image(tmp_path / "colour.png").array, np.moveaxis(colour, -1, 0))


def test_sixteen_bits_of_grey_are_kept(tmp_path):
    grey = np.array([[0, 40000], [65535, 7]], dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "deep.png")

    np.testing.assert_array_equal(read_image(tmp_path / "deep.png").array, grey[None])


def test_a_jpeg_is_read(tmp_path):
    Image.fromarray(np.full((16, 16), 100, dtype=np.uint8)).save(tmp_path / "xray.JPG")

    assert read_image(tmp_path / "xray.JPG").array == pytest.approx(100, abs=1)


def test_an_opaque_alpha_channel_is_dropped_and_a_transparent_one_refused(tmp_path):
    colour = np.full((3, 4, 4), 255, dtype=np.uint8)
    Image.fromarray(colour).save(tmp_path / "opaque.png")
    colour[0, 0, 3] = 7
    Image.fromarray(colour).save(tmp_path / "transparent.png")

    assert read_image(tmp_path / "opaque.png").array.shape == (3, 3, 4)
    with pytest.raises(UnreadableDataError, match=r"transparent.png is partly transparent"):
        read_image(tmp_path / "transparent.png")


def test_labels_of_a_palette_picture_are_its_indices(tmp_path):
    labels = np.array([[0, 1], [2, 3]], dtype=np.uint8)
    picture = Image.fromarray(labels)
    picture.putpalette([250, 0, 0, 0, 250, 0, 0, 0, 250, 9, 9, 9])
    picture.save(tmp_path / "labels.png")

    assert read_label_map(tmp_path / "labels.png").tolist() == labels.tolist()
    assert read_image(tmp_path / "labels.png").array[:, 0, 0].tolist() == [250, 0, 0]


def test_a_truncated_picture_is_refused_by_name(tmp_path):
    Image.fromarray(noise((64, 64)).astype(np.uint8)).save(tmp_path / "cut.png")
    content = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])

    with pytest.raises(UnreadableDataError, match=r"cut.png cannot be read"):
        read_image(tmp_path / "cut.png")


def test_npy_and_npz_hold_channels_first(tmp_path):
    volume = noise((2, 4, 5, 6)).astype(np.float64)
    np.save(tmp_path / "a.npy", volume)
    np.savez(tmp_path / "b.npz", image=volume, other=np.zeros(3))

    for name in ("a.npy", "b.npz"):
        np.testing.assert_array_equal(read_image(tmp_path / name).array, volume.astype(np.float32))


def test_a_2d_npy_gets_a_channel(tmp_path):
    np.save(tmp_path / "a.npy", noise((4, 5)))

    assert read_image(tmp_path / "a.npy").array.shape == (1, 4, 5)


def test_an_npz_without_one_image_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", first=np.zeros(3), second=np.zeros(3))

    with pytest.raises(UnreadableDataError, match=r"holds the arrays \['first', 'second'\]"):
        read_image(tmp_path / "a.npz")


def test_pickled_arrays_are_never_loaded(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"code": 1}], dtype=object), allow_pickle=True)

    with pytest.raises(UnreadableDataError, match=r"allow_pickle=False"):
        read_image(tmp_path / "a.npy")


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(UnreadableDataError, match=r"gone.nii does not exist"):
        read_image(tmp_path / "gone.nii")


def test_another_format_is_refused_with_the_formats_that_are_read(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")

    with pytest.raises(UnreadableDataError, match=r"notes.txt is of no format.*\.nii\.gz, \.nii, \.png"):
        read_image(tmp_path / "notes.txt")


def test_labels_that_are_not_whole_numbers_are_refused(tmp_path):
    np.save(tmp_path / "soft.npy", np.full((4, 4), 0.5))

    with pytest.raises(UnreadableDataError, match=r"soft.npy has values that are not whole numbers"):
        read_label_map(tmp_path / "soft.npy")


def test_labels_are_read_from_nifti(tmp_path):
    labels = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)

    read = read_label_map(write_nifti(tmp_path / "seg.nii.gz", labels))

    assert read.dtype == np.int64
    np.testing.assert_array_equal(read, labels[None])
