import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader
from typer.testing import CliRunner, Result

from relict_lightning import MemorizationCheckpoint, ReplicaMonitor
from relict_lightning.cli import app
from relict_lightning.testing import CopyingModule, plant_replicas, simulate_heads

pytestmark = [
    # The trainer asks for loggers and checkpoints that these short runs do not need.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:Starting from v1.9.0, `tensorboardX`"),
]


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sets")
    training, heldout, fresh = (
        simulate_heads(count, first_subject=first, shape=(32, 32)) for count, first in ((12, 0), (50, 100), (16, 500))
    )
    planted = plant_replicas(training.images, fresh.images, rate=0.5, seed=0, alterations=["noise"])
    np.save(root / "samples.npy", planted.images.numpy())
    for name, subjects in (("training", training), ("heldout", heldout)):
        (root / name).mkdir()
        for identifier, image in zip(subjects.ids, subjects.images, strict=True):
            np.save(root / name / f"{identifier}.npy", image.numpy())
    return {name: root / name for name in ("samples.npy", "training", "heldout")}


@pytest.fixture(scope="module")
def audited(sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("audits") / "audit"
    arguments = ("audit", sets["samples.npy"], "--training", sets["training"], "--heldout", sets["heldout"])
    return folder, _run(*arguments, "--output", folder)


def test_audit_prints_the_rate_with_its_interval_the_p_value_and_where_the_files_lie(audited):
    folder, result = audited

    assert result.exit_code == 0
    assert "Replica rate: 8/16 = 50.0 % [24.7 %, 75.3 %] (95 % interval)" in result.stdout
    assert re.search(r"Memorization p-value: \d", result.stdout)
    assert str(folder) in result.stdout
    assert "They hold patient data, are readable by you only, and stayed on this machine." in result.stdout


def test_audit_reports_progress_apart_from_its_results_and_names_no_patient(audited):
    _, result = audited

    assert "Indexing 12 training images and 50 held-out images." in result.stderr
    assert "Indexing" not in result.stdout
    assert "sub-0" not in result.output


def test_an_error_is_one_message_with_exit_code_2_and_no_traceback(sets, tmp_path):
    result = _run("audit", tmp_path / "nothing", "--training", sets["training"], "--output", tmp_path / "audit")

    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == (
        f"Error: {tmp_path / 'nothing'} does not exist; expected a folder of images or an .npy or .npz file.\n"
    )


def test_an_audit_without_held_out_images_says_why_there_is_no_rate(sets, tmp_path):
    result = _run("audit", sets["samples.npy"], "--training", sets["training"], "--output", tmp_path / "audit")

    assert result.exit_code == 0
    assert "Replica rate: none, because there are no held-out images to compare with." in result.stdout
    assert "Memorization" not in result.stdout


def test_every_option_of_an_audit_reaches_its_settings(sets, tmp_path):
    result = _run(
        "audit", sets["samples.npy"], "--training", sets["training"], "--heldout", sets["heldout"],
        "--output", tmp_path / "audit", "--fdr", 0.2, "--top-k", 3, "--transforms", "none", "--pattern", "*.npy",
        "--groups", "stem", "--pairs", 5, "--cache-dir", tmp_path / "cache", "--show-ids",
        "--self-test", 1,
    )  # fmt: skip

    settings = json.loads((tmp_path / "audit" / "summary.json").read_text())["settings"]
    assert result.exit_code == 0
    expected = {
        "fdr": 0.2, "top_k": 3, "transforms": "none", "pattern": "*.npy", "groups": "stem", "num_pairs": 5,
        "self_test": 1,
    }  # fmt: skip
    assert {name: settings[name] for name in expected} == expected
    assert len(np.load(tmp_path / "audit" / "pairs.npz")["sample"]) == 5
    assert "match_group" in (tmp_path / "audit" / "verdicts.csv").read_text()
    assert any((tmp_path / "cache").iterdir())


def test_index_builds_once_and_reuses_it_afterwards(sets, tmp_path):
    arguments = ("index", "--training", sets["training"], "--heldout", sets["heldout"], "--cache-dir", tmp_path / "c")

    first, second = _run(*arguments), _run(*arguments)

    assert first.stdout.startswith("Built in ")
    assert second.stdout.startswith("Reused what was there, in ")
    for result in (first, second):
        assert "Training: 12 images of 12 patients, each 1 x 32 x 32." in result.stdout
        assert "Held out: 50 images, 50 patients used." in result.stdout
        assert re.search(r"\d\.\d MB", result.stdout)


def test_index_finds_images_that_are_in_the_data_twice(tmp_path):
    heads = simulate_heads(50, shape=(24, 24)).images.numpy()
    training, heldout = heads[:20].copy(), heads[20:].copy()
    training[7] = training[2] + 0.002
    heldout[3] = training[5] + 0.002
    np.save(tmp_path / "training.npy", training)
    np.save(tmp_path / "heldout.npy", heldout)

    result = _run(
        *("index", "--training", tmp_path / "training.npy", "--heldout", tmp_path / "heldout.npy"),
        *("--cache-dir", tmp_path / "c", "--duplicates", tmp_path / "twice.csv", "--store", "uint8", "--hash-ids"),
    )

    assert "Twice: 1 pairs of training images that are nearly equal, 0 of them bit by bit; 1 held-out" in result.stdout
    rows = [line.split(",") for line in (tmp_path / "twice.csv").read_text().splitlines()[1:]]
    assert [row[:3] for row in rows] == [["duplicate", "2", "7"], ["leak", "3", "5"]]
    assert "training-2" not in (tmp_path / "twice.csv").read_text()
    assert stat.S_IMODE((tmp_path / "twice.csv").stat().st_mode) == 0o600


def test_two_processes_build_one_index(sets, tmp_path):
    arguments = ["index", "--training", sets["training"], "--heldout", sets["heldout"], "--cache-dir", tmp_path / "c"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

    shared = subprocess.run(
        [*launcher, "-m", "relict_lightning.cli", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    alone = _run(*arguments)

    assert shared.returncode == 0, shared.stderr[-2000:]
    assert shared.stdout.count("Built in ") == 1
    assert alone.stdout.splitlines()[1:-1] == shared.stdout.splitlines()[1:-1]


def test_rating_and_calibration_follow_from_an_audit(audited, tmp_path):
    folder, _ = audited
    truth = json.loads((folder / "summary.json").read_text())["replica_rate"]["successes"]

    rated = _run("rate", folder, "--output", tmp_path / "rating.html")
    lines = (folder / "verdicts.csv").read_text().splitlines()[1:]
    answers = ["replica" if line.split(",")[2] == "True" else "not a replica" for line in lines]
    ratings = "\n".join(f"{pair},{answer}" for pair, answer in enumerate(answers))
    (tmp_path / "ratings.csv").write_text(f"pair,rating\n{ratings}\n")
    calibrated = _run("calibrate", folder, "--ratings", tmp_path / "ratings.csv", "--output", tmp_path / "numbers.json")

    assert "Rating page of 16 pairs" in rated.stdout
    assert stat.S_IMODE((tmp_path / "rating.html").stat().st_mode) == 0o600
    assert calibrated.exit_code == 0
    assert re.search(
        r"all levels: score +1\.000 +1\.000 +1\.000 +[\d.]+ +1\.000 +1\.000 \[0\.\d{3}, 1\.000\]", calibrated.stdout
    )
    assert re.search(r"accuracy +sensitivity +specificity +threshold +sample +\[95 % interval\]", calibrated.stdout)
    assert f"16 pairs were rated, {truth} of them as replicas." in calibrated.stdout
    written = json.loads((tmp_path / "numbers.json").read_text())["all levels: score"]
    assert written["balanced_accuracy"] == 1.0
    assert written["sensitivity"]["successes"] == truth
    assert written["area_under_roc"]["value"] == 1.0


def test_calibration_without_ratings_of_both_kinds_says_what_is_missing(audited, tmp_path):
    (tmp_path / "ratings.csv").write_text("pair,rating\n0,replica\n1,replica\n")

    result = _run("calibrate", audited[0], "--ratings", tmp_path / "ratings.csv")

    assert result.exit_code == 2
    assert "at least 2 samples rated as replicas and 2 rated as not" in result.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ReplicaMonitor, MemorizationCheckpoint]:
    """Train a module that copies from step 4 on, and die after onset; return the checkpoint saved last."""
    folder = tmp_path_factory.mktemp("run")
    training, heldout, fresh = (
        simulate_heads(count, first_subject=first, shape=(32, 32)).images
        for count, first in ((20, 0), (60, 100), (40, 500))
    )
    monitor = ReplicaMonitor(
        num_samples=24, every_n_steps=2, training=training, heldout=heldout, cache_dir=folder / "cache", progress=False
    )
    keeper = MemorizationCheckpoint(dirpath=folder / "kept")
    trainer = Trainer(
        max_steps=8, callbacks=[monitor, keeper], logger=False, enable_checkpointing=True, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(
        CopyingModule(training, fresh, schedule=[(4, 0.9)]),
        DataLoader(training, batch_size=4),
        DataLoader(heldout, batch_size=30),
    )
    trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt", monitor, keeper


def test_report_is_written_from_a_checkpoint_with_onset_and_the_checkpoint_to_go_back_to(run, tmp_path):
    checkpoint, monitor, keeper = run

    result = _run("report", checkpoint, "--output", tmp_path / "report.html")

    page = (tmp_path / "report.html").read_text()
    assert result.exit_code == 0
    assert monitor.onset is not None
    assert keeper.best is not None
    assert f"Memorization onset at step {monitor.onset.step} " in page
    assert keeper.best.path in page
    assert f"it ends with the evaluation at step {monitor.history[-1].step}" in page
    assert "data:image/png" not in page


def test_report_of_a_checkpoint_without_a_monitor_says_what_it_holds(run, tmp_path):
    content = torch.load(run[0], weights_only=True)
    content["callbacks"] = {"ModelCheckpoint": {}}
    torch.save(content, tmp_path / "other.ckpt")

    result = _run("report", tmp_path / "other.ckpt", "--output", tmp_path / "report.html")

    assert result.exit_code == 2
    assert "holds the state of no ReplicaMonitor, only of: ModelCheckpoint." in result.stderr


def _with_a_second_monitor(checkpoint: Path, path: Path) -> Path:
    """Return a checkpoint that also holds a monitor named "ema", which nothing was kept for."""
    content = torch.load(checkpoint, weights_only=True)
    states = content["callbacks"]
    state = states["ReplicaMonitor{'name': ''}"]
    states["ReplicaMonitor{'name': 'ema'}"] = {**state, "settings": {**state["settings"], "name": "ema"}}
    torch.save(content, path)
    return path


def test_of_several_monitors_one_is_chosen_by_its_name(run, tmp_path):
    checkpoint, _, keeper = run
    both = _with_a_second_monitor(checkpoint, tmp_path / "two.ckpt")

    named = _run("report", both, "--output", tmp_path / "named.html", "--monitor", "ema")
    unnamed = _run("report", both, "--output", tmp_path / "unnamed.html", "--monitor", "")

    assert (named.exit_code, unnamed.exit_code) == (0, 0)
    # Checkpoints were kept for the monitor without a name.
    assert keeper.best.path in (tmp_path / "unnamed.html").read_text()
    assert keeper.best.path not in (tmp_path / "named.html").read_text()


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ((), "holds 2 monitors: '', 'ema'. Name one (`--monitor`)."),
        (("--monitor", "em"), "holds no ReplicaMonitor of the name 'em', only: '', 'ema'."),
    ],
)
def test_several_monitors_and_none_that_is_named_are_listed(run, tmp_path, chosen, message):
    both = _with_a_second_monitor(run[0], tmp_path / "two.ckpt")

    result = _run("report", both, "--output", tmp_path / "report.html", *chosen)

    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


class _Exploit:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("exploited"),)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"callbacks": _Exploit()}, "bad.ckpt")

    result = _run("report", "bad.ckpt")

    assert result.exit_code == 2
    assert "cannot be read without running code from it" in result.stderr
    assert not Path("exploited").exists()


def test_weights_alone_and_files_that_are_no_checkpoints_are_told_apart(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "weights.ckpt")
    (tmp_path / "text.ckpt").write_text("text")

    weights, text = _run("report", tmp_path / "weights.ckpt"), _run("report", tmp_path / "text.ckpt")

    assert "holds no states of callbacks" in weights.stderr
    assert text.exit_code == 2
    assert "cannot be read" in text.stderr


def test_errors_that_are_not_expected_keep_their_traceback(monkeypatch, tmp_path):
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("relict_lightning.audit_rating.read_pairs", fail)

    assert isinstance(_run("rate", tmp_path).exception, ZeroDivisionError)


def test_every_command_of_the_documentation_exists_and_explains_itself():
    listed = _run("--help").stdout

    for command in ("audit", "calibrate", "rate", "report", "index", "demo"):
        assert command in listed
        assert _run(command, "--help").exit_code == 0
