import sys

import numpy as np
import pytest

from relict_lightning.data import read_image
from relict_lightning.errors import MissingDependencyError, UnreadableDataError

SERIES = "1.2.826.0.1.1"
OTHER_SERIES = "1.2.826.0.1.2"


def slice_of(value, shape=(3, 4), dtype=np.int16):
    return np.full(shape, value, dtype=dtype)


def test_a_series_is_sorted_by_position_and_not_by_name(tmp_path, write_dicom):
    for name, z in [("a.dcm", 5.0), ("b.dcm", 0.0), ("c.dcm", 2.5)]:
        write_dicom(tmp_path / name, slice_of(int(10 * z)), series=SERIES, z=z)

    loaded = read_image(tmp_path)

    assert loaded.array.shape == (1, 3, 3, 4)
    assert loaded.array.dtype == np.float32
    assert loaded.array[0, :, 0, 0].tolist() == [0, 25, 50]
    assert loaded.spacing_mm == (2.5, 0.5, 0.75)


def test_slices_of_a_tilted_series_are_measured_along_their_normal(tmp_path, write_dicom):
    # A sagittal plane: rows run along y, columns along -z, so the normal is -x.
    plane = [0, 1, 0, 0, 0, -1]
    for index, x in enumerate([0.0, 3.0, 6.0]):
        tags = {"ImageOrientationPatient": plane, "ImagePositionPatient": [x, 7, 9]}
        write_dicom(tmp_path / f"{index}.dcm", slice_of(index), series=SERIES, **tags)

    loaded = read_image(tmp_path)

    assert loaded.array[0, :, 0, 0].tolist() == [2, 1, 0]
    assert loaded.spacing_mm[0] == pytest.approx(3.0)


def test_stored_values_become_hounsfield_units(tmp_path, write_dicom):
    stored = np.array([[0, 1000], [1024, 2000]], dtype=np.uint16)
    path = write_dicom(tmp_path / "ct.dcm", stored, series=SERIES, RescaleSlope=2, RescaleIntercept=-1024)

    loaded = read_image(path)

    assert loaded.array.tolist() == [[[-1024, 976], [1024, 2976]]]
    assert loaded.spacing_mm == (0.5, 0.75)


@pytest.mark.parametrize(("dtype", "expected"), [(np.uint8, [[255, 0]]), (np.int16, [[-1, -256]])])
def test_an_image_with_bright_low_values_is_inverted(tmp_path, write_dicom, dtype, expected):
    stored = np.array([[0, 255]], dtype=dtype)
    path = write_dicom(tmp_path / "xray.dcm", stored, series=SERIES, PhotometricInterpretation="MONOCHROME1")

    assert read_image(path).array[0].tolist() == expected


def test_a_colour_image_has_three_channels(tmp_path, write_dicom):
    pixels = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    path = write_dicom(tmp_path / "skin.dcm", pixels, series=SERIES)

    np.testing.assert_array_equal(read_image(path).array, np.moveaxis(pixels, -1, 0))


def test_a_file_without_suffix_is_recognised_by_its_first_bytes(tmp_path, write_dicom):
    path = write_dicom(tmp_path / "1.2.840.10008.77", slice_of(3), series=SERIES)

    assert read_image(path).array.shape == (1, 3, 4)


def test_a_series_of_one_slice_is_a_2d_image(tmp_path, write_dicom):
    write_dicom(tmp_path / "one.dcm", slice_of(3), series=SERIES)

    assert read_image(tmp_path).array.shape == (1, 3, 4)


def test_a_folder_with_two_series_is_refused(tmp_path, write_dicom):
    write_dicom(tmp_path / "a.dcm", slice_of(0), series=SERIES)
    write_dicom(tmp_path / "b.dcm", slice_of(0), series=OTHER_SERIES, z=1)

    with pytest.raises(UnreadableDataError, match=r"2 DICOM series in 2 files.*folder of its own"):
        read_image(tmp_path)


def test_a_missing_slice_is_refused(tmp_path, write_dicom):
    for z in (0, 1, 2, 4, 5):
        write_dicom(tmp_path / f"{z}.dcm", slice_of(0), series=SERIES, z=z)

    with pytest.raises(UnreadableDataError, match=r"2 mm apart \(2.dcm and 4.dcm\) where 1 mm is usual"):
        read_image(tmp_path)


def test_two_slices_at_one_position_are_refused(tmp_path, write_dicom):
    for name, z in [("a", 0), ("b", 1), ("c", 1), ("d", 2), ("e", 3)]:
        write_dicom(tmp_path / f"{name}.dcm", slice_of(0), series=SERIES, z=z)

    with pytest.raises(UnreadableDataError, match=r"0 mm apart \(b.dcm and c.dcm\)"):
        read_image(tmp_path)


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"PixelSpacing": [1, 1]}, "b.dcm has PixelSpacing"),
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "different planes"),
        ({"ImagePositionPatient": None}, "does not say where its slice lies"),
    ],
)
def test_slices_that_do_not_fit_together_are_refused(tmp_path, write_dicom, tags, message):
    write_dicom(tmp_path / "a.dcm", slice_of(0), series=SERIES)
    write_dicom(tmp_path / "b.dcm", slice_of(0), series=SERIES, z=1, **tags)

    with pytest.raises(UnreadableDataError, match=message):
        read_image(tmp_path)


def test_slices_of_other_size_are_refused(tmp_path, write_dicom):
    write_dicom(tmp_path / "a.dcm", slice_of(0), series=SERIES)
    write_dicom(tmp_path / "b.dcm", slice_of(0, shape=(5, 4)), series=SERIES, z=1)

    with pytest.raises(UnreadableDataError, match=r"b.dcm has Rows 5, but a.dcm of the same series has 3"):
        read_image(tmp_path)


def test_a_file_with_several_frames_is_refused(tmp_path, write_dicom):
    path = write_dicom(tmp_path / "cine.dcm", slice_of(0), series=SERIES, NumberOfFrames=7)

    with pytest.raises(UnreadableDataError, match=r"has 7 frames; expected one.*dcm2niix"):
        read_image(path)


def test_a_truncated_file_is_refused_by_name(tmp_path, write_dicom):
    path = write_dicom(tmp_path / "short.dcm", slice_of(0, shape=(64, 64)), series=SERIES)
    path.write_bytes(path.read_bytes()[:-500])

    with pytest.raises(UnreadableDataError, match=r"pixels of .*short.dcm cannot be decoded"):
        read_image(path)


def test_a_file_that_is_not_dicom_is_refused(tmp_path):
    path = tmp_path / "text.dcm"
    path.write_text("not an image")

    with pytest.raises(UnreadableDataError, match=r"text.dcm cannot be read as DICOM"):
        read_image(path)


def test_a_folder_without_dicom_is_refused(tmp_path):
    with pytest.raises(UnreadableDataError, match=r"holds no DICOM file"):
        read_image(tmp_path)


def test_a_missing_package_is_named_with_its_extra(tmp_path, write_dicom, monkeypatch):
    path = write_dicom(tmp_path / "a.dcm", slice_of(0), series=SERIES)
    monkeypatch.setitem(sys.modules, "pydicom", None)

    with pytest.raises(MissingDependencyError, match=r"`pydicom`.*pip install 'relict-lightning\[io\]'"):
        read_image(path)
