import re
import stat
from html.parser import HTMLParser

import numpy as np
import pytest

from relict_lightning.errors import ConfigurationError, UnreadableDataError
from relict_lightning.report import write_report
from relict_lightning.results import Evaluation, RateEstimate, Transform
from relict_lightning.self_test import SelfTest

HOSTILE = "<script>alert(1)</script>\"'&{{ 7 * 7 }}<img src=https://example.org/x>"

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


class Page(HTMLParser):
    """Elements and text of a page; refuses elements that are not closed in order."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.elements = []
        self.words = []
        self.open = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open[-1:]):
            self.words.append(data)

    def find(self, wanted):
        return [attributes for tag, attributes in self.elements if tag == wanted]

    @property
    def text(self):
        return " ".join(" ".join(self.words).replace("\N{NO-BREAK SPACE}", " ").split())


@pytest.fixture
def report(tmp_path, evaluations):
    def write(**changes):
        arguments = {
            "title": "Run 7",
            "evaluations": evaluations(0, 1, 12),
            "onset": None,
            "pairs": [],
            "settings": {},
        }
        return write_report(tmp_path / "report.html", **(arguments | changes)).read_text(encoding="utf-8")

    return write


def test_the_report_of_an_onset_says_when_how_many_why_and_what_now(report, onset):
    page = Page(report(onset=onset))

    assert "Memorization onset at step 300 (epoch 3): 18.8 % of samples are replicas" in page.text
    assert "permutation test over 100 patients" in page.text
    assert "runs/step=200.ckpt" in page.text
    assert "300 onset" in page.text
    assert "200 return here" in page.text
    assert "onset, step 300" in page.text
    assert "checkpoint to return to, step 200" in page.text


def _self_test(*, found):
    counts = {"planted": 4, "found": found, "found_by_level": {"voxel": 2}, "retrieved": 4, "attributed": 3}
    return SelfTest.from_dict(
        {
            "alpha": 0.05,
            "fdr": 0.05,
            "heldout": {"called": 1, "patients": 40},
            "alterations": [{"alteration": name, **counts} for name in ("plain", "transplant")],
        }
    )


def test_the_report_says_what_the_detector_would_have_found(report):
    seeing, blind = (Page(report(self_test=_self_test(found=found))).text for found in (3, 1))

    assert "Alteration Planted Found By voxel alone Patient compared Patient named" in seeing
    assert "plain 4 3 2 4 3 transplant 4 3 2 4 3 all 8 6 4 8 6" in seeing
    assert "called replicas, one half of them judged against the other: 1/40 = 2.5 %" in seeing
    assert "says nothing about such copies" not in seeing
    assert "found 1 of 4 planted copies that were left as they were and 1 of 4 that were transplanted" in blind


def test_a_report_without_a_self_test_has_no_section_for_it(report):
    assert "What this detector finds" not in report()


def test_the_report_of_a_clean_run_gives_the_upper_bound(report, evaluations):
    page = Page(report(evaluations=evaluations(0, 0)))

    assert "No memorization onset in 2 evaluations: at step 200, at most 5.6 % of samples are replicas" in page.text
    assert "return here" not in page.text


def test_without_a_control_the_report_gives_no_rate_and_still_shows_pairs(report, evaluations, pair):
    page = Page(report(evaluations=evaluations(0, 0, control=False), pairs=[pair(1, 8, 8)]))

    assert "No replica rate can be given" in page.text
    assert page.find("svg") == []
    assert "Largest similarity" in page.text
    assert "Replica rate Interval" not in page.text
    assert len(page.find("img")) == 3


def test_a_verdict_without_a_control_has_words_where_numbers_would_be_nan(report, pair):
    made = pair(1, 8, 8)
    object.__setattr__(made.verdict, "score", float("nan"))
    object.__setattr__(made.verdict, "p_value", float("nan"))

    text = Page(report(pairs=[made])).text

    assert "Score none without a control p-value none without a control" in text
    assert "nan" not in text.lower().split()


def test_the_table_holds_every_evaluation_in_the_order_of_steps(report, evaluations):
    page = Page(report(evaluations=evaluations(0, 1, 12)[::-1]))

    assert re.findall(r"\b\d+/64\b", page.text) == ["0/64", "1/64", "12/64"]
    assert "Training loss" in page.text
    assert "Closer to training" not in page.text
    assert "10.1 % to 30.5 %" in page.text


def test_seconds_are_those_of_sampling_and_checking_together(report):
    rate = RateEstimate(value=0.0, low=0.0, high=0.5, successes=0, trials=5, confidence=0.9)
    measures = {"seconds_sampling": 2.25, "seconds_checking": 1.5}
    look = Evaluation(step=1, epoch=0, replica_rate=rate, measures=measures)

    text = Page(report(evaluations=[look])).text

    assert "Step Epoch Replicas Replica rate 90 % interval Seconds 1 0 0/5 0.0 % 0.0 % to 50.0 % 3.75" in text


@pytest.mark.parametrize(("shape", "images"), [((1, 16, 16), 3), ((1, 8, 8, 8), 9)])
def test_a_pair_is_shown_as_sample_training_image_and_difference(report, pair, decoded, shape, images):
    written = report(pairs=[pair(*shape, transform=Transform(mirrored_axes=(1,), shift_voxels=(2.0, 0.0)))])
    page = Page(written)

    pixels = decoded(written)
    assert len(pixels) == images
    for picture in pixels[: 2 * images // 3]:
        assert int(picture.max()) - int(picture.min()) > 200
    assert np.abs(pixels[0].astype(int) - pixels[images // 3]).mean() < 10
    alternatives = [image["alt"] for image in page.find("img")]
    assert alternatives[0].startswith("Generated sample of pair 1")
    assert alternatives[images // 3].startswith("Training image 31 of pair 1")
    assert alternatives[-1].startswith("Absolute difference of pair 1")
    assert "Score 4.25 p-value 0.0049 Training image position 31" in page.text
    assert "mirrored along axis 1, shifted by (2, 0) voxels" in page.text
    assert "Voxel ssim 0.940 0.0049" in page.text
    assert "Segmentation hausdorff 95 1.40 mm –" in page.text


def test_ids_and_patients_are_named_only_on_request(report, pair):
    silent = report(pairs=[pair(1, 8, 8)])
    named = report(pairs=[pair(1, 8, 8)], show_ids=True)

    assert "sub-007" not in silent
    assert "patient-007" not in silent
    assert "names patients" not in silent
    assert {"sub-007_T1w", "patient-007"} <= set(Page(named).text.split())
    assert "names patients" in named


def test_the_report_says_that_it_shows_patients_exactly_when_it_does(report, pair):
    sentence = "This file shows patient images. It is a local file and was not uploaded anywhere."

    assert sentence in Page(report(pairs=[pair(1, 8, 8)])).text
    assert sentence not in Page(report()).text


def test_whatever_comes_from_outside_is_text_and_nothing_else(report, onset, pair):
    object.__setattr__(onset, "reason", HOSTILE)
    object.__setattr__(onset, "checkpoint_path", HOSTILE)
    page = Page(
        report(
            title=HOSTILE,
            onset=onset,
            pairs=[pair(1, 8, 8, match_id=HOSTILE, evidence={"voxel": {HOSTILE: 1.0}})],
            settings={HOSTILE: HOSTILE},
            notes=[HOSTILE],
            show_ids=True,
        )
    )

    assert page.find("script") == []
    assert len(page.find("img")) == 3
    # Title twice, reason, checkpoint, id, evidence (where underscores are spaces), setting twice, note.
    assert page.text.count("<script>alert(1)</script>\"'&{{ 7 * 7 }}<img src=https://example.org/x>") == 9


def test_the_report_loads_nothing_and_forbids_the_browser_to(report, onset, pair):
    written = report(onset=onset, pairs=[pair(1, 8, 8)])
    page = Page(written)

    assert "http://" not in written
    assert "https://" not in written
    assert not {"script", "link", "iframe", "object", "embed", "form", "a"} & {tag for tag, _ in page.elements}
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.find("img"))
    assert not re.search(r"url\((?!#)|@import", written)
    policy = next(meta["content"] for meta in page.find("meta") if meta.get("http-equiv"))
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_the_report_can_be_used_without_eyes(report, onset, pair):
    page = Page(report(onset=onset, pairs=[pair(1, 8, 8)], settings={"alpha": "0.05"}))

    assert page.find("html") == [{"lang": "en"}]
    assert all(image["alt"] for image in page.find("img"))
    assert all(heading.get("scope") in {"col", "row"} for heading in page.find("th"))
    assert [attributes["aria-label"] for _, attributes in page.elements if attributes.get("role") == "img"]


def test_no_name_of_an_element_is_given_twice(report, onset, pair):
    page = Page(report(onset=onset, pairs=[pair(1, 8, 8), pair(1, 8, 8, seed=1)]))
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]

    assert len(names) == len(set(names))


def test_one_run_gives_one_file_byte_for_byte(report, onset, pair):
    assert report(onset=onset, pairs=[pair(1, 8, 8)]) == report(onset=onset, pairs=[pair(1, 8, 8)])


def test_the_report_is_for_its_owner_only_and_its_path_is_absolute(tmp_path, evaluations, monkeypatch):
    monkeypatch.chdir(tmp_path)

    written = write_report("new/report.html", title="t", evaluations=evaluations(0), onset=None, pairs=[], settings={})

    assert written == tmp_path / "new" / "report.html"
    assert stat.S_IMODE(written.stat().st_mode) == 0o600


def test_a_report_on_nothing_is_refused(report):
    with pytest.raises(ConfigurationError, match=r"evaluations=\[\]"):
        report(evaluations=[])


def test_a_report_that_cannot_be_written_is_an_error_with_its_path(tmp_path, evaluations):
    with pytest.raises(UnreadableDataError, match=str(tmp_path)):
        write_report(tmp_path, title="t", evaluations=evaluations(0), onset=None, pairs=[], settings={})


def test_an_audit_is_one_evaluation_without_an_onset(tmp_path, evaluations, onset):
    for looks, found in ((evaluations(0, 0), None), (evaluations(0), onset)):
        with pytest.raises(ConfigurationError, match="An audit is one evaluation without an onset"):
            write_report(
                tmp_path / "a.html", title="A", evaluations=looks, onset=found, pairs=[], settings={}, is_audit=True
            )
