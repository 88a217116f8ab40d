import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from label_map_pairs import random_label_maps, structured_label_maps
from scipy import ndimage
from skimage.morphology import skeletonize

from relict_lightning.errors import MissingDependencyError
from relict_lightning.functional import centerline_dice, dice
from relict_lightning.functional.segmentation.centerline import centerline


def vessels(seed: int, shape: tuple[int, ...], tubes: int = 3) -> np.ndarray:
    """Return winding tubes, three voxels wide."""
    generator = np.random.default_rng(seed)
    mask = np.zeros(shape, dtype=bool)
    for _ in range(tubes):
        position, direction = generator.uniform(0, 1, len(shape)) * shape, generator.standard_normal(len(shape))
        for _ in range(max(shape)):
            direction += 0.3 * generator.standard_normal(len(shape))
            direction /= np.linalg.norm(direction)
            position += direction
            mask[tuple(np.clip(position.astype(int), 0, np.array(shape) - 1))] = True
    return ndimage.binary_dilation(mask)


def pairs_of(masks: list[tuple[np.ndarray, np.ndarray]]) -> tuple[torch.Tensor, torch.Tensor]:
    generated, training = (torch.from_numpy(np.stack(side)) for side in zip(*masks, strict=True))
    return generated, training


@pytest.mark.parametrize("axes", [2, 3])
def test_half_a_vessel_has_a_precision_of_1_and_a_sensitivity_of_a_half(axes):
    training = torch.zeros(1, *(5,) * (axes - 1), 20).bool()
    training[(0, *(2,) * (axes - 1))] = True
    generated = training.clone()
    generated[..., 10:] = False

    value = centerline_dice(generated, training)

    assert value.item() == pytest.approx(2 * 1 * 0.5 / 1.5)


@pytest.mark.parametrize("shape", [(40, 44), (20, 24, 22)], ids=str)
def test_the_value_is_the_harmonic_mean_of_shares_of_skeletons(shape):
    masks = [(vessels(seed, shape), vessels(seed, shape) | vessels(seed + 9, shape, 1)) for seed in range(3)]
    masks += [(np.roll(a, 1, axis=0), b) for a, b in masks]

    value = centerline_dice(*pairs_of(masks))

    for found, (a, b) in zip(value.flatten().tolist(), masks, strict=True):
        lines = [{tuple(voxel) for voxel in np.argwhere(skeletonize(mask))} for mask in (a, b)]
        inside = [{tuple(voxel) for voxel in np.argwhere(mask)} for mask in (a, b)]
        precision = len(lines[0] & inside[1]) / len(lines[0])
        sensitivity = len(lines[1] & inside[0]) / len(lines[1])
        assert found == pytest.approx(2 / (1 / precision + 1 / sensitivity))
        assert 0 < found < 1


@given(seed=st.integers(0, 1000), axes=st.integers(2, 3))
@settings(max_examples=15)
def test_the_value_is_a_share_and_1_for_copies(seed, axes):
    for pair in (random_label_maps, structured_label_maps):
        generated, training = pair(seed, (2, 9, 8, 7)[: axes + 1], 3)

        value = centerline_dice(generated, training, num_labels=3)

        assert ((value >= 0) & (value <= 1)).all()
        assert (centerline_dice(training, training, num_labels=3) == 1).all()


def test_vessels_that_miss_each_other_have_value_0_and_so_has_one_whose_line_the_other_misses():
    line, beside, rim = (torch.zeros(1, 7, 20).bool() for _ in range(3))
    line[0, 3], beside[0, 1], rim[0, 2:5] = True, True, True
    rim[0, 3] = False

    assert centerline_dice(line, beside).item() == 0
    assert centerline_dice(line, rim).item() == 0


def test_thin_vessels_weigh_as_much_as_thick_ones():
    training = torch.zeros(1, 20, 41).bool()
    training[0, 2:11], training[0, 16] = True, True
    without_thin, without_thick = training.clone(), training.clone()
    without_thin[0, 12:], without_thick[0, :12] = False, False

    lengths = [int(centerline(training[0, rows].numpy()).sum()) for rows in (slice(12), slice(12, 20))]
    values = [centerline_dice(each, training).item() for each in (without_thin, without_thick)]

    shares = [length / sum(lengths) for length in lengths]
    assert values == pytest.approx([2 * share / (1 + share) for share in shares])
    assert min(values) > 0.55
    assert dice(without_thick, training).item() < 0.2


def test_the_value_falls_with_every_piece_cut_off_a_copy():
    patient = np.zeros((16, 20, 60), dtype=bool)
    for position in range(60):
        patient[int(8 + 4 * np.sin(position / 8)), int(10 + 4 * np.cos(position / 8)), position] = True
    patient = ndimage.binary_dilation(patient)
    pieces = []
    for end in (60, 50, 40, 30, 20):
        copy = patient.copy()
        copy[..., end:] = False
        pieces.append((copy, patient))

    values = centerline_dice(*pairs_of(pieces)).flatten()

    assert values[0] == 1
    assert (values.diff() < 0).all()


@pytest.mark.parametrize("shape", [(4, 4, 20), (2, 2, 20), (4, 20, 4), (4, 4, 4), (6, 6, 12)], ids=str)
def test_tubes_and_balls_of_even_width_which_thinning_deletes_keep_a_centerline(shape):
    mask = np.pad(np.ones(shape, dtype=bool), 2)

    line = centerline(mask)

    assert skeletonize(mask).sum() == 0
    assert not (line & ~mask).any()
    assert ndimage.label(line, structure=np.ones((3, 3, 3)))[1] == 1
    assert max(shape) - min(shape) <= line.sum() <= max(shape)
    assert centerline_dice(torch.from_numpy(mask)[None], torch.from_numpy(mask)[None]).item() == 1


def test_a_tube_of_even_width_beside_others_is_not_lost():
    patient = np.zeros((12, 12, 30), dtype=bool)
    patient[1:5, 1:5], patient[7:10, 7:10] = True, True
    without_even, without_odd = patient.copy(), patient.copy()
    without_even[:6], without_odd[6:] = False, False

    values = centerline_dice(*pairs_of([(without_even, patient), (without_odd, patient)]))

    assert values.flatten().tolist() == pytest.approx([2 / 3, 2 / 3], abs=0.02)


@given(bits=st.integers(1, 2**12 - 1))
@settings(max_examples=60)
def test_every_component_of_every_mask_keeps_a_centerline(bits):
    mask = ((bits >> np.arange(12)) & 1).astype(bool).reshape(2, 2, 3)

    line = centerline(mask)

    components, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    assert set(components[line]) == set(range(1, count + 1))


def test_skeletons_do_not_depend_on_the_size_of_the_image():
    generated, training = pairs_of([(vessels(0, (16, 18, 20)), vessels(1, (16, 18, 20)))])
    padded = (torch.nn.functional.pad(each, (3, 5, 2, 4, 1, 6)) for each in (generated, training))

    torch.testing.assert_close(centerline_dice(*padded), centerline_dice(generated, training))


def test_without_scikit_image_the_extra_that_brings_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.morphology", None)
    empty = torch.zeros(1, 4, 4).bool()

    with pytest.raises(
        MissingDependencyError, match=r"centreline .*`scikit-image`.*pip install 'relict-lightning\[vessels\]'"
    ):
        centerline_dice(empty, empty)
