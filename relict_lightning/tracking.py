"""What reaches the loggers: numbers under fixed names, and pictures only where the user asked for them in writing."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from relict_lightning.onset import RunState
from relict_lightning.report import pair_strip
from relict_lightning.results import DetectionResult, MatchedPair

PREFIX = "relict/"
"""All logged names start with this."""


def prefix_of(monitor: str) -> str:
    """Return what the logged names of a monitor start with: a named one has a level of its own.

    Args:
        monitor: The monitor's name, empty where it has none.

    Example:
        >>> prefix_of(""), prefix_of("ema")
        ('relict/', 'relict/ema/')
    """
    return f"{PREFIX}{monitor}/" if monitor else PREFIX


def logged_values(result: DetectionResult, *, state: RunState, costs: Mapping[str, float]) -> dict[str, float]:
    """Return every logged value of one evaluation by its name without prefix; each of them is finite.

    Without a control there is no rate, no p-value and no onset, and their names are left out.

    Args:
        result: What the detector found.
        state: How the run stands after this evaluation.
        costs: Seconds and memory that the evaluation took, by logged name.
    """
    values = dict(result.measures)
    if result.replica_rate is not None:
        values |= {
            "replica_rate": result.replica_rate.value,
            "replica_rate_low": result.replica_rate.low,
            "replica_rate_high": result.replica_rate.high,
            "watch": float(state is RunState.WATCH),
            "onset": float(state is RunState.ONSET),
        }
        values |= {f"replica_rate_{level}": rate.value for level, rate in result.level_rates.items()}
    if result.leaning_rate is not None:
        values |= {"leaning_rate": result.leaning_rate.value, "leaning_rate_low": result.leaning_rate.low}
    if result.memorization_p_value is not None:
        values["memorization_p_value"] = result.memorization_p_value
    values |= costs
    return {name: value for name, value in values.items() if np.isfinite(value)}


def with_prefix(values: Mapping[str, float], *, monitor: str = "") -> dict[str, float]:
    """Return the values under the logged names of a monitor."""
    return {prefix_of(monitor) + name: value for name, value in values.items()}


def write_scalars(loggers: Iterable[Logger], values: Mapping[str, float], *, step: int, monitor: str = "") -> None:
    """Write values to every logger at a step, at once; Lightning's own logging would wait for its next interval."""
    for logger in loggers:
        logger.log_metrics(with_prefix(values, monitor=monitor), step=step)


def write_alert(loggers: Iterable[Logger], *, title: str, text: str) -> None:
    """Send an alert to W&B, which passes it on as its user has set there; other loggers know no alerts.

    Args:
        loggers: All loggers, of which those of W&B are used.
        title: Title, below 64 characters.
        text: What happened. It leaves the machine: no patient may be named in it.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.alert(title=title, text=text, level="WARN")


def write_pairs(loggers: Iterable[Logger], pairs: Sequence[MatchedPair], *, step: int, monitor: str = "") -> None:
    """Send pictures of matched pairs to TensorBoard and W&B. They show patients: call it only when told to.

    Captions carry the position in the training set, never an id.
    """
    pictures = [pair_strip(pair) for pair in pairs]
    captions = [f"training image {pair.verdict.match}, p = {pair.verdict.p_value:.3g}" for pair in pairs]
    if not pictures:
        return
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            for position, picture in enumerate(pictures):
                experiment: Any = logger.experiment
                experiment.add_image(f"{prefix_of(monitor)}pair_{position}", picture, step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            # As uint8: W&B casts anything else without scaling it.
            logger.log_image(f"{prefix_of(monitor)}pairs", pictures, caption=captions)
