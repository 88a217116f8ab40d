import math
import warnings

import matplotlib as mpl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_cases import CASES, Case
from monai.data import MetaTensor
from torchmetrics import MetricCollection

import relict_lightning.metrics
from relict_lightning.errors import ConfigurationError
from relict_lightning.functional import replica_rate
from relict_lightning.metrics import (
    Dice,
    MeanDice,
    NeighborRatioFraction,
    NormalizedCrossCorrelation,
    ReplicaRate,
    StructuralSimilarity,
)
from relict_lightning.metrics.pooled import PooledNumbers

WITH_SETTINGS = {name: case for name, case in CASES.items() if case.other is not None}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def assert_same(value: torch.Tensor, expected: float | torch.Tensor) -> None:
    torch.testing.assert_close(value.double(), torch.as_tensor(expected).double(), atol=1e-6, rtol=1e-5, equal_nan=True)


def test_every_public_metric_is_tested_here():
    assert set(relict_lightning.metrics.__all__) == set(CASES)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@given(cuts=st.lists(st.integers(0, 11), max_size=4).map(sorted), seed=st.integers(0, 100))
@settings(max_examples=15)
def test_the_value_is_that_of_the_functional_twin_however_batches_are_split(case, cuts, seed):
    samples = case.samples(seed, 11)
    metric = case.metric()

    for start, stop in zip([0, *cuts], [*cuts, 11], strict=True):
        metric.update(*(part[start:stop] for part in samples))

    assert_same(metric.compute(), case.twin(*samples))


def test_a_saved_metric_goes_on_where_it_stopped(case):
    samples = case.samples(0, 9)
    metric, restored = case.metric(), case.metric()
    for each in (metric, restored):
        each.persistent(True)
    metric.update(*(part[:4] for part in samples))

    restored.load_state_dict(metric.state_dict())
    restored.update(*(part[4:] for part in samples))

    assert_same(restored.compute(), case.twin(*samples))


@pytest.mark.parametrize("case", WITH_SETTINGS.values(), ids=WITH_SETTINGS.keys())
def test_a_state_saved_under_other_settings_is_refused(case):
    saved, metric = case.other(), case.metric()
    for each in (saved, metric):
        each.persistent(True)
        each.update(*case.samples(0, 4))

    metric.load_state_dict(saved.state_dict())

    with pytest.raises(ConfigurationError, match=f"{type(metric).__name__} was accumulated under other settings"):
        metric.compute()


def test_before_any_sample_the_value_is_nan_and_torchmetrics_warns(case):
    with pytest.warns(UserWarning, match="before the ``update``"):
        value = case.metric().compute()

    assert value.isnan().all()


def test_a_reset_metric_has_forgotten_its_samples(case):
    metric = case.metric()
    metric.update(*case.samples(0, 5))
    metric.compute()

    metric.reset()
    metric.update(*case.samples(1, 6))

    assert_same(metric.compute(), case.twin(*case.samples(1, 6)))


def test_states_have_a_fixed_size_or_are_numbers_of_which_each_sample_has_one(case):
    metric = case.metric()
    shapes = {name: state.shape for name, state in metric.metric_state.items() if isinstance(state, torch.Tensor)}
    metric.update(*case.samples(0, 5))

    for name, state in metric.metric_state.items():
        if isinstance(metric, PooledNumbers) and isinstance(state, list):
            assert [part.ndim for part in state] == [1]
        else:
            assert state.shape == shapes[name]
        assert metric._reductions[name] is not None


def test_forward_returns_the_value_of_the_batch_and_adds_it(case):
    metric = case.metric()
    metric.update(*case.samples(0, 5))
    batch = case.samples(1, 6)

    value = metric(*batch)

    assert_same(value, case.twin(*batch))
    together = [torch.cat(parts) for parts in zip(case.samples(0, 5), batch, strict=True)]
    assert_same(metric.compute(), case.twin(*together))


@pytest.mark.parametrize("case", WITH_SETTINGS.values(), ids=WITH_SETTINGS.keys())
def test_other_settings_in_one_collection_stay_apart(case):
    collection = MetricCollection({"one": case.metric(), "other": case.other()})
    alone = case.other()

    # States of nothing are equal, which is what makes compute groups merge metrics for good.
    collection.update(*case.samples(0, 0))
    for each in (collection, alone):
        each.update(*case.samples(0, 6))

    values = collection.compute()
    assert_same(values["one"], case.twin(*case.samples(0, 6)))
    assert_same(values["other"], alone.compute())


def test_a_value_and_a_series_of_values_can_be_plotted(case):
    metric = case.metric()
    metric.update(*case.samples(0, 8))
    mpl.use("Agg")

    with warnings.catch_warnings():
        # Matplotlib says so where a value lies on a bound, and both limits of the axis are equal.
        warnings.filterwarnings("ignore", message="Attempting to set identical low and high")
        figure, axes = metric.plot()
        _, series = metric.plot([metric.compute(), metric.compute()])

    assert axes.get_ylabel() == type(metric).__name__
    assert axes.lines[0].get_ydata()[0] == pytest.approx(float(metric.compute().reshape(-1)[0]), nan_ok=True)
    assert len(series.lines[0].get_ydata()) == 2
    for each in (figure, series.figure):
        mpl.pyplot.close(each)


@pytest.mark.parametrize("name", ["StructuralSimilarity", "Dice", "CosineSimilarity", "BenjaminiHochberg"])
def test_the_state_keeps_neither_the_file_of_a_patient_nor_a_graph(name):
    metric, samples = CASES[name].metric(), CASES[name].samples(0, 4)
    files = [MetaTensor(part, meta={"filename_or_obj": "patient.nii"}) for part in samples]

    metric.update(*(part.requires_grad_() if part.is_floating_point() else part for part in files))

    for state in metric.metric_state.values():
        for part in state if isinstance(state, list) else [state]:
            assert type(part) is torch.Tensor
            assert not part.requires_grad
    assert_same(metric.compute(), CASES[name].twin(*samples))


def test_numbers_of_a_pooled_metric_stay_in_double_precision_wherever_it_goes():
    metric = CASES["BenjaminiHochberg"].metric().to("cpu").half().float()
    metric.update(*CASES["BenjaminiHochberg"].samples(0, 3))

    assert metric.dtype == torch.float64
    assert metric.pooled("p_values").dtype == torch.float64


def test_a_plot_names_the_labels_of_a_value_per_label():
    metric = Dice(num_labels=4)
    metric.update(torch.tensor([[[1, 2, 3, 0]]]), torch.tensor([[[1, 2, 0, 3]]]))
    mpl.use("Agg")

    figures = [metric.plot(), metric.plot([metric.compute(), metric.compute()])]

    for figure, axes in figures:
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["label 1", "label 2", "label 3"]
        assert [line.get_ydata()[0] for line in axes.lines[:3]] == [1, 1, 0]
        mpl.pyplot.close(figure)


def test_similarities_of_exact_copies_in_one_collection_stay_apart():
    generator = torch.Generator().manual_seed(0)
    copies, others = (torch.rand(3, 1, 16, 16, generator=generator) for _ in range(2))
    correlation, structure = NormalizedCrossCorrelation(), StructuralSimilarity(data_range=1.0)
    collection = MetricCollection({"correlation": NormalizedCrossCorrelation(), "structure": structure.clone()})

    # Both are 1 for copies.
    for generated in (copies, others):
        for each in (collection, correlation, structure):
            each.update(generated, copies)

    values = collection.compute()
    assert values == {"correlation": correlation.compute(), "structure": structure.compute()}
    assert values["correlation"] != values["structure"]


def test_the_estimate_of_a_rate_has_its_interval():
    metric = ReplicaRate(threshold=0.9, confidence=0.9)
    metric.update(torch.tensor([0.2, 0.9]))
    metric.update(torch.tensor([0.95, 0.3, 0.1]))

    assert metric.estimate() == replica_rate(torch.tensor([0.2, 0.9, 0.95, 0.3, 0.1]), 0.9, confidence=0.9)


def test_the_estimate_before_any_sample_could_be_anything():
    estimate = ReplicaRate(threshold=0.9).estimate()

    assert math.isnan(estimate.value)
    assert (estimate.low, estimate.high) == (0, 1)


def test_several_thresholds_in_a_collection_stay_apart():
    collection = MetricCollection({"strict": ReplicaRate(threshold=0.9), "lenient": ReplicaRate(threshold=0.5)})

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
