from collections import Counter

import pytest
import torch

from relict_lightning.alterations import ALTERATION_NAMES
from relict_lightning.errors import ConfigurationError
from relict_lightning.testing.detection_sets import APART, DETECTION_SETS, make_detection_set

SIZES = {"shape": (20, 24, 24), "training": 8, "heldout": 3, "generated": 20}
FIELDS = ("training_images", "heldout_images", "generated_images", "generated_labels", "source", "is_replica")


def _make(name, **arguments):
    return make_detection_set(name, **{"seed": 0, **SIZES, **arguments})


@pytest.fixture(scope="module")
def hard():
    return {name: _make(name, generated=24) for name in ("ncct_hard", "tof_hard")}


def _correlation(one, other):
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])


@pytest.mark.parametrize("name", DETECTION_SETS)
def test_a_set_has_the_sizes_it_is_asked_for_and_values_in_range(name):
    made = _make(name)
    shape = (24, 24) if name == "slices" else (20, 24, 24)

    assert made.training_images.shape == (8, 1, *shape)
    assert made.heldout_labels.shape == (3, *shape)
    assert made.generated_images.shape == (20, 1, *shape)
    assert made.generated_labels.shape == (20, *shape)
    assert len(made.kind) == len(made.source) == len(made.is_replica) == 20
    for images in (made.training_images, made.heldout_images, made.generated_images):
        assert images.dtype == torch.float32
        assert 0 <= float(images.min()) <= float(images.max()) <= 1
    assert set(made.training_groups).isdisjoint(made.heldout_groups)


@pytest.mark.parametrize(
    ("name", "replicas"),
    [("ncct", 18), ("tof", 2), ("ncct_hard", 10), ("tof_null", 0), ("ncct_null", 0), ("t1", 10), ("slices", 10)],
)
def test_a_set_has_the_promised_share_of_replicas(name, replicas):
    made = _make(name)

    assert int(made.is_replica.sum()) == replicas
    assert bool((made.source[made.is_replica] >= 0).all())
    assert int(made.source.max()) < 8


def test_hard_sets_have_every_alteration_and_every_negative(hard):
    for made in hard.values():
        kinds = Counter(zip(made.kind, made.is_replica.tolist(), strict=True))

        assert {kind for kind, is_replica in kinds if is_replica} == set(ALTERATION_NAMES)
        assert all(kinds[kind, False] == 2 for kind in ("fresh", "mean_background", "lookalike", "interpolation"))
        assert all(kinds[kind, False] == 2 for kind in APART)


def test_only_what_shows_a_training_patient_has_a_source(hard):
    for made in hard.values():
        for kind, is_replica, source in zip(made.kind, made.is_replica, made.source, strict=True):
            assert (source >= 0) == (bool(is_replica) or kind in APART)


def test_no_source_is_copied_twice_before_each_was_copied_once():
    counts = Counter(_make("ncct").source[_make("ncct").is_replica].tolist())

    assert set(counts.values()) == {2, 3}


@pytest.mark.parametrize("name", ["ncct_hard", "tof_hard", "slices"])
def test_plain_replicas_are_their_source_but_for_the_look(name):
    made = _make(name)
    plain = [position for position, kind in enumerate(made.kind) if kind == "plain"]

    assert plain
    for position in plain:
        source = int(made.source[position])
        assert torch.equal(made.generated_labels[position], made.training_labels[source])
        assert _correlation(made.generated_images[position], made.training_images[source]) > 0.8


def test_a_replica_of_vessels_keeps_the_tree_and_takes_another_background():
    made = _make("tof", generated=10, shape=(48, 64, 64), training=3)
    position = int(made.is_replica.nonzero()[0])
    source = int(made.source[position])
    vessels, others = made.generated_labels[position] > 0, made.training_labels > 0
    dice = [2 * float((vessels & other).sum()) / int(vessels.sum() + other.sum()) for other in others]
    background = ~vessels & ~others[source]

    assert max(range(3), key=dice.__getitem__) == source
    assert dice[source] > 0.4
    assert _correlation(made.generated_images[position, 0][background],
                        made.training_images[source, 0][background]) < 0.9  # fmt: skip


def test_a_lookalike_is_like_one_patient_and_a_copy_of_none(hard):
    for made in hard.values():
        nearest = {
            kind: [
                max(_correlation(sample, image) for image in made.training_images)
                for sample, of_kind in zip(made.generated_images, made.kind, strict=True)
                if of_kind == kind
            ]
            for kind in ("lookalike", "copied_background")
        }

        assert max(nearest["lookalike"]) < min(nearest["copied_background"])


def test_a_copied_background_is_that_of_its_source_with_another_structure(hard):
    for made in hard.values():
        for position in (place for place, kind in enumerate(made.kind) if kind == "copied_background"):
            source = int(made.source[position])
            labels, own = made.generated_labels[position] > 0, made.training_labels[source] > 0
            elsewhere = ~torch.nn.functional.max_pool3d((labels | own)[None].float(), 5, 1, 2)[0].bool()
            sample, image = made.generated_images[position, 0], made.training_images[source, 0]

            assert not torch.equal(labels, own)
            assert _correlation(sample[elsewhere], image[elsewhere]) > 0.8


@pytest.mark.parametrize("name", ["ncct_hard", "t1"])
def test_a_set_is_settled_by_its_seed(name):
    one, two, other = _make(name), _make(name), _make(name, seed=1)

    for field in FIELDS:
        assert torch.equal(getattr(one, field), getattr(two, field))
    assert not torch.equal(one.generated_images, other.generated_images)


@pytest.mark.parametrize("name", ["ncct", "slices"])
def test_patients_with_several_scans_are_one_group(name):
    made = _make(name, scans_per_patient=2)
    first, second, other = made.training_images[:3]

    assert Counter(Counter(made.training_groups).values()) == {2: 4}
    assert not torch.equal(first, second)
    assert _correlation(first, second) > _correlation(first, other)


@pytest.mark.parametrize("name", ["ncct", "tof", "slices"])
def test_leaked_heldout_images_show_training_patients_under_other_names(name):
    made, clean = _make(name, leaked=2), _make(name)

    assert made.heldout_source[0] == -1
    assert bool((made.heldout_source[1:] >= 0).all())
    assert torch.equal(made.heldout_images[0], clean.heldout_images[0])
    assert made.heldout_groups == clean.heldout_groups
    source = made.heldout_source[1]
    assert _correlation(made.heldout_images[1], made.training_images[source]) > _correlation(
        clean.heldout_images[1], made.training_images[source]
    )


def test_a_blurred_generator_has_less_detail_and_a_collapsed_one_fewer_people():
    ordinary, blurred, collapsed = (
        _make("ncct_null", generator=generator).generated_images for generator in ("ordinary", "blurred", "collapsed")
    )
    alike = torch.corrcoef(collapsed.flatten(1)).fill_diagonal_(-1).max(1).values
    unlike = torch.corrcoef(ordinary.flatten(1)).fill_diagonal_(-1).max(1).values

    assert blurred.diff(dim=-1).square().mean() < 0.7 * ordinary.diff(dim=-1).square().mean()
    assert float(alike.mean()) > float(unlike.mean()) + 0.03


def test_no_look_leaves_plain_replicas_as_they_were():
    made = _make("slices", look=0.0)
    position = made.kind.index("plain")

    assert torch.equal(made.generated_images[position], made.training_images[made.source[position]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "mri"}, "'mri'"),
        ({"generator": "gan"}, "'gan'"),
        ({"training": 1}, "training=1"),
        ({"leaked": 4}, "leaked=4"),
        ({"scans_per_patient": 8}, "two patients"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        _make(**{"name": "ncct", **arguments})
