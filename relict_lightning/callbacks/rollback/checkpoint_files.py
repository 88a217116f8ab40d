"""The files of checkpoints: written, renamed and removed, with training going on where that fails."""

from collections.abc import Sequence
from pathlib import Path
from typing import final

from lightning.pytorch import Trainer
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

from relict_lightning.callbacks.rollback.kept import UncheckedCheckpoint, rated_name
from relict_lightning.errors import RelictWarning
from relict_lightning.results import RateEstimate


@final
class CheckpointFiles:
    """Writes and removes checkpoints of one run, and remembers which ones it wrote.

    Args:
        folder: Where they lie; None takes `relict_checkpoints` in the trainer's `default_root_dir`.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._written: set[str] = set()
        self._has_warned = False

    def has_written(self, path: str) -> bool:
        """Return whether this run wrote a checkpoint."""
        return path in self._written

    def rated_path(self, trainer: Trainer, *, step: int, rate: RateEstimate) -> Path:
        """Return where the checkpoint of a step lies whose replica rate is known."""
        return self._folder_of(trainer) / rated_name(step, rate)

    def unchecked_path(self, trainer: Trainer) -> Path:
        """Return where the checkpoint of this step lies while its samples are being checked."""
        return self._folder_of(trainer) / f"step={trainer.global_step}-unchecked.ckpt"

    def save(self, trainer: Trainer, path: Path) -> bool:
        """Save a checkpoint, and return whether it was written; all processes together."""
        stamp = _stamp(path)
        failure: Exception | None = None
        try:
            trainer.save_checkpoint(path, weights_only=False)
        except Exception as error:  # noqa: BLE001 - whatever it is, training goes on with what was kept before
            failure = error
            # The others wait here for the process that failed to write.
            trainer.strategy.barrier("Trainer.save_checkpoint")
        # Lightning passes over a missing permission without a word; and it may write in the background.
        in_background = isinstance(trainer.strategy.checkpoint_io, AsyncCheckpointIO)
        looks = trainer.is_global_zero and not in_background
        written = failure is None and (not looks or _is_folder(path) or _stamp(path) not in (None, stamp))
        if trainer.strategy.reduce_boolean_decision(written, all=True):
            self._written.add(str(path))
            return True
        said = f"{type(failure).__name__}: {failure}" if failure else "no file was written; is it permitted?"
        self._warn(
            f"The checkpoint {path} could not be saved ({said}). Training goes on, and what was kept before stays. "
            f"Make room, or choose another `dirpath`."
        )
        return False

    def rename(self, unchecked: UncheckedCheckpoint, path: Path) -> str:
        """Give a checkpoint its final name, and return where it lies now."""
        renamed = str(unchecked.renamed(path))
        if unchecked.path in self._written:
            self._written.add(renamed)
        return renamed

    def existing(self, trainer: Trainer, paths: Sequence[str]) -> list[str]:
        """Return which checkpoints exist, as the process sees it that writes them."""
        there: list[str] = trainer.strategy.broadcast([path for path in paths if _stamp(Path(path)) is not None])
        return there

    def remove(self, trainer: Trainer, path: str) -> None:
        """Remove a checkpoint."""
        try:
            trainer.strategy.remove_checkpoint(path)
        except OSError as error:
            self._warn(f"{path} is not needed any longer and could not be removed ({error}). Training goes on.")

    def _folder_of(self, trainer: Trainer) -> Path:
        return self._folder or Path(trainer.default_root_dir) / "relict_checkpoints"

    def _warn(self, message: str) -> None:
        """Warn once in a run: what stands in the way now does so at the next evaluation as well."""
        if not self._has_warned:
            self._has_warned = True
            rank_zero_warn(message, category=RelictWarning)


def _stamp(path: Path) -> int | None:
    """Return when a file was written; None where there is none, or none that can be seen."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False
