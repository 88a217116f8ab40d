import dataclasses
import math

import pandas as pd
import pytest

from relict_lightning.functional import estimate_rate
from relict_lightning.results import LEVELS, DetectionResult, RateEstimate, Transform, Verdict


def _verdict(**changes):
    fields = {
        "score": 3.5,
        "p_value": 0.01,
        "is_replica": True,
        "match": 4,
        "match_id": "scan 4",
        "match_group": "anna",
        "transform": Transform(mirrored_axes=(1,), shift_voxels=(2.0, 0.0)),
        "evidence": {
            "voxel": {"normalized_cross_correlation": 0.99},
            "feature": {"cosine_similarity": 0.98},
            "segmentation": {"mean_dice": 0.97},
        },
        "level_p_values": {"voxel": 0.01, "feature": 0.02, "segmentation": 0.03},
    }
    return Verdict(**{**fields, **changes})


def _result(*verdicts):
    return DetectionResult(
        verdicts=verdicts,
        replica_rate=None,
        level_rates={},
        fdr=0.05,
        control_scores=(),
        p_value_model=None,
        memorization_p_value=None,
        attainable_p_value=None,
        discovery_p_value=None,
        measures={},
    )


def test_a_rate_reads_as_count_percentage_and_interval():
    assert str(estimate_rate(12, 64)) == "12/64 = 18.8 % [10.1 %, 30.5 %]"


def test_a_rate_of_zero_has_an_interval():
    assert str(estimate_rate(0, 50)) == "0/50 = 0.0 % [0.0 %, 7.1 %]"


@pytest.mark.parametrize(
    ("transform", "text", "is_identity"),
    [
        (Transform(), "as it is", True),
        (Transform(shift_voxels=(0.3, -0.2)), "as it is", True),
        (Transform(mirrored_axes=(1,)), "mirrored along axis 1", False),
        (Transform(shift_voxels=(2.0, 0.0)), "shifted by (2, 0) voxels", False),
        (Transform(rotation_degrees=4.06, scale=1.08), "turned by 4.1 degrees, enlarged by 1.08", False),
        (Transform(rotation_degrees=0.9, scale=0.99), "as it is", True),
        (Transform(mirrored_axes=(0, 2), shift_voxels=(0.02, -1.04, 0.0)), None, False),
    ],
)
def test_a_transform_reads_as_what_was_done(transform, text, is_identity):
    assert str(transform) == (text or "mirrored along axis 0, 2, shifted by (0, -1, 0) voxels")
    assert transform.is_identity == is_identity


def test_a_table_has_one_row_per_sample_in_order():
    other = _verdict(is_replica=False, match=2, match_id="scan 2", match_group="ben", transform=Transform())

    frame = _result(_verdict(), other).to_frame()

    assert isinstance(frame, pd.DataFrame)
    assert list(frame.columns) == [
        "sample",
        "is_replica",
        "score",
        "p_value",
        "match",
        "match_id",
        "match_group",
        "transform",
        "p_value_voxel",
        "p_value_feature",
        "p_value_segmentation",
        "voxel_normalized_cross_correlation",
        "feature_cosine_similarity",
        "segmentation_mean_dice",
    ]
    assert frame["sample"].tolist() == [0, 1]
    assert frame["match_group"].tolist() == ["anna", "ben"]
    assert frame["transform"].tolist() == ["mirrored along axis 1, shifted by (2, 0) voxels", "as it is"]
    assert frame["p_value_feature"].tolist() == [0.02, 0.02]


def test_a_table_without_a_control_has_no_p_values_by_level():
    frame = _result(_verdict(p_value=math.nan, score=math.nan, level_p_values={})).to_frame()

    assert frame["p_value"].isna().all()
    assert not [column for column in frame if column.startswith("p_value_")]


@pytest.mark.parametrize("record", [estimate_rate(1, 2), Transform(), _verdict(), _result()])
def test_results_cannot_be_changed(record):
    name = dataclasses.fields(record)[0].name

    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, name, None)


def test_results_take_keywords_only():
    with pytest.raises(TypeError, match="positional"):
        RateEstimate(0.5, 0.1, 0.9, 1, 2)


def test_the_levels_are_voxel_feature_and_segmentation():
    assert LEVELS == ("voxel", "feature", "segmentation")


def test_a_verdict_explains_itself_without_naming_a_patient():
    replica = _verdict(p_value=0.0004, level_p_values={"voxel": 0.002, "feature": 0.3})
    other = _verdict(is_replica=False, transform=Transform(), p_value=0.4)
    unjudged = _verdict(is_replica=False, p_value=math.nan, level_p_values={})

    assert replica.explanation == (
        "Replica of training image 4, mirrored along axis 1, shifted by (2, 0) voxels: normalized cross correlation "
        "0.99, cosine similarity 0.98, mean dice 0.97; p = 0.0004. Of unseen patients, 1 in 500 comes this close at "
        "voxel level, 30 % come this close at feature level."
    )
    assert other.explanation.startswith("No replica; most like training image 4: normalized")
    assert unjudged.explanation.endswith("nothing says how unusual that is.")
    assert all("anna" not in verdict.explanation for verdict in (replica, other, unjudged))


@pytest.mark.parametrize(
    ("levels", "is_partial"),
    [
        ({"voxel": 0.4, "feature": 0.2, "segmentation": 0.001}, True),
        ({"voxel": 0.04, "feature": 0.2, "segmentation": 0.001}, False),
        ({"voxel": 0.4, "feature": 0.2, "segmentation": 0.2}, False),
        ({}, False),
    ],
)
def test_a_replica_of_structures_alone_is_named_as_such(levels, is_partial):
    replica, other = (_verdict(is_replica=which, level_p_values=levels) for which in (True, False))

    assert replica.is_partial == is_partial
    assert replica.explanation.startswith(
        "Replica of structures of training image 4" if is_partial else "Replica of tr"
    )
    assert not other.is_partial
