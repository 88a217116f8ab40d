"""From what the callbacks know of a run and its onset to what a report says about them."""

from relict_lightning.callbacks.rollback.kept import KeptCheckpoint
from relict_lightning.callbacks.schedule import Schedule
from relict_lightning.detector import ReplicaDetector
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


def run_settings(
    detector: ReplicaDetector,
    *,
    schedule: Schedule,
    num_samples: int,
    alpha: float,
    tolerance: float,
    seed: int,
) -> dict[str, str]:
    """Return in words what the numbers of a run depend on.

    Args:
        detector: The fitted detector.
        schedule: When evaluations are due.
        num_samples: Samples per evaluation.
        alpha: Bound on the probability of a false alarm over the whole run.
        tolerance: Replica rate that is put up with.
        seed: Seed of all sampling.
    """
    return {
        "Training patients": str(detector.training_groups),
        "Held-out patients": str(detector.heldout_groups),
        "Samples per evaluation": str(num_samples),
        "Evaluations": str(schedule),
        "False discovery rate of the verdicts": f"{detector.fdr:g}",
        "Probability of a false alarm over the run": f"at most {alpha:g}",
        "Tolerated replica rate": f"{tolerance:g}",
        "Hits per view": str(detector.top_k),
        "Alterations searched": detector.transforms,
        "Seed of sampling": str(seed),
    }
