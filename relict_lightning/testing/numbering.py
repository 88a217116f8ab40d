"""Numbers of simulated subjects, and the ids that they go by."""

from relict_lightning.errors import ConfigurationError


def check_numbers(count: int, seed: int, first_subject: int) -> None:
    """Refuse a number below 0.

    Raises:
        ConfigurationError: If a number is negative.
    """
    for name, value in (("count", count), ("seed", seed), ("first_subject", first_subject)):
        if value < 0:
            raise ConfigurationError(f"{name} must be at least 0, got {name}={value}.")


def subject_ids(first_subject: int, count: int) -> tuple[str, ...]:
    """Return the ids of consecutive subjects."""
    return tuple(f"sub-{number:05d}" for number in range(first_subject, first_subject + count))
