from dataclasses import replace

import numpy as np
import pytest
import torch
from built_references import above_half, build

from relict_lightning.calibration import Rule
from relict_lightning.control import Control, new_patients_only, one_image_per_group, read_control, write_control
from relict_lightning.errors import EmptyDataError, RelictWarning
from relict_lightning.index import Entry, writing
from relict_lightning.self_test import SelfTest

SELF_TEST = SelfTest.from_dict(
    {
        "alpha": 0.05,
        "fdr": 0.05,
        "heldout": {"called": 0, "patients": 5},
        "alterations": [
            {
                "alteration": "plain",
                "planted": 2,
                "found": 1,
                "found_by_level": {"voxel": 1},
                "retrieved": 2,
                "attributed": 2,
            }
        ],
    }
)


def _images(count, seed=0):
    return torch.rand((count, 1, 8, 8), generator=torch.Generator().manual_seed(seed))


def _open(images, role, groups):
    return build(images, role=role, groups=groups, segment=above_half)


def _new_patients(training, training_groups, heldout, heldout_groups):
    reference = _open(training, "training", training_groups)
    others = _open(heldout, "held-out", heldout_groups)
    known = {"known_groups": set(reference.groups), "known_digests": reference.item_digests}
    return new_patients_only(others, **known), others


def test_new_patients_stay_as_they_are():
    kept, everyone = _new_patients(_images(4), range(4), _images(3, 1), range(10, 13))

    assert kept is everyone


def test_bitwise_copies_of_training_images_are_left_out_with_a_warning():
    training, heldout = _images(4), _images(5, 1)
    heldout[1], heldout[3] = training[2], training[0]

    with pytest.warns(RelictWarning, match=r"2 of 5 held-out images are training images too.*how the sets were split"):
        kept, _ = _new_patients(training, range(4), heldout, range(10, 15))

    assert kept.groups == ("10", "12", "14")
    np.testing.assert_allclose(kept.volumes(np.arange(3)), heldout[[0, 2, 4]], atol=2**-12)


def test_other_images_of_training_patients_are_left_out_with_a_warning():
    with pytest.warns(RelictWarning, match=r"3 of 6 held-out images .* belong to training patients"):
        kept, _ = _new_patients(
            _images(3), ["anna", "ben", "cleo"], _images(6, 1), ["dora", "ben", "ben", "eve", "anna", "eve"]
        )

    assert kept.groups == ("dora", "eve", "eve")


@pytest.mark.parametrize("groups", [["anna", "ben", "dora"], ["dora", "dora", "dora"]], ids=["leaks", "one patient"])
def test_fewer_than_two_new_patients_are_too_few(groups):
    with pytest.raises(EmptyDataError, match=r"usable image\(s\) among 3; at least 2 patients .* about 100 or more"):
        _new_patients(_images(2), ["anna", "ben"], _images(3, 1), groups)


def test_a_copy_of_an_image_of_a_training_patient_is_left_out_under_any_name():
    heldout = _images(4, 1)
    heldout[3] = heldout[0]

    with pytest.warns(RelictWarning, match="2 of 4 held-out images"):
        kept, _ = _new_patients(_images(2), ["anna", "ben"], heldout, ["ben", "cleo", "dora", "eve"])

    assert kept.groups == ("cleo", "dora")


@pytest.mark.filterwarnings("ignore:1 groups hold an image that another group holds too")
def test_two_names_for_one_image_are_one_patient_and_too_few():
    with pytest.raises(EmptyDataError, match="at least 2 patients"):
        _new_patients(_images(2), ["anna", "ben"], _images(1, 1).repeat(2, 1, 1, 1), ["cleo", "dora"])


def test_no_new_patient_at_all_is_too_few():
    with pytest.raises(EmptyDataError, match=r"0 usable image\(s\) among 2"):
        _new_patients(_images(2), ["anna", "ben"], _images(2, 1), ["anna", "ben"])


def test_the_control_has_the_first_image_of_each_patient():
    reference = _open(_images(6), "held-out", ["ben", "anna", "ben", "cleo", "anna", "dora"])

    assert one_image_per_group(reference).tolist() == [0, 1, 3, 5]


def _control(likeness, *, leaks=(), self_test=None, seconds=0.0):
    rule = Rule(columns=("voxel", "feature", "segmentation")[: likeness.shape[1]], led=likeness.shape[1] > 1)
    return Control(
        likeness=likeness,
        distance_to_training=np.arange(float(len(likeness))),
        union_likeness=np.random.default_rng(1).random((2, len(likeness))),
        leaks=leaks,
        rule=rule,
        self_test=self_test,
        seconds=seconds,
    )


def test_what_is_usual_among_the_union_is_exceeded_by_one_in_twenty_in_both_views_together():
    likeness = np.stack([np.random.default_rng(0).permutation(400), np.random.default_rng(1).permutation(400)])

    usual = replace(_control(np.zeros((400, 1))), union_likeness=likeness).usual_union_likeness

    # One in forty in each view: of 400 patients, the last in one order and in another.
    assert ((likeness > usual[:, None]).sum(axis=1) == [9, 9]).all()
    assert 9 <= (likeness > usual[:, None]).any(axis=0).sum() <= 20


def test_of_few_patients_the_largest_is_usual():
    control = _control(np.zeros((7, 1)))

    np.testing.assert_array_equal(control.usual_union_likeness, control.union_likeness.max(axis=1))


def test_what_is_written_is_read_back(tmp_path):
    control = _control(np.random.default_rng(0).random((5, 3)), leaks=(1, 4), self_test=SELF_TEST, seconds=1.5)
    with writing(tmp_path / "control", {}) as writer:
        write_control(control, writer, prefix="a_")

    again = read_control(Entry(tmp_path / "control"), prefix="a_")

    np.testing.assert_array_equal(again.likeness, control.likeness)
    np.testing.assert_array_equal(again.distance_to_training, control.distance_to_training)
    np.testing.assert_array_equal(again.union_likeness, control.union_likeness)
    assert again.leaks == (1, 4)
    assert (again.rule, again.self_test, again.seconds) == (control.rule, SELF_TEST, 1.5)


def test_the_self_test_calls_no_more_than_its_rate_of_unseen_patients():
    rng = np.random.default_rng(0)

    rates = [_control(rng.standard_normal((120, 3))).false_positive_rate(0.2).value for _ in range(200)]

    # With nothing to discover, Benjamini-Hochberg discovers anything in at most a share 0.2 of the halves.
    assert 0 < np.mean(rates) <= 0.2
    assert np.mean(np.array(rates) > 0) <= 2 * 0.2


def test_the_self_test_worked_by_hand():
    likeness = np.zeros((4, 1))
    likeness[:, 0] = [0.9, 0.0, 0.8, 0.1]
    control = _control(likeness)

    # The first half, 0.9 and 0.8, lies above the other: both p-values are 1/3. The other half has p-values of 1.
    assert control.false_positive_rate(0.34).value == 0.5
    assert control.false_positive_rate(0.3).value == 0.0
