"""The main job, from the first step to the report."""

import re
from pathlib import Path

import pytest

from relict_lightning.demo import run_demo

LINE = re.compile(r"^step +(\d+) +loss +(\S+) +replica rate \d+/\d+ = .* % \[.* %, .* %\] +p \S+$", re.MULTILINE)


@pytest.mark.parametrize("subjects", ["few", "fresh"])
def test_the_demo_prints_one_line_per_evaluation_and_leaves_a_report(
    subjects: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = run_demo(
        subjects=subjects,  # type: ignore[arg-type]
        output=tmp_path,
        num_heldout=25,
        num_samples=8,
        max_steps=2,
        steps_per_epoch=1,
    )

    lines = LINE.findall(capsys.readouterr().out)
    assert [int(step) for step, _ in lines] == [0, 1, 2]
    assert lines[0][1] == "-"
    assert float(lines[1][1]) > 0
    assert outcome.steps == 2
    assert outcome.onset is None
    assert outcome.report == tmp_path / "report.html"
    assert "No onset" in outcome.report.read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_model_of_few_subjects_is_caught_and_the_checkpoint_to_go_back_to_is_better(tmp_path: Path) -> None:
    outcome = run_demo(output=tmp_path)

    assert outcome.onset is not None
    assert outcome.checkpoint is not None
    assert Path(outcome.checkpoint.path).is_file()
    assert outcome.checkpoint.step < outcome.onset.step
    # The samples at onset only lean: none can be named.
    assert outcome.checkpoint.replica_rate.high < outcome.onset.shown_rate.low
    assert outcome.checkpoint.is_verified


@pytest.mark.slow
def test_a_model_of_fresh_subjects_raises_no_alarm(tmp_path: Path) -> None:
    outcome = run_demo(subjects="fresh", output=tmp_path)

    assert outcome.onset is None
    assert outcome.steps == 1000
