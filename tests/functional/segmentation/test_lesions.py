import inspect
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from label_map_pairs import structured_label_maps
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from skimage.measure import label as skimage_label
from skimage.measure import regionprops

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional import matched_lesions
from relict_lightning.results import LesionMatch


def matching(generated: torch.Tensor, training: torch.Tensor, **keywords):
    [found] = matched_lesions(generated[None], training[None], **{"spacing_mm": 1.0, **keywords})
    return found


def numbers(found) -> list[tuple[int, int]]:
    return [(match.generated_lesion, match.training_lesion) for match in found.matches]


def scattered_lesions(seed: int, shape: tuple[int, ...] = (20, 22, 18)) -> tuple[torch.Tensor, torch.Tensor]:
    """Return balls, and the same ones, some of which were moved, resized or left out."""
    generator = np.random.default_rng(seed)
    grid = np.stack(np.indices(shape), axis=-1)
    generated, training = np.zeros((2, *shape), dtype=bool)
    for _ in range(8):
        center, radius = generator.uniform(0, shape), generator.uniform(1, 4)
        training |= np.linalg.norm(grid - center, axis=-1) <= radius
        center, radius = center + generator.uniform(-1, 1, len(shape)), radius + generator.uniform(-0.5, 0.5)
        if generator.random() < 0.8:
            generated |= np.linalg.norm(grid - center, axis=-1) <= radius
    return torch.from_numpy(generated), torch.from_numpy(training)


def components(mask: torch.Tensor) -> list[set[tuple[int, ...]]]:
    labelled, count = ndimage.label(mask.numpy(), structure=np.ones((3,) * mask.ndim))
    return [{tuple(voxel) for voxel in np.argwhere(labelled == number)} for number in range(1, count + 1)]


def dice_of_all_pairs(generated: torch.Tensor, training: torch.Tensor) -> np.ndarray:
    here, there = components(generated), components(training)
    return np.array([[2 * len(a & b) / (len(a) + len(b)) for b in there] for a in here]).reshape(len(here), len(there))


def test_a_worked_pair_is_matched_with_all_its_numbers():
    generated = torch.tensor([[1, 1, 0, 0, 1, 1, 1, 0, 1], [0] * 9, [1, 0, 0, 0, 0, 0, 0, 0, 0]])
    training = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 0, 1], [0] * 9, [0] * 9])

    found = matching(generated, training, spacing_mm=(2.0, 0.5))

    assert (found.generated_lesions, found.training_lesions, found.matched_share) == (4, 2, 0.5)
    assert found.matches == (
        LesionMatch(
            generated_lesion=2,
            training_lesion=1,
            dice=0.8,
            centroid_distance_mm=0.25,
            generated_volume_mm3=3.0,
            training_volume_mm3=2.0,
        ),
        LesionMatch(
            generated_lesion=3,
            training_lesion=2,
            dice=1.0,
            centroid_distance_mm=0.0,
            generated_volume_mm3=1.0,
            training_volume_mm3=1.0,
        ),
    )


def test_the_assignment_of_the_largest_sum_may_leave_out_the_best_pair():
    generated = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1]])
    training = torch.tensor([[1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]])
    table = dice_of_all_pairs(generated > 0, training > 0)

    found = matching(generated, training, min_dice=0.1)

    # With the best pair, 10/17, the second lesion of the sample would be left without a partner.
    np.testing.assert_allclose(table, [[4 / 10, 10 / 17], [0, 6 / 12]])
    assert numbers(found) == [(1, 1), (2, 2)]
    assert numbers(matching(generated, training, min_dice=0.55)) == [(1, 2)]


@pytest.mark.parametrize("min_dice", [0.05, 0.5, 2 / 3])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=12)
def test_matches_are_the_best_assignment_of_all_pairs_of_components(min_dice, seed):
    generated, training = (each[0] == 1 for each in structured_label_maps(seed, (1, 14, 16), 3))
    table = dice_of_all_pairs(generated, training)
    allowed = np.where(table >= min_dice, table, 0)

    found = matching(generated, training, min_dice=min_dice)

    best = linear_sum_assignment(allowed, maximize=True)
    assert sum(match.dice for match in found.matches) == pytest.approx(allowed[best].sum())
    assert (found.generated_lesions, found.training_lesions) == table.shape
    for match in found.matches:
        assert match.dice == pytest.approx(table[match.generated_lesion - 1, match.training_lesion - 1])
        assert match.dice >= min_dice
    for side in zip(*numbers(found), strict=True):
        assert len(set(side)) == len(side)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=10)
def test_numbers_volumes_and_middles_are_those_of_scikit_image(seed):
    generated, training = scattered_lesions(seed)
    spacing_mm = (0.7, 1.1, 3.0)

    found = matching(generated, training, spacing_mm=spacing_mm, min_dice=0.01)

    regions = [regionprops(skimage_label(mask.numpy())) for mask in (generated, training)]
    assert (found.generated_lesions, found.training_lesions) == tuple(map(len, regions))
    for match in found.matches:
        here, there = regions[0][match.generated_lesion - 1], regions[1][match.training_lesion - 1]
        apart = (np.array(here.centroid) - there.centroid) * spacing_mm
        assert match.centroid_distance_mm == pytest.approx(np.linalg.norm(apart), abs=1e-9)
        assert match.generated_volume_mm3 == pytest.approx(here.area * math.prod(spacing_mm))
        assert match.training_volume_mm3 == pytest.approx(there.area * math.prod(spacing_mm))


@given(seed=st.integers(0, 10_000))
@settings(max_examples=15)
def test_swapped_arguments_swap_the_sides_of_every_match(seed):
    generated, training = scattered_lesions(seed)

    found, swapped = matching(generated, training), matching(training, generated)

    assert sorted(numbers(found)) == sorted((there, here) for here, there in numbers(swapped))
    assert (found.generated_lesions, found.training_lesions) == (swapped.training_lesions, swapped.generated_lesions)


def test_swapped_arguments_change_the_share():
    generated, training = torch.tensor([[1, 0, 1, 0, 1]]), torch.tensor([[1, 0, 0, 0, 0]])

    assert matching(generated, training).matched_share == pytest.approx(1 / 3)
    assert matching(training, generated).matched_share == 1


@given(seed=st.integers(0, 10_000), axis=st.integers(0, 2))
@settings(max_examples=15)
def test_the_share_does_not_change_when_both_maps_are_mirrored_and_is_1_for_copies(seed, axis):
    generated, training = scattered_lesions(seed)

    share = matching(generated, training).matched_share

    assert matching(generated.flip(axis), training.flip(axis)).matched_share == pytest.approx(share, nan_ok=True)
    assert matching(training, training).matched_share == 1
    assert math.isnan(share) or 0 <= share <= 1


def test_fewer_lesions_match_the_further_they_are_moved_and_the_higher_the_bar():
    _, training = scattered_lesions(3)
    training = torch.nn.functional.pad(training, (6,) * 6)

    moved = [len(matching(training.roll(by, 0), training).matches) for by in range(6)]
    barred = [len(matching(training.roll(1, 0), training, min_dice=bar).matches) for bar in (0.01, 0.5, 0.8, 0.95)]

    assert moved == sorted(moved, reverse=True)
    assert barred == sorted(barred, reverse=True)
    assert moved[0] > moved[-1]
    assert barred[0] > barred[-1]


def test_a_match_needs_the_bar_and_no_more():
    generated, training = torch.tensor([[1, 1, 1, 1, 0]]), torch.tensor([[1, 1, 0, 0, 0]])

    assert matching(generated, training).matches[0].dice == 2 / 3
    assert matching(generated, training, min_dice=0.667).matches == ()
    assert matching(generated[:, :1], generated[:, :1], min_dice=1.0).matched_share == 1


def test_voxels_that_touch_at_a_corner_are_one_lesion():
    diagonal = torch.eye(4).long()

    assert matching(diagonal, diagonal).generated_lesions == 1
    assert matching(torch.diag_embed(diagonal), torch.diag_embed(diagonal)).training_lesions == 1


def test_lesions_are_those_of_the_label_or_of_any_label():
    generated, training = torch.tensor([[1, 2, 0, 2, 0, 1]]), torch.tensor([[1, 2, 0, 2, 0, 0]])

    counts = {
        label: (found.generated_lesions, found.training_lesions, len(found.matches))
        for label in (None, 1, 2, 3)
        for found in [matching(generated, training, label=label)]
    }

    assert counts == {None: (3, 2, 2), 1: (2, 1, 1), 2: (2, 2, 2), 3: (0, 0, 0)}


def test_without_lesions_there_is_no_share():
    lesion, none = torch.tensor([[0, 1, 0]]), torch.zeros(1, 3).long()

    assert math.isnan(matching(none, none).matched_share)
    assert math.isnan(matching(none, lesion).matched_share)
    assert matching(lesion, none).matched_share == 0
    assert (matching(none, lesion).matches, matching(none, lesion).training_lesions) == ((), 1)


def test_a_single_voxel_can_be_a_lesion():
    found = matching(torch.ones(1, 1, 1).long(), torch.ones(1, 1, 1).long(), spacing_mm=2.0)

    assert (found.matched_share, found.matches[0].generated_volume_mm3) == (1, 8)


def test_each_pair_is_matched_on_its_own():
    pairs = [scattered_lesions(seed) for seed in range(3)]
    generated, training = (torch.stack(side) for side in zip(*pairs, strict=True))

    together = matched_lesions(generated, training, spacing_mm=1.0)

    assert together == tuple(matching(*pair) for pair in pairs)
    assert matched_lesions(generated[:0], training[:0], spacing_mm=1.0) == ()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int64, torch.bool], ids=str)
def test_every_integer_dtype_is_accepted_for_lesions(dtype):
    generated, training = scattered_lesions(0)

    assert matching(generated.to(dtype), training.to(dtype)) == matching(generated, training)


def test_many_lesions_are_matched_in_groups_and_not_in_one_table():
    # One table of all pairs would take 12 GB.
    grid = torch.zeros(400, 400).bool()
    grid[::2, ::2] = True

    found = matching(grid, grid)

    assert found.generated_lesions == len(found.matches) == 200 * 200
    assert all(match.generated_lesion == match.training_lesion for match in itertools.islice(found.matches, 1000))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"min_dice": 0.0}, r"min_dice=0\.0"),
        ({"min_dice": 1.1}, r"min_dice=1\.1"),
        ({"min_dice": math.nan}, "min_dice=nan"),
        ({"label": 0}, "label=0"),
        ({"label": -2}, "label=-2"),
    ],
)
def test_impossible_settings_are_refused(keywords, message):
    with pytest.raises(ConfigurationError, match=message):
        matching(torch.ones(1, 3).long(), torch.ones(1, 3).long(), **keywords)


def test_the_default_bar_is_an_intersection_over_union_of_a_half():
    bar = inspect.signature(inspect.unwrap(matched_lesions)).parameters["min_dice"].default

    assert bar / (2 - bar) == pytest.approx(0.5)
