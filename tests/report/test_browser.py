import html
import json
import re
import shutil
import subprocess

import pytest

from relict_lightning.report import write_rating_page, write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH (Debian: apt install chromium)")

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--dump-dom",
]

# Each page runs in a frame of its own width, as it stands, and is used from outside: its content security policy
# forbids any script that is not its own. Nothing here waits, because the page is read as soon as it has loaded.
DRIVER = """
const frames = [...document.querySelectorAll("iframe")];
const findings = { overflow: {}, ratings: {} };
function press(page, key) { page.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true })); }
function rateInside(frame) {
  const page = frame.contentDocument;
  const shown = () => page.querySelector("section.pair:not([hidden])").dataset.pair;
  const button = (name) => page.querySelector(`[data-rating="${name}"]`);
  const found = findings.ratings;
  found.saveDisabledAtFirst = page.getElementById("save").disabled;
  found.order = [...page.querySelectorAll("section.pair")].map((pair) => pair.dataset.pair);
  found.shown = [shown()];
  button("replica").click();
  found.shown.push(shown());
  press(page, "2");
  found.shown.push(shown());
  page.getElementById("back").click();
  found.shown.push(shown());
  found.pressed = button("not a replica").getAttribute("aria-pressed");
  press(page, "3");
  press(page, "1");
  found.progress = page.getElementById("progress-text").textContent;
  frame.contentWindow.Blob = class { constructor(parts) { found.csv = parts.join(""); } };
  frame.contentWindow.URL.createObjectURL = () => "#";
  page.getElementById("save").click();
}
window.addEventListener("load", () => {
  for (const frame of frames) {
    const root = frame.contentDocument.documentElement;
    findings.overflow[frame.id] = root.scrollWidth - root.clientWidth;
  }
  const rating = document.getElementById("rating-1280");
  rateInside(rating);
  const again = document.createElement("iframe");
  document.body.append(again);
  again.contentDocument.open();
  again.contentDocument.write(rating.srcdoc);
  again.contentDocument.close();
  findings.ratings.restored = again.contentDocument.getElementById("progress-text").textContent;
  document.getElementById("findings").textContent = JSON.stringify(findings);
});
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("browser")


@pytest.fixture
def findings(folder, evaluations, onset, pair):
    """Open every page once, at a desktop's and at a phone's width, and use the rating page."""
    kept = folder / "findings.json"
    if kept.exists():
        return json.loads(kept.read_text())
    pairs = [pair(1, 16, 16, seed=0, match_id="long_id_" * 30), pair(1, 8, 8, 8, seed=1), pair(3, 16, 16, seed=2)]
    report = write_report(
        folder / "report.html",
        title="A title that is rather long for the width of a phone",
        evaluations=evaluations(0, 1, 12, 30),
        onset=onset,
        pairs=pairs,
        settings={"a setting": "value/" * 60},
        show_ids=True,
    )
    rating = write_rating_page(folder / "rating.html", pairs=pairs, seed=4)
    frames = "".join(
        f'<iframe id="{path.stem}-{width}" style="width: {width}px; height: 900px; border: 0" '
        f'srcdoc="{html.escape(path.read_text(encoding="utf-8"))}"></iframe>'
        for path in (report, rating)
        for width in (1280, 400)
    )
    driver = folder / "driver.html"
    driver.write_text(f"<!DOCTYPE html>{frames}<pre id=findings></pre><script>{DRIVER}</script>", encoding="utf-8")
    run = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", driver.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = json.loads(html.unescape(re.search(r"<pre id=\"findings\">(.*?)</pre>", run.stdout, re.DOTALL)[1]))
    found["console"] = [line for line in run.stderr.splitlines() if ":CONSOLE" in line]
    kept.write_text(json.dumps(found))
    return found


def test_no_page_writes_to_the_console(findings):
    assert findings["console"] == []


def test_no_page_is_wider_than_a_desktop_or_a_phone(findings):
    assert findings["overflow"] == {"report-1280": 0, "report-400": 0, "rating-1280": 0, "rating-400": 0}


def test_buttons_and_keys_rate_and_move_on_and_back_returns(findings):
    ratings = findings["ratings"]

    first, second, third = ratings["order"]
    assert ratings["shown"] == [first, second, third, second]
    assert ratings["pressed"] == "true"
    assert ratings["saveDisabledAtFirst"] is True
    assert ratings["progress"] == "Pair 3 of 3, 3 rated"


def test_the_saved_file_holds_the_last_rating_of_each_pair_by_its_position(findings):
    ratings = findings["ratings"]

    first, second, third = ratings["order"]
    expected = {first: "replica", second: "cannot tell", third: "replica"}
    assert ratings["csv"] == "pair,rating\n" + "".join(f"{pair},{expected[pair]}\n" for pair in sorted(expected))


def test_ratings_are_still_there_when_the_page_is_opened_again(findings):
    assert findings["ratings"]["restored"] == "Pair 1 of 3, 3 rated"
