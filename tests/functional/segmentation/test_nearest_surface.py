import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.distance import cdist

from relict_lightning.functional.segmentation.nearest_surface import (
    bounding_box,
    nearest_surface_distances,
    surface,
)


def random_mask(seed: int, shape: tuple[int, ...], share: float) -> np.ndarray:
    mask = np.random.default_rng(seed).random(shape) < share
    mask.flat[seed % mask.size] = True
    return mask


def ball(side: int, radius: float, center: float) -> np.ndarray:
    return sum((axis - center) ** 2 for axis in np.ogrid[:side, :side, :side]) <= radius**2


def all_distances(first: np.ndarray, second: np.ndarray, spacing_mm: tuple[float, ...]) -> np.ndarray:
    """Return the distance of every surface voxel of one mask to every surface voxel of the other."""
    return cdist(*(np.argwhere(mask ^ ndimage.binary_erosion(mask)) * spacing_mm for mask in (first, second)))


def assert_exact(first: np.ndarray, second: np.ndarray, spacing_mm: tuple[float, ...]) -> None:
    found = nearest_surface_distances(first, second, spacing_mm=spacing_mm)
    expected = all_distances(first, second, spacing_mm)
    for values, axis in zip(found, (1, 0), strict=True):
        np.testing.assert_allclose(values, expected.min(axis=axis), rtol=1e-6)


@given(
    seed=st.integers(0, 10_000),
    shape=st.lists(st.integers(1, 12), min_size=2, max_size=3).map(tuple),
    share=st.sampled_from([0.01, 0.1, 0.5, 1.0]),
    spacing=st.lists(st.sampled_from([0.1, 0.7, 1.0, 3.0, 40.0]), min_size=3, max_size=3),
)
@settings(max_examples=100)
def test_distances_are_the_smallest_of_all(seed, shape, share, spacing):
    first, second = random_mask(seed, shape, share), random_mask(seed + 1, shape, 0.2)

    assert_exact(first, second, tuple(spacing[: len(shape)]))


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (3.0, 1.0, 0.5), (0.4, 2.0, 5.0)], ids=str)
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (ball(28, 13.0, 13.5), ball(28, 4.0, 13.5)),
        (ball(28, 13.0, 13.5), ball(28, 11.0, 13.5)),
        (ball(40, 3.0, 4.0), ball(40, 3.0, 35.0)),
        (ball(24, 11.0, 11.5) & ~ball(24, 10.0, 11.5), ball(24, 0.9, 11.5)),
    ],
    ids=["ball deep in a ball", "ball close in a ball", "corner to corner", "hollow around a point"],
)
def test_distances_are_exact_between_surfaces_near_and_far(first, second, spacing_mm):
    assert_exact(first, second, spacing_mm)


@given(seed=st.integers(0, 10_000), shape=st.lists(st.integers(1, 7), min_size=2, max_size=3).map(tuple))
@settings(max_examples=40)
def test_the_surface_is_what_an_erosion_takes_away(seed, shape):
    mask = random_mask(seed, shape, 0.8)

    np.testing.assert_array_equal(surface(mask), mask ^ ndimage.binary_erosion(mask))


@given(seed=st.integers(0, 10_000), shape=st.lists(st.integers(1, 7), min_size=2, max_size=3).map(tuple))
@settings(max_examples=40)
def test_the_box_is_the_smallest_that_holds_the_mask(seed, shape):
    mask = random_mask(seed, shape, 0.1)

    assert bounding_box(mask) == ndimage.find_objects(mask.astype(int))[0]
    assert bounding_box(np.zeros_like(mask)) is None


def test_distances_of_a_worked_pair():
    first, second = (np.zeros((3, 4), dtype=bool) for _ in range(2))
    first[0, :2], second[2, 3] = True, True

    there, back = nearest_surface_distances(first, second, spacing_mm=(2.0, 1.0))

    np.testing.assert_allclose(there, [5.0, math.sqrt(20)])
    np.testing.assert_allclose(back, [math.sqrt(20)])
