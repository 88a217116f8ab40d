"""Which rate is sure to exceed the tolerance: that of one evaluation, or of several in a row together.

Few samples cannot show that a low rate exceeds a low tolerance: 3 of 64 may be below 1 %. Where a test passes at one
evaluation after the other, their samples together can, and nothing is promised away: which of the rates is looked at is
no test of whether the samples depend on who was trained on, only of how many do.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from relict_lightning.functional import estimate_rate
from relict_lightning.results import RateEstimate

MOST_POOLED = 4
"""How many evaluations to pool: a rate that rises is that of the last ones, and more would only make it smaller."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What one evaluation counted.

    Attributes:
        replicas: How many samples are replicas.
        leaning: How many lean towards a training patient, as the permutation test shows; 0 where it does not.
        samples: How many there are.
    """

    replicas: int
    leaning: int
    samples: int


@dataclass(frozen=True, kw_only=True)
class Exceeding:
    """A rate that is sure to exceed the tolerance.

    Attributes:
        replica_rate: The replica rate.
        leaning_rate: The rate of samples that lean, where that one exceeds the tolerance and the other does not.
        pooled: Of how many evaluations.
    """

    replica_rate: RateEstimate
    leaning_rate: RateEstimate | None
    pooled: int


def exceeding(row: Sequence[Counts], *, tolerance: float) -> Exceeding | None:
    """Return the rate that is sure to exceed the tolerance, of the newest evaluation before that of all of them.

    Replicas come before samples that only lean, and these count where some do so at the newest evaluation.

    Args:
        row: Evaluations in a row at which a test passed, the newest last, one to `MOST_POOLED`.
        tolerance: What the lower bound of the rate must exceed.
    """
    for length in sorted({1, len(row)}):
        counts = row[-length:]
        samples = sum(each.samples for each in counts)
        replicas = estimate_rate(sum(each.replicas for each in counts), samples)
        leaning = estimate_rate(sum(each.leaning for each in counts), samples)
        if replicas.low > tolerance:
            return Exceeding(replica_rate=replicas, leaning_rate=None, pooled=len(counts))
        if row[-1].leaning and leaning.low > tolerance:
            return Exceeding(replica_rate=replicas, leaning_rate=leaning, pooled=len(counts))
    return None
