"""The report of a run from one of its checkpoints, so that a run that died still has one."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from relict_lightning.callbacks.checkpoint import MemorizationCheckpoint
from relict_lightning.callbacks.monitor import ReplicaMonitor
from relict_lightning.callbacks.reporting import onset_summary
from relict_lightning.callbacks.rollback.kept import choose
from relict_lightning.errors import ConfigurationError, UnreadableDataError
from relict_lightning.report import write_report


def write_checkpoint_report(path: str | Path, *, checkpoint: str | Path, monitor: str | None = None) -> Path:
    """Write the HTML report of a run, without pairs, from a Lightning checkpoint, and return its absolute path.

    The checkpoint holds what the monitor and `MemorizationCheckpoint` knew when it was saved. Nothing in it is run:
    it is read as numbers and text only.

    Args:
        path: Where to write the report.
        checkpoint: The checkpoint.
        monitor: The monitor's name, needed where there are several; empty for the one without a name.

    Raises:
        ConfigurationError: If the checkpoint holds no monitor, one without an evaluation, or several to choose from.
        UnreadableDataError: If the checkpoint cannot be read.
    """
    checkpoint = Path(checkpoint)
    states = _callback_states(checkpoint)
    state = _monitor_state(states, checkpoint, wanted=monitor)
    watched = ReplicaMonitor(**state["settings"])
    watched.load_state_dict(state)
    if not watched.history:
        raise ConfigurationError(
            f"{checkpoint} was saved before the first evaluation of its ReplicaMonitor. Pass a later checkpoint."
        )
    best = None
    keeper_key = next((key for key in states if key.startswith(MemorizationCheckpoint.__name__)), None)
    if keeper_key is not None and watched.onset is not None and states[keeper_key]["monitor"] == watched.name:
        keeper = MemorizationCheckpoint()
        keeper.load_state_dict(states[keeper_key])
        # Once there was advice there is no other choice, also where it was that none is safe.
        advised = states[keeper_key]["advised"]
        best = keeper.best if advised else choose(keeper.kept, watched.onset.shown_rate)
    last = watched.history[-1]
    return write_report(
        path,
        title=f"Replicas of training patients, as saved in {checkpoint.name}",
        evaluations=watched.history,
        onset=onset_summary(watched.onset, best),
        pairs=[],
        settings={
            **({"Monitor": watched.name} if watched.name else {}),
            "Samples per evaluation": str(watched.num_samples),
            "Evaluations": str(watched.schedule),
            "Seed of sampling": str(watched.seed),
            "Probability of a false alarm over the run": f"at most {watched.alpha:g}",
            "Tolerated replica rate": f"{watched.tolerance:g}",
        },
        notes=[
            f"This report was written from a checkpoint: it ends with the evaluation at step {last.step}, and holds no "
            f"pairs, because checkpoints hold no images of patients."
        ],
    )


def _callback_states(checkpoint: Path) -> Mapping[str, Any]:
    """Return the state of every callback in a checkpoint."""
    try:
        # Mapped, because only a few kilobytes beside the weights are needed.
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UnreadableDataError(
            f"{checkpoint} cannot be read without running code from it ({str(error).splitlines()[0]}). Checkpoints "
            f"whose hyperparameters are objects are not read; resume the run from it instead, which writes the report."
        ) from error
    except (OSError, RuntimeError, EOFError) as error:
        raise UnreadableDataError(f"{checkpoint} cannot be read as a checkpoint ({error}). Check the path.") from error
    states = content.get("callbacks") if isinstance(content, Mapping) else None
    if not isinstance(states, Mapping):
        raise UnreadableDataError(
            f"{checkpoint} holds no states of callbacks; expected a checkpoint that Lightning's Trainer saved with its "
            f"training state, not weights alone."
        )
    return states


def _monitor_state(states: Mapping[str, Any], checkpoint: Path, *, wanted: str | None) -> dict[str, Any]:
    """Return the state of the one monitor that is meant."""
    of_name: dict[str, dict[str, Any]] = {
        state["settings"]["name"]: state for key, state in states.items() if key.startswith(ReplicaMonitor.__name__)
    }
    if not of_name:
        raise ConfigurationError(
            f"{checkpoint} holds the state of no ReplicaMonitor, only of: {', '.join(states) or 'none'}."
        )
    names = ", ".join(repr(name) for name in of_name)
    if wanted is None and len(of_name) > 1:
        raise ConfigurationError(f"{checkpoint} holds {len(of_name)} monitors: {names}. Name one (`--monitor`).")
    found = next(iter(of_name.values())) if wanted is None else of_name.get(wanted)
    if found is None:
        raise ConfigurationError(f"{checkpoint} holds no ReplicaMonitor of the name {wanted!r}, only: {names}.")
    return found
