"""The sentences of a report that state a result, and the numbers in them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from relict_lightning.report.onset_summary import OnsetSummary
from relict_lightning.results import Evaluation, RateEstimate


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The result of a run.

    Attributes:
        status: Of a run `onset` or `none`, of an audit `replicas` or `clear`, and `unknown` where no rate can be given.
        sentence: The result in one sentence.
        details: What a reader must know with it, one sentence or two each.
    """

    status: Literal["onset", "none", "replicas", "clear", "unknown"]
    sentence: str
    details: tuple[str, ...]


def headline(evaluations: Sequence[Evaluation], *, onset: OnsetSummary | None) -> Headline:
    """Return the result of a run in words that promise no more than the numbers do.

    Args:
        evaluations: At least one, in the order of their steps.
        onset: Onset of memorization; None without one.

    Returns:
        The verdict and what qualifies it.

    Example:
        >>> rate = RateEstimate(value=0.0, low=0.0, high=0.056, successes=0, trials=64)
        >>> headline([Evaluation(step=900, epoch=9, replica_rate=rate, measures={})], onset=None).sentence
        'No memorization onset in 1 evaluation: at step 900, at most 5.6 % of samples are replicas (95 % interval).'
    """
    if onset is not None:
        return _onset_headline(onset)
    count = f"{len(evaluations)} evaluation{'' if len(evaluations) == 1 else 's'}"
    rated = [(evaluation.step, evaluation.replica_rate) for evaluation in evaluations if evaluation.replica_rate]
    rated = [(step, rate) for step, rate in rated if rate.trials > 0]
    if not rated:
        return Headline(
            status="unknown",
            sentence=f"No replica rate can be given for {count}: there is no held-out control.",
            details=(
                "Without held-out patients nothing says how alike a new patient would be, so there is no threshold, "
                "no p-value and no onset. This is not a finding that the model is safe.",
                "What remains are the training images that the samples come closest to, and how alike they are. Give "
                "the monitor held-out images (a validation set of other patients) to get rates.",
            ),
        )
    step, last = rated[-1]
    confidence = f"{100 * last.confidence:g} % interval"
    if last.successes == 0:
        result = f": at step {step}, at most {percent(last.high)} of samples are replicas ({confidence})."
    else:
        result = (
            f", but at step {step} {percent(last.value)} of samples were declared replicas "
            f"({confidence} {percent(last.low)} to {percent(last.high)})."
        )
    details = [
        f"At step {step}, {last.successes} of {last.trials} samples were declared replicas. That no onset was found is "
        f"absence of evidence: replicas rarer than {percent(last.high)} of samples, or altered in ways that are "
        f"not searched for, may have been missed."
    ]
    highest_step, highest = max(rated, key=lambda item: item[1].value)
    if highest.value > last.value:
        details.append(f"The highest rate of the run was {rate_in_words(highest)}, at step {highest_step}.")
    return Headline(status="none", sentence=f"No memorization onset in {count}{result}", details=tuple(details))


def audit_headline(evaluation: Evaluation) -> Headline:
    """Return the result of samples that were checked once, after training, so that there is no onset to speak of.

    Args:
        evaluation: What was found.

    Example:
        >>> rate = RateEstimate(value=0.0, low=0.0, high=0.056, successes=0, trials=64)
        >>> audit_headline(Evaluation(step=0, epoch=0, replica_rate=rate, measures={})).sentence
        'None of 64 samples was declared a replica: at most 5.6 % of samples are (95 % interval).'
    """
    rate = evaluation.replica_rate
    if rate is None or rate.trials == 0:
        return headline([evaluation], onset=None)
    p_value = evaluation.measures.get("memorization_p_value", math.nan)
    details = []
    if math.isfinite(p_value):
        details.append(
            f"Whether the samples as a whole lie closer to the training patients than chance places them: "
            f"{_p_equals(p_value)} (memorization p-value, an exact permutation test)."
        )
    if rate.successes:
        details.append(
            "A few of the declared replicas may be chance likenesses; the false discovery rate in the settings bounds "
            "their share. Look at the pairs."
        )
        return Headline(
            status="replicas", sentence=f"{rate_in_words(rate)} were declared replicas.", details=tuple(details)
        )
    details.append(
        f"This is absence of evidence: replicas rarer than {percent(rate.high)} of samples, or altered in ways that "
        f"are not searched for, may have been missed."
    )
    return Headline(
        status="clear",
        sentence=(
            f"None of {rate.trials} samples was declared a replica: at most {percent(rate.high)} of samples are "
            f"({100 * rate.confidence:g} % interval)."
        ),
        details=tuple(details),
    )


def _onset_headline(onset: OnsetSummary) -> Headline:
    """Return the result of a run that memorizes."""
    rate, leaning = onset.replica_rate, onset.leaning_rate
    details = [
        f"{rate.successes} of {rate.trials} samples were declared replicas. "
        f"Evidence: {onset.reason.rstrip('.')}; {_p_equals(onset.p_value)}, at a threshold of "
        f"{rounded_p(onset.alpha_spent)} for this evaluation."
    ]
    if onset.checkpoint_path is None:
        details.append("No checkpoint from before the onset is known, so there is none to return to.")
    else:
        saved = "" if onset.checkpoint_step is None else f", saved at step {onset.checkpoint_step}"
        earlier = onset.checkpoint_rate
        measured = "" if earlier is None else f". Replicas there: {rate_in_words(earlier)}"
        details.append(f"Checkpoint to return to: {onset.checkpoint_path}{saved}{measured}.")
        details.append(
            "It was not checked again: that rate is the one it was chosen for, which flatters it."
            if onset.checkpoint_finding is None
            else f"Samples drawn from it afterwards: {onset.checkpoint_finding}."
        )
    if leaning is not None:
        details.insert(
            0,
            "A sample that leans is nearer to one training patient than new patients are to anybody, and chance would "
            "make as many lean towards held-out patients. Single ones are too blurred to be called replicas.",
        )
    shown, said = (rate, "are replicas") if leaning is None else (leaning, "lean towards a training patient")
    return Headline(
        status="onset",
        sentence=(
            f"Memorization onset at step {onset.step} (epoch {onset.epoch}): {percent(shown.value)} of samples {said} "
            f"({100 * shown.confidence:g} % interval {percent(shown.low)} to {percent(shown.high)})."
        ),
        details=tuple(details),
    )


def rate_in_words(rate: RateEstimate) -> str:
    """Return a rate with its interval, as a phrase.

    Args:
        rate: The rate.

    Returns:
        A phrase such as `12 of 64 samples (18.8 %, 95 % interval 10.1 % to 30.5 %)`.

    Example:
        >>> rate_in_words(RateEstimate(value=0.25, low=0.073, high=0.524, successes=4, trials=16))
        '4 of 16 samples (25.0 %, 95 % interval 7.3 % to 52.4 %)'
    """
    return (
        f"{rate.successes} of {rate.trials} samples ({percent(rate.value)}, "
        f"{100 * rate.confidence:g} % interval {percent(rate.low)} to {percent(rate.high)})"
    )


def percent(share: float) -> str:
    """Return a share in percent, with one decimal or two significant digits; a dash for NaN.

    Args:
        share: A number in [0, 1].

    Returns:
        Text such as `18.8 %`.

    Example:
        >>> percent(0.1875), percent(0.0), percent(0.000037), percent(math.nan)
        ('18.8 %', '0.0 %', '0.0037 %', '–')
    """
    if not math.isfinite(share):
        return "–"
    # A small bound that is rounded to 0.0 % would claim what no finite number of samples can show.
    decimals = 1 if share == 0 else max(1, 1 - math.floor(math.log10(100 * share)))
    return f"{100 * share:.{decimals}f} %"


def _p_equals(value: float) -> str:
    """Return `p = 0.0012`, or `p < 0.0001` for what is smaller."""
    text = rounded_p(value)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def rounded_p(value: float) -> str:
    """Return a p-value with two significant digits; a dash for NaN.

    Args:
        value: A number in [0, 1].

    Returns:
        Text such as `0.0012`; `< 0.0001` for what is smaller.

    Example:
        >>> rounded_p(0.5), rounded_p(0.00123), rounded_p(1e-9), rounded_p(math.nan)
        ('0.50', '0.0012', '< 0.0001', '–')
    """
    if not math.isfinite(value):
        return "–"
    if value < 1e-4:
        return "< 0.0001"
    return f"{value:.{max(2, 1 - math.floor(math.log10(value)))}f}"
