import math

import pytest
import torch

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional import hausdorff_distance_95, surface_dice
from relict_lightning.metrics import (
    CenterlineDice,
    CentroidDistance,
    Dice,
    HausdorffDistance95,
    MatchedLesions,
    MeanDice,
    SurfaceDice,
    VolumetricSimilarity,
)


def test_a_label_that_one_map_has_counts_with_the_worst_value_and_an_absent_one_not_at_all():
    both, one, neither = torch.tensor([[[1, 1, 0, 0]]]), torch.tensor([[[0, 0, 2, 2]]]), torch.zeros(1, 1, 4).long()
    generated, training = torch.cat([both, one, neither]), torch.cat([both, neither, neither])
    overlap, distance = Dice(num_labels=4), HausdorffDistance95(num_labels=4, spacing_mm=1.0)

    for metric in (overlap, distance):
        metric.update(generated, training)

    torch.testing.assert_close(overlap.compute(), torch.tensor([1.0, 0.0, math.nan]), equal_nan=True)
    torch.testing.assert_close(distance.compute(), torch.tensor([0.0, math.inf, math.nan]), equal_nan=True)


def test_samples_without_lesions_leave_the_share_open():
    metric = MatchedLesions()
    none, lesion = torch.zeros(1, 1, 3).long(), torch.tensor([[[0, 1, 0]]])

    metric.update(none, lesion)
    open_share = metric.compute()
    metric.update(lesion, lesion)

    assert open_share.isnan()
    assert metric.compute() == 1


def test_distances_are_larger_for_samples_that_copy_less_and_overlaps_for_samples_that_copy_more():
    distances = (HausdorffDistance95(num_labels=2, spacing_mm=1.0), CentroidDistance(num_labels=2, spacing_mm=1.0))
    overlaps = (
        *(kind(num_labels=2) for kind in (Dice, MeanDice, VolumetricSimilarity, CenterlineDice)),
        SurfaceDice(num_labels=2, spacing_mm=1.0, tolerance_mm=1.0),
        MatchedLesions(),
    )

    assert all(metric.higher_is_better for metric in distances)
    assert not any(metric.higher_is_better for metric in overlaps)


def test_one_spacing_fits_two_and_three_axes():
    generator = torch.Generator().manual_seed(0)
    for shape in ((2, 6, 7), (2, 4, 5, 6)):
        pair = [torch.randint(0, 2, shape, generator=generator) for _ in range(2)]
        distance = HausdorffDistance95(num_labels=2, spacing_mm=0.5)
        share = SurfaceDice(num_labels=2, spacing_mm=0.5, tolerance_mm=0.5)

        torch.testing.assert_close(distance(*pair), hausdorff_distance_95(*pair, spacing_mm=0.5).mean())
        torch.testing.assert_close(share(*pair), surface_dice(*pair, spacing_mm=0.5, tolerance_mm=0.5).mean())


@pytest.mark.parametrize(
    ("construct", "message"),
    [
        (lambda: Dice(num_labels=1), "num_labels=1"),
        (lambda: VolumetricSimilarity(num_labels=0, include_background=True), "num_labels=0"),
        (lambda: CenterlineDice(num_labels=1), "num_labels=1"),
        (lambda: HausdorffDistance95(num_labels=1, spacing_mm=1.0), "num_labels=1"),
        (lambda: HausdorffDistance95(num_labels=2, spacing_mm=0.0), r"spacing_mm=0\.0"),
        (lambda: CentroidDistance(num_labels=2, spacing_mm=(1.0,)), r"spacing_mm=\(1\.0,\)"),
        (lambda: SurfaceDice(num_labels=2, spacing_mm=math.nan, tolerance_mm=1.0), "spacing_mm=nan"),
        (lambda: SurfaceDice(num_labels=2, spacing_mm=1.0, tolerance_mm=-1.0), r"tolerance_mm=-1\.0"),
        (lambda: SurfaceDice(num_labels=2, spacing_mm=1.0, tolerance_mm=(1.0, 2.0)), r"tolerance_mm=\(1\.0, 2\.0\)"),
        (lambda: MatchedLesions(min_dice=0.0), r"min_dice=0\.0"),
        (lambda: MatchedLesions(label=0), "label=0"),
    ],
)
def test_impossible_settings_are_refused_when_the_metric_is_made(construct, message):
    with pytest.raises(ConfigurationError, match=message):
        construct()
