"""What a monitor sends out: values, alerts and pictures to the loggers; where that fails, training goes on."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import final

from lightning.pytorch import Trainer

from relict_lightning.callbacks.agreement import on_first
from relict_lightning.callbacks.failures import Failures
from relict_lightning.onset import Onset
from relict_lightning.results import MatchedPair
from relict_lightning.tracking import write_alert, write_pairs, write_scalars


@final
class Teller:
    """Writes on the first process; on all, training goes on if that fails, unless it is to stop.

    Args:
        failures: Takes in what fails.
        monitor: The monitor's name, empty where it has none.
        stops: Whether training is to stop at a failure.
    """

    def __init__(self, failures: Failures, *, monitor: str, stops: bool) -> None:
        self._failures = failures
        self._monitor = monitor
        self._stops = stops

    def tell_values(self, trainer: Trainer, values: Mapping[str, float], *, step: int) -> None:
        """Write values, by their names without prefix, to the loggers at a step, which may lie some steps back."""
        write = partial(write_scalars, trainer.loggers, values, step=step, monitor=self._monitor)
        self.on_first(trainer, write, doing="Writing to the loggers")

    def tell_onset(self, trainer: Trainer, onset: Onset) -> None:
        """Send an alert to the loggers that know alerts."""
        title = f"Memorization onset, step {onset.confirmed_step}"
        alert = partial(write_alert, trainer.loggers, title=title, text=onset.reason)
        self.on_first(trainer, alert, doing="Sending an alert to the loggers")

    def show_pairs(self, trainer: Trainer, pairs: Sequence[MatchedPair], *, step: int) -> None:
        """Send pictures, which show patients, to the loggers."""
        write = partial(write_pairs, trainer.loggers, pairs, step=step, monitor=self._monitor)
        self.on_first(trainer, write, doing="Writing pictures to the loggers")

    def on_first(self, trainer: Trainer, write: Callable[[], object], *, doing: str) -> None:
        """Write something."""
        try:
            on_first(trainer, write, doing=doing)
        except Exception as error:
            if self._stops:
                raise
            self._failures.report(error, doing=doing, step=trainer.global_step, folder=trainer.default_root_dir)
