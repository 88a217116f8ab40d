import json
import math
import stat
from dataclasses import asdict
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, recall_score, roc_auc_score

from relict_lightning import ReplicaDetector
from relict_lightning.audit import Audit, AuditSettings, pairs_to_rate, run_audit
from relict_lightning.audit_rating import (
    SCORES,
    calibrate_audit,
    read_pairs,
    write_audit_rating_page,
    write_calibration,
)
from relict_lightning.errors import ConfigurationError, EmptyDataError, UnreadableDataError
from relict_lightning.prebuild import prebuild_index
from relict_lightning.self_test import SelfTest
from relict_lightning.testing import PlantedSamples, plant_replicas, simulate_heads

SETTINGS = AuditSettings()
# For tests that are not about the copies that are planted to check the detector.
WITHOUT_PLANTING = AuditSettings(self_test=0)
MADE_OF_COPIES = 8
SAMPLES = 20


def _save_folder(folder: Path, images: torch.Tensor, ids: tuple[str, ...]) -> Path:
    folder.mkdir()
    for name, image in zip(ids, images, strict=True):
        np.save(folder / f"{name}_T1w.npy", image.numpy())
    return folder


@pytest.fixture(scope="module")
def planted() -> PlantedSamples:
    training, fresh = simulate_heads(16, shape=(32, 32)), simulate_heads(SAMPLES, first_subject=500, shape=(32, 32))
    return plant_replicas(training.images, fresh.images, rate=MADE_OF_COPIES / SAMPLES, seed=0, alterations=["noise"])


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory, planted: PlantedSamples) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sets")
    training, heldout = simulate_heads(16, shape=(32, 32)), simulate_heads(60, first_subject=100, shape=(32, 32))
    np.save(root / "samples.npy", planted.images.numpy())
    return {
        "generated": root / "samples.npy",
        "training": _save_folder(root / "training", training.images, training.ids),
        "heldout": _save_folder(root / "heldout", heldout.images, heldout.ids),
    }


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory, sets: dict[str, Path]) -> Audit:
    return run_audit(**sets, output=tmp_path_factory.mktemp("audits") / "audit", settings=SETTINGS)


def _rate_pairs(folder: Path, replicas: set[int], *, path: Path) -> Path:
    samples = np.load(folder / "pairs.npz")["sample"]
    lines = [f"{pair},{'replica' if sample in replicas else 'not a replica'}" for pair, sample in enumerate(samples)]
    path.write_text("\n".join(["pair,rating", *lines]) + "\n")
    return path


def test_an_audit_finds_the_planted_copies_and_what_they_are_copies_of(audit, planted):
    table = pd.read_csv(audit.folder / "verdicts.csv")

    assert table["is_replica"].tolist() == planted.is_replica.tolist()
    assert table["match"][planted.is_replica.numpy()].tolist() == planted.source[planted.is_replica].tolist()


def test_an_audit_of_files_says_what_the_detector_says_of_the_arrays(audit, planted):
    training, heldout = simulate_heads(16, shape=(32, 32)), simulate_heads(60, first_subject=100, shape=(32, 32))

    result = ReplicaDetector().fit(training.images, heldout.images).detect(planted.images)

    assert [verdict.p_value for verdict in audit.result.verdicts] == [verdict.p_value for verdict in result.verdicts]
    assert audit.result.memorization_p_value == result.memorization_p_value


def test_the_summary_holds_the_rate_with_its_exact_interval_and_the_settings(audit, sets):
    summary = json.loads((audit.folder / "summary.json").read_text())

    interval = stats.binomtest(MADE_OF_COPIES, SAMPLES).proportion_ci(0.95, method="exact")
    assert summary["replica_rate"]["successes"] == MADE_OF_COPIES
    assert summary["replica_rate"]["low"] == pytest.approx(interval.low)
    assert summary["replica_rate"]["high"] == pytest.approx(interval.high)
    assert summary["memorization_p_value"] < 0.01
    assert summary["settings"]["training"] == str(sets["training"])
    assert (summary["training_patients"], summary["heldout_patients"]) == (16, 60)


def test_the_detector_itself_is_checked_on_planted_copies(audit):
    summary = json.loads((audit.folder / "summary.json").read_text())

    test = audit.self_test
    assert SelfTest.from_dict(summary["self_test"]) == test
    assert test.overall_recall.trials == 4 * 8
    assert test.heldout_false_positive_rate.trials == 60
    recall = {one.alteration: one.recall.value for one in test.alterations}
    assert recall["plain"] == recall["mirror"] == 1
    assert "Planted copies found" in (audit.folder / "report.html").read_text()
    # Transplanted pieces of so small an image are not found, and the reader of "no replicas" must know.
    assert test.warning() in audit.notes
    assert "transplanted" in test.warning()


def test_an_audit_plants_no_copies_where_that_was_not_asked_for(sets, tmp_path):
    audit = run_audit(**sets, output=tmp_path / "audit", settings=AuditSettings(self_test=0))

    assert audit.self_test is None
    assert json.loads((audit.folder / "summary.json").read_text())["self_test"] is None
    with pytest.raises(ConfigurationError, match="self_test must not be negative, got -1"):
        AuditSettings(self_test=-1)


def test_every_file_of_an_audit_and_its_folder_are_for_their_owner_only(audit):
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in audit.folder.iterdir()}

    assert modes.keys() >= {"verdicts.csv", "summary.json", "report.html", "pairs.npz"}
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(audit.folder.stat().st_mode) == 0o700


def test_no_file_of_an_audit_names_a_training_patient(audit):
    for name in ("verdicts.csv", "summary.json", "report.html"):
        assert "sub-0" not in (audit.folder / name).read_text()


def test_patients_are_named_where_that_was_asked_for(sets, tmp_path):
    audit = run_audit(**sets, output=tmp_path / "audit", settings=WITHOUT_PLANTING, show_ids=True)

    table = pd.read_csv(audit.folder / "verdicts.csv")
    assert table["match_group"].tolist() == [f"sub-{match:05d}" for match in table["match"]]
    assert "sub-0" in (audit.folder / "report.html").read_text()


def test_the_report_of_an_audit_speaks_of_replicas_and_not_of_steps(audit):
    page = (audit.folder / "report.html").read_text()

    assert "8 of 20 samples (40.0&nbsp;%" in page.replace("\N{NO-BREAK SPACE}", "&nbsp;")
    assert "Replicas found" in page
    assert "optimizer step" not in page
    assert "onset" not in page.split("</style>")[-1].lower()


def test_without_held_out_images_matches_are_found_and_no_rate_is_given(sets, planted, tmp_path):
    audit = run_audit(**{**sets, "heldout": None}, output=tmp_path / "audit", settings=SETTINGS)

    summary = json.loads((audit.folder / "summary.json").read_text())
    table = pd.read_csv(audit.folder / "verdicts.csv")
    assert summary["replica_rate"] is None
    assert summary["memorization_p_value"] is None
    assert table["match"][planted.is_replica.numpy()].tolist() == planted.source[planted.is_replica].tolist()
    assert "No replica rate can be given" in (audit.folder / "report.html").read_text()


def test_an_audit_is_not_written_over_another(audit, sets):
    with pytest.raises(ConfigurationError, match="holds an audit already"):
        run_audit(**sets, output=audit.folder, settings=SETTINGS)


def test_a_failed_audit_leaves_no_folder(sets, tmp_path):
    with pytest.raises(ConfigurationError, match="top_k"):
        run_audit(**sets, output=tmp_path / "audit", settings=AuditSettings(top_k=1))

    assert not (tmp_path / "audit").exists()


def test_held_out_images_of_training_patients_become_a_note_and_leave_the_control(sets, tmp_path):
    leaky = tmp_path / "heldout"
    leaky.mkdir()
    for source in [*sorted(sets["heldout"].iterdir()), *sorted(sets["training"].iterdir())[:3]]:
        (leaky / source.name).write_bytes(source.read_bytes())

    audit = run_audit(**{**sets, "heldout": leaky}, output=tmp_path / "audit", settings=WITHOUT_PLANTING)

    assert [note for note in audit.notes if "3 of 63 held-out images are training images too" in note]
    assert json.loads((audit.folder / "summary.json").read_text())["heldout_patients"] == 60


def test_an_array_of_training_images_comes_with_the_note_that_it_names_no_patients(sets, tmp_path):
    array = tmp_path / "training.npy"
    np.save(array, simulate_heads(16, shape=(32, 32)).images.numpy())

    audit = run_audit(**{**sets, "training": array}, output=tmp_path / "audit", settings=WITHOUT_PLANTING)

    assert "The training images came as one array, which names no patients" in audit.notes[0]


def test_volumes_in_nifti_files_are_audited_like_arrays(tmp_path):
    generator = torch.Generator().manual_seed(0)
    folders = {"training": 6, "heldout": 30}
    volumes = {name: torch.rand(count, 16, 16, 16, generator=generator).numpy() for name, count in folders.items()}
    volumes["generated"] = volumes["training"][:4] * 0.8
    for number, (name, stack) in enumerate(volumes.items()):
        (tmp_path / name).mkdir()
        for position, volume in enumerate(stack):
            image = nibabel.Nifti1Image(volume, np.eye(4))
            nibabel.save(image, tmp_path / name / f"sub-{number}{position:02d}.nii.gz")

    audit = run_audit(
        **{name: tmp_path / name for name in ("generated", "training", "heldout")},
        output=tmp_path / "audit",
        settings=WITHOUT_PLANTING,
    )

    assert [verdict.match for verdict in audit.result.verdicts] == [0, 1, 2, 3]
    assert pd.read_csv(audit.folder / "verdicts.csv")["generated"].tolist()[0] == "sub-200.nii.gz"


def test_an_audit_reuses_the_index_that_was_built_before_it(sets, tmp_path):
    ready = prebuild_index(
        training=sets["training"], heldout=sets["heldout"], cache_dir=tmp_path / "cache", settings=SETTINGS
    )
    entries = sorted((tmp_path / "cache").iterdir())

    run_audit(**sets, output=tmp_path / "audit", settings=WITHOUT_PLANTING, cache_dir=tmp_path / "cache")
    again = prebuild_index(
        training=sets["training"], heldout=sets["heldout"], cache_dir=tmp_path / "cache", settings=SETTINGS
    )

    assert sorted((tmp_path / "cache").iterdir()) == entries
    assert (ready.built, again.built) == (3, 0)
    assert (ready.training_images, ready.heldout_patients, ready.image_shape) == (16, 60, (1, 32, 32))


@pytest.mark.parametrize("count", [1, 4, 7, 30])
def test_half_of_the_pairs_to_rate_are_the_most_alike_and_the_others_reach_to_the_least(count):
    order = list(range(30))[::-1]

    chosen = pairs_to_rate(order, count=count)

    assert len(set(chosen)) == count
    assert chosen == sorted(chosen)
    assert set(order[: (count + 1) // 2]) <= set(chosen)
    assert count == 1 or order[-1] in chosen


def test_the_pairs_of_an_audit_show_the_sample_and_the_training_image_on_one_scale(audit, planted):
    training = simulate_heads(16, shape=(32, 32)).images

    pairs = read_pairs(audit.folder)

    low, high = float(training.min()), float(training.max())
    for sample in planted.is_replica.nonzero().flatten().tolist():
        expected = (training[planted.source[sample]].numpy() - low) / (high - low)
        assert pairs[sample].training == pytest.approx(expected, abs=1e-3)
        assert np.abs(pairs[sample].generated - expected).mean() < 0.05


def test_the_rating_page_shows_every_pair_and_no_number_of_the_detector(audit, tmp_path):
    page, count = write_audit_rating_page(audit.folder, output=tmp_path / "rating.html")

    text = page.read_text()
    assert count == SAMPLES
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert "p-value" not in text
    assert str(audit.result.verdicts[0].score)[:6] not in text


def test_calibration_agrees_with_every_threshold_tried_by_scikit_learn(audit, planted, tmp_path):
    # Two ratings contradict the truth, so that no threshold is perfect.
    replicas = set(planted.is_replica.nonzero().flatten().tolist())
    disputed = sorted(replicas)[0], sorted(set(range(SAMPLES)) - replicas)[0]
    ratings = _rate_pairs(audit.folder, replicas ^ set(disputed), path=tmp_path / "ratings.csv")

    calibrations = calibrate_audit(audit.folder, ratings=ratings)

    table = pd.read_csv(audit.folder / "verdicts.csv")
    labels = np.isin(table["sample"], list(replicas ^ set(disputed)))
    assert calibrations.keys() == SCORES.keys()
    for name, column in SCORES.items():
        values = table[column].to_numpy()
        best = max(balanced_accuracy_score(labels, values >= threshold) for threshold in values)
        assert calibrations[name].balanced_accuracy == pytest.approx(best)
        assert balanced_accuracy_score(labels, values >= calibrations[name].threshold) == pytest.approx(best)
        assert calibrations[name].out_of_sample_balanced_accuracy <= best
        called = values >= calibrations[name].threshold
        assert calibrations[name].sensitivity.value == pytest.approx(recall_score(labels, called))
        assert calibrations[name].specificity.value == pytest.approx(recall_score(labels, called, pos_label=0))
        assert calibrations[name].area_under_roc.value == pytest.approx(roc_auc_score(labels, values))


def test_ratings_of_other_pairs_are_refused(audit, tmp_path):
    (tmp_path / "ratings.csv").write_text("pair,rating\n0,replica\n999,not a replica\n")

    with pytest.raises(ConfigurationError, match=r"rates pair 999, but the audit in .* has pairs 0 to 19"):
        calibrate_audit(audit.folder, ratings=tmp_path / "ratings.csv")


def test_a_folder_without_an_audit_is_named_in_the_message(tmp_path):
    with pytest.raises(UnreadableDataError, match=r"holds no audit: pairs\.npz is missing"):
        read_pairs(tmp_path)


def test_damaged_pairs_are_reported_as_such(audit, tmp_path):
    (tmp_path / "pairs.npz").write_bytes((audit.folder / "pairs.npz").read_bytes()[:1000])

    with pytest.raises(UnreadableDataError, match="is damaged"):
        read_pairs(tmp_path)


def test_a_threshold_that_calls_nothing_a_replica_is_written_as_null(audit, planted, tmp_path):
    replicas = set(planted.is_replica.nonzero().flatten().tolist())
    # Ratings the wrong way round: calling none a replica does as well as any threshold.
    ratings = _rate_pairs(audit.folder, set(range(SAMPLES)) - replicas, path=tmp_path / "ratings.csv")
    calibrations = calibrate_audit(audit.folder, ratings=ratings)

    written = write_calibration(tmp_path / "calibration.json", calibrations)

    stored = json.loads(written.read_text())
    assert any(math.isinf(calibration.threshold) for calibration in calibrations.values())
    for name, calibration in calibrations.items():
        assert stored[name]["threshold"] == (calibration.threshold if math.isfinite(calibration.threshold) else None)
        for rate in ("sensitivity", "specificity"):
            assert stored[name][rate] == asdict(getattr(calibration, rate))
        assert stored[name]["area_under_roc"] == asdict(calibration.area_under_roc)
        assert stored[name]["area_under_roc"]["low"] < stored[name]["area_under_roc"]["high"]


def test_an_audit_of_an_empty_folder_says_so(sets, tmp_path):
    (tmp_path / "empty").mkdir()

    with pytest.raises(EmptyDataError, match="empty holds no image"):
        run_audit(**{**sets, "generated": tmp_path / "empty"}, output=tmp_path / "audit", settings=SETTINGS)


def test_no_pairs_to_rate_is_refused():
    with pytest.raises(ConfigurationError, match="num_pairs must be at least 1, got 0"):
        AuditSettings(num_pairs=0)
