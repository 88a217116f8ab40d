"""Drawing fresh samples from checkpoints while a run trains: their weights in the module for as long as that takes."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, final

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from relict_lightning.callbacks.agreement import together
from relict_lightning.callbacks.rollback.kept import KeptCheckpoint
from relict_lightning.callbacks.rollback.verification import Finding, Verification, asks_for_more, judge
from relict_lightning.callbacks.rollback.weights import load_weights, loads_weights_alone, own_state, read_checkpoint
from relict_lightning.errors import DrawingInterrupted
from relict_lightning.onset import Onset
from relict_lightning.results import DetectionResult

Measure = Callable[[Trainer, LightningModule], DetectionResult]

# With as many samples as found the lowest rate at onset, the pooled ones tell a clean checkpoint from it.
_MOST_DRAWN = 4


@final
class Verifier:
    """Verifies checkpoints, and leaves training as if nothing had looked.

    Args:
        trusts: Whether the checkpoint at a path may hold any objects, because this run wrote it.

    Attributes:
        own_weights: The training's own weights, while those of a checkpoint are in the module; None otherwise.
    """

    def __init__(self, trusts: Callable[[str], bool]) -> None:
        self._trusts = trusts
        self.own_weights: Mapping[str, Any] | None = None

    def verify(
        self,
        trainer: Trainer,
        module: LightningModule,
        checkpoint: KeptCheckpoint,
        *,
        measure: Measure,
        onset: Onset,
        tolerance: float,
        alpha: float,
    ) -> Verification:
        """Return what fresh samples of a checkpoint say; an error is part of that, because the advice is still due.

        Args:
            trainer: The trainer, while it fits.
            module: The model under training, which holds afterwards what it held before.
            checkpoint: The checkpoint.
            measure: Returns what is found of fresh samples of the module.
            onset: The onset that the checkpoint lies before.
            tolerance: Replica rate that is put up with.
            alpha: Level of the test for leaning, as `judge` takes it.

        Raises:
            DrawingInterrupted: If the run is told to end.
        """
        if not loads_weights_alone(trainer.strategy):
            name = type(trainer.strategy).__name__
            return _failed(f"{name} loads weights with the optimizer only")
        rank_zero_info(f"Verifying {checkpoint.path} with fresh samples.")
        try:
            content = read_checkpoint(trainer, checkpoint.path, trusted=self._trusts(checkpoint.path))
            own = together(
                trainer, lambda: own_state(trainer, module, content), doing="Keeping the weights under training"
            )
        except Exception as error:  # noqa: BLE001 - told in the advice
            return _failed(f"reading it failed, {_first_line(error)}")
        self.own_weights = own["state_dict"]
        try:
            try:
                together(trainer, lambda: load_weights(trainer, module, content), doing="Loading a checkpoint")
            except Exception as error:  # noqa: BLE001 - told in the advice
                return _failed(f"loading it failed, {_first_line(error)}")
            try:
                draw = partial(measure, trainer, module)
                return _measured(checkpoint, draw, onset=onset, tolerance=tolerance, alpha=alpha)
            except DrawingInterrupted:
                raise
            except Exception as error:  # noqa: BLE001 - told in the advice
                # By its kind alone: an error about images may name a patient, and what is said may leave the machine.
                return _failed(f"measuring failed with {type(error).__name__}")
        finally:
            # An error here goes on: training must not go on with weights that are not its own.
            load_weights(trainer, module, own)
            self.own_weights = None


def _measured(
    checkpoint: KeptCheckpoint, draw: Callable[[], DetectionResult], *, onset: Onset, tolerance: float, alpha: float
) -> Verification:
    """Return what fresh samples say of a checkpoint: as many as it takes, or may be drawn."""
    results: list[DetectionResult] = []
    while True:
        results.append(draw())
        verification = judge(checkpoint.replica_rate, results, onset, tolerance=tolerance, alpha=alpha)
        is_open = asks_for_more(verification, results, onset, tolerance=tolerance)
        if not is_open or len(results) == _MOST_DRAWN:
            return verification


def _failed(by: str) -> Verification:
    return Verification(finding=Finding.FAILED, failure=by)


def _first_line(error: Exception) -> str:
    """Return an error's kind and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
