"""When onset is to be expected, from the replicas found so far.

The model: among the samples of each evaluation, the number of replicas is binomial, and the logit of its rate is linear
in the logarithm of the step, rising. Onset comes at the first evaluation whose replicas suffice for the rate's lower
bound to exceed the tolerance, or those of the last few evaluations together; the test is taken to pass then, and
evaluations to come as often as they did.

The likelihood of the counts is computed on a grid of the model's two parameters: the logarithm of the step at which
half of the evaluations would have enough replicas, and the slope. With a flat weight on the first and on the logarithm
of the second it becomes a distribution of both, and with the chance of every evaluation to come, one of the step of
onset. Its quantiles are the forecast. So the interval holds both what is not known of the rate and the luck of the
draws. It is not the quantile of a normal approximation around one fit, because two or three replicas, which is when a
forecast is wanted, leave the fit's slope open up to infinity. Nothing is drawn at random: the same counts give the same
forecast.

In simulation (`benchmarks/onset_error.py`), 80 % intervals held onset in 75 % of forecasts, and in 86 % of the first
ones of a run, where the rate rises as the model has it; where it rises in a straight line, in 82 %.

Samples that lean count as replicas where the permutation test shows that they do and they are more than those.

Without a rise, nothing is forecast: where no replica was found yet, where the rate does not rise by the test of
Cochran and Armitage, or where more than half of the weight lies beyond a hundred times the steps done.

- `forecast_onset`: the forecast from counts.
- `score_forecasts`: what became of forecasts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import optimize, special, stats

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional.statistics.intervals import check_confidence
from relict_lightning.onset.exceeding import MOST_POOLED
from relict_lightning.onset.planning import copies_to_exceed

_Array = npt.NDArray[np.float64]

_HORIZON = 100.0
"""How many times the steps done a forecast reaches."""

# A rate doubles, where it is small, with each doubling of the steps at slope 1.
_GENTLEST = 0.25
# As good as at once: from 1 % to 99 % between two evaluations.
_RISE_AT_ONCE = 2 * float(special.logit(0.99))
_SLOPES, _CROSSINGS, _FUTURE = 41, 121, 161
# Normal quantile of a one-sided test at 5 %.
_RISE = 1.645
# Parameters whose likelihood is less than e^-10 of the largest are left out.
_UNLIKELY = 10.0
# Logits beyond are certainties.
_EXTREME = 30.0


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """When onset is expected.

    Attributes:
        made_at: Optimizer step of the evaluation after which the forecast was made.
        step: Expected step of onset, the median.
        low: Lower end of the prediction interval, in steps.
        high: Upper end; infinite where it lies beyond a hundred times the steps done.
        confidence: Probability that onset lies inside, if the model holds.
    """

    made_at: int
    step: float
    low: float
    high: float
    confidence: float

    def __str__(self) -> str:
        """Return the forecast as people read it, `step 1400 (80 %: 1100 to 2500)`."""
        until = f"to {self.high:.0f}" if math.isfinite(self.high) else "or later"
        return f"step {self.step:.0f} ({100 * self.confidence:g} %: {self.low:.0f} {until})"

    def scaled(self, factor: float) -> "Forecast":
        """Return the forecast for `factor` times as many training images, other things equal.

        The number of steps to memorization grows linearly with the number of training images, for the same model,
        batch size and learning rate. That was found for diffusion models; the interval does not hold how far it is
        true of others.

        Args:
            factor: Number of training images over that of this run, positive.

        Raises:
            ConfigurationError: If `factor` is not positive and finite.

        Example:
            >>> made = Forecast(made_at=500, step=1400.0, low=1100.0, high=2500.0, confidence=0.8)
            >>> str(made.scaled(2.0))
            'step 2800 (80 %: 2200 to 5000)'

        References:
            Bonnaire, Urfin, Biroli, Mézard (2025), Why diffusion models don't memorize: the role of implicit dynamical
            regularization in training, arXiv:2505.17638.
        """
        if not (factor > 0 and math.isfinite(factor)):
            raise ConfigurationError(
                f"factor must be positive, but is factor={factor}. Divide the new number of training images by the old."
            )
        return replace(self, step=factor * self.step, low=factor * self.low, high=factor * self.high)


@dataclass(frozen=True, kw_only=True)
class ForecastScore:
    """What became of a forecast.

    Attributes:
        forecast: The forecast.
        onset_step: The step at which onset came.
        inside: Whether that lay in the interval.
        log2_error: Logarithm to base 2 of the forecast step over that of onset: 1 for twice too late, -1 for twice
            too early.
    """

    forecast: Forecast
    onset_step: int
    inside: bool
    log2_error: float


def forecast_onset(
    counts: Sequence[tuple[int, int, int]], *, tolerance: float, patience: int = 1, confidence: float = 0.8
) -> Forecast | None:
    """Return when onset is to be expected; None where the counts do not say.

    Args:
        counts: Step, number of replicas and number of samples of every evaluation so far, by ascending positive step.
        tolerance: Replica rate that is put up with.
        patience: Evaluations in a row that onset takes.
        confidence: Probability of the prediction interval, between 0 and 1.

    Returns:
        The forecast, or None without a rise.

    Raises:
        ConfigurationError: If steps are not positive or do not ascend, or `confidence` lies outside (0, 1).

    Example:
        >>> found = [(100, 0, 64), (200, 0, 64), (300, 0, 64), (400, 1, 64), (500, 2, 64)]
        >>> forecast = forecast_onset(found, tolerance=0.01)
        >>> 500 < forecast.low < forecast.step < forecast.high
        True
        >>> forecast_onset(found[:3], tolerance=0.01) is None
        True
    """
    check_confidence(confidence)
    steps, replicas, samples = np.array(counts, dtype=np.float64).reshape(-1, 3).T
    if (steps <= 0).any() or (np.diff(steps) <= 0).any():
        raise ConfigurationError("Steps of evaluations must be positive and ascend. Pass each evaluation once.")
    logs = np.log(steps)
    if not _has_risen(logs, replicas, samples):
        return None
    count = int(samples[-1])
    sizes = (count, MOST_POOLED * count)
    needed = {size: copies_to_exceed(tolerance, num_samples=size) for size in sizes}
    suffices = {size: copies for size, copies in needed.items() if copies is not None}
    if not suffices:
        return None
    at_crossing = _rate_at_which_half_suffice(suffices)
    gap = float(np.median(np.diff(steps)))
    crossings = np.linspace(logs[0], logs[-1] + math.log(_HORIZON) + 1, _CROSSINGS)
    slopes = np.geomspace(_GENTLEST, _RISE_AT_ONCE / math.log1p(gap / steps[-1]), _SLOPES)
    # Many samples leave little of the grid, which a finer one there resolves.
    for _ in range(2):
        weight = _log_likelihood(_logits(crossings, slopes, at_crossing, logs), replicas, samples)
        likely = weight > weight.max() - _UNLIKELY
        crossings = np.linspace(*_reach(crossings, likely.any(axis=1)), _CROSSINGS)
        slopes = np.geomspace(*_reach(slopes, likely.any(axis=0)), _SLOPES)
    weight = _log_likelihood(_logits(crossings, slopes, at_crossing, logs), replicas, samples)
    weight = np.exp(weight - weight.max())
    future = np.geomspace(steps[-1] + gap, _HORIZON * (steps[-1] + gap), _FUTURE)
    # Of each evaluation to come, the logarithm of the chance that it does not declare onset; then of all up to a step.
    fails = _log_miss(_logits(crossings, slopes, at_crossing, np.log(future)), suffices, patience)
    between = np.diff(future) / gap
    passed = np.cumsum((fails[..., 1:] + fails[..., :-1]) / 2 * between, axis=-1)
    survives = np.exp(fails[..., :1] + np.concatenate([np.zeros_like(fails[..., :1]), passed], axis=-1))
    reached = 1 - np.einsum("us,usf->f", weight / weight.sum(), survives)
    low, step, high = (_quantile(future, reached, share) for share in ((1 - confidence) / 2, 0.5, (1 + confidence) / 2))
    if not math.isfinite(step):
        return None
    return Forecast(made_at=int(steps[-1]), step=step, low=low, high=high, confidence=confidence)


def score_forecasts(forecasts: Sequence[Forecast], *, onset_step: int) -> list[ForecastScore]:
    """Return, for each forecast that was made before onset, what became of it.

    Args:
        forecasts: The forecasts of one run.
        onset_step: The step at which onset came, positive.

    Returns:
        Scores in the order of the forecasts; those made at the onset or after are left out.

    Raises:
        ConfigurationError: If `onset_step` is not positive.

    Example:
        >>> made = Forecast(made_at=500, step=1400.0, low=1100.0, high=2500.0, confidence=0.8)
        >>> score, = score_forecasts([made], onset_step=2800)
        >>> score.inside, score.log2_error
        (False, -1.0)
    """
    if onset_step <= 0:
        raise ConfigurationError(f"onset_step must be positive, but is onset_step={onset_step}.")
    return [
        ForecastScore(
            forecast=forecast,
            onset_step=onset_step,
            inside=forecast.low <= onset_step <= forecast.high,
            log2_error=math.log2(forecast.step / onset_step),
        )
        for forecast in forecasts
        if forecast.made_at < onset_step
    ]


def forecast_to_primitives(forecast: Forecast) -> dict[str, float | int]:
    """Return a forecast as a dictionary of primitives, from which `Forecast(**...)` makes it again."""
    return asdict(forecast)


def _has_risen(logs: _Array, replicas: _Array, samples: _Array) -> bool:
    """Return whether the rate rises with the logarithm of the step, by the test of Cochran and Armitage at 5 %."""
    if replicas.sum() == 0:
        return False
    rate = replicas.sum() / samples.sum()
    centred = logs - (samples * logs).sum() / samples.sum()
    variance = rate * (1 - rate) * (samples * centred**2).sum()
    return bool((replicas * centred).sum() > _RISE * math.sqrt(variance))


def _chance(rates: _Array, suffices: Mapping[int, int]) -> _Array:
    """Return the chance that an evaluation at these rates has enough replicas, or the last few together.

    Both hang on the same samples, so the likelier one stands for either.

    Args:
        rates: The rates.
        suffices: By number of samples, how many replicas are enough among them.
    """
    chances = np.zeros_like(rates)
    for samples, replicas in suffices.items():
        chances = np.maximum(chances, stats.binom.sf(replicas - 1, samples, rates))
    return chances


def _rate_at_which_half_suffice(suffices: Mapping[int, int]) -> float:
    """Return the rate at which half of the evaluations have enough replicas."""

    def surplus(rate: float) -> float:
        return float(_chance(np.array([rate]), suffices)[0]) - 0.5

    return float(optimize.brentq(surplus, 0.0, 1.0))


def _reach(values: _Array, likely: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Return the ends of the likely part of a grid, and one cell more on each side where there is one."""
    positions = np.flatnonzero(likely)
    return float(values[max(positions[0] - 1, 0)]), float(values[min(positions[-1] + 1, len(values) - 1)])


def _logits(crossings: _Array, slopes: _Array, at_crossing: float, logs: _Array) -> _Array:
    """Return the logit of the rate for each pair of parameters at each step, `[crossings, slopes, steps]`."""
    rise: _Array = slopes[None, :, None] * (logs[None, None, :] - crossings[:, None, None])
    return special.logit(at_crossing) + rise


def _log_likelihood(logits: _Array, replicas: _Array, samples: _Array) -> _Array:
    """Return the logarithm of the likelihood of the counts, but for a constant, for each pair of parameters."""
    likelihood: _Array = (replicas * logits + samples * special.log_expit(-logits)).sum(axis=-1)
    return likelihood


def _log_miss(logits: _Array, suffices: Mapping[int, int], patience: int) -> _Array:
    """Return the logarithm of the chance that evaluations of these rates do not establish onset."""
    table = np.linspace(-_EXTREME, _EXTREME, 2001)
    enough = _chance(special.expit(table), suffices) ** patience
    miss: _Array = np.interp(logits, table, np.log1p(-np.minimum(enough, 1 - 1e-12)))
    return miss


def _quantile(steps: _Array, reached: _Array, share: float) -> float:
    """Return the first step at which the distribution reaches a share; infinity beyond the last."""
    if reached[-1] < share:
        return math.inf
    position = int(np.searchsorted(reached, share))
    return float(steps[position])
