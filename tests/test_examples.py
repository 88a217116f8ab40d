import re
import runpy
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_the_audit_without_lightning_finds_every_planted_copy(capsys):
    runpy.run_path(str(EXAMPLES / "audit_after_training.py"), run_name="__main__")

    printed = capsys.readouterr().out
    called, samples = map(int, re.search(r"Replica rate: (\d+)/(\d+) = ", printed).groups())
    planted = {int(match) for match in re.findall(r"^ +(\d+) +\d+ ", printed, flags=re.MULTILINE)}
    # Ten are planted; a false discovery rate of 5 % allows for one more now and then.
    assert samples == 40
    assert 10 <= called <= 12
    assert len(planted) == called
    assert float(re.search(r"Memorization p-value: (\S+)", printed)[1]) < 0.001
    assert "mirrored along axis 1" in printed
    assert "shifted by" in printed


def test_the_script_to_copy_from_runs_and_leaves_what_it_names(tmp_path):
    command = [sys.executable, EXAMPLES / "memorizing_heads.py", "--fast", "--output", tmp_path / "run"]

    finished = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=200)

    assert finished.returncode == 0, finished.stderr
    assert re.findall(r"^ +(\d+)   \d+/16 = ", finished.stdout, flags=re.MULTILINE) == ["0", "2", "4"]
    assert "No memorization onset." in finished.stdout
    assert f"Open {tmp_path / 'run' / 'report.html'}" in finished.stdout
    assert (tmp_path / "run" / "report.html").exists()
    assert list((tmp_path / "run" / "checkpoints").glob("step=*.ckpt"))
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_the_script_needs_no_more_than_three_lines_to_be_watched():
    text = (EXAMPLES / "memorizing_heads.py").read_text()

    for made in ("monitor = ReplicaMonitor(", "stopping = MemorizationStopping(", "keeper = MemorizationCheckpoint("):
        assert text.count(made) == 1
    assert "callbacks=[monitor, stopping, keeper]" in text
    assert "relict_lightning.demo" not in text
