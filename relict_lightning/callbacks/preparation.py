"""What the monitor does before the first step: fit the detector, and say what it will be able to decide."""

import time
import warnings
from functools import partial
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info

from relict_lightning.callbacks.agreement import together
from relict_lightning.detector import ReplicaDetector
from relict_lightning.errors import RelictWarning
from relict_lightning.functional.statistics import TAIL_CONTROLS
from relict_lightning.onset import EvidenceKind, OnsetDetector, copies_to_decide
from relict_lightning.processes import Processes

_BUILDING = "Building the replica reference"


def fit_detector(detector: ReplicaDetector, trainer: Trainer, *, training: Any, heldout: Any | None) -> None:
    """Fit the detector to the run's images, and say whether it was built or found in the cache.

    Several processes embed and keep a share of the images each.

    Args:
        detector: The detector.
        trainer: The trainer.
        training: Training images.
        heldout: Held-out images, None without any.
    """
    started = time.perf_counter()
    if trainer.world_size > 1 and detector.processes.count == 1 and not detector.is_fitted:
        detector.share(Processes.current())
    fit = partial(detector.processes.together, partial(detector.fit, training, heldout), doing=_BUILDING)
    together(trainer, fit, doing=_BUILDING)
    seconds = time.perf_counter() - started
    where = "in memory" if detector.cache_dir is None else f"in {detector.cache_dir}, which holds patient data"
    origin = (
        f"reused from the cache in {seconds:.2f} s, {detector.build_seconds:.2f} s saved"
        if detector.from_cache
        else f"built in {seconds:.2f} s"
    )
    rank_zero_info(
        f"Replica reference of {detector.training_groups} training and {detector.heldout_groups} held-out patients "
        f"{origin} ({where})."
    )


def describe_power(detector: ReplicaDetector, onset_detector: OnsetDetector, *, num_samples: int) -> None:
    """Say what the split can and cannot decide.

    Args:
        detector: The fitted detector.
        onset_detector: What decides on onset.
        num_samples: Samples per evaluation.
    """
    if not detector.has_control:
        warnings.warn(
            "ReplicaMonitor has no held-out images. What still works: each sample's most similar training images and "
            "their evidence, max_similarity, self_similarity, neighbor_ratio_fraction. What does not: the replica "
            "rate, every p-value, onset, and so stopping and rollback, because nothing tells how alike a new patient "
            "would be. Pass `heldout=` or a validation dataloader of patients not trained on.",
            RelictWarning,
            stacklevel=2,
        )
        return
    if (self_test := detector.self_test_at_fit) is not None:
        rank_zero_info(f"Of copies that were planted on purpose, this detector finds:\n{self_test}")
        if (blind := self_test.warning()) is not None:
            rank_zero_info(blind)
    level = onset_detector.next_level
    needed = copies_to_decide(level, training_groups=detector.training_groups, heldout_groups=detector.heldout_groups)
    permutation, conformal = EvidenceKind.PERMUTATION, EvidenceKind.CONFORMAL
    if needed is not None and needed <= num_samples:
        rank_zero_info(
            f"Onset can be established by the permutation test once {needed} different patients are copied, "
            f"{permutation.assumption}; and of fewer by the comparison with held-out patients, {conformal.assumption}."
        )
        return
    rank_zero_info(
        f"The split of {detector.training_groups} training and {detector.heldout_groups} held-out patients is too "
        f"uneven for the permutation test with {num_samples} samples. Onset rests on the comparison with held-out "
        f"patients, {conformal.assumption}."
    )
    if detector.heldout_groups < TAIL_CONTROLS:
        smallest = 1 / (1 + detector.heldout_groups)
        warnings.warn(
            f"With {detector.heldout_groups} held-out patients no p-value can be smaller than {smallest:.2g}, and "
            f"{onset_detector.next_conformal_level:.2g} is needed at the next evaluation and less later, so onset may "
            f"never be established. "
            f"Hold out at least {TAIL_CONTROLS} patients.",
            RelictWarning,
            stacklevel=2,
        )
