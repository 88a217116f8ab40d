from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import Logger

from relict_lightning import ReplicaDetector
from relict_lightning.onset import RunState
from relict_lightning.tracking import logged_values, with_prefix, write_pairs, write_scalars


class Remembering(Logger):
    """A logger that shows numbers and has no use for pictures."""

    name = "remembering"
    version = 0

    def __init__(self) -> None:
        super().__init__()
        self.written: list[tuple[dict[str, float], int | None]] = []

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        raise NotImplementedError

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.written.append((metrics, step))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(30, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def _values(detector: ReplicaDetector, samples: torch.Tensor, **arguments: Any) -> dict[str, float]:
    given = {"state": RunState.CLEAN, "costs": {"seconds_sampling": 0.5, "seconds_checking": 0.25}, **arguments}
    return logged_values(detector.detect(samples), **given)


def test_with_a_control_the_rate_is_logged_with_its_interval_and_with_each_level(images):
    detector = ReplicaDetector(fdr=0.2).fit(images[:15], images[15:])

    values = _values(detector, images[:6], state=RunState.ONSET)

    assert values["replica_rate"] == 1.0
    # Six of six: the lower bound solves p^6 = 0.025.
    assert values["replica_rate_low"] == pytest.approx(0.025 ** (1 / 6))
    assert values["replica_rate_high"] == 1.0
    assert {"replica_rate_voxel", "replica_rate_feature", "replica_rate_segmentation"} <= values.keys()
    assert (values["watch"], values["onset"]) == (0.0, 1.0)
    assert (values["seconds_sampling"], values["seconds_checking"]) == (0.5, 0.25)


def test_without_a_control_no_rate_no_p_value_and_no_onset_are_logged(images):
    detector = ReplicaDetector().fit(images[:15])

    values = _values(detector, images[20:26])

    assert values.keys() == {
        "neighbor_ratio_fraction", "max_similarity", "self_similarity", "seconds_sampling", "seconds_checking",
    }  # fmt: skip


def test_values_that_are_not_finite_are_left_out_because_they_stop_early_stopping(images):
    detector = ReplicaDetector().fit(images[:15])

    costs = {"seconds_sampling": float("nan"), "seconds_checking": float("inf")}
    values = _values(detector, images[20:26], costs=costs)

    assert "seconds_sampling" not in values
    assert "seconds_checking" not in values


def test_names_are_prefixed():
    assert with_prefix({"onset": 1.0}) == {"relict/onset": 1.0}


def test_names_of_a_named_monitor_have_a_level_of_its_own():
    assert with_prefix({"onset": 1.0}, monitor="ema") == {"relict/ema/onset": 1.0}


def test_every_logger_gets_each_number_once_at_its_step():
    loggers = Remembering(), Remembering()

    write_scalars(loggers, {"onset": 1.0}, step=7)

    assert [logger.written for logger in loggers] == [[({"relict/onset": 1.0}, 7)]] * 2


def test_a_named_monitor_writes_under_its_name():
    logger = Remembering()

    write_scalars([logger], {"onset": 1.0}, step=7, monitor="ema")

    assert logger.written == [({"relict/ema/onset": 1.0}, 7)]


def test_a_logger_that_shows_no_pictures_gets_none(images):
    detector = ReplicaDetector(fdr=0.2).fit(images[:15], images[15:])
    pairs = detector.matched_pairs(images[:2], detector.detect(images[:2]), [0, 1])
    logger = Remembering()

    write_pairs([logger], pairs, step=7)

    assert logger.written == []
