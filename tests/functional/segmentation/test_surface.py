import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from label_map_pairs import SHAPES, one_hot, random_label_maps, structured_label_maps
from monai.metrics import HausdorffDistanceMetric, SurfaceDiceMetric
from scipy import ndimage
from scipy.spatial.distance import directed_hausdorff

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional import hausdorff_distance_95, surface_agreement, surface_dice, surface_distances


def by_monai(
    generated: torch.Tensor, training: torch.Tensor, *, spacing_mm: tuple[float, ...], tolerances_mm: list[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    labels = len(tolerances_mm) + 1
    pair = one_hot(generated, labels), one_hot(training, labels)
    with warnings.catch_warnings():
        # Of an argument that MONAI itself passes, and of absent labels, which are meant.
        warnings.simplefilter("ignore")
        return (
            HausdorffDistanceMetric(percentile=95, reduction="none")(*pair, spacing=spacing_mm),
            SurfaceDiceMetric(class_thresholds=tolerances_mm, reduction="none")(*pair, spacing=spacing_mm),
        )


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.7, 1.1, 3.0)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("pair", [random_label_maps, structured_label_maps])
def test_both_measures_have_the_values_of_monai(pair, shape, spacing_mm):
    generated, training = pair(0, shape, 4)
    spacing_mm, tolerances_mm = spacing_mm[: len(shape) - 1], [0.5, 1.0, 2.5]

    agreement = surface_agreement(generated, training, spacing_mm=spacing_mm, tolerance_mm=tolerances_mm)

    expected = by_monai(generated, training, spacing_mm=spacing_mm, tolerances_mm=tolerances_mm)
    torch.testing.assert_close(agreement.hausdorff_distance_95, expected[0])
    torch.testing.assert_close(agreement.surface_dice, expected[1])
    assert (expected[1] > 0).all()
    assert (expected[1] < 1).any()


def test_absent_labels_have_the_values_of_monai_but_for_nan_where_only_one_map_has_the_label():
    generated, training = torch.zeros(2, 4, 5, 6).long(), torch.zeros(2, 4, 5, 6).long()
    generated[0, :2], training[0, :2, :2], training[0, 2:, 3:] = 1, 1, 2
    generated[1], training[1] = training[0], generated[0]

    agreement = surface_agreement(generated, training, spacing_mm=1.0, tolerance_mm=1.0, num_labels=4)

    distance, share = by_monai(generated, training, spacing_mm=(1.0,) * 3, tolerances_mm=[1.0] * 3)
    torch.testing.assert_close(agreement.surface_dice, share, equal_nan=True)
    assert distance[:, 1].isnan().all()
    distance[:, 1] = math.inf
    torch.testing.assert_close(agreement.hausdorff_distance_95, distance, equal_nan=True)


@given(seed=st.integers(0, 1000), spacing_mm=st.tuples(*[st.floats(0.2, 5.0)] * 3))
@settings(max_examples=15)
def test_the_largest_distances_are_the_directed_hausdorff_distances_of_scipy(seed, spacing_mm):
    generated, training = structured_label_maps(seed, (1, 7, 9, 8), 2)

    distances = surface_distances(generated, training, spacing_mm=spacing_mm)

    masks = [(each[0] == 1).numpy() for each in (generated, training)]
    points = [np.argwhere(mask ^ ndimage.binary_erosion(mask)) * spacing_mm for mask in masks]
    there, back = distances.from_generated[0][0], distances.from_training[0][0]
    assert (len(there), len(back)) == (len(points[0]), len(points[1]))
    assert there.max().item() == pytest.approx(directed_hausdorff(points[0], points[1])[0], rel=1e-6)
    assert back.max().item() == pytest.approx(directed_hausdorff(points[1], points[0])[0], rel=1e-6)


def test_distances_of_a_worked_pair_are_those_of_each_map_in_turn():
    generated, training = torch.tensor([[[1, 1, 0, 2]]]), torch.tensor([[[0, 0, 1, 0]]])

    distances = surface_distances(generated, training, spacing_mm=0.5, num_labels=4)

    assert [each.tolist() for each in distances.from_generated[0]] == [[1.0, 0.5], [math.inf], []]
    assert [each.tolist() for each in distances.from_training[0]] == [[0.5], [], []]


def test_distances_swap_sides_when_the_arguments_do():
    generated, training = structured_label_maps(0)

    distances = surface_distances(generated, training, spacing_mm=1.0)
    swapped = surface_distances(training, generated, spacing_mm=1.0)

    for there, back in zip(distances.from_generated, swapped.from_training, strict=True):
        torch.testing.assert_close(there, back)
    assert any(len(a) != len(b) for a, b in zip(distances.from_generated[0], distances.from_training[0], strict=True))


def test_hausdorff_distance_95_of_a_worked_pair_is_the_larger_percentile_of_two():
    generated, training = torch.zeros(1, 2, 30).long(), torch.zeros(1, 2, 30).long()
    # From the sample, 20 distances of 0 and one of 4; from the patient, zeros only.
    generated[0, 0, :20], generated[0, 0, 23], training[0, 0, :20] = 1, 1, 1

    value = hausdorff_distance_95(generated, training, spacing_mm=2.0)

    assert value.item() == pytest.approx(np.percentile([0.0] * 20 + [8.0], 95))
    assert value.item() == 0
    training[0, 0, 1:20] = 0
    assert hausdorff_distance_95(generated, training, spacing_mm=2.0).item() == pytest.approx(2.0 * 19)


def test_surface_dice_of_a_worked_pair_counts_surface_voxels_of_both_maps():
    generated, training = torch.tensor([[[1, 1, 0, 0]]]), torch.tensor([[[0, 0, 1, 0]]])

    values = [
        surface_dice(generated, training, spacing_mm=1.0, tolerance_mm=tolerance).item()
        for tolerance in (0.9, 1.0, 2.0)
    ]

    assert values == pytest.approx([0, 2 / 3, 1])


def test_three_voxels_of_a_tenth_of_a_millimetre_lie_within_three_tenths():
    generated, training = torch.tensor([[[1, 0, 0, 0, 0, 0, 0, 0]]]), torch.tensor([[[0, 0, 0, 1, 0, 0, 0, 0]]])

    assert 3 * 0.1 > 0.3
    assert surface_dice(generated, training, spacing_mm=0.1, tolerance_mm=0.3).item() == 1


def test_each_label_has_its_own_tolerance():
    generated, training = structured_label_maps(3)

    value = surface_dice(generated, training, spacing_mm=1.0, tolerance_mm=(0.0, 1.0, 3.0))

    for label, tolerance in enumerate((0.0, 1.0, 3.0)):
        expected = surface_dice(generated, training, spacing_mm=1.0, tolerance_mm=tolerance)
        torch.testing.assert_close(value[:, label], expected[:, label])


def test_one_search_gives_what_the_two_measures_give():
    generated, training = structured_label_maps(4)

    agreement = surface_agreement(generated, training, spacing_mm=0.8, tolerance_mm=1.0)

    torch.testing.assert_close(
        agreement.hausdorff_distance_95, hausdorff_distance_95(generated, training, spacing_mm=0.8)
    )
    torch.testing.assert_close(
        agreement.surface_dice, surface_dice(generated, training, spacing_mm=0.8, tolerance_mm=1.0)
    )


@given(seed=st.integers(0, 1000), shift=st.tuples(st.integers(-2, 2), st.integers(-2, 2)), axis=st.integers(1, 2))
@settings(max_examples=15)
def test_values_do_not_change_when_both_maps_are_moved_or_mirrored(seed, shift, axis):
    generated, training = (
        torch.nn.functional.pad(each, (3, 3, 3, 3)) for each in structured_label_maps(seed, (2, 8, 9))
    )
    agreement = surface_agreement(generated, training, spacing_mm=1.0, tolerance_mm=1.0)

    for change in (lambda maps: maps.roll(shift, dims=(1, 2)), lambda maps: maps.flip(axis)):
        changed = surface_agreement(change(generated), change(training), spacing_mm=1.0, tolerance_mm=1.0)
        torch.testing.assert_close(changed.hausdorff_distance_95, agreement.hausdorff_distance_95)
        torch.testing.assert_close(changed.surface_dice, agreement.surface_dice)


@given(seed=st.integers(0, 1000))
@settings(max_examples=6)
def test_surface_dice_is_a_share_that_grows_with_the_tolerance_and_is_1_for_copies(seed):
    generated, training = structured_label_maps(seed)

    shares = torch.stack(
        [surface_dice(generated, training, spacing_mm=1.0, tolerance_mm=each) for each in (0.0, 0.5, 1.0, 2.0, 30.0)]
    )

    assert (shares.diff(dim=0) >= 0).all()
    assert ((shares >= 0) & (shares <= 1)).all()
    assert (shares[-1] == 1).all()
    assert (surface_dice(training, training, spacing_mm=1.0, tolerance_mm=0.0) == 1).all()
    assert (hausdorff_distance_95(training, training, spacing_mm=1.0) == 0).all()


def test_surfaces_agree_less_the_further_a_copy_is_moved():
    patient = torch.zeros(1, 30, 30).long()
    patient[0, 5:14, 5:14] = 1

    moved = [surface_agreement(patient.roll(by, 1), patient, spacing_mm=1.0, tolerance_mm=1.0) for by in range(8)]

    distances = [each.hausdorff_distance_95.item() for each in moved]
    shares = [each.surface_dice.item() for each in moved]
    assert (np.diff(distances) > 0).all()
    assert shares[0] == shares[1] == 1
    assert max(shares[2:]) < 0.6


@pytest.mark.parametrize("tolerance_mm", [-0.1, math.nan, math.inf, (1.0, 1.0), ()], ids=str)
def test_a_tolerance_that_is_not_one_number_per_label_is_refused(tolerance_mm):
    labels = torch.zeros(1, 3, 3).long()

    with pytest.raises(ConfigurationError, match=r"tolerance_mm must be .* 3 labels .* tolerance_mm="):
        surface_dice(labels, labels, spacing_mm=1.0, tolerance_mm=tolerance_mm, num_labels=4)
