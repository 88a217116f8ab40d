import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from label_map_pairs import SHAPES, random_label_maps, structured_label_maps
from scipy import ndimage

from relict_lightning.functional import centroid_distance


def test_the_distance_of_a_worked_pair_is_that_of_the_middles():
    generated, training = torch.tensor([[[1, 1, 0, 2]]]), torch.tensor([[[0, 0, 1, 0]]])

    value = centroid_distance(generated, training, spacing_mm=0.5, num_labels=4)

    torch.testing.assert_close(value, torch.tensor([[0.75, torch.inf, torch.nan]]), equal_nan=True)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("pair", [random_label_maps, structured_label_maps])
def test_middles_are_the_centers_of_mass_of_scipy(pair, shape):
    generated, training = pair(0, shape, 4)
    spacing_mm = (0.7, 1.1, 3.0)[: len(shape) - 1]

    value = centroid_distance(generated, training, spacing_mm=spacing_mm)

    for row, maps in zip(value.tolist(), zip(generated.numpy(), training.numpy(), strict=True), strict=True):
        centers = [np.array(ndimage.center_of_mass(np.ones_like(m), m, [1, 2, 3])) * spacing_mm for m in maps]
        np.testing.assert_allclose(row, np.linalg.norm(centers[0] - centers[1], axis=1), rtol=1e-5)


@given(shift=st.tuples(*[st.integers(-3, 3)] * 3), seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_a_moved_copy_is_as_far_away_as_it_was_moved(shift, seed):
    patient = torch.nn.functional.pad(structured_label_maps(seed, (1, 5, 6, 4))[1], (3,) * 6)

    value = centroid_distance(patient.roll(shift, dims=(1, 2, 3)), patient, spacing_mm=(1.0, 2.0, 0.5))

    expected = float(np.linalg.norm(np.array(shift) * (1.0, 2.0, 0.5)))
    torch.testing.assert_close(value, torch.full((1, 3), expected), atol=1e-5, rtol=1e-5)


@given(seed=st.integers(0, 1000), axis=st.integers(1, 3))
@settings(max_examples=15)
def test_mirroring_both_maps_changes_nothing(seed, axis):
    generated, training = structured_label_maps(seed, (2, 5, 6, 4))

    mirrored = centroid_distance(generated.flip(axis), training.flip(axis), spacing_mm=1.0)

    torch.testing.assert_close(mirrored, centroid_distance(generated, training, spacing_mm=1.0), atol=1e-5, rtol=1e-4)


def test_the_middle_of_a_long_image_is_exact():
    generated, training = torch.zeros(1, 2, 100_000).bool(), torch.zeros(1, 2, 100_000).bool()
    generated[0, 0], training[0, 0, 1:] = True, True

    assert centroid_distance(generated, training, spacing_mm=1.0).item() == pytest.approx(0.5)
