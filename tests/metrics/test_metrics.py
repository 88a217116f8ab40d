import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics import Metric, MetricCollection

import relict_lightning.metrics
from relict_lightning.errors import ConfigurationError
from relict_lightning.functional import (
    closer_to_training_share,
    mean_dice,
    neighbor_ratio_fraction,
    normalized_cross_correlation,
    replica_rate,
    structural_similarity,
)
from relict_lightning.metrics import (
    CloserToTrainingShare,
    MeanDice,
    NeighborRatioFraction,
    NormalizedCrossCorrelation,
    ReplicaRate,
    StructuralSimilarity,
)


def vectors(seed: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, generator=generator), torch.rand(n, generator=generator)


def images(seed: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, 12, 12, generator=generator), torch.rand(n, 1, 12, 12, generator=generator)


def label_maps(seed: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 4, (n, 6, 6), generator=generator), torch.randint(0, 4, (n, 6, 6), generator=generator)


@dataclass(frozen=True)
class Case:
    """A metric, the samples that it takes, and the value of its functional twin on all of them."""

    metric: Callable[[], Metric]
    samples: Callable[[int, int], tuple[torch.Tensor, ...]]
    twin: Callable[..., float]


CASES = {
    "ReplicaRate": Case(
        lambda: ReplicaRate(threshold=0.5),
        lambda seed, n: vectors(seed, n)[:1],
        lambda scores: replica_rate(scores, 0.5).value,
    ),
    "NeighborRatioFraction": Case(NeighborRatioFraction, lambda seed, n: vectors(seed, n)[:1], neighbor_ratio_fraction),
    "CloserToTrainingShare": Case(CloserToTrainingShare, vectors, closer_to_training_share),
    "NormalizedCrossCorrelation": Case(
        NormalizedCrossCorrelation, images, lambda g, t: normalized_cross_correlation(g, t).mean().item()
    ),
    "StructuralSimilarity": Case(
        lambda: StructuralSimilarity(data_range=1.0),
        images,
        lambda g, t: structural_similarity(g, t, data_range=1.0).mean().item(),
    ),
    "MeanDice": Case(
        lambda: MeanDice(num_labels=4), label_maps, lambda g, t: mean_dice(g, t, num_labels=4).mean().item()
    ),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def test_every_public_metric_is_tested_here():
    assert set(relict_lightning.metrics.__all__) == set(CASES)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@given(cuts=st.lists(st.integers(0, 11), max_size=4).map(sorted), seed=st.integers(0, 100))
@settings(max_examples=15, deadline=None)
def test_the_value_is_that_of_the_functional_twin_however_batches_are_split(case, cuts, seed):
    samples = case.samples(seed, 11)
    metric = case.metric()

    for start, stop in zip([0, *cuts], [*cuts, 11], strict=True):
        metric.update(*(part[start:stop] for part in samples))

    assert metric.compute().shape == ()
    assert metric.compute().item() == pytest.approx(case.twin(*samples), abs=1e-6)


def test_a_saved_metric_goes_on_where_it_stopped(case):
    samples = case.samples(0, 9)
    metric, restored = case.metric(), case.metric()
    for each in (metric, restored):
        each.persistent(True)
    metric.update(*(part[:4] for part in samples))

    restored.load_state_dict(metric.state_dict())
    restored.update(*(part[4:] for part in samples))

    assert restored.compute().item() == pytest.approx(case.twin(*samples), abs=1e-6)


def test_before_any_sample_the_value_is_nan_and_torchmetrics_warns(case):
    with pytest.warns(UserWarning, match="before the ``update``"):
        value = case.metric().compute()

    assert math.isnan(value)


def test_a_reset_metric_has_forgotten_its_samples(case):
    metric = case.metric()
    metric.update(*case.samples(0, 5))
    metric.compute()

    metric.reset()
    metric.update(*case.samples(1, 6))

    assert metric.compute().item() == pytest.approx(case.twin(*case.samples(1, 6)), abs=1e-6)


def test_states_are_scalars_and_more_copying_is_worse(case):
    metric = case.metric()
    metric.update(*case.samples(0, 5))

    assert metric.higher_is_better is False
    assert all(state.shape == () for state in metric.metric_state.values())
    assert all(reduction is not None for reduction in metric._reductions.values())


def test_forward_returns_the_value_of_the_batch_and_adds_it(case):
    metric = case.metric()
    metric.update(*case.samples(0, 5))
    batch = case.samples(1, 6)

    value = metric(*batch)

    assert value.item() == pytest.approx(case.twin(*batch), abs=1e-6)
    together = [torch.cat(parts) for parts in zip(case.samples(0, 5), batch, strict=True)]
    assert metric.compute().item() == pytest.approx(case.twin(*together), abs=1e-6)


def test_the_estimate_of_a_rate_has_its_interval():
    metric = ReplicaRate(threshold=0.9, confidence=0.9)
    metric.update(torch.tensor([0.2, 0.9]))
    metric.update(torch.tensor([0.95, 0.3, 0.1]))

    assert metric.estimate() == replica_rate(torch.tensor([0.2, 0.9, 0.95, 0.3, 0.1]), 0.9, confidence=0.9)


def test_the_estimate_before_any_sample_could_be_anything():
    estimate = ReplicaRate(threshold=0.9).estimate()

    assert math.isnan(estimate.value)
    assert (estimate.low, estimate.high) == (0, 1)


def test_two_thresholds_in_a_collection_stay_apart():
    collection = MetricCollection(
        {"strict": ReplicaRate(threshold=0.9), "lenient": ReplicaRate(threshold=0.5)}, compute_groups=False
    )

    # Both thresholds agree on the first batch, which is what makes compute groups merge them.
    collection.update(torch.tensor([0.1, 0.95]))
    collection.update(torch.tensor([0.6, 0.7]))
    values = collection.compute()

    assert (values["strict"], values["lenient"]) == (0.25, 0.75)


def test_ratios_that_are_nan_are_left_out_of_every_batch():
    metric = NeighborRatioFraction()
    metric.update(torch.tensor([math.nan, math.nan]))
    metric.update(torch.tensor([0.1, math.nan, 0.9]))

    assert metric.compute() == 0.5


@pytest.mark.parametrize(
    ("construct", "message"),
    [
        (lambda: ReplicaRate(threshold=math.nan), "threshold"),
        (lambda: ReplicaRate(threshold=0.5, confidence=2.0), r"confidence=2\.0"),
        (lambda: NeighborRatioFraction(threshold=-1.0), r"threshold=-1\.0"),
        (lambda: StructuralSimilarity(data_range=-1.0), r"data_range=-1\.0"),
        (lambda: StructuralSimilarity(data_range=1.0, window=4), "window=4"),
        (lambda: MeanDice(num_labels=1), "num_labels=1"),
    ],
)
def test_a_metric_refuses_impossible_settings_when_it_is_made(construct, message):
    with pytest.raises(ConfigurationError, match=message):
        construct()
