import copy
import dataclasses
import itertools
import math
import shutil

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from relict_lightning import ReplicaDetector
from relict_lightning.alterations import ALTERATION_NAMES
from relict_lightning.comparison import MEASUREMENT_VERSION
from relict_lightning.errors import (
    ConfigurationError,
    EmptyDataError,
    IndexCorruptError,
    IndexStaleError,
    InvalidImageError,
    MissingControlError,
    NondeterministicDataError,
    NotFittedError,
    RelictError,
    RelictWarning,
)
from relict_lightning.testing import plant_replicas, simulate_heads
from relict_lightning.testing.look import gaussian_blur


class CountingEncoder(nn.Module):
    """Counts, over all its copies, how many images were shown."""

    shown = 0

    def __init__(self, weight=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, images):
        CountingEncoder.shown += len(images)
        pooled = nn.functional.avg_pool2d(images, 4)
        return self.weight * (pooled - pooled.mean()).flatten(1)


@pytest.fixture(scope="module")
def heads():
    """24 training, 80 held-out and 60 fresh patients."""
    images = simulate_heads(164, seed=1, shape=(32, 32)).images
    return images[:24], images[24:104], images[104:]


@pytest.fixture(scope="module")
def fitted(heads):
    training, heldout, _ = heads
    return ReplicaDetector().fit(training, heldout)


@pytest.fixture(scope="module")
def planted(heads):
    training, _, fresh = heads
    return plant_replicas(training, fresh[:24], rate=0.5, seed=0)


@pytest.fixture(scope="module")
def found(fitted, planted):
    """What the fitted detector says of the planted samples."""
    return fitted.detect(planted.images)


@pytest.fixture(scope="module")
def fitted_to_noise():
    return ReplicaDetector().fit(_noise(8), _noise(25, seed=1))


@pytest.fixture(scope="module")
def filled(heads, tmp_path_factory):
    """A cache with a detector fitted to training and held-out heads."""
    folder = tmp_path_factory.mktemp("filled")
    ReplicaDetector(cache_dir=folder).fit(heads[0], heads[1])
    return folder


@pytest.fixture
def cache(filled, tmp_path):
    """A copy of the filled cache of one's own."""
    return shutil.copytree(filled, tmp_path / "cache")


def _noise(count, *, seed=0, shape=(1, 16, 16)):
    return torch.rand((count, *shape), generator=torch.Generator().manual_seed(seed))


def _same(result, other):
    """Compares NaN as equal, which `==` on dataclasses does not."""
    assert repr(result) == repr(other)


# What it finds ------------------------------------------------------------------------------------------------------


def test_planted_replicas_are_found_and_matched_to_their_originals(found, planted):
    called = torch.tensor([verdict.is_replica for verdict in found.verdicts])
    matches = torch.tensor([verdict.match for verdict in found.verdicts])

    assert called[planted.is_replica].all()
    # One discovery in twenty is false on average, and four of 16 or more are in less than a hundredth of the cases.
    assert called[~planted.is_replica].sum() <= 3
    assert torch.equal(matches[planted.is_replica], planted.source[planted.is_replica])
    assert (found.replica_rate.successes, found.replica_rate.trials) == (int(called.sum()), 24)


def test_how_a_replica_was_altered_is_reported(found, planted):
    for verdict, alteration in zip(found.verdicts, planted.alteration, strict=True):
        if alteration == "mirror":
            assert verdict.transform.mirrored_axes == (1,)
        elif alteration == "shift":
            assert any(verdict.transform.shift_voxels)
        elif alteration == "plain":
            assert verdict.transform.is_identity


def test_planted_replicas_are_strong_evidence_for_the_whole_set(found):
    replicated = {verdict.match for verdict in found.verdicts if verdict.is_replica}

    assert found.memorization_p_value < 1e-3
    assert found.discovery_p_value < 0.05
    assert found.measures["unique_training_images_replicated"] == len(replicated) >= 12


def test_fresh_patients_are_no_replicas(fitted, heads):
    result = fitted.detect(heads[2])

    assert result.replica_rate.successes <= 2
    assert result.memorization_p_value > 0.05
    assert result.measures["heldout_false_positive_rate"] <= 0.05


@pytest.mark.parametrize("blank", [0.0, 0.1, 0.7])
def test_blank_samples_are_no_replicas(fitted, blank):
    result = fitted.detect(torch.full((20, 1, 32, 32), blank))

    assert result.replica_rate.successes == 0
    assert result.memorization_p_value == 1.0


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_blank_samples_are_no_replicas_of_a_blank_training_image(heads, value):
    training = heads[0].clone()
    training[0] = value

    result = ReplicaDetector().fit(training, heads[1][:30]).detect(torch.full((8, 1, 32, 32), value))

    assert result.replica_rate.successes == 0


def test_noise_is_no_replica(fitted):
    noise = torch.randn((20, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    with pytest.warns(RelictWarning, match="not those of the training images"):
        result = fitted.detect(noise)

    assert result.replica_rate.successes == 0
    assert result.memorization_p_value > 0.05


def test_blurred_fresh_patients_are_no_replicas(fitted, heads):
    blurred = nn.functional.avg_pool2d(heads[2], 5, stride=1, padding=2)

    assert fitted.detect(blurred).replica_rate.successes <= 2


def test_volumes_are_checked_like_slices():
    volumes = simulate_heads(8 + 30 + 4, shape=(16, 16, 16)).images
    detector = ReplicaDetector(fdr=0.01).fit(volumes[:8], volumes[8:38])

    result = detector.detect(torch.cat([volumes[:4].flip(-1), volumes[38:]]))

    assert [verdict.is_replica for verdict in result.verdicts] == [True] * 4 + [False] * 4
    assert [verdict.match for verdict in result.verdicts[:4]] == [0, 1, 2, 3]
    assert {verdict.transform.mirrored_axes for verdict in result.verdicts[:4]} == {(2,)}


def test_images_of_two_channels_are_checked(heads):
    training, heldout, fresh = (torch.cat([images, 1 - images], 1) for images in heads)

    result = ReplicaDetector(fdr=0.02).fit(training, heldout).detect(torch.cat([training[:5], fresh[5:10]]))

    assert [verdict.is_replica for verdict in result.verdicts] == [True] * 5 + [False] * 5


def test_the_matched_patient_is_named_where_a_patient_has_several_images(heads):
    training, heldout, _ = heads
    rescans = training + 0.01 * torch.randn(training.shape, generator=torch.Generator().manual_seed(0))
    groups = [f"patient {number}" for number in range(24)] * 2
    detector = ReplicaDetector().fit(torch.cat([training, rescans]), heldout[:30], training_groups=groups)

    verdicts = detector.detect(training[:6]).verdicts

    assert [verdict.match_group for verdict in verdicts] == groups[:6]
    assert all(verdict.is_replica for verdict in verdicts)
    assert detector.training_groups == 24


def test_mirrored_copies_hide_without_transforms(heads, fitted):
    training, heldout, _ = heads
    upside_down = training[:6].flip(2)

    plain = ReplicaDetector(transforms="none").fit(training, heldout).detect(upside_down)
    searched = fitted.detect(upside_down)

    assert plain.replica_rate.successes < searched.replica_rate.successes == 6


@pytest.mark.parametrize("gain", [1.0, 4000.0])
def test_the_intensity_scale_of_the_data_does_not_matter(heads, found, planted, gain):
    training, heldout, _ = heads

    result = ReplicaDetector().fit(gain * training - 1000, gain * heldout - 1000).detect(gain * planted.images - 1000)

    # Images are stored to a half-precision number on another scale, which moves scores in the third digit.
    scores = [verdict.score for verdict in result.verdicts]
    assert scores == pytest.approx([verdict.score for verdict in found.verdicts], rel=0.1, abs=0.3)
    assert all(result.verdicts[position].is_replica for position in planted.is_replica.nonzero()[:, 0].tolist())


def test_the_order_of_samples_does_not_matter(fitted, found, planted):
    order = torch.randperm(24, generator=torch.Generator().manual_seed(3))

    shuffled = fitted.detect(planted.images[order])

    assert [verdict.match for verdict in shuffled.verdicts] == [found.verdicts[i].match for i in order]
    assert [v.p_value for v in shuffled.verdicts] == pytest.approx([found.verdicts[i].p_value for i in order])
    assert shuffled.replica_rate == found.replica_rate
    assert shuffled.memorization_p_value == pytest.approx(found.memorization_p_value)


def test_a_larger_false_discovery_rate_never_finds_fewer(fitted, planted):
    found = [
        {i for i, verdict in enumerate(fitted.detect(planted.images, fdr=fdr).verdicts) if verdict.is_replica}
        for fdr in (0.01, 0.05, 0.2, 0.5, 0.9)
    ]

    assert all(fewer <= more for fewer, more in itertools.pairwise(found))
    assert found[0] < found[-1]


def test_the_table_has_a_row_for_each_sample(found, planted):
    frame = found.to_frame()

    assert len(frame) == 24
    assert frame["is_replica"].tolist() == [verdict.is_replica for verdict in found.verdicts]
    assert frame.loc[planted.is_replica.numpy(), "voxel_normalized_cross_correlation"].min() > 0.9


def test_matched_pairs_show_the_sample_moved_onto_its_match(fitted, found, planted, heads):
    position = planted.alteration.index("mirror")

    pair = fitted.matched_pairs(planted.images, found, [position])[0]

    # The alignment may move a copy that was only mirrored by some thousandths of a voxel.
    torch.testing.assert_close(pair.generated, planted.images[position].flip(-1), atol=2**-10, rtol=0)
    torch.testing.assert_close(pair.training, heads[0][planted.source[position]], atol=2**-11, rtol=0)
    assert pair.verdict is found.verdicts[position]


# What it takes ------------------------------------------------------------------------------------------------------


class Lazy(Dataset):
    """A map-style data set."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda images: images.numpy(),
        lambda images: images.double(),
        Lazy,
        TensorDataset,
        lambda images: DataLoader(TensorDataset(images), batch_size=5, shuffle=True),
        lambda images: [{"image": image} for image in images],
        list,
    ],
    ids=["array", "double", "data set", "tensor data set", "loader", "dictionaries", "list"],
)
def test_every_kind_of_input_gives_the_same_verdicts(fitted_to_noise, wrap):
    training, heldout, samples = _noise(8), _noise(25, seed=1), _noise(6, seed=2)
    expected = fitted_to_noise.detect(samples)

    result = ReplicaDetector().fit(wrap(training), wrap(heldout)).detect(wrap(samples))

    _same(result, expected)


def test_dictionaries_bring_ids_and_groups():
    items = [{"image": image, "id": f"scan {i}", "group": f"patient {i // 2}"} for i, image in enumerate(_noise(8))]
    detector = ReplicaDetector().fit(items)

    verdict = detector.detect(_noise(8)[5:6]).verdicts[0]

    assert (verdict.match, verdict.match_id, verdict.match_group) == (5, "scan 5", "patient 2")
    assert detector.training_groups == 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_samples_of_any_precision_are_taken(fitted_to_noise, dtype):
    assert fitted_to_noise.detect(_noise(8)[:2].to(dtype)).verdicts[1].match == 1


def test_segmentations_take_the_place_of_a_segmenter():
    training, heldout = _noise(8), _noise(25, seed=1)
    maps, heldout_maps = (training[:, 0] > 0.5).long(), (heldout[:, 0] > 0.5).long()
    detector = ReplicaDetector().fit(training, heldout, training_segmentations=maps, heldout_segmentations=heldout_maps)

    result = detector.detect(training[:2], generated_segmentations=maps[:2])

    assert [verdict.evidence["segmentation"]["mean_dice"] for verdict in result.verdicts] == [1.0, 1.0]


def test_a_module_that_returns_scores_is_a_segmenter(heads):
    training, heldout, _ = heads

    class Scores(nn.Module):
        def forward(self, images):
            return torch.cat([1 - images, images], 1)

    result = ReplicaDetector(segmenter=Scores()).fit(training, heldout).detect(training[:3])

    assert all(verdict.is_replica for verdict in result.verdicts)


def test_without_held_out_images_matches_and_evidence_remain(heads):
    training, _, _ = heads
    detector = ReplicaDetector().fit(training)

    result = detector.detect(training[:4])

    assert not detector.has_control
    assert detector.heldout_groups == 0
    assert [verdict.match for verdict in result.verdicts] == [0, 1, 2, 3]
    assert result.verdicts[0].evidence["voxel"]["normalized_cross_correlation"] == pytest.approx(1, abs=1e-4)
    assert math.isnan(result.verdicts[0].p_value)
    assert not result.verdicts[0].is_replica
    assert (result.replica_rate, result.memorization_p_value) == (None, None)
    assert len(result.to_frame()) == 4


def test_the_encoder_is_copied_and_training_cannot_change_it(heads):
    encoder = CountingEncoder().train()
    detector = ReplicaDetector(encoder).fit(heads[0], heads[1][:20])
    before = detector.detect(heads[0][:3])

    with torch.no_grad():
        encoder.weight.fill_(torch.nan)

    _same(detector.detect(heads[0][:3]), before)
    assert encoder.training
    assert encoder.weight.requires_grad


def test_global_random_state_is_left_alone(fitted, planted):
    before = torch.get_rng_state()

    fitted.detect(planted.images)

    assert torch.equal(torch.get_rng_state(), before)


# What it refuses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_k": 1}, "top_k must be at least 2.*got 1"),
        ({"fdr": 0.0}, r"fdr must lie in \(0, 1\), got 0.0"),
        ({"fdr": 1.0}, r"fdr must lie in \(0, 1\), got 1.0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        ReplicaDetector(**arguments)


def test_a_false_discovery_rate_out_of_range_is_refused_at_detection(fitted, planted):
    with pytest.raises(ConfigurationError, match=r"fdr must lie in \(0, 1\), got 1.5"):
        fitted.detect(planted.images, fdr=1.5)


@pytest.mark.parametrize("use", [lambda d: d.detect(_noise(2)), lambda d: d.save("nowhere"), lambda d: d.image_shape])
def test_a_detector_that_was_not_fitted_says_so(use):
    detector = ReplicaDetector()

    assert not detector.is_fitted
    with pytest.raises(NotFittedError, match=r"Call `fit\(training, heldout\)` or `load`"):
        use(detector)


@pytest.mark.parametrize(
    ("training", "groups", "error", "message"),
    [
        (_noise(0), None, EmptyDataError, "training set is empty"),
        (_noise(1), None, EmptyDataError, r"1 image\(s\) of 1 patient; at least 2 patients"),
        (_noise(5), ["anna"] * 5, EmptyDataError, r"5 image\(s\) of 1 patient"),
        (torch.full((3, 1, 16, 16), torch.nan), None, InvalidImageError, "Item 0 of the training set has 256 NaN"),
        (torch.zeros(3, 1, 16, 16), None, InvalidImageError, "Every voxel of the training images has the value 0.0"),
        (_noise(3)[:, 0], None, InvalidImageError, r"training set has shape \[3, 16, 16\]"),
        (_noise(3), ["anna"], ConfigurationError, "3 images, but 1 groups"),
    ],
    ids=["empty", "one image", "one patient", "nan", "constant", "no channel", "groups"],
)
def test_unusable_training_images_are_refused(training, groups, error, message):
    with pytest.raises(error, match=message):
        ReplicaDetector().fit(training, _noise(25, seed=1), training_groups=groups)


@pytest.mark.parametrize(
    ("heldout", "groups", "error", "message"),
    [
        (_noise(0), None, EmptyDataError, "held-out set is empty"),
        (_noise(1, seed=1), None, EmptyDataError, "at least 2 patients"),
        (_noise(5, seed=1), ["anna"] * 5, EmptyDataError, "at least 2 patients"),
        (_noise(8), None, EmptyDataError, r"0 usable image\(s\) among 8"),
        (_noise(5, shape=(1, 16, 20)), None, InvalidImageError, r"shape \(1, 16, 20\), training images \(1, 16, 16\)"),
        (_noise(5, shape=(2, 16, 16)), None, InvalidImageError, "Pass both through the same preprocessing"),
        (torch.full((3, 1, 16, 16), torch.inf), None, InvalidImageError, "Item 0 of the held-out set has"),
    ],
    ids=["empty", "one image", "one patient", "all leaked", "other size", "other channels", "infinite"],
)
def test_unusable_held_out_images_are_refused_and_leave_no_half_fitted_detector(heldout, groups, error, message):
    detector = ReplicaDetector()

    with pytest.raises(error, match=message):
        detector.fit(_noise(8), heldout, heldout_groups=groups)

    assert not detector.is_fitted


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (torch.full((2, 1, 16, 16), torch.nan), "Item 0 of the generated set has 256 NaN"),
        (_noise(2, shape=(1, 20, 16)), r"Samples have shape \(1, 20, 16\), training images \(1, 16, 16\)\. Decode"),
        (_noise(2, shape=(3, 16, 16)), r"Samples have shape \(3, 16, 16\)"),
        (_noise(2, shape=(1, 8, 8, 8)), r"Samples have shape \(1, 8, 8, 8\)"),
        ((255 * _noise(2)).to(torch.uint8), r"dtype torch.uint8; expected floating point"),
        (_noise(2)[:, 0], r"generated set has shape \[2, 16, 16\]"),
        (_noise(0), "generated set is empty"),
    ],
    ids=["nan", "size", "channels", "volumes", "uint8", "no channel", "empty"],
)
def test_unusable_samples_are_refused(fitted_to_noise, samples, message):
    with pytest.raises(RelictError, match=message):
        fitted_to_noise.detect(samples)


def test_augmented_training_images_are_refused():
    class Augmented(Lazy):
        def __getitem__(self, index):
            return self.images[index] + torch.rand(())

    with pytest.raises(NondeterministicDataError):
        ReplicaDetector().fit(Augmented(_noise(8)))


def test_segmentations_of_one_set_only_are_refused():
    training, heldout = _noise(8), _noise(25, seed=1)
    maps, heldout_maps = torch.zeros(8, 16, 16, dtype=torch.long), torch.zeros(25, 16, 16, dtype=torch.long)

    with pytest.raises(ConfigurationError, match="training_segmentations are given, and heldout_segmentations are not"):
        ReplicaDetector().fit(training, heldout, training_segmentations=maps)
    with pytest.raises(ConfigurationError, match="heldout_segmentations are given, and training_segmentations are not"):
        ReplicaDetector().fit(training, heldout, heldout_segmentations=heldout_maps)


def test_samples_need_segmentations_where_the_training_images_brought_them_and_only_there():
    maps = (_noise(8)[:, 0] > 0.5).long()

    with pytest.raises(ConfigurationError, match="Pass generated_segmentations"):
        ReplicaDetector().fit(_noise(8), training_segmentations=maps).detect(_noise(2))
    with pytest.raises(ConfigurationError, match="training images were segmented by intensity"):
        ReplicaDetector().fit(_noise(8)).detect(_noise(2), generated_segmentations=maps[:2])


def test_too_few_held_out_patients_for_any_discovery_are_pointed_out(heads):
    detector = ReplicaDetector().fit(heads[0], heads[1][:10])

    with pytest.warns(RelictWarning, match=r"With 10 held-out patients no sample can be called a replica"):
        result = detector.detect(heads[0][:8])

    assert result.replica_rate.successes == 0


def test_leaked_held_out_images_are_left_out_of_the_control(heads):
    training, heldout, _ = heads

    with pytest.warns(RelictWarning, match="5 of 35 held-out images are training images too"):
        detector = ReplicaDetector().fit(training, torch.cat([training[:5], heldout[:30]]))

    assert detector.heldout_groups == 30
    assert len(detector.detect(training[:2]).control_scores) == 30


@pytest.mark.filterwarnings("ignore:.*resemble training patients")
def test_held_out_images_that_are_training_images_in_disguise_are_left_out_of_the_control(heads, fitted, tmp_path):
    training, heldout, fresh = heads
    disguised = torch.cat([training[:2].flip(-1), 0.9 * training[2:4] + 0.05])
    noise = 0.01 * torch.randn(disguised.shape, generator=torch.Generator().manual_seed(0))
    leaky = torch.cat([disguised + noise, heldout])

    def fit():
        return ReplicaDetector(cache_dir=tmp_path).fit(training, leaky)

    with pytest.warns(RelictWarning, match="4 of 84 held-out patients resemble training patients"):
        detector = fit()
    with pytest.warns(RelictWarning, match="4 of 84 held-out patients resemble training patients"):
        again = fit()

    samples = torch.cat([training[:6], fresh[:6]])
    result, clean = detector.detect(samples), fitted.detect(samples)
    assert detector.heldout_groups == 80
    assert result.control_scores == clean.control_scores
    assert [verdict.p_value for verdict in result.verdicts] == [verdict.p_value for verdict in clean.verdicts]
    assert result.memorization_p_value == clean.memorization_p_value
    _same(again.detect(samples), result)
    assert len(detector.audit_training().leaks) >= 2
    assert detector.save(tmp_path / "saved").is_dir()
    _same(ReplicaDetector.load(tmp_path / "saved").detect(samples), result)


def test_a_held_out_set_of_nothing_but_leaks_is_refused(heads):
    training, _, _ = heads

    with pytest.raises(EmptyDataError, match="Of 24 held-out patients 24 resemble training patients"):
        ReplicaDetector().fit(training, 0.9 * training + 0.05)


# What it keeps ------------------------------------------------------------------------------------------------------


def test_a_saved_detector_gives_the_same_result_after_loading(tmp_path, fitted, found, planted):
    path = fitted.save(tmp_path / "saved")

    loaded = ReplicaDetector.load(path)

    _same(loaded.detect(planted.images), found)
    assert (loaded.training_groups, loaded.heldout_groups, loaded.has_control) == (24, 80, True)


def test_settings_survive_saving(tmp_path, heads, planted):
    detector = ReplicaDetector(top_k=3, fdr=0.2, transforms="none").fit(heads[0])

    loaded = ReplicaDetector.load(detector.save(tmp_path / "saved"))

    assert (loaded.top_k, loaded.fdr, loaded.transforms, loaded.has_control) == (3, 0.2, "none", False)
    _same(loaded.detect(planted.images), detector.detect(planted.images))


def test_a_detector_that_needs_label_maps_needs_them_after_loading(tmp_path):
    maps = (_noise(8)[:, 0] > 0.5).long()
    path = ReplicaDetector().fit(_noise(8), training_segmentations=maps).save(tmp_path / "saved")

    with pytest.raises(ConfigurationError, match="Pass generated_segmentations"):
        ReplicaDetector.load(path).detect(_noise(2))


def test_loading_takes_the_encoder_it_was_fitted_with_and_no_other(tmp_path, heads):
    encoder = CountingEncoder(2.0)
    path = ReplicaDetector(encoder).fit(heads[0]).save(tmp_path / "saved")

    loaded = ReplicaDetector.load(path, encoder=copy.deepcopy(encoder))

    assert loaded.detect(heads[0][:1]).verdicts[0].match == 0
    for other in (None, CountingEncoder(3.0)):
        with pytest.raises(IndexStaleError, match="fitted with another encoder than the"):
            ReplicaDetector.load(path, encoder=other)


def test_loading_with_another_segmenter_is_refused(tmp_path, fitted):
    path = fitted.save(tmp_path / "saved")

    with pytest.raises(
        IndexStaleError, match=r"another segmenter than the Flatten.*`load\(\.\.\., segmenter=\.\.\.\)`"
    ):
        ReplicaDetector.load(path, segmenter=nn.Flatten())


def test_saving_never_overwrites(tmp_path, fitted):
    fitted.save(tmp_path / "saved")

    with pytest.raises(ConfigurationError, match="exists already"):
        fitted.save(tmp_path / "saved")


def test_a_damaged_saved_detector_is_refused(tmp_path, fitted, planted):
    (path,) = fitted.save(tmp_path / "saved").glob("training_volumes-*.npy")
    path.write_bytes(path.read_bytes()[:-2])

    with pytest.raises(IndexCorruptError, match=r"training_volumes-0-.*\.npy: its checksum does not match"):
        ReplicaDetector.load(tmp_path / "saved").detect(planted.images)


def test_loading_from_nowhere_and_from_a_cache_entry_is_refused(tmp_path, heads):
    ReplicaDetector(cache_dir=tmp_path).fit(heads[0])
    entry = next(path for path in tmp_path.iterdir() if path.is_dir())

    with pytest.raises(FileNotFoundError):
        ReplicaDetector.load(tmp_path / "nothing")
    with pytest.raises(IndexStaleError, match="no saved detector"):
        ReplicaDetector.load(entry)


def test_a_second_fit_builds_nothing_and_gives_the_same_result(tmp_path, heads, planted):
    training, heldout = heads[0], heads[1][:30]
    first = ReplicaDetector(CountingEncoder(), cache_dir=tmp_path).fit(training, heldout)
    shown = CountingEncoder.shown

    second = ReplicaDetector(CountingEncoder(), cache_dir=tmp_path).fit(training, heldout)

    assert CountingEncoder.shown == shown
    assert (first.from_cache, second.from_cache) == (False, True)
    assert second.build_seconds == pytest.approx(first.build_seconds)
    _same(second.detect(planted.images), first.detect(planted.images))


def test_a_cached_detector_equals_one_in_memory(cache, heads, found, planted):
    cached = ReplicaDetector(cache_dir=cache).fit(heads[0], heads[1])

    assert cached.from_cache
    _same(cached.detect(planted.images), found)


@pytest.mark.parametrize("change", ["training", "heldout", "encoder"])
def test_a_cache_of_something_else_is_not_used(tmp_path, heads, change):
    arguments = {"training": heads[0], "heldout": heads[1][:20]}
    ReplicaDetector(CountingEncoder(), cache_dir=tmp_path).fit(**arguments)
    shown = CountingEncoder.shown
    if change != "encoder":
        arguments[change] = arguments[change].clone()
        arguments[change][0, 0, 0, 0] += 0.001
    encoder = CountingEncoder(1.5 if change == "encoder" else 1.0)

    ReplicaDetector(encoder, cache_dir=tmp_path).fit(**arguments)

    assert CountingEncoder.shown > shown


def test_settings_that_change_the_control_do_not_share_it(cache, heads, planted):
    plain = ReplicaDetector(cache_dir=cache, transforms="none").fit(heads[0], heads[1])

    expected = ReplicaDetector(transforms="none").fit(heads[0], heads[1])
    assert plain.from_cache
    _same(plain.detect(planted.images), expected.detect(planted.images))


def test_a_damaged_cache_is_built_again_with_a_warning(cache, heads, found, planted):
    for path in cache.rglob("likeness.npy"):
        path.write_bytes(path.read_bytes()[:-1])

    with pytest.warns(RelictWarning, match="likeness.npy does not match"):
        again = ReplicaDetector(cache_dir=cache).fit(heads[0], heads[1])

    _same(again.detect(planted.images), found)


def test_a_numpy_scalar_of_the_result_is_a_plain_number(found):
    assert {type(value) for value in found.measures.values()} == {float}
    assert not any(isinstance(value, np.generic) for value in found.control_scores)


def test_samples_on_another_scale_are_pointed_out(fitted, heads):
    with pytest.warns(RelictWarning, match=r"samples span \[-1, 0?\.\d+\]"):
        fitted.detect(2 * heads[2] - 1)


def test_samples_that_are_a_little_darker_or_brighter_are_not(fitted, heads):
    fitted.detect(0.8 * heads[2])
    fitted.detect(1.2 * heads[2] - 0.05)


def test_repeated_training_images_count_as_one_patient_and_their_copies_are_found(heads):
    repeated = torch.cat([heads[0]] * 3)
    with pytest.warns(RelictWarning, match=f"{2 * len(heads[0])} groups hold an image that another group holds too"):
        detector = ReplicaDetector().fit(repeated, heads[1])

    result = detector.detect(heads[0][:8])

    assert detector.training_groups == len(heads[0])
    assert result.replica_rate.successes == 8
    assert result.memorization_p_value < 1e-3


@pytest.mark.filterwarnings("ignore:.* groups hold an image that another group holds too")
def test_a_patient_whose_name_was_merged_away_is_still_kept_out_of_the_control(heads):
    training, heldout, _ = heads
    # Patient "b" is "a" by one shared image; another scan of "b" is among the held-out images.
    names = ["a", "b", *(f"p{position}" for position in range(len(training) - 2))]
    twice = torch.cat([training[:1], training[:1], training[2:]])

    with pytest.warns(RelictWarning, match="1 of 20 held-out images are training images too, or belong to training"):
        detector = ReplicaDetector().fit(
            twice, heldout[:20], training_groups=names, heldout_groups=["b", *(f"h{number}" for number in range(19))]
        )

    assert detector.training_groups == len(training) - 1
    assert detector.heldout_groups == 19


def test_a_detector_that_was_saved_by_a_version_that_measured_otherwise_is_refused(fitted, tmp_path, monkeypatch):
    monkeypatch.setattr("relict_lightning.fitted.MEASUREMENT_VERSION", 1)
    saved = fitted.save(tmp_path / "detector")
    monkeypatch.undo()

    with pytest.raises(IndexStaleError, match=f"measurement 1, now {MEASUREMENT_VERSION}"):
        ReplicaDetector.load(saved)


def test_a_control_that_was_measured_otherwise_is_measured_again(heads, tmp_path, monkeypatch):
    training, heldout = heads[0], heads[1][:20]
    monkeypatch.setattr("relict_lightning.detector.MEASUREMENT_VERSION", 1)
    ReplicaDetector(cache_dir=tmp_path).fit(training, heldout)
    before = {path.name for path in tmp_path.iterdir()}
    monkeypatch.undo()

    ReplicaDetector(cache_dir=tmp_path).fit(training, heldout)

    assert len({path.name for path in tmp_path.iterdir()} - before) == 1


def test_the_self_test_finds_copies_that_were_moved_and_recoloured(fitted):
    test = fitted.self_test(copies_per_alteration=3)

    recall = {one.alteration: one.recall for one in test.alterations}
    assert set(recall) == set(ALTERATION_NAMES)
    for name in ("plain", "intensity", "mirror", "rotation"):
        assert (recall[name].successes, recall[name].trials) == (3, 3)
    assert recall["shift"].successes >= 1
    assert test.heldout_false_positive_rate.trials == 80
    assert repr(fitted.self_test(copies_per_alteration=3)) == repr(test)


def test_what_the_self_test_at_fit_found_is_kept(fitted, heads, tmp_path):
    training, _, _ = heads
    test = fitted.self_test_at_fit

    assert [one.planted for one in test.alterations] == [2] * len(ALTERATION_NAMES)
    assert test.overall.retrieval.value >= test.overall.attribution.value > 0.5
    assert ReplicaDetector.load(fitted.save(tmp_path / "saved")).self_test_at_fit == test
    assert ReplicaDetector().fit(training).self_test_at_fit is None


def test_a_self_test_that_is_in_the_cache_is_told_at_the_detectors_own_rate(heads, tmp_path):
    training, heldout = heads[0], heads[1][:20]
    tests = [
        ReplicaDetector(fdr=fdr, cache_dir=cache).fit(training, heldout).self_test_at_fit
        for fdr, cache in ((0.05, tmp_path), (0.5, tmp_path), (0.5, None))
    ]

    assert [test.fdr for test in tests] == [0.05, 0.5, 0.5]
    assert tests[1] == tests[2]


def test_the_self_test_needs_held_out_images(heads):
    detector = ReplicaDetector().fit(heads[0])

    with pytest.raises(MissingControlError, match=r"fit\(training, heldout\)"):
        detector.self_test()
    with pytest.raises(NotFittedError):
        ReplicaDetector().self_test()


def test_a_population_that_is_in_the_cache_is_not_described_again(heads, planted, tmp_path, monkeypatch):
    training, heldout = heads[0], heads[1][:20]
    first = ReplicaDetector(cache_dir=tmp_path).fit(training, heldout).detect(planted.images)

    def fail(_):
        pytest.fail("was described again")

    monkeypatch.setattr("relict_lightning.detector.describe_usual", fail)
    again = ReplicaDetector(cache_dir=tmp_path).fit(training, heldout).detect(planted.images)

    _same(again, first)


def _rated(heads, *, count=16):
    """Copies of training images and fresh patients, and which are which."""
    training, _, fresh = heads
    copies = plant_replicas(training, fresh[:count], rate=1.0, seed=3)
    return torch.cat([copies.images, fresh[count : 2 * count]]), [True] * count + [False] * count


def test_a_rule_that_ratings_teach_is_used_from_then_on_and_saved(heads, fitted, found, planted, tmp_path, monkeypatch):
    training, heldout, _ = heads
    detector = copy.deepcopy(fitted)
    rated, is_replica = _rated(heads)

    label_free = detector.learn_rule(rated, is_replica)

    assert (label_free.rated, label_free.replicas) == (32, 16)
    assert label_free.rule.weights == (() if not label_free.is_better else tuple(label_free.weights.values()))
    # Whether it is better is another test's matter.
    better = dataclasses.replace(
        label_free, is_better=True, rule=dataclasses.replace(label_free.rule, weights=(1.0, 0.0, 2.0))
    )
    monkeypatch.setattr("relict_lightning.detector.learn_rule", lambda *_, **__: better)
    before = detector.self_test_at_fit
    assert detector.learn_rule(rated, is_replica) is better
    assert detector.self_test_at_fit.overall.recall.trials == before.overall.recall.trials
    assert detector.self_test_at_fit == detector.self_test(copies_per_alteration=2) != before
    scores = [verdict.score for verdict in detector.detect(planted.images).verdicts]
    again = ReplicaDetector.load(detector.save(tmp_path / "learned")).detect(planted.images)
    assert [verdict.score for verdict in again.verdicts] == scores
    assert scores != [verdict.score for verdict in found.verdicts]
    detector.fit(training, heldout)
    assert detector.detect(planted.images).to_frame().equals(found.to_frame())


@pytest.mark.parametrize(
    ("ratings", "message"),
    [([True] * 16, r"ratings \[16\] of 32 samples"), ([True] * 32, "not; got 32 and 0")],
)
def test_ratings_that_do_not_fit_the_samples_are_refused(heads, fitted, ratings, message):
    with pytest.raises(ConfigurationError, match=message):
        fitted.learn_rule(_rated(heads)[0], ratings)


def test_learning_a_rule_needs_held_out_images(heads):
    training, _, fresh = heads
    detector = ReplicaDetector().fit(training)

    with pytest.raises(MissingControlError, match="none"):
        detector.learn_rule(fresh[:4], [True, False] * 2)


def test_a_control_that_has_the_look_of_the_samples_is_only_ever_stricter(heads, fitted, tmp_path):
    training, heldout, fresh = heads
    planted = plant_replicas(training, fresh[:24], rate=0.5, seed=0, alterations=["plain"])
    samples = gaussian_blur(planted.images, sigma=0.8)
    detector = ReplicaDetector(match_look=True).fit(training, heldout)

    plain, matched = fitted.detect(samples), detector.detect(samples)

    assert any(verdict.is_replica for verdict in matched.verdicts)
    for ours, theirs in zip(matched.verdicts, plain.verdicts, strict=True):
        assert ours.p_value >= theirs.p_value
        assert all(ours.level_p_values[level] >= theirs.level_p_values[level] for level in ours.level_p_values)
        assert (ours.match, ours.evidence) == (theirs.match, theirs.evidence)
    assert [verdict.p_value for verdict in matched.verdicts] != [verdict.p_value for verdict in plain.verdicts]
    assert matched.control_scores == plain.control_scores
    assert ReplicaDetector.load(detector.save(tmp_path / "matched")).match_look


def test_where_nothing_is_found_held_out_images_are_not_measured_again(heads, monkeypatch):
    training, heldout, _ = heads
    detector = ReplicaDetector(match_look=True).fit(training, heldout[:20])
    monkeypatch.setattr("relict_lightning.road.match_look", lambda *_: pytest.fail("nothing to be strict about"))

    result = detector.detect(torch.zeros(4, 1, 32, 32))

    assert result.replica_rate.successes == 0


def test_label_maps_that_were_given_serve_held_out_images_of_any_look():
    images = simulate_heads(72, seed=5, shape=(32, 32))
    given = {"training_segmentations": images.labels[:20], "heldout_segmentations": images.labels[20:60]}
    detector = ReplicaDetector(match_look=True).fit(images.images[:20], images.images[20:60], **given)
    samples = torch.cat([images.images[:6], images.images[66:]])
    labels = torch.cat([images.labels[:6], images.labels[66:]])

    result = detector.detect(gaussian_blur(samples, sigma=0.8), generated_segmentations=labels)

    assert [verdict.is_replica for verdict in result.verdicts[:6]] == [True] * 6
