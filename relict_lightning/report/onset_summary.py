"""What a report says about the onset of memorization."""

from dataclasses import dataclass

from relict_lightning.errors import ConfigurationError
from relict_lightning.results import RateEstimate


@dataclass(frozen=True, kw_only=True)
class OnsetSummary:
    """The evaluation at which memorization was established, and the checkpoint to return to.

    Attributes:
        step: Optimizer step of the evaluation.
        epoch: Epoch of the evaluation.
        reason: In words, which evidence decided and what it assumes.
        replica_rate: Replica rate at that evaluation.
        leaning_rate: Share of the samples that lean towards a training patient, where that share and not the replica
            rate established the onset; None otherwise.
        p_value: p-value that passed the threshold.
        alpha_spent: The threshold: the part of the run's false alarm probability spent on this evaluation.
        checkpoint_path: Last checkpoint before onset; None if there is none.
        checkpoint_step: Optimizer step of that checkpoint; None if it is not known.
        checkpoint_rate: Replica rate of that checkpoint; None if it was not measured.
        checkpoint_finding: In words, what samples that were drawn from that checkpoint afterwards said of it; None if
            none were drawn.

    Raises:
        ConfigurationError: If a step is negative, a probability lies outside [0, 1], or the checkpoint is not
            earlier than the onset.

    Example:
        >>> rate = RateEstimate(value=0.25, low=0.073, high=0.524, successes=4, trials=16)
        >>> OnsetSummary(step=900, epoch=9, reason="permutation test", replica_rate=rate, p_value=1e-4,
        ...              alpha_spent=6e-4).checkpoint_path is None
        True
    """

    step: int
    epoch: int
    reason: str
    replica_rate: RateEstimate
    p_value: float
    alpha_spent: float
    leaning_rate: RateEstimate | None = None
    checkpoint_path: str | None = None
    checkpoint_step: int | None = None
    checkpoint_rate: RateEstimate | None = None
    checkpoint_finding: str | None = None

    def __post_init__(self) -> None:
        """Check that the numbers can belong to one run."""
        if self.step < 0 or self.epoch < 0:
            raise ConfigurationError(
                f"An onset needs a step and an epoch of at least 0, but got step={self.step}, epoch={self.epoch}."
            )
        for name, value in (("p_value", self.p_value), ("alpha_spent", self.alpha_spent)):
            if not 0 <= value <= 1:
                raise ConfigurationError(f"{name} of an onset must lie in [0, 1], but got {name}={value}.")
        if self.checkpoint_step is not None and self.checkpoint_step >= self.step:
            raise ConfigurationError(
                f"The checkpoint to return to must be earlier than the onset at step {self.step}, "
                f"but got checkpoint_step={self.checkpoint_step}."
            )
