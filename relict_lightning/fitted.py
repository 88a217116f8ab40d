"""What a detector learns from data, and how it is kept in a folder."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from relict_lightning.comparison import MEASUREMENT_VERSION
from relict_lightning.control import Control, read_control, without_patients, write_control
from relict_lightning.errors import IndexStaleError
from relict_lightning.index import Entry, Reference, read_reference, write_reference, writing
from relict_lightning.usual import Usual, read_usual, write_usual


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Everything that `ReplicaDetector.fit` makes.

    Attributes:
        training: The training images.
        usual: What is usual in them.
        heldout: The held-out images of patients who are new by name; None without any.
        control: Their measurements; None without any.
        needs_label_maps: Whether samples must bring label maps, because the training images did and no segmenter
            makes the same labels.
    """

    training: Reference
    usual: Usual
    heldout: Reference | None
    control: Control | None
    needs_label_maps: bool

    @cached_property
    def unseen(self) -> Reference | None:
        """The held-out images without those that resemble training images as only copies do; None without any."""
        if self.heldout is None or self.control is None:
            return None
        return without_patients(self.heldout, self.control.leaks)


def write_fitted(fitted: Fitted, path: Path, *, settings: Mapping[str, object], is_writer: bool) -> None:
    """Write a fitted state and settings, which JSON can hold, into a new folder.

    Args:
        fitted: The state; all processes that share it call this.
        path: The folder.
        settings: What to keep beside it.
        is_writer: Whether this process writes; the others hand over what they hold.
    """
    state = {
        "has_control": fitted.control is not None,
        "needs_label_maps": fitted.needs_label_maps,
        "measured": MEASUREMENT_VERSION,
    }
    manifest = {"fitted": state, "settings": dict(settings)}
    with writing(path, manifest) if is_writer else nullcontext() as writer:
        write_reference(fitted.training, writer, prefix="training_")
        if writer is not None:
            write_usual(fitted.usual, writer, prefix="usual_")
        if fitted.heldout is not None and fitted.control is not None:
            write_reference(fitted.heldout, writer, prefix="heldout_")
            if writer is not None:
                write_control(fitted.control, writer, prefix="control_")


def read_settings(entry: Entry) -> Mapping[str, object]:
    """Return the settings of a folder that `write_fitted` wrote.

    Raises:
        IndexStaleError: If the folder holds something else.
    """
    if "settings" not in entry.manifest:
        raise IndexStaleError(f"{entry.directory} is no saved detector. Pass the folder given to `save`.")
    settings: Mapping[str, object] = entry.manifest["settings"]
    return settings


def read_fitted(entry: Entry) -> Fitted:
    """Return the fitted state of a folder that `write_fitted` wrote.

    Raises:
        IndexStaleError: If its control was measured otherwise than samples are now.
    """
    state = entry.manifest["fitted"]
    if state.get("measured") != MEASUREMENT_VERSION:
        raise IndexStaleError(
            f"The detector in {entry.directory} was saved by a version of relict-lightning that measured likeness "
            f"otherwise (measurement {state.get('measured', 1)}, now {MEASUREMENT_VERSION}). Fit and save it again."
        )
    has_control = state["has_control"]
    return Fitted(
        training=read_reference(entry, prefix="training_"),
        usual=read_usual(entry, prefix="usual_"),
        heldout=read_reference(entry, prefix="heldout_") if has_control else None,
        control=read_control(entry, prefix="control_") if has_control else None,
        needs_label_maps=state["needs_label_maps"],
    )
