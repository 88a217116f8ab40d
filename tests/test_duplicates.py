import numpy as np
import pytest
import torch
from built_references import build

from relict_lightning import ReplicaDetector
from relict_lightning.duplicates import find_duplicates, find_leaks
from relict_lightning.errors import NotFittedError, RelictWarning
from relict_lightning.testing import simulate_heads


@pytest.fixture(scope="module")
def heads():
    return simulate_heads(40, shape=(24, 24)).images


def _pairs(found):
    return [(pair.first, pair.second) for pair in found]


def test_near_duplicates_of_different_patients_are_found_once_each(heads):
    images = heads[:30].clone()
    images[20] = images[3]
    images[25] = images[7] + 0.01 * torch.randn((1, 24, 24), generator=torch.Generator().manual_seed(0))

    found = find_duplicates(build(images))

    assert sorted(_pairs(found)) == [(3, 20), (7, 25)]
    by_pair = {(pair.first, pair.second): pair for pair in found}
    assert [by_pair[pair].is_bitwise for pair in ((3, 20), (7, 25))] == [True, False]
    assert by_pair[3, 20].correlation == pytest.approx(1, abs=1e-5)
    assert by_pair[7, 25].correlation > 0.95
    assert all(pair.feature_likeness >= 0.5 and pair.voxel_likeness >= 0.5 for pair in found)
    assert [pair.correlation for pair in found] == sorted((pair.correlation for pair in found), reverse=True)


def test_images_of_one_patient_are_no_duplicates(heads):
    images = heads[:20].clone()
    images[12] = images[3] + 0.005
    groups = ["the same" if position in (3, 12) else str(position) for position in range(20)]

    assert find_duplicates(build(images, groups=groups)) == ()


def test_different_patients_are_no_duplicates_and_no_leaks(heads):
    training, heldout = build(heads[:20]), build(heads[20:], role="held-out")

    assert find_duplicates(training) == ()
    assert find_leaks(heldout, training) == ()


def test_held_out_images_that_are_training_images_in_disguise_are_leaks(heads):
    heldout = heads[20:].clone()
    heldout[4] = heads[11] + 0.01

    (leak,) = find_leaks(build(heldout, role="held-out"), build(heads[:20]))

    assert (leak.first, leak.second) == (4, 11)
    assert (leak.first_id, leak.second_id) == ("held-out-4", "training-11")


def test_too_few_patients_to_judge_by_give_no_duplicates(heads):
    images = heads[[0, 0]]
    images[1] += 0.005

    assert find_duplicates(build(images, groups=["anna", "ben"])) == ()


def test_bitwise_copies_are_duplicates_whoever_they_are_said_to_be(heads):
    images = heads[[0, 1, 0, 2, 0]]

    found = find_duplicates(build(images, groups=["anna", "ben", "anna", "cleo", "dora"]))

    assert sorted(_pairs(found)) == [(0, 2), (0, 4)]
    assert all(pair.is_bitwise for pair in found)


def test_a_detector_reports_both(heads):
    training, heldout = heads[:20].clone(), heads[20:].clone()
    training[15] = training[2] + 0.005
    heldout[0] = training[6] + 0.005

    with pytest.warns(RelictWarning, match="1 of 20 held-out patients resemble training patients"):
        detector = ReplicaDetector().fit(training, heldout)
    frame = detector.audit_training().to_frame()

    assert frame[["kind", "first", "second"]].values.tolist() == [["duplicate", 2, 15], ["leak", 0, 6]]
    assert frame["first_id"].tolist() == ["training-2", "held-out-0"]
    assert np.isfinite(frame["correlation"]).all()
    with pytest.raises(NotFittedError):
        ReplicaDetector().audit_training()
