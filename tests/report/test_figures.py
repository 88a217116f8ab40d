import re
import xml.etree.ElementTree as ET

import matplotlib as mpl
import pytest
from matplotlib import pyplot as plt

from relict_lightning.report.figures import evidence_figure, positive_series, rate_figure


def parsed(svg):
    return ET.fromstring(svg.replace("<svg ", '<svg xmlns:xlink="x" ', 1))  # noqa: S314


def count(svg, colour):
    return svg.count(f"var(--plot-{colour},")


@pytest.mark.parametrize("figure", [rate_figure, evidence_figure])
def test_a_plot_is_one_svg_element_that_names_no_address_and_no_id_twice(evaluations, onset, figure):
    svg = figure(evaluations(0, 1, 12), onset=onset, width_inches=7.0)

    assert parsed(svg).tag == "svg"
    assert "http" not in svg
    names = re.findall(r'\bid="([^"]+)"', svg)
    assert len(names) == len(set(names))


def test_plots_of_one_page_share_no_names(evaluations):
    looks = evaluations(0, 1, 12)
    plots = [figure(looks, onset=None, width_inches=w) for figure in (rate_figure, evidence_figure) for w in (7.0, 4.0)]
    names = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in plots]

    assert sum(map(len, names)) == len(set.union(*names))


def test_onset_and_checkpoint_are_drawn_only_where_there_are_any(evaluations, onset):
    looks = evaluations(0, 1, 12)
    with_onset = rate_figure(looks, onset=onset, width_inches=7.0)
    without = rate_figure(looks, onset=None, width_inches=7.0)

    assert (count(with_onset, "onset"), count(with_onset, "checkpoint")) == (1, 1)
    assert (count(without, "onset"), count(without, "checkpoint")) == (0, 0)


def test_p_values_at_or_below_their_threshold_stand_out(evaluations):
    svg = evidence_figure(evaluations(0, 0, 6), onset=None, width_inches=7.0)

    assert count(svg, "onset") > 0
    assert count(evidence_figure(evaluations(0, 0, 0), onset=None, width_inches=7.0), "onset") == 0


@pytest.mark.parametrize("successes", [(0,), (64,), (0, 64)])
def test_extreme_rates_and_single_evaluations_can_be_drawn(evaluations, successes):
    assert rate_figure(evaluations(*successes), onset=None, width_inches=4.0) is not None
    assert evidence_figure(evaluations(*successes), onset=None, width_inches=4.0) is not None


def test_without_a_control_there_is_nothing_to_draw(evaluations):
    looks = evaluations(0, 0, control=False)

    assert rate_figure(looks, onset=None, width_inches=7.0) is None
    assert evidence_figure(looks, onset=None, width_inches=7.0) is None


def test_values_that_a_log_axis_cannot_show_are_left_out(evaluations):
    looks = evaluations(0, 0, 0)
    for look, value in zip(looks, (float("nan"), 0.0, 0.25), strict=True):
        look.measures["memorization_p_value"] = value

    assert positive_series(looks, "memorization_p_value") == [(300, 0.25)]


def test_drawing_leaves_the_settings_of_the_training_script_alone(evaluations):
    before = dict(mpl.rcParams)

    rate_figure(evaluations(0, 1), onset=None, width_inches=7.0)

    assert dict(mpl.rcParams) == before


def test_drawing_leaves_no_figure_open_in_the_training_script(evaluations):
    before = plt.get_fignums()

    evidence_figure(evaluations(0, 1), onset=None, width_inches=7.0)

    assert plt.get_fignums() == before
