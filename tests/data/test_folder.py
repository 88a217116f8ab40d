import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from relict_lightning.data import ImageFolder, open_images
from relict_lightning.errors import ConfigurationError, EmptyDataError, InvalidImageError, UnreadableDataError


def write_nifti(path, value=0.0, shape=(4, 4, 4), spacing=1.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    nibabel.save(nibabel.Nifti1Image(np.full(shape, value, dtype=np.float32), affine), path)


def write_picture(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 5), value, dtype=np.uint8)).save(path)


def column(folder, key):
    return [folder[index][key] for index in range(len(folder))]


def test_files_come_sorted_by_path_with_their_path_as_id(tmp_path):
    for value, name in enumerate(["b/2.nii.gz", "a.nii.gz", "b/1.nii"]):
        write_nifti(tmp_path / name, value)
    (tmp_path / "README.md").write_text("notes")
    (tmp_path / "._a.nii.gz").write_bytes(b"left by another system")

    folder = ImageFolder(tmp_path)

    assert column(folder, "id") == ["a.nii.gz", "b/1.nii", "b/2.nii.gz"]
    assert [float(image.mean()) for image in column(folder, "image")] == [1, 2, 0]
    assert folder[0]["image"].shape == (1, 4, 4, 4)
    assert folder.spacing_mm == (1.0, 1.0, 1.0)


def test_a_folder_opens_as_a_source(tmp_path):
    for name in ("sub-01/ses-1/T1w.nii.gz", "sub-01/ses-2/T1w.nii.gz", "sub-02/T1w.nii.gz"):
        write_nifti(tmp_path / name)

    batch = next(open_images(ImageFolder(tmp_path), role="training").batches(3))

    assert batch.ids == ("sub-01/ses-1/T1w.nii.gz", "sub-01/ses-2/T1w.nii.gz", "sub-02/T1w.nii.gz")
    assert batch.groups == ("sub-01", "sub-01", "sub-02")


def test_negative_and_overlong_positions_behave_as_in_a_list(tmp_path):
    write_picture(tmp_path / "a.png")
    folder = ImageFolder(tmp_path)

    assert folder[-1]["id"] == "a.png"
    with pytest.raises(IndexError):
        folder[1]


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("bids", ["sub-7", "sub-7", "scan"]),
        ("stem", ["sub-7_run-1.T1w", "sub-7_run-2", "scan"]),
        ("parent", ["x", "x", "y/z"]),
    ],
)
def test_the_patient_is_found_by_every_rule(tmp_path, groups, expected):
    for name in ("x/sub-7_run-1.T1w.png", "x/sub-7_run-2.png", "y/z/scan.png"):
        write_picture(tmp_path / name)

    assert column(ImageFolder(tmp_path, groups=groups), "group") == expected


def test_the_patient_is_read_from_a_table(tmp_path):
    for name in ("images/a.png", "images/deep/b.png"):
        write_picture(tmp_path / name)
    table = tmp_path / "patients.csv"
    table.write_text("group,file,age\nanna,a.png,40\nben,deep/b.png,50\ncarl,unused.png,60\n")

    assert column(ImageFolder(tmp_path / "images", groups=table), "group") == ["anna", "ben"]


def test_a_table_without_a_row_for_an_image_is_refused(tmp_path):
    for name in ("images/a.png", "images/b.png"):
        write_picture(tmp_path / name)
    (tmp_path / "patients.csv").write_text("file,group\na.png,anna\n")

    with pytest.raises(UnreadableDataError, match=r"no row for b.png"):
        ImageFolder(tmp_path / "images", groups=tmp_path / "patients.csv")


def test_a_table_with_other_columns_is_refused(tmp_path):
    write_picture(tmp_path / "a.png")
    (tmp_path / "patients.csv").write_text("path,patient\na.png,anna\n")

    with pytest.raises(UnreadableDataError, match=r"columns \['path', 'patient'\]; expected file and group"):
        ImageFolder(tmp_path, groups=tmp_path / "patients.csv")


def test_an_unknown_rule_is_refused(tmp_path):
    write_picture(tmp_path / "a.png")

    with pytest.raises(ConfigurationError, match=r"groups='patient' is no file; expected 'bids', 'stem', 'parent'"):
        ImageFolder(tmp_path, groups="patient")


def test_segmentations_come_from_the_parallel_folder(tmp_path):
    for name in ("images/a.nii.gz", "images/deep/b.nii.gz"):
        write_nifti(tmp_path / name)
    write_nifti(tmp_path / "labels" / "a.nii", 1)
    write_nifti(tmp_path / "labels" / "deep" / "b.nii.gz", 2)

    batch = next(open_images(ImageFolder(tmp_path / "images", labels=tmp_path / "labels"), role="training").batches(2))

    assert batch.segmentations.dtype == torch.int64
    assert batch.segmentations[:, 0, 0, 0].tolist() == [1, 2]


def test_a_folder_of_segmentations_inside_the_images_is_not_read_as_images(tmp_path):
    write_picture(tmp_path / "a.png")
    write_picture(tmp_path / "labels" / "a.png", 3)

    folder = ImageFolder(tmp_path, labels=tmp_path / "labels")

    assert column(folder, "id") == ["a.png"]
    assert folder[0]["label"].unique().tolist() == [3]


def test_a_missing_segmentation_is_refused(tmp_path):
    for name in ("images/a.png", "images/b.png", "labels/a.png"):
        write_picture(tmp_path / name)

    with pytest.raises(UnreadableDataError, match=r"no segmentation for b.png"):
        ImageFolder(tmp_path / "images", labels=tmp_path / "labels")


def test_a_pattern_chooses_files(tmp_path):
    for name in ("sub-1/T1w.png", "sub-1/T2w.png", "sub-2/T1w.png"):
        write_picture(tmp_path / name)

    assert column(ImageFolder(tmp_path, pattern="*/T1w.png"), "id") == ["sub-1/T1w.png", "sub-2/T1w.png"]


@pytest.mark.parametrize("pattern", [None, "*", "*/*.dcm"])
def test_a_folder_of_a_dicom_series_is_one_image(tmp_path, write_dicom, pattern):
    for patient in ("p1", "p2"):
        for z in range(3):
            pixels = np.full((4, 5), z, dtype=np.int16)
            write_dicom(tmp_path / patient / f"{z}.dcm", pixels, series=f"1.2.{patient[1]}", z=z)

    folder = ImageFolder(tmp_path, pattern=pattern)

    assert column(folder, "id") == ["p1", "p2"]
    assert folder[0]["image"][0, :, 0, 0].tolist() == [0, 1, 2]
    assert column(folder, "group") == ["p1", "p2"]


def test_dicom_files_of_different_series_are_one_image_each(tmp_path, write_dicom):
    for name in ("a.dcm", "b.dcm"):
        write_dicom(tmp_path / "xrays" / name, np.zeros((4, 5), dtype=np.int16), series=f"1.2.{ord(name[0])}")

    assert column(ImageFolder(tmp_path), "id") == ["xrays/a.dcm", "xrays/b.dcm"]


def test_images_of_another_shape_are_refused_with_both_names(tmp_path):
    write_nifti(tmp_path / "a.nii")
    write_nifti(tmp_path / "b.nii", shape=(4, 4, 5))

    with pytest.raises(InvalidImageError, match=r"b.nii has shape \[1, 4, 4, 5\], but a.nii has \[1, 4, 4, 4\]"):
        ImageFolder(tmp_path)[1]


def test_spacing_may_differ_by_rounding_but_not_by_resolution(tmp_path):
    for name, spacing in [("a.nii", 1.0), ("b.nii", 1.005), ("c.nii", 1.02)]:
        write_nifti(tmp_path / name, spacing=spacing)
    folder = ImageFolder(tmp_path)

    assert folder[1]["id"] == "b.nii"
    with pytest.raises(InvalidImageError, match=r"c.nii has a spacing of 1.02 x 1.02 x 1.02 mm, but a.nii of 1 x"):
        folder[2]


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(EmptyDataError, match=r"holds no image; expected files that match \.nii\.gz"):
        ImageFolder(tmp_path)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(UnreadableDataError, match=r"root='.*gone' is not a folder"):
        ImageFolder(tmp_path / "gone")
