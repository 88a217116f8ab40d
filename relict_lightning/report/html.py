"""The HTML report of a run, for the researcher and for the privacy officer."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from relict_lightning.errors import ConfigurationError
from relict_lightning.report.figures import evidence_figure, positive_series, rate_figure
from relict_lightning.report.headline import audit_headline, headline, percent, rounded_p
from relict_lightning.report.onset_summary import OnsetSummary
from relict_lightning.report.pictures import DIFFERENCE_SCALE, PairPictures, pair_pictures
from relict_lightning.report.private_file import write_private
from relict_lightning.results import LEVELS, Evaluation, MatchedPair, Verdict
from relict_lightning.self_test import SelfTest

# A plot that is shrunk to a phone has unreadable text, so each is drawn twice and the page shows the one that fits.
_WIDE_INCHES = 8.6
_NARROW_INCHES = 3.7


@dataclass(frozen=True, kw_only=True)
class _PairOnPage:
    """One matched pair as the template reads it."""

    number: int
    pictures: PairPictures
    verdict: Verdict
    evidence: tuple[tuple[str, tuple[str, ...], str], ...]


def write_report(
    path: str | Path,
    *,
    title: str,
    evaluations: Sequence[Evaluation],
    onset: OnsetSummary | None,
    pairs: Sequence[MatchedPair],
    settings: Mapping[str, str],
    notes: Sequence[str] = (),
    self_test: SelfTest | None = None,
    show_ids: bool = False,
    is_audit: bool = False,
) -> Path:
    """Write the report of a run as one local HTML file and return its absolute path.

    The file loads nothing from anywhere, holds no script, and is written whole or not at all, with mode 0600.

    Args:
        path: Where to write; missing parent directories are created.
        title: Title of the page, such as the name of the run.
        evaluations: At least one evaluation; shown in the order of their steps.
        onset: Onset of memorization; None without one.
        pairs: Samples beside the training images that they match, most alike first.
        settings: Name to value of whatever a reader needs to repeat the run.
        notes: Sentences to show below the result.
        self_test: What the detector found of copies that were planted; None where none were.
        show_ids: Whether to name the matched training images and patients.
        is_audit: Whether samples were checked once, after training; the page then speaks of no steps and no onset.

    Returns:
        The absolute path of the file.

    Raises:
        ConfigurationError: If there is no evaluation, or an audit has several, or an onset.
        InvalidImageError: If a pair holds images that cannot be shown side by side.
        UnreadableDataError: If the file cannot be written.

    Example:
        >>> import tempfile
        >>> look = Evaluation(step=0, epoch=0, replica_rate=None, measures={})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     written = write_report(Path(folder) / "report.html", title="Run 7", evaluations=[look], onset=None,
        ...                            pairs=[], settings={})
        ...     "<title>Run 7" in written.read_text(encoding="utf-8")
        True
    """
    if not evaluations:
        raise ConfigurationError(
            "A report needs at least one evaluation, but got evaluations=[]. "
            "Write it after the monitor has evaluated the model once."
        )
    if is_audit and (len(evaluations) != 1 or onset is not None):
        raise ConfigurationError(
            f"An audit is one evaluation without an onset, but got {len(evaluations)} evaluation(s) and onset={onset}."
        )
    ordered = sorted(evaluations, key=lambda evaluation: evaluation.step)
    page = page_template("report.html.j2").render(
        title=title,
        headline=audit_headline(ordered[0]) if is_audit else headline(ordered, onset=onset),
        onset=onset,
        is_audit=is_audit,
        # One point is no course over time.
        rate_plots=None if is_audit else _both_widths(rate_figure, ordered, onset=onset),
        evidence_plots=None if is_audit else _both_widths(evidence_figure, ordered, onset=onset),
        has_threshold=bool(positive_series(ordered, "alpha_threshold")),
        columns=_columns(ordered),
        evaluations=ordered,
        pairs=[_pair_on_page(pair, position) for position, pair in enumerate(pairs)],
        difference_scale=f"{100 * DIFFERENCE_SCALE:.0f} %",
        settings=settings,
        notes=notes,
        self_test=self_test,
        show_ids=show_ids,
    )
    return write_private(Path(path), page)


def page_template(name: str) -> jinja2.Template:
    """Return a packaged template that escapes whatever it is given.

    Args:
        name: File name of the template.

    Returns:
        The template, which refuses names it was not given.

    Example:
        >>> page_template("report.html.j2").name
        'report.html.j2'
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("relict_lightning.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # A number must not be parted from its sign at the end of a line.
    environment.filters["unbroken"] = lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%")
    environment.filters["percent"] = percent
    environment.filters["rounded_p"] = rounded_p
    return environment.get_template(name)


def _both_widths(
    draw: Callable[..., str | None], evaluations: Sequence[Evaluation], *, onset: OnsetSummary | None
) -> tuple[str, str] | None:
    """Return a plot for a wide page and for a narrow one; None if there is nothing to draw."""
    wide = draw(evaluations, onset=onset, width_inches=_WIDE_INCHES)
    narrow = draw(evaluations, onset=onset, width_inches=_NARROW_INCHES)
    return None if wide is None or narrow is None else (wide, narrow)


def _columns(evaluations: Sequence[Evaluation]) -> list[tuple[str, list[str]]]:
    """Return heading and cells of each measure that any evaluation has, in the order of reading."""
    rates = [evaluation.replica_rate for evaluation in evaluations]
    confidence = next((f"{100 * rate.confidence:g} %" for rate in rates if rate), "")
    columns = [("Training loss", [_rounded(value) for value in _measure(evaluations, "train_loss")])]
    columns.append(("Replicas", [f"{rate.successes}/{rate.trials}" if rate else "–" for rate in rates]))
    columns.append(("Replica rate", [percent(rate.value) if rate else "–" for rate in rates]))
    columns.append(
        (f"{confidence} interval", [f"{percent(rate.low)} to {percent(rate.high)}" if rate else "–" for rate in rates])
    )
    columns.append(("Leaning", [percent(value) for value in _measure(evaluations, "leaning_rate")]))
    columns.append(
        ("Memorization p-value", [rounded_p(value) for value in _measure(evaluations, "memorization_p_value")])
    )
    columns.append(("Threshold", [rounded_p(value) for value in _measure(evaluations, "alpha_threshold")]))
    columns.append(("Largest similarity", [_rounded(value) for value in _measure(evaluations, "max_similarity")]))
    columns.append(
        ("Closer to training", [percent(value) for value in _measure(evaluations, "closer_to_training_share")])
    )
    columns.append(("Seconds", [_rounded(value) for value in _seconds(evaluations)]))
    return [(heading, cells) for heading, cells in columns if any(cell != "–" for cell in cells)]


def _measure(evaluations: Sequence[Evaluation], name: str) -> list[float]:
    """Return a measure at each evaluation; NaN where it was not taken."""
    return [evaluation.value_of(name) for evaluation in evaluations]


def _seconds(evaluations: Sequence[Evaluation]) -> list[float]:
    """Return the seconds that each evaluation took; NaN where nobody measured them."""
    parts = zip(_measure(evaluations, "seconds_sampling"), _measure(evaluations, "seconds_checking"), strict=True)
    return [
        math.nan
        if math.isnan(sampling) and math.isnan(checking)
        else float(_zero_if_nan(sampling) + _zero_if_nan(checking))
        for sampling, checking in parts
    ]


def _zero_if_nan(value: float) -> float:
    """Return 0 for NaN."""
    return 0.0 if math.isnan(value) else value


def _rounded(value: float) -> str:
    """Return a number with three significant digits; a dash for NaN."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:#.3g}".rstrip(".")


def _pair_on_page(pair: MatchedPair, position: int) -> _PairOnPage:
    """Return what the page shows of a pair."""
    verdict = pair.verdict
    evidence = tuple(
        (
            level,
            tuple(_measure_in_words(name, value) for name, value in verdict.evidence.get(level, {}).items()),
            rounded_p(verdict.level_p_values.get(level, math.nan)),
        )
        for level in LEVELS
        if level in verdict.evidence or level in verdict.level_p_values
    )
    return _PairOnPage(
        number=position + 1, pictures=pair_pictures(pair, position=position), verdict=verdict, evidence=evidence
    )


def _measure_in_words(name: str, value: float) -> str:
    """Return a measure such as `hausdorff 95 1.4 mm`, the unit behind the number."""
    unit = " mm" if name.endswith("_mm") else ""
    return f"{name.removesuffix('_mm').replace('_', ' ')} {_rounded(value)}{unit}"
