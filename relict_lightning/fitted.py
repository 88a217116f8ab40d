"""What a detector learns from data, and how it is kept in a folder."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from relict_lightning.control import Control, read_control, write_control
from relict_lightning.errors import IndexStaleError
from relict_lightning.index import Entry, IntensityScale, Reference, read_reference, write_reference, writing


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Everything that `ReplicaDetector.fit` makes.

    Attributes:
        scale: The training set's intensity scale.
        training: The training images.
        heldout: The held-out images of new patients; None without any.
        control: Their measurements; None without any.
        needs_label_maps: Whether samples must bring label maps, because the training images did and no segmenter
            makes the same labels.
    """

    scale: IntensityScale
    training: Reference
    heldout: Reference | None
    control: Control | None
    needs_label_maps: bool


def write_fitted(fitted: Fitted, path: Path, *, settings: Mapping[str, object]) -> None:
    """Write a fitted state and settings, which JSON can hold, into a new folder."""
    with writing(path) as writer:
        write_reference(fitted.training, writer, prefix="training_")
        if fitted.heldout is not None and fitted.control is not None:
            write_reference(fitted.heldout, writer, prefix="heldout_")
            write_control(fitted.control, writer, prefix="control_")
        state = {
            "scale": asdict(fitted.scale),
            "has_control": fitted.control is not None,
            "needs_label_maps": fitted.needs_label_maps,
        }
        writer.commit({"fitted": state, "settings": dict(settings)})


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
    """Return the fitted state of a folder that `write_fitted` wrote."""
    state = entry.manifest["fitted"]
    has_control = state["has_control"]
    return Fitted(
        scale=IntensityScale(**state["scale"]),
        training=read_reference(entry, prefix="training_"),
        heldout=read_reference(entry, prefix="heldout_") if has_control else None,
        control=read_control(entry, prefix="control_") if has_control else None,
        needs_label_maps=state["needs_label_maps"],
    )
