"""Plots of a run as SVG for a page, with colours that follow its light or dark theme.

Drawn with matplotlib's object interface, which shares no state with plots that the training script draws. The words of
a plot (its legend, its alternative text) belong to the page, so no text from outside gets into the SVG.
"""

import io
import math
import re
from collections.abc import Callable, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from relict_lightning.report.onset_summary import OnsetSummary
from relict_lightning.results import Evaluation

# Okabe and Ito's palette, which people with any colour vision tell apart; the page redefines each for its dark theme.
_COLOURS = {
    "ink": "#1a1c1e",
    "faint": "#d9dcdf",
    "rate": "#0072b2",
    "onset": "#d55e00",
    "checkpoint": "#009e73",
    "paper": "#fffffe",
}


def rate_figure(evaluations: Sequence[Evaluation], *, onset: OnsetSummary | None, width_inches: float) -> str | None:
    """Return the replica rate over steps with its interval, onset and the checkpoint to return to.

    Args:
        evaluations: Evaluations in the order of their steps.
        onset: Onset of memorization; None without one.
        width_inches: Width of the plot; the text keeps its size.

    Returns:
        An `svg` element, or None if no evaluation has a replica rate.

    Example:
        >>> unrated = Evaluation(step=0, epoch=0, replica_rate=None, measures={})
        >>> rate_figure([unrated], onset=None, width_inches=7.0) is None
        True
    """
    measured = [
        (evaluation.step, evaluation.replica_rate)
        for evaluation in evaluations
        if evaluation.replica_rate is not None and math.isfinite(evaluation.replica_rate.value)
    ]
    if not measured:
        return None
    steps = [step for step, _ in measured]
    rates = [rate for _, rate in measured]

    def draw(axes: Axes) -> None:
        axes.fill_between(
            steps,
            [rate.low for rate in rates],
            [rate.high for rate in rates],
            color=_COLOURS["rate"],
            alpha=0.18,
            linewidth=0,
        )
        axes.vlines(
            steps,
            [rate.low for rate in rates],
            [rate.high for rate in rates],
            color=_COLOURS["rate"],
            alpha=0.45,
            linewidth=1.2,
        )
        axes.plot(
            steps,
            [rate.value for rate in rates],
            color=_COLOURS["rate"],
            linewidth=1.8,
            marker="o",
            markersize=4.5,
            clip_on=False,
            zorder=3,
        )
        axes.set_ylim(0, min(1.02, max(0.1, 1.08 * max(rate.high for rate in rates))))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{100 * rate:.4g} %"))
        axes.set_ylabel("replica rate")

    return _drawn(draw, name="rate", evaluations=evaluations, onset=onset, size_inches=(width_inches, 2.7))


def evidence_figure(
    evaluations: Sequence[Evaluation], *, onset: OnsetSummary | None, width_inches: float
) -> str | None:
    """Return the memorization p-value over steps, on a log axis, against the threshold that alpha spending sets.

    Args:
        evaluations: Evaluations in the order of their steps.
        onset: Onset of memorization; None without one.
        width_inches: Width of the plot; the text keeps its size.

    Returns:
        An `svg` element, or None if no evaluation measured `memorization_p_value`.

    Example:
        >>> looks = [Evaluation(step=0, epoch=0, replica_rate=None, measures={"memorization_p_value": 0.5})]
        >>> evidence_figure(looks, onset=None, width_inches=7.0)[:4]
        '<svg'
    """
    p_values = positive_series(evaluations, "memorization_p_value")
    thresholds = positive_series(evaluations, "alpha_threshold")
    if not p_values:
        return None

    def draw(axes: Axes) -> None:
        axes.set_yscale("log")
        if thresholds:
            axes.plot(*zip(*thresholds, strict=True), color=_COLOURS["ink"], linewidth=1.3, linestyle=(0, (5, 3)))
        axes.plot(
            *zip(*p_values, strict=True),
            color=_COLOURS["rate"],
            linewidth=1.5,
            marker="o",
            markersize=4.5,
            markerfacecolor=_COLOURS["paper"],
        )
        limits = dict(thresholds)
        passed = [(step, value) for step, value in p_values if value <= limits.get(step, 0)]
        if passed:
            axes.plot(*zip(*passed, strict=True), color=_COLOURS["onset"], linestyle="none", marker="o", markersize=5)
        lowest = min(value for _, value in [*p_values, *thresholds])
        axes.set_ylim(min(10 ** math.floor(math.log10(lowest)), 0.01), 1.6)
        axes.set_ylabel("p-value (log)")
        axes.yaxis.set_minor_locator(NullLocator())

    return _drawn(draw, name="evidence", evaluations=evaluations, onset=onset, size_inches=(width_inches, 2.1))


def positive_series(evaluations: Sequence[Evaluation], name: str) -> list[tuple[int, float]]:
    """Return (step, value) wherever the measure `name` can be drawn on a log axis.

    Args:
        evaluations: Evaluations in the order of their steps.
        name: Name of the measure, without prefix.

    Returns:
        One tuple per evaluation at which the measure is finite and positive.

    Example:
        >>> looks = [Evaluation(step=5, epoch=0, replica_rate=None, measures={"p": 0.5})]
        >>> positive_series(looks, "p"), positive_series(looks, "q")
        ([(5, 0.5)], [])
    """
    series = [(evaluation.step, evaluation.value_of(name)) for evaluation in evaluations]
    return [(step, value) for step, value in series if math.isfinite(value) and value > 0]


def _drawn(
    draw: Callable[[Axes], None],
    *,
    name: str,
    evaluations: Sequence[Evaluation],
    onset: OnsetSummary | None,
    size_inches: tuple[float, float],
) -> str:
    """Draw on axes over the steps of the run, with onset and checkpoint, and return the plot as an `svg` element."""
    # Text stays text ("none"): it follows the reader's fonts and can be searched. Several plots share one page, so the
    # names inside one must not be those inside another ("hashsalt").
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": f"{name}-{size_inches[0]}", "font.size": 10}):
        figure = Figure(figsize=size_inches, layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        draw(axes)
        if onset is not None:
            axes.axvline(onset.step, color=_COLOURS["onset"], linewidth=1.6)
            if onset.checkpoint_step is not None:
                axes.axvline(onset.checkpoint_step, color=_COLOURS["checkpoint"], linewidth=2, linestyle=(0, (1, 1.5)))
        steps = [evaluation.step for evaluation in evaluations]
        margin = 0.02 * (max(steps) - min(steps)) or 1
        axes.set_xlim(min(steps) - margin, max(steps) + margin)
        axes.xaxis.set_major_locator(
            MaxNLocator(nbins=max(2, round(size_inches[0])), steps=[1, 2, 5, 10], integer=True)
        )
        axes.set_xlabel("optimizer step")
        axes.grid(axis="y", color=_COLOURS["faint"], linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(which="both", color=_COLOURS["faint"], labelcolor=_COLOURS["ink"])
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set_color(_COLOURS["ink"])
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(_COLOURS["faint"])
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _themed(stream.getvalue())


def _themed(svg: str) -> str:
    """Return the `svg` element alone, fluid in size, without addresses or names of its own, in the page's colours."""
    element = svg[svg.index("<svg") :]
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', element)
    if box is None:
        raise RuntimeError("matplotlib wrote an SVG without a viewBox; this version of it is not supported.")
    element = f'<svg viewBox="{box[0][9:-1]}" aria-hidden="true" focusable="false">{element[element.index(">") + 1 :]}'
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r'<g id="[^"]*"', "<g", element)
    for colour, value in _COLOURS.items():
        element = element.replace(value, f"var(--plot-{colour}, {value})")
    return element.strip()
