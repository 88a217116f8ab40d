import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relict_lightning.errors import ConfigurationError, EmptyDataError, InvalidImageError
from relict_lightning.testing import ALTERATIONS, plant_replicas


def _images(count: int, *, seed: int, spatial: tuple[int, ...] = (12, 12)) -> torch.Tensor:
    return torch.rand((count, 1, *spatial), generator=torch.Generator().manual_seed(seed))


def _altered(name: str, *, spatial: tuple[int, ...] = (12, 12), seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    training = _images(1, seed=1, spatial=spatial)
    planted = plant_replicas(training, _images(1, seed=2, spatial=spatial), rate=1.0, seed=seed, alterations=(name,))
    return training[0], planted.images[0]


@settings(max_examples=25)
@given(n=st.integers(0, 30), m=st.integers(1, 8), rate=st.floats(0, 1), seed=st.integers(0, 1000))
def test_exactly_the_share_asked_for_is_replaced(n, m, rate, seed):
    fresh = _images(n, seed=2)
    planted = plant_replicas(_images(m, seed=1), fresh, rate=rate, seed=seed)
    chosen = planted.is_replica

    assert chosen.sum() == round(rate * n)
    assert torch.equal(planted.images[~chosen], fresh[~chosen])
    assert (planted.source[~chosen] == -1).all()
    assert ((planted.source[chosen] >= 0) & (planted.source[chosen] < m)).all()
    assert [name is not None for name in planted.alteration] == chosen.tolist()


def test_one_seed_gives_one_result_and_another_seed_another():
    sets = _images(5, seed=1), _images(20, seed=2)
    first, again, other = (plant_replicas(*sets, rate=0.5, seed=seed) for seed in (0, 0, 1))

    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.is_replica, other.is_replica)


def test_no_training_image_is_copied_twice_before_every_one_was_copied_once():
    planted = plant_replicas(_images(5, seed=1), _images(12, seed=2), rate=1.0, seed=0)

    assert sorted(planted.source.bincount().tolist()) == [2, 2, 2, 3, 3]


def test_alterations_occur_equally_often():
    planted = plant_replicas(_images(5, seed=1), _images(24, seed=2), rate=0.5, seed=0)

    assert {name: planted.alteration.count(name) for name in ALTERATIONS} == dict.fromkeys(ALTERATIONS, 2)


def test_the_arguments_are_left_as_they_are():
    training, fresh = _images(5, seed=1), _images(6, seed=2)

    plant_replicas(training, fresh, rate=1.0, seed=0)

    assert torch.equal(training, _images(5, seed=1))
    assert torch.equal(fresh, _images(6, seed=2))


def test_a_plain_replica_is_its_source():
    training, fresh = _images(5, seed=1), _images(8, seed=2)
    planted = plant_replicas(training, fresh, rate=1.0, seed=0, alterations=("plain",))

    assert torch.equal(planted.images, training[planted.source])


def test_a_mirrored_replica_is_its_source_mirrored_along_the_last_axis():
    original, copy = _altered("mirror")

    assert torch.equal(copy, original.flip(2))


@pytest.mark.parametrize("spatial", [(12, 12), (9, 10, 11)])
@pytest.mark.parametrize("seed", range(5))
def test_a_shifted_replica_is_its_source_some_whole_voxels_away(spatial, seed):
    original, copy = _altered("shift", spatial=spatial, seed=seed)
    inner = tuple(slice(3, -3) for _ in spatial)
    steps = torch.cartesian_prod(*[torch.arange(-3, 4)] * len(spatial)).tolist()
    axes = tuple(range(1, 1 + len(spatial)))
    matches = [step for step in steps if torch.equal(copy[0][inner], original.roll(step, axes)[0][inner])]

    assert len(matches) == 1
    assert any(matches[0])


def test_no_replica_is_shifted_by_nothing():
    training = _images(1, seed=1)
    planted = plant_replicas(training, _images(400, seed=2), rate=1.0, seed=0, alterations=("shift",))

    assert not (planted.images == training).flatten(1).all(1).any()


def test_a_noisy_replica_differs_by_two_percent_of_the_range():
    original, copy = _altered("noise", spatial=(64, 64))

    assert (copy - original).std() == pytest.approx(0.02, rel=0.1)


def test_a_recoloured_replica_keeps_the_order_of_its_voxels():
    original, copy = _altered("intensity")
    order = original.flatten().argsort()

    assert (copy.flatten()[order].diff() >= 0).all()
    assert not torch.allclose(copy, original, atol=1e-3)


def test_a_blurred_replica_keeps_its_mean_and_loses_contrast():
    original, copy = _altered("blur", spatial=(64, 64))

    assert copy.mean() == pytest.approx(float(original.mean()), abs=0.005)
    assert copy.std() < 0.7 * original.std()


def test_a_blurred_point_is_the_gaussian_at_whole_voxels():
    point = torch.zeros(1, 1, 9, 9)
    point[0, 0, 4, 4] = 1
    planted = plant_replicas(point, torch.zeros(1, 1, 9, 9), rate=1.0, seed=0, alterations=("blur",))
    blurred = planted.images[0, 0]

    assert blurred.sum() == pytest.approx(1, abs=1e-6)
    assert blurred[4, 5] / blurred[4, 4] == pytest.approx(0.3604, abs=1e-4)


@pytest.mark.parametrize("name", ALTERATIONS)
def test_an_alteration_of_a_blank_image_is_finite(name):
    blank = torch.zeros(1, 1, 12, 12)
    planted = plant_replicas(blank, blank, rate=1.0, seed=0, alterations=(name,))

    assert planted.images.isfinite().all()


def test_plant_replicas_rejects_a_percentage():
    with pytest.raises(ConfigurationError, match=r"rate=25\.0"):
        plant_replicas(_images(2, seed=1), _images(2, seed=2), rate=25.0, seed=0)


@pytest.mark.parametrize("alterations", [(), ("rotated",)])
def test_plant_replicas_lists_the_alterations_that_it_knows(alterations):
    with pytest.raises(ConfigurationError, match="'plain', 'noise'"):
        plant_replicas(_images(2, seed=1), _images(2, seed=2), rate=0.5, seed=0, alterations=alterations)


def test_plant_replicas_rejects_images_of_two_shapes():
    with pytest.raises(InvalidImageError, match=r"\[1, 12, 12\] and \[1, 8, 8\]"):
        plant_replicas(_images(2, seed=1), _images(2, seed=2, spatial=(8, 8)), rate=0.5, seed=0)


def test_plant_replicas_needs_training_images_only_where_there_is_something_to_plant():
    empty, fresh = _images(0, seed=1), _images(4, seed=2)

    assert not plant_replicas(empty, fresh, rate=0.0, seed=0).is_replica.any()
    with pytest.raises(EmptyDataError, match="2 replicas"):
        plant_replicas(empty, fresh, rate=0.5, seed=0)
