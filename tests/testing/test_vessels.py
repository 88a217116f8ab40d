import numpy as np
import pytest
import torch
from scipy.ndimage import label as connected

from relict_lightning.errors import ConfigurationError
from relict_lightning.testing.vessel_tree import TREE_DRAWS, grow_tree
from relict_lightning.testing.vessels import angiogram_parts, simulate_tof_angiograms

SHAPE = (48, 64, 64)


@pytest.fixture(scope="module")
def population():
    return simulate_tof_angiograms(12)


def _parts(anatomy, tree, scan):
    return angiogram_parts(seed=0, anatomies=[anatomy], trees=[tree], scans=[scan], shape=SHAPE)


def _dice(one, other):
    return 2 * float((one & other).sum()) / int(one.sum() + other.sum())


def _tree(number):
    return grow_tree(np.random.default_rng(number).standard_normal(TREE_DRAWS))


def test_a_subject_is_the_same_alone_and_in_a_batch(population):
    alone = simulate_tof_angiograms(2, first_subject=7)

    assert torch.equal(alone.images, population.images[7:9])
    assert torch.equal(alone.labels, population.labels[7:9])


def test_another_seed_gives_other_people(population):
    assert not torch.equal(simulate_tof_angiograms(1, seed=1).images, population.images[:1])


def test_images_lie_in_the_unit_range(population):
    assert population.images.dtype == torch.float32
    assert float(population.images.min()) == 0
    assert float(population.images.max()) <= 1


def test_vessels_are_few_bright_voxels(population):
    vessels = population.labels == 1
    bright, dim = population.images[:, 0][vessels].mean(), population.images[:, 0][~vessels].mean()

    assert 0.005 < float(vessels.float().mean()) < 0.04
    assert float(bright) > 2.5 * float(dim)


def test_vessel_trees_of_two_people_overlap_partly(population):
    vessels = population.labels == 1
    overlap = torch.tensor([_dice(vessels[i], vessels[j]) for i in range(12) for j in range(i)])

    assert 0.1 < float(overlap.mean()) < 0.35
    assert float(overlap.max()) < 0.6


def test_vessels_are_tubes_of_which_most_hang_together(population):
    for labels in population.labels:
        parts, _ = connected(labels.numpy(), structure=np.ones((3, 3, 3)))
        sizes = np.sort(np.bincount(parts.ravel())[1:])

        # A thin artery may part the left from the right, and both from the back.
        assert sizes[-3:].sum() / sizes.sum() > 0.6


def test_anterior_arteries_lie_in_front_and_the_basilar_artery_behind(population):
    middle = (population.labels[..., 24:40] == 1).any(-1)
    above, below = middle[:, 34:].nonzero()[:, 2], middle[:, 8:14].nonzero()[:, 2]

    # The second axis runs from anterior to posterior.
    assert float(above.float().mean()) < 20 < 32 < float(below.float().max())


def test_people_differ_in_which_arteries_they_have():
    trees = [_tree(number) for number in range(60)]
    both = sum(tree.branches.count("pcom") == 2 for tree in trees)

    assert {"carotid", "basilar", "m1", "a2", "p2"} <= set.intersection(*[set(tree.branches) for tree in trees])
    assert 10 < both < 50


def test_arteries_taper_and_stay_within_their_range():
    tree = _tree(0)

    assert float(tree.radius_mm.min()) > 0.3
    assert float(tree.radius_mm.max()) < 3.5
    assert np.all((tree.signal > 0) & (tree.signal <= 1))


def test_parts_put_together_are_the_subject(population):
    assert torch.equal(_parts(3, 3, 3).images(), population.images[3:4])


def test_a_tree_in_another_head_keeps_its_labels():
    own, other = _parts(3, 3, 3), _parts(4, 3, 3)

    assert torch.equal(own.labels, other.labels)
    assert torch.equal(own.opacity, other.opacity)
    assert not torch.equal(own.background, other.background)


def test_another_scan_shows_the_same_tree_a_little_elsewhere(population):
    again = _parts(3, 3, 99)
    own = _dice(again.labels[0] == 1, population.labels[3] == 1)
    others = [_dice(again.labels[0] == 1, other == 1) for other in population.labels[4:]]

    assert not torch.equal(again.labels[0], population.labels[3])
    assert own > max(others)
    assert own > 2 * sum(others) / len(others)


def test_vessels_and_tissue_move_together_from_scan_to_scan(monkeypatch):
    monkeypatch.setattr("relict_lightning.testing.scan_parts._SHIFT_MM", 4.0)
    monkeypatch.setattr("relict_lightning.testing.scan_parts._TILT_DEGREES", 2.0)
    monkeypatch.setattr("relict_lightning.testing.vessels._BIAS_KNOTS_MM", 1000.0)
    one, two = _parts(3, 3, 1), _parts(3, 3, 2)

    def moved(first, second):
        """Return the whole-voxel shift by which the second correlates best with the first."""
        first, second = (volume[0, 0] - volume.mean() for volume in (first, second))
        spectrum = torch.fft.fftn(first).conj() * torch.fft.fftn(second)
        peak = int(torch.fft.ifftn(spectrum).real.argmax())
        return np.array(
            [(k + side // 2) % side - side // 2 for k, side in zip(np.unravel_index(peak, SHAPE), SHAPE, strict=True)]
        )

    vessels, tissue = moved(one.opacity, two.opacity), moved(one.background, two.background)
    assert np.abs(vessels).max() >= 2
    assert np.abs(vessels - tissue).max() <= 1


def test_bent_arteries_stay_near_where_they_were_and_keep_their_tissue():
    arguments = {"seed": 0, "anatomies": [3], "trees": [3], "scans": [3]}
    straight, bent = angiogram_parts(**arguments), angiogram_parts(**arguments, bend_mm=0.5)

    assert torch.equal(straight.background, bent.background)
    assert 0.2 < _dice(straight.labels == 1, bent.labels == 1) < 0.9


def test_arguments_out_of_range_are_refused():
    with pytest.raises(ConfigurationError, match="first_subject=-1"):
        simulate_tof_angiograms(1, first_subject=-1)
    with pytest.raises(ConfigurationError, match=r"shape=\(8, 64, 64\)"):
        angiogram_parts(seed=0, anatomies=[0], trees=[0], scans=[0], shape=(8, 64, 64))
