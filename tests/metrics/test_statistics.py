"""What the metrics of the statistics do beyond what every metric does."""

import inspect
import math
import pickle

import pytest
import torch
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader
from torchmetrics import Metric

from relict_lightning.errors import ConfigurationError, MissingControlError
from relict_lightning.functional import (
    area_under_roc,
    balanced_accuracy_at_optimal_threshold,
    benjamini_hochberg,
    estimate_rate,
)
from relict_lightning.metrics import (
    AreaUnderRoc,
    BalancedAccuracyAtOptimalThreshold,
    BenjaminiHochberg,
    ClopperPearsonInterval,
    ConformalPValue,
)

JUDGES = [AreaUnderRoc, BalancedAccuracyAtOptimalThreshold]


class Rated(LightningModule):
    """Logs a metric of ratings that are all of one kind at first, in every step and after the epoch."""

    def __init__(self, judge: Metric) -> None:
        super().__init__()
        self.judge = judge
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, scores: torch.Tensor, index: int) -> torch.Tensor:
        self.judge(scores, scores > 0.5)
        self.log("judge", self.judge, on_step=True, on_epoch=True)
        return self.weight

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("judge", JUDGES)
def test_ratings_of_one_kind_have_no_value_yet_in_a_lightning_run(judge, tmp_path):
    module = Rated(judge())
    trainer = Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, accelerator="cpu",
    )  # fmt: skip
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.9, 0.8])

    trainer.fit(module, DataLoader(scores, batch_size=2))

    assert trainer.callback_metrics["judge_step"].isnan()
    assert trainer.callback_metrics["judge_epoch"] == 1


@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize("rated", [True, False])
def test_ratings_of_one_kind_have_no_value_until_the_other_comes(judge, rated):
    metric = judge()

    batch = metric(torch.rand(3), torch.full((3,), rated))
    so_far = metric.compute()
    metric.update(torch.tensor([2.0 - 4.0 * rated]), torch.tensor([not rated]))

    assert batch.isnan()
    assert so_far.isnan()
    assert metric.compute() == 1


def test_the_optimal_threshold_can_be_read_and_is_nan_without_ratings_of_both_kinds():
    generator = torch.Generator().manual_seed(0)
    metric = BalancedAccuracyAtOptimalThreshold()
    scores, labels = torch.rand(20, generator=generator), torch.arange(20) % 2 == 0

    before = metric.threshold()
    metric.update(scores[:1], labels[:1])
    of_one_kind = metric.threshold()
    metric.update(scores[1:], labels[1:])

    assert math.isnan(before)
    assert math.isnan(of_one_kind)
    assert metric.threshold() == balanced_accuracy_at_optimal_threshold(scores.double(), labels)[1]


def test_the_area_has_its_interval_and_could_be_anything_without_ratings_of_both_kinds():
    generator = torch.Generator().manual_seed(0)
    metric = AreaUnderRoc(confidence=0.9)
    scores, labels = torch.rand(20, generator=generator), torch.arange(20) % 2 == 0

    before = metric.estimate()
    metric.update(scores[:9], labels[:9])
    metric.update(scores[9:], labels[9:])

    assert math.isnan(before.value)
    assert (before.low, before.high, before.confidence) == (0, 1, 0.9)
    assert metric.estimate() == area_under_roc(scores, labels, confidence=0.9)


def test_discoveries_are_made_among_all_samples_in_the_order_of_updates():
    p_values = torch.tensor([0.12, 0.9, 0.01, 0.02, 0.03, 0.8], dtype=torch.float64)
    metric = BenjaminiHochberg(fdr=0.2, confidence=0.8)
    before = metric.discoveries(), metric.estimate()

    metric.update(p_values[:2])
    alone = metric.discoveries()
    metric.update(p_values[2:])

    # 0.12 is a discovery because of the smaller ones that come later.
    assert alone.tolist() == [False, False]
    assert metric.discoveries().tolist() == [True, False, True, True, True, False]
    assert torch.equal(metric.discoveries(), benjamini_hochberg(p_values, fdr=0.2))
    assert metric.estimate() == estimate_rate(4, 6, confidence=0.8)
    assert before[0].shape == (0,)
    assert math.isnan(before[1].value)


def test_the_interval_comes_with_its_rate():
    metric = ClopperPearsonInterval(confidence=0.9)
    before = metric.estimate()

    metric.update(torch.tensor([True, False, False]))
    metric.update(torch.tensor([True]))

    assert metric.estimate() == estimate_rate(2, 4, confidence=0.9)
    assert metric.compute().tolist() == pytest.approx([metric.estimate().low, metric.estimate().high])
    assert (before.low, before.high, before.trials) == (0, 1, 0)


def test_a_control_is_the_same_in_any_order_and_any_container():
    metrics = [
        ConformalPValue(control_scores=control)
        for control in ([0.5, 0.25, 0.75], (0.75, 0.5, 0.25), torch.tensor([0.25, 0.75, 0.5]))
    ]

    for metric in metrics:
        metric.update(torch.tensor([0.5, 0.0, 1.0]))

    assert [metric.compute().tolist() for metric in metrics] == [[0.25, 0.75, 1.0]] * 3
    assert len({tuple(metric.settings_digest.tolist()) for metric in metrics}) == 1


def test_a_metric_keeps_its_control_when_it_is_copied_or_pickled():
    metric = ConformalPValue(control_scores=[0.5, 0.25, 0.75])
    metric.update(torch.tensor([0.6]))

    for copy in (metric.clone(), pickle.loads(pickle.dumps(metric))):  # noqa: S301
        copy.update(torch.tensor([0.9]))
        assert copy.compute().tolist() == [0.25, 0.5]


def test_p_values_are_counted_however_many_samples_there_are():
    control = torch.rand(999, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    metric = ConformalPValue(control_scores=control)

    metric.update(control)
    metric.update(control)

    # Each score of the control reaches itself and all that are larger.
    expected = torch.arange(2, 1001, dtype=torch.float64) / 1000
    assert torch.equal(metric.compute(), expected.repeat_interleave(2))
    assert metric.samples_by_rank.shape == (1000,)


def test_without_samples_there_is_a_single_p_value_of_nan():
    metric = ConformalPValue(control_scores=[0.5])

    metric.update(torch.zeros(0))

    assert metric.compute().numel() == 1
    assert metric.compute().isnan()


@pytest.mark.parametrize("size", [48, 97, 106])
def test_p_values_whose_multiples_floats_miss_are_counted_at_their_own_rank(size):
    # 1 / 49 * 49 is less than 1 in floats.
    metric = ConformalPValue(control_scores=torch.zeros(size))

    metric.update(torch.ones(2))

    assert metric.compute().tolist() == [1 / (size + 1)] * 2


@pytest.mark.parametrize(
    ("construct", "error", "message"),
    [
        (lambda: ClopperPearsonInterval(confidence=2.0), ConfigurationError, r"confidence=2\.0"),
        (lambda: BenjaminiHochberg(fdr=0.0), ConfigurationError, r"fdr=0\.0"),
        (lambda: BenjaminiHochberg(confidence=0.0), ConfigurationError, r"confidence=0\.0"),
        (lambda: AreaUnderRoc(confidence=1.0), ConfigurationError, r"confidence=1\.0"),
        (lambda: ConformalPValue(control_scores=[]), MissingControlError, "control_scores is empty"),
        (lambda: ConformalPValue(control_scores=[math.nan]), ConfigurationError, "control_scores must not hold NaN"),
    ],
)
def test_a_metric_of_statistics_refuses_impossible_settings_when_it_is_made(construct, error, message):
    with pytest.raises(error, match=message):
        construct()


@pytest.mark.parametrize(
    ("metric", "arguments", "message"),
    [
        (ClopperPearsonInterval(), (torch.tensor([0, 1]),), r"called must be boolean, but has dtype torch\.int64"),
        (BenjaminiHochberg(), (torch.tensor([0.5, 1.5]),), r"p_values must lie in \[0, 1\]"),
        (BenjaminiHochberg(), (torch.tensor([math.nan]),), "p_values must not hold NaN"),
        (ConformalPValue(control_scores=[0.5]), (torch.tensor([math.nan]),), "scores must not hold NaN"),
        *(
            (judge(), arguments, message)
            for judge in JUDGES
            for arguments, message in (
                ((torch.tensor([math.nan]), torch.tensor([True])), "scores must not hold NaN"),
                ((torch.rand(2), torch.tensor([True])), "scores and labels must have one shape"),
                ((torch.rand(2), torch.tensor([0, 1])), "labels must be boolean"),
            )
        ),
    ],
)
def test_a_metric_of_statistics_refuses_what_its_functional_twin_refuses_and_keeps_its_state(
    metric, arguments, message
):
    with pytest.raises(ConfigurationError, match=message):
        inspect.unwrap(type(metric).update)(metric, *arguments)

    with pytest.warns(UserWarning, match="before the ``update``"):
        assert metric.compute().isnan().all()
