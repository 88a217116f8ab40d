import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relict_lightning.data import images_per_batch


@pytest.mark.parametrize(
    ("image_shape", "expected"),
    [((1, 8, 8), 64), ((1, 181, 181), 64), ((1, 182, 182), 63), ((3, 512, 512), 2), ((1, 48, 48, 48), 18)],
)
def test_larger_images_come_in_smaller_batches(image_shape, expected):
    assert images_per_batch(image_shape) == expected


def test_an_image_beyond_the_budget_is_worked_on_alone():
    assert images_per_batch((1, 512, 512, 512)) == 1


@given(image_shape=st.lists(st.integers(1, 600), min_size=3, max_size=4).map(tuple))
def test_a_batch_is_within_the_budget_or_one_image(image_shape):
    count = images_per_batch(image_shape)

    assert 1 <= count <= 64
    assert count == 1 or count * math.prod(image_shape) <= 2**21
    assert count == 64 or (count + 1) * math.prod(image_shape) > 2**21
