import pytest
import torch

from relict_lightning.errors import ConfigurationError
from relict_lightning.testing.hemorrhage import hemorrhage_parts, simulate_hemorrhage_ct

SHAPE = (24, 32, 32)


@pytest.fixture(scope="module")
def population():
    return simulate_hemorrhage_ct(40, shape=SHAPE)


def _parts(anatomy, lesion, scan):
    return hemorrhage_parts(seed=0, anatomies=[anatomy], lesions=[lesion], scans=[scan], shape=SHAPE)


def _dice(one, other):
    return 2 * float((one & other).sum()) / max(1, int(one.sum() + other.sum()))


def test_a_subject_is_the_same_alone_and_in_a_batch(population):
    alone = simulate_hemorrhage_ct(2, first_subject=30, shape=SHAPE)

    assert torch.equal(alone.images, population.images[30:32])
    assert torch.equal(alone.labels, population.labels[30:32])
    assert alone.ids == population.ids[30:32] == ("sub-00030", "sub-00031")


def test_another_seed_gives_other_people(population):
    assert not torch.equal(simulate_hemorrhage_ct(1, seed=1, shape=SHAPE).images, population.images[:1])


def test_images_fill_the_window_and_nothing_else(population):
    assert population.images.dtype == torch.float32
    assert float(population.images.min()) == 0
    assert float(population.images.max()) == 1


def test_everybody_has_a_hemorrhage_brighter_than_the_brain_around_it(population):
    bleeding = population.labels.flatten(1) == 1
    images = population.images.flatten(1)
    inside = torch.stack([image[mask].mean() for image, mask in zip(images, bleeding, strict=True)])

    assert bool(bleeding.any(1).all())
    assert float(inside.min()) > 0.6


def test_hemorrhages_differ_in_size_and_place(population):
    bleeding = population.labels.flatten(1) == 1
    size = bleeding.sum(1).float()
    overlap = [_dice(bleeding[i], bleeding[j]) for i in range(20) for j in range(20, 40)]

    assert float(size.quantile(0.9) / size.quantile(0.1)) > 4
    assert sum(overlap) / len(overlap) < 0.15


def test_parts_put_together_are_the_subject(population):
    assert torch.equal(_parts(5, 5, 5).images(), population.images[5:6])


def test_a_hemorrhage_in_another_head_leaves_that_head_as_it_is():
    own, other = _parts(5, 5, 5), _parts(5, 6, 5)

    assert torch.equal(own.background, other.background)
    assert not torch.equal(own.labels, other.labels)
    untouched = (own.opacity == 0) & (other.opacity == 0)
    assert torch.equal(own.images()[untouched], other.images()[untouched])


def test_another_scan_shows_the_same_hemorrhage_under_other_noise(population):
    again = _parts(5, 5, 99)

    assert not torch.equal(again.noise, _parts(5, 5, 5).noise)
    assert _dice(again.labels[0] == 1, population.labels[5] == 1) > 0.5


def test_a_blend_of_two_people_has_their_mean_anatomy_and_no_more_of_one_than_of_the_other():
    blend = _parts((3, 4), (3, 4), 9)

    assert torch.equal(blend.images(), _parts((4, 3), (4, 3), 9).images())
    assert torch.equal(_parts((3, 3), (3, 3), 9).images(), _parts(3, 3, 9).images())


def test_larger_volumes_have_smaller_voxels():
    large = simulate_hemorrhage_ct(1, shape=(36, 48, 48))

    assert large.images.shape == (1, 1, 36, 48, 48)
    assert large.spacing_mm < simulate_hemorrhage_ct(0, shape=SHAPE).spacing_mm


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"count": -1}, "count=-1"), ({"seed": -1}, "seed=-1"), ({"shape": (32, 32)}, r"shape=\(32, 32\)")],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        simulate_hemorrhage_ct(**{"count": 1, **arguments})


def test_every_anatomy_needs_a_scan():
    with pytest.raises(ConfigurationError, match="got 2, 2 and 1"):
        hemorrhage_parts(seed=0, anatomies=[0, 1], lesions=[0, 1], scans=[0], shape=SHAPE)
