"""What a checkpoint's fresh samples say about it. Pure: rates and p-values in, a finding out.

A checkpoint is chosen because few replicas were found in it, so its own rate flatters it. Before it is called safe,
samples that no evaluation has seen are drawn from it and checked.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from relict_lightning.functional import estimate_rate
from relict_lightning.onset import Onset, rate_from_primitives, rate_to_primitives
from relict_lightning.results import DetectionResult, RateEstimate


class Finding(str, enum.Enum):
    """What came out of a verification."""

    CLEAN = "clean"
    UNDECIDED = "undecided"
    COPIES = "copies"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What fresh samples of a checkpoint said.

    Attributes:
        finding: Clean, making copies, neither for certain, or not verified because something failed.
        fresh: The replica rate of the fresh samples; None where it failed.
        pooled: The rate of the fresh samples and those of the first evaluation together; None where it failed.
        failure: What failed; empty where nothing did.
        leaning: The share of the fresh samples that lean towards a training patient, where that share and the
            permutation test show it; None otherwise.
    """

    finding: Finding
    fresh: RateEstimate | None = None
    pooled: RateEstimate | None = None
    failure: str = ""
    leaning: RateEstimate | None = None

    @property
    def rates(self) -> str:
        """The rates in words."""
        leaning = "" if self.leaning is None else f", and {self.leaning} lean towards training patients"
        return f"{self.fresh}, with the first ones {self.pooled}{leaning}"

    def __str__(self) -> str:
        """Return the finding with its rates, or what failed."""
        if self.finding is Finding.FAILED:
            return f"not verified ({self.failure})"
        found = {Finding.COPIES: "makes copies", Finding.CLEAN: "clean"}.get(self.finding, "undecided")
        return f"{found}: {self.rates}"


def pool(first: RateEstimate, second: RateEstimate) -> RateEstimate:
    """Return the rate of two sets of samples together, at the confidence of the first."""
    return estimate_rate(first.successes + second.successes, first.trials + second.trials, confidence=first.confidence)


def judge(
    first: RateEstimate, results: Sequence[DetectionResult], onset: Onset, *, tolerance: float, alpha: float
) -> Verification:
    """Return what fresh samples say of a checkpoint.

    It is clean if four things hold: the upper bound of the pooled rate lies below the lower bound of the rate that
    onset was shown by; neither the fresh nor the pooled rate is sure to exceed `tolerance`; the test against held-out
    patients does not pass at the level of the onset; and the samples do not lean. They do where the permutation test
    passes at that level and more than the tolerated share of all fresh samples lean, or where it passes at `alpha` and
    that share is sure to exceed `tolerance`. It makes copies if replicas among the fresh samples alone would have
    established an onset there. All else is undecided: too few samples, replicas without evidence, or samples that lean.

    Args:
        first: The replica rate that the checkpoint was chosen by.
        results: What the detector found of the fresh samples, each time that some were drawn.
        onset: The onset.
        tolerance: Replica rate that is put up with.
        alpha: Level of the test for leaning, each time that samples were drawn; passing it by chance only means to go
            back further.
    """
    rates = [result.replica_rate for result in results if result.replica_rate is not None]
    if not rates:
        return Verification(finding=Finding.FAILED, failure="there is no control of held-out patients")
    fresh, pooled = reduce(pool, rates), reduce(pool, rates, first)
    discovers = any(_passes(result.discovery_p_value, onset.level) for result in results)
    passes = discovers or any(_passes(result.memorization_p_value, onset.level) for result in results)
    leans = _leans_for_sure(results, onset, tolerance=tolerance) or _may_lean(results, tolerance=tolerance, alpha=alpha)
    is_low = max(fresh.low, pooled.low) <= tolerance and pooled.high < onset.shown_rate.low
    if passes and fresh.low > tolerance:
        finding = Finding.COPIES
    elif is_low and not discovers and not leans:
        finding = Finding.CLEAN
    else:
        finding = Finding.UNDECIDED
    return Verification(finding=finding, fresh=fresh, pooled=pooled, leaning=_share(results) if leans else None)


def asks_for_more(
    verification: Verification, results: Sequence[DetectionResult], onset: Onset, *, tolerance: float
) -> bool:
    """Return whether more fresh samples may find a checkpoint clean that so few cannot tell from the onset.

    Args:
        verification: What `judge` said.
        results: What it was said of.
        onset: The onset.
        tolerance: Replica rate that is put up with.
    """
    return verification.finding is Finding.UNDECIDED and not _leans_for_sure(results, onset, tolerance=tolerance)


def _share(results: Sequence[DetectionResult]) -> RateEstimate | None:
    """Return the share of all samples that lean; None where it was not measured."""
    shares = [result.leaning_rate for result in results if result.leaning_rate is not None]
    return reduce(pool, shares) if shares else None


def _leans_for_sure(results: Sequence[DetectionResult], onset: Onset, *, tolerance: float) -> bool:
    """Return whether the permutation test passes as it would for an onset, and more than the tolerated share lean."""
    share = _share(results)
    passes = any(_passes(result.memorization_p_value, onset.level) for result in results)
    return passes and (share is None or share.value > tolerance)


def _may_lean(results: Sequence[DetectionResult], *, tolerance: float, alpha: float) -> bool:
    """Return whether the permutation test passes at `alpha`, and a share that is sure to exceed the tolerance leans."""
    share = _share(results)
    passes = any(_passes(result.memorization_p_value, alpha) for result in results)
    return passes and share is not None and share.low > tolerance


def _passes(p_value: float | None, level: float) -> bool:
    return p_value is not None and p_value <= level


def verification_to_primitives(verification: Verification) -> dict[str, Any]:
    """Return a verification as primitives, which checkpoints can hold."""
    return {
        "finding": verification.finding.value,
        "fresh": verification.fresh and rate_to_primitives(verification.fresh),
        "pooled": verification.pooled and rate_to_primitives(verification.pooled),
        "failure": verification.failure,
        "leaning": verification.leaning and rate_to_primitives(verification.leaning),
    }


def verification_from_primitives(state: Mapping[str, Any]) -> Verification:
    """Return the verification that `verification_to_primitives` wrote down."""
    return Verification(
        finding=Finding(state["finding"]),
        fresh=rate_from_primitives(state["fresh"]),
        pooled=rate_from_primitives(state["pooled"]),
        failure=state["failure"],
        leaning=rate_from_primitives(state.get("leaning")),
    )
