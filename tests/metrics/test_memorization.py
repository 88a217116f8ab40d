import inspect
import math

import pytest
import torch
from torchmetrics import MetricCollection

from relict_lightning.errors import ConfigurationError, RelictWarning
from relict_lightning.functional import authenticity, ct_score
from relict_lightning.metrics import (
    Authenticity,
    CtScore,
    LeaningRate,
    MemorizationPValue,
    UniqueTrainingGroups,
    UniqueTrainingImages,
)


def test_the_estimate_of_authenticity_has_the_control_of_all_batches_beside_it():
    generated, heldout = torch.rand(2, 2, 9, generator=torch.Generator().manual_seed(0))
    metric = Authenticity(confidence=0.9)
    for part in (slice(0, 4), slice(4, 9)):
        metric.update(*generated[:, part])
        metric.update_control(*heldout[:, part])

    estimate = metric.estimate()

    assert estimate == authenticity(
        *generated, heldout_distances=heldout[0], heldout_reference_distances=heldout[1], confidence=0.9
    )
    assert metric.compute() == pytest.approx(estimate.value.value)


def test_authenticity_without_heldout_images_warns_that_it_says_nothing():
    metric = Authenticity()
    metric.update(torch.zeros(2), torch.ones(2))

    with pytest.warns(RelictWarning, match="Give held-out images as a control"):
        estimate = metric.estimate()

    assert estimate.control is None
    assert estimate.value.trials == 2


def test_the_control_of_authenticity_outlives_forward_and_a_saved_state_and_not_a_reset():
    metric, restored = Authenticity(), Authenticity()
    for each in (metric, restored):
        each.persistent(True)
    metric.update_control(torch.ones(3), torch.zeros(3))
    metric(torch.zeros(2), torch.ones(2))

    restored.load_state_dict(metric.state_dict())

    for each in (metric, restored):
        assert each.estimate().control.successes == 3
    metric.reset()
    assert metric.controls == 0


def test_heldout_distances_of_different_lengths_are_named_in_the_error():
    with pytest.raises(ConfigurationError, match="heldout_distances and heldout_reference_distances"):
        inspect.unwrap(Authenticity.update_control)(Authenticity(), torch.ones(2), torch.ones(3))


def test_the_ct_score_without_cells_takes_heldout_images_once_and_samples_in_batches():
    generated, heldout = torch.rand(2, 9, generator=torch.Generator().manual_seed(0))
    metric = CtScore()

    metric.update(torch.zeros(0), heldout)
    assert math.isnan(metric.compute())
    for part in generated.split(4):
        metric.update(part, torch.zeros(0))

    assert metric.compute() == ct_score(generated, heldout)


@pytest.mark.parametrize("min_share", [None, 0.0])
def test_the_ct_score_needs_cells_if_and_only_if_it_was_made_for_them(min_share):
    cells = [torch.zeros(2).long()] * 2
    metric = CtScore(min_share=min_share)

    with pytest.raises(ConfigurationError, match=f"generated_cells must be given .* min_share={min_share}"):
        metric.update(torch.ones(2), torch.ones(2), *(cells if min_share is None else []))

    assert len(metric.pooled("generated_distances")) == 0


def test_distances_that_are_nan_are_refused_when_they_come():
    with pytest.raises(ConfigurationError, match="heldout_distances must not hold NaN"):
        CtScore().update(torch.ones(2), torch.tensor([math.nan]))


def test_a_ct_score_with_and_one_without_cells_in_one_collection_stay_apart():
    generated, heldout = torch.rand(2, 9, generator=torch.Generator().manual_seed(0))
    cells = [torch.tensor([0, 1, 2] * 3)] * 2
    collection = MetricCollection({"any": CtScore(min_share=0.0), "none": CtScore(min_share=0.5)})

    collection.update(generated, heldout, *cells)

    values = collection.compute()
    assert values["any"] == ct_score(generated, heldout, generated_cells=cells[0], heldout_cells=cells[1])
    assert math.isnan(values["none"])


def test_patients_on_both_sides_of_the_split_are_found_over_batches():
    metric = MemorizationPValue(training_groups=5, total_groups=10)
    metric.update(torch.ones(1), torch.tensor([7]), torch.tensor([True]))
    metric.update(torch.ones(1), torch.tensor([7]), torch.tensor([False]))

    with pytest.raises(ConfigurationError, match="such as group 7"):
        metric.compute()


def test_weights_outside_their_range_are_refused_when_they_come():
    with pytest.raises(ConfigurationError, match="weights must lie in"):
        MemorizationPValue(training_groups=5, total_groups=10).update(
            torch.tensor([1.5]), torch.tensor([7]), torch.tensor([True])
        )


@pytest.mark.parametrize("metric", [UniqueTrainingImages(), UniqueTrainingGroups()], ids=["images", "groups"])
def test_one_match_in_two_batches_counts_once_and_samples_that_are_no_replicas_do_not(metric):
    metric.update(torch.tensor([3, 5]), torch.tensor([False, False]))
    assert metric.compute() == 0
    metric.update(torch.tensor([3, 4]), torch.tensor([True, True]))
    metric.update(torch.tensor([4, 9]), torch.tensor([True, False]))

    assert metric.compute() == 2


@pytest.mark.parametrize(
    ("construct", "message"),
    [
        (lambda: Authenticity(confidence=0.0), r"confidence=0\.0"),
        (lambda: CtScore(min_share=1.0), r"min_share=1\.0"),
        (lambda: LeaningRate(training_groups=4, total_groups=3), "training_groups=4 and total_groups=3"),
        (lambda: MemorizationPValue(training_groups=0, total_groups=3), "training_groups=0"),
        (lambda: MemorizationPValue(training_groups=4, total_groups=3), "training_groups=4 and total_groups=3"),
    ],
)
def test_a_metric_refuses_impossible_settings_when_it_is_made(construct, message):
    with pytest.raises(ConfigurationError, match=message):
        construct()
