"""What hangs on the time is decided alike on every process."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from lightning.pytorch import Trainer

from relict_lightning.callbacks.clock import RunClock


@pytest.fixture
def now(monkeypatch) -> Any:
    """A clock that stands still until it is moved."""
    stands = SimpleNamespace(seconds=0.0)
    clock = SimpleNamespace(perf_counter=lambda: stands.seconds)
    monkeypatch.setattr("relict_lightning.callbacks.clock.time", clock)
    return stands


def _trainer(world_size: int = 1, *, asked: list[float] | None = None, first: float | None = None) -> Any:
    """A trainer whose first process has a clock of its own, which may show another time."""

    def broadcast(value: float) -> float:
        if asked is not None:
            asked.append(value)
        return value if first is None else first

    return Mock(spec=Trainer, world_size=world_size, strategy=SimpleNamespace(broadcast=broadcast))


def test_the_seconds_of_a_run_go_on_where_it_was_left(now):
    clock, resumed = RunClock(), RunClock()
    now.seconds = 40.0
    clock.spend(_trainer(), 10.0)

    state = clock.state_dict()
    now.seconds = 1000.0
    resumed.load_state_dict(state)
    now.seconds = 1005.0

    assert resumed.elapsed(_trainer(), until=0) == 45.0
    assert resumed.spent == 10.0


def test_an_evaluation_is_affordable_once_training_took_long_enough(now):
    clock = RunClock()
    clock.spend(_trainer(), 6.0)
    clock.spend(_trainer(), 4.0)

    # 10 spent and 4 to come are 5 % of 280 seconds of training, beside the 10 that were spent.
    assert clock.affordable_at(0.05) == pytest.approx(290.0)


def test_the_first_process_tells_the_time(now):
    clock = RunClock()
    now.seconds = 5.0

    assert clock.elapsed(_trainer(2, first=7.0), until=100.0) == 7.0

    clock.spend(_trainer(2, first=3.0), 2.0)
    assert clock.spent == 3.0


def test_the_time_is_asked_for_the_more_rarely_the_longer_it_is_until_it_matters(now):
    clock, asked = RunClock(), []
    trainer = _trainer(2, asked=asked)
    told = []

    for second in range(1, 1001):
        now.seconds = float(second)
        told.append(clock.elapsed(trainer, until=900.0) >= 900.0)

    # Halving the way each time takes some ten questions; from then on each call asks.
    assert sum(time < 900 for time in asked) < 20
    assert told.index(True) + 1 == 900
