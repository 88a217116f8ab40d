import json

import numpy as np
import pytest
import torch
from built_references import build
from torch.nn.functional import max_pool2d

from relict_lightning.alterations import ALTERATION_NAMES
from relict_lightning.calibration import Rule
from relict_lightning.errors import ConfigurationError, EmptyDataError
from relict_lightning.functional import estimate_rate
from relict_lightning.planting import PlantedCopies, plant_copies
from relict_lightning.results import LEVELS
from relict_lightning.self_test import SelfTest, evaluate_self_test, split_false_positive_rate

SIDE = 32


def _images(count, seed=0):
    """Returns blobs in common, noise, and a bright square of each image's own, at a place of its own."""
    stream = torch.Generator().manual_seed(seed)
    line = torch.linspace(-1, 1, SIDE)
    common = torch.exp(-2 * (line[:, None] ** 2 + line[None] ** 2))
    images = 0.5 * common + 0.02 * torch.rand(count, 1, SIDE, SIDE, generator=stream)
    for image, (row, column) in zip(images, _places(count, seed), strict=True):
        image[0, row : row + 4, column : column + 4] += 0.4
    return images


def _places(count, seed=0):
    return torch.randint(6, SIDE - 10, (count, 2), generator=torch.Generator().manual_seed(100 + seed)).tolist()


def _squares(images):
    return (images[:, 0] > 0.25).long() + (images[:, 0] > 0.4).long()


@pytest.fixture(scope="module")
def training():
    return build(_images(12), groups=[f"t{number // 2}" for number in range(12)], segment=_squares, segmenter="squares")


@pytest.fixture(scope="module")
def heldout():
    options = {"role": "held-out", "segment": _squares, "segmenter": "squares"}
    return build(_images(5, 1), groups=[f"h{number}" for number in range(5)], **options)


@pytest.fixture(scope="module")
def planted(training, heldout):
    return plant_copies(training, heldout, copies_per_alteration=4)


def _of(planted, name):
    return [number for number, alteration in enumerate(planted.alteration) if alteration == name]


def _blurred(image, sigma=0.7):
    """Returns a Gaussian blur of `[h, w]` by sums over a window, the border continued."""
    reach = 4
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    weights = weights / weights.sum()
    for axis in (0, 1):
        places = [(torch.arange(SIDE) + step).clamp(0, SIDE - 1) for step in range(-reach, reach + 1)]
        image = sum(weight * image.index_select(axis, at) for weight, at in zip(weights, places, strict=True))
    return image


def test_every_alteration_is_planted_equally_often_on_different_patients(planted, training):
    assert planted.alteration == tuple(name for name in ALTERATION_NAMES for _ in range(4))
    assert planted.images.shape == (32, 1, SIDE, SIDE)
    assert planted.label_maps.shape == (32, SIDE, SIDE)
    assert planted.images.dtype == torch.float32
    for name in ALTERATION_NAMES:
        assert len({training.groups[planted.source[number]] for number in _of(planted, name)}) == 4


def test_patients_recur_only_after_all_of_them_were_copied(planted, training):
    groups = [training.groups[position] for position in planted.source]

    assert all(len(set(groups[start : start + 6])) == 6 for start in range(0, 30, 6))


def test_no_alteration_gets_more_copies_than_there_are_patients(training, heldout):
    few = plant_copies(training, heldout, copies_per_alteration=50)

    assert [few.alteration.count(name) for name in ALTERATION_NAMES] == [6] * len(ALTERATION_NAMES)


def test_copies_are_settled_by_the_seed(training, heldout, planted):
    again = plant_copies(training, heldout, copies_per_alteration=4)
    other = plant_copies(training, heldout, copies_per_alteration=4, seed=1)

    assert torch.equal(again.images, planted.images)
    assert torch.equal(again.label_maps, planted.label_maps)
    assert again.source.tolist() == planted.source.tolist()
    assert other.source.tolist() != planted.source.tolist()


def test_planting_leaves_the_global_random_state_as_it_is(training, heldout):
    before = torch.get_rng_state()

    plant_copies(training, heldout, copies_per_alteration=1)

    assert torch.equal(torch.get_rng_state(), before)


def test_a_plain_copy_is_the_training_image_with_a_blur_of_0_7_voxels(planted, training):
    for number in _of(planted, "plain"):
        original = torch.from_numpy(training.volumes(planted.source[number : number + 1]))[0, 0]

        assert torch.allclose(planted.images[number, 0], _blurred(original), atol=1e-3)
        assert not torch.allclose(planted.images[number, 0], original, atol=1e-2)


@pytest.mark.parametrize("name", ["plain", "shift", "rotation", "mirror", "elastic", "crop"])
def test_label_maps_move_with_the_images(name, planted, training):
    copies = _of(planted, name)
    labels = planted.label_maps[copies]
    originals = training.fetch_label_maps(planted.source[copies])

    for value, threshold in ((0, 0.25), (1, 0.4)):
        assert float(((planted.images[copies, 0] > threshold) == (labels > value)).float().mean()) > 0.95
    assert np.array_equal(labels.numpy(), originals) == (name == "plain")


def test_a_change_of_intensity_leaves_label_maps_as_they_are(planted, training):
    for number in _of(planted, "intensity"):
        original = training.fetch_label_maps(planted.source[number : number + 1])[0]

        assert np.array_equal(planted.label_maps[number].numpy(), original)


def test_a_transplant_keeps_the_square_of_the_training_image_and_the_host_elsewhere(planted, training, heldout):
    hosts = torch.from_numpy(heldout.volumes(np.arange(5)))[:, 0]
    host_labels = torch.from_numpy(heldout.fetch_label_maps(np.arange(5)))
    places, used = _places(12), set()
    for number in _of(planted, "transplant"):
        image = planted.images[number, 0]
        original = torch.from_numpy(training.volumes(planted.source[number : number + 1]))[0, 0]
        row, column = places[planted.source[number]]
        square = (slice(row, row + 4), slice(column, column + 4))
        unlike = [float((image - _blurred(host)).abs().median()) for host in hosts]
        host = int(np.argmin(unlike))
        used.add(host)
        changed = (image - _blurred(hosts[host])).abs() > 1e-3
        # Here and there the two images are equal by chance.
        changed = max_pool2d(changed[None].float(), 5, stride=1, padding=2)[0] > 0
        labels = planted.label_maps[number]

        assert torch.allclose(image[square], _blurred(original)[square], atol=2e-2)
        assert unlike[host] < 1e-3
        # A twentieth of the voxels, the seam of four voxels around it, and the reach of the blur.
        assert 0.05 < float(changed.float().mean()) < 0.5
        assert torch.equal(labels[~changed], host_labels[host][~changed])
        assert bool((labels[square] == training.fetch_label_maps(planted.source[number : number + 1])[0][square]).all())
    assert len(used) == 4


def test_a_rim_that_lies_a_voxel_off_is_not_what_is_transplanted():
    line = torch.arange(SIDE) - SIDE / 2
    discs = [((line - row)[:, None] ** 2 + line[None] ** 2 < 100).float() for row in (1, 0, 0, 0, 0, 0)]
    images = torch.stack(discs)[:, None] + 0.02 * torch.rand(6, 1, SIDE, SIDE, generator=torch.Generator())
    images[0, 0, 15:18, 15:18] -= 0.3
    host = 0.02 * torch.rand(1, 1, SIDE, SIDE, generator=torch.Generator())

    planted = plant_copies(build(images), build(host, role="held-out"), copies_per_alteration=6)
    copy = next(number for number in _of(planted, "transplant") if planted.source[number] == 0)

    assert torch.allclose(planted.images[copy, 0, 16, 16], images[0, 0, 16, 16], atol=0.1)
    assert float(planted.images[copy, 0, 6].max()) < 0.1


def test_what_varies_between_all_patients_is_not_what_is_transplanted():
    images = 0.02 * torch.rand(7, 1, SIDE, SIDE, generator=torch.Generator())
    images[:, 0, 12:20] += 0.8
    images[:, 0, 4:8, 4:8] += torch.tensor([0.65, 0.6, 0.1, 0.0, 0.3, 0.0, 0.0])[:, None, None]
    images[0, 0, 22:26, 22:26] += 0.3

    planted = plant_copies(build(images[:6]), build(images[6:], role="held-out"), copies_per_alteration=6)
    copy = next(number for number in _of(planted, "transplant") if planted.source[number] == 0)

    assert float(planted.images[copy, 0, 22:26, 22:26].mean()) > 0.2
    assert float(planted.images[copy, 0, 4:8, 4:8].mean()) < 0.1


def test_volumes_are_planted_too():
    volumes = torch.rand((3, 2, 6, 8, 10), generator=torch.Generator().manual_seed(0))
    volumes[:, 1] = 0.0

    planted = plant_copies(build(volumes[:2]), build(volumes[2:], role="held-out"), copies_per_alteration=2)

    assert planted.images.shape == (16, 2, 6, 8, 10)
    assert bool(planted.images.isfinite().all())
    # Channels stay apart: the blur is one in space.
    plain = [number for name in ("plain", "shift", "mirror") for number in _of(planted, name)]
    assert float(planted.images[plain, 1].abs().max()) < 1e-3


def test_what_cannot_be_planted_is_refused(training, heldout):
    with pytest.raises(ConfigurationError, match="at least 1, got 0"):
        plant_copies(training, heldout, copies_per_alteration=0)
    one_patient = build(_images(2), groups=["a", "a"])
    with pytest.raises(EmptyDataError, match=r"got 1 patient\(s\) and 5 held-out"):
        plant_copies(one_patient, heldout, copies_per_alteration=1)


def _evaluated(*, control=None, fdr=0.05, columns=LEVELS, **changed):
    """Returns the self-test of four plain and four mirrored copies; three and one of them stand out."""
    planted = PlantedCopies(
        images=torch.zeros(8, 1, 4, 4),
        label_maps=torch.zeros(8, 4, 4, dtype=torch.int64),
        source=np.arange(8),
        alteration=("plain",) * 4 + ("mirror",) * 4,
    )
    if control is None:
        control = np.random.default_rng(0).uniform(-0.1, 0.1, (40, 3))
    likeness = np.zeros((8, 3))
    likeness[[0, 1, 2, 4]] = 0.9
    # One that stands out in the last level only, and too little.
    likeness[3, 2] = 0.09
    # One whose feature level sees nothing.
    likeness[1, 1] = 0.0
    arguments = {
        "likeness": likeness,
        "is_retrieved": np.array([True] * 7 + [False]),
        "matched_groups": np.array([0, 1, 2, 3, 4, 5, 7, 6]),
        "source_groups": np.arange(8),
    }
    given = {**arguments, **changed, "rule": Rule(columns=columns)}
    return evaluate_self_test(planted, **given, control_likeness=control, fdr=fdr)


def test_recalls_count_what_stands_out_from_the_control():
    test = _evaluated()
    plain, mirrored = test.alterations

    assert (plain.alteration, mirrored.alteration) == ("plain", "mirror")
    assert (plain.planted, mirrored.planted) == (4, 4)
    assert plain.recall == estimate_rate(3, 4)
    assert mirrored.recall == estimate_rate(1, 4)
    assert plain.level_recalls["voxel"] == estimate_rate(3, 4)
    assert plain.level_recalls["feature"] == estimate_rate(2, 4)
    assert (plain.attribution, mirrored.attribution) == (estimate_rate(4, 4), estimate_rate(2, 4))
    assert test.overall_recall == estimate_rate(4, 8)
    assert test.overall.attribution == estimate_rate(6, 8)
    assert (plain.retrieval, mirrored.retrieval) == (estimate_rate(4, 4), estimate_rate(3, 4))
    assert test.overall.retrieval == estimate_rate(7, 8)
    assert test.overall.level_recalls["feature"] == estimate_rate(3, 8)
    assert test.blind_to == ("mirror",)


def test_a_copy_whose_p_value_is_alpha_counts_as_found():
    control = np.linspace(0, 1, 20)[1:, None] * np.ones((1, 3))

    # One of 19 is at least as much like a copy as the second: (1 + 1) / (1 + 19).
    likeness = np.array([[2.0], [0.97], *[[0.0]] * 6]) * np.ones((1, 3))
    found = [
        _evaluated(control=control, likeness=likeness, alpha=alpha).overall_recall.successes for alpha in (0.05, 0.1)
    ]

    assert found == [1, 2]


def test_levels_have_the_names_that_they_are_given():
    control = np.random.default_rng(0).uniform(-0.1, 0.1, (40, 4))
    likeness = np.zeros((8, 4))
    likeness[:4, 3] = 0.9

    test = _evaluated(control=control, likeness=likeness, columns=(*LEVELS, "region"))

    assert test.levels == (*LEVELS, "region")
    assert [test.alterations[0].level_recalls[level].successes for level in test.levels] == [0, 0, 0, 4]


def test_the_warning_counts_what_was_missed():
    assert _evaluated().warning() == (
        "This detector found 1 of 4 planted copies that were mirrored: `no replicas found` says nothing about such "
        "copies."
    )


def test_the_warning_lists_every_alteration_that_is_missed():
    test = _evaluated(likeness=np.zeros((8, 3)))

    assert test.blind_to == ("plain", "mirror")
    assert test.warning() == (
        "This detector found 0 of 4 planted copies that were left as they were and 0 of 4 that were mirrored: `no "
        "replicas found` says nothing about such copies."
    )


def test_there_is_no_warning_where_half_of_every_kind_is_found():
    likeness = np.zeros((8, 3))
    likeness[[0, 1, 4, 5]] = 0.9

    test = _evaluated(likeness=likeness)

    assert test.blind_to == ()
    assert test.warning() is None


@pytest.mark.parametrize(("patients", "too_few"), [(18, True), (19, False)])
def test_the_warning_says_when_held_out_patients_are_too_few_to_find_anything(patients, too_few):
    control = np.random.default_rng(0).uniform(-0.1, 0.1, (patients, 3))

    test = _evaluated(control=control)

    assert (test.overall_recall.successes == 0) == too_few
    assert ("With 18 held-out patients no p-value can be as small as 0.05" in str(test.warning())) == too_few
    assert ("at least 19" in str(test.warning())) == too_few


def test_held_out_patients_that_stand_out_from_the_other_half_count_as_false_positives():
    control = np.random.default_rng(0).uniform(-0.1, 0.1, (60, 3))
    control[[0, 7]] = 0.9

    test = _evaluated(control=control, fdr=0.1)

    # Each half holds one of them, and calls the other half's no replica: it is not larger than its own.
    assert test.heldout_false_positive_rate == estimate_rate(0, 60)
    control[7] = 0.0
    assert split_false_positive_rate(control, Rule(columns=LEVELS), fdr=0.1) == estimate_rate(1, 60)
    assert split_false_positive_rate(control[:1], Rule(columns=LEVELS), fdr=0.1) == estimate_rate(0, 1)


def test_a_self_test_survives_json():
    test = _evaluated()

    assert SelfTest.from_dict(json.loads(json.dumps(test.to_dict()))) == test


def test_the_table_has_a_row_per_alteration_and_one_for_all():
    test = _evaluated()

    rows = test.to_table()

    assert [row["alteration"] for row in rows] == ["plain", "mirror", "all"]
    assert rows[2]["planted"] == 8
    assert (rows[0]["recall"], rows[0]["recall_feature"]) == (0.75, 0.5)
    assert (rows[1]["retrieval"], rows[1]["attribution"]) == (0.75, 0.5)
    assert rows[0]["recall_low"] < 0.75 < rows[0]["recall_high"]


def test_a_self_test_prints_as_a_table():
    assert str(_evaluated()).splitlines() == [
        "alteration  planted  found  voxel  feature  segmentation  among hits  right patient",
        "plain             4      3      3        2             3           4              4",
        "mirror            4      1      1        1             1           3              2",
        "all               8      4      4        3             4           7              6",
        "held-out patients called replicas: 0/40 = 0.0 % [0.0 %, 8.8 %]",
    ]


def test_numbers_that_do_not_fit_the_copies_are_refused():
    with pytest.raises(ConfigurationError, match=r"one row per planted copy, 8; got .*'matched_groups': 7"):
        _evaluated(matched_groups=np.arange(7))
    with pytest.raises(ConfigurationError, match=r"one column for each of \('voxel',\)"):
        _evaluated(columns=("voxel",))
    with pytest.raises(ConfigurationError, match="alpha must lie in"):
        _evaluated(alpha=1.0)
