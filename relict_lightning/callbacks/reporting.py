"""From what the callbacks know of an onset to what a report says about it."""

from relict_lightning.callbacks.kept import KeptCheckpoint
from relict_lightning.onset import Onset
from relict_lightning.report import OnsetSummary


def onset_summary(onset: Onset | None, best: KeptCheckpoint | None) -> OnsetSummary | None:
    """Return what a report says about an onset and the checkpoint to go back to; None without an onset."""
    if onset is None:
        return None
    return OnsetSummary(
        step=onset.step,
        epoch=onset.epoch,
        reason=onset.grounds,
        replica_rate=onset.replica_rate,
        leaning_rate=onset.leaning_rate,
        p_value=onset.p_value,
        alpha_spent=onset.level,
        checkpoint_path=None if best is None else best.path,
        checkpoint_step=None if best is None else best.step,
        checkpoint_rate=None if best is None else best.replica_rate,
        checkpoint_finding=None if best is None or best.verification is None else str(best.verification),
    )
