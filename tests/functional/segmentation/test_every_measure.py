import inspect
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from label_map_pairs import random_label_maps, structured_label_maps

from relict_lightning.errors import ConfigurationError, InvalidImageError
from relict_lightning.functional import (
    centerline_dice,
    centroid_distance,
    dice,
    hausdorff_distance_95,
    matched_lesions,
    mean_dice,
    surface_agreement,
    surface_dice,
    surface_distances,
    volumetric_similarity,
)

# Keyword arguments, and the value of a label that only one map has.
PER_LABEL = {
    dice: ({}, 0.0),
    volumetric_similarity: ({}, 0.0),
    centroid_distance: ({"spacing_mm": 0.5}, math.inf),
    hausdorff_distance_95: ({"spacing_mm": 0.5}, math.inf),
    surface_dice: ({"spacing_mm": 0.5, "tolerance_mm": 0.5}, 0.0),
    centerline_dice: ({}, 0.0),
}

WITH_NUM_LABELS = {
    **{measure: keywords for measure, (keywords, _) in PER_LABEL.items()},
    mean_dice: {},
    surface_distances: {"spacing_mm": 0.5},
    surface_agreement: {"spacing_mm": 0.5, "tolerance_mm": 0.5},
}

EVERY = {**WITH_NUM_LABELS, matched_lesions: {"spacing_mm": 0.5}}

WITH_SPACING = {measure: keywords for measure, keywords in EVERY.items() if "spacing_mm" in keywords}

INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16]


def named(measures: dict[Callable[..., object], object]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("measure", measures, ids=lambda measure: measure.__name__)


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.long)


@named(PER_LABEL)
def test_a_label_that_neither_map_has_is_nan_and_one_that_one_map_has_gets_the_worst_value(measure):
    keywords, worst = PER_LABEL[measure]
    both, one, neither = (torch.zeros(1, 4, 5, 6).long() for _ in range(3))
    both[0, 1:3, 1:3, 1:3], one[0, 1:3, 1:3, 1:3] = 1, 2

    value = measure(torch.cat([both, one, neither]), torch.cat([both, neither, one]), num_labels=4, **keywords)

    best = 1.0 if worst == 0 else 0.0
    expected = [[best, math.nan, math.nan], [math.nan, worst, math.nan], [math.nan, worst, math.nan]]
    torch.testing.assert_close(value, torch.tensor(expected), equal_nan=True)
    assert value.dtype == torch.float32


@named(PER_LABEL)
@given(seed=st.integers(0, 200))
@settings(max_examples=4)
def test_the_value_does_not_depend_on_the_order_of_the_pair_nor_on_the_other_pairs(measure, seed):
    keywords, _ = PER_LABEL[measure]
    generated, training = structured_label_maps(seed, (4, 8, 9), 4)
    value = measure(generated, training, num_labels=4, **keywords)

    one_by_one = [measure(g[None], t[None], num_labels=4, **keywords) for g, t in zip(generated, training, strict=True)]

    torch.testing.assert_close(measure(training, generated, num_labels=4, **keywords), value, equal_nan=True)
    torch.testing.assert_close(measure(generated.flip(0), training.flip(0), num_labels=4, **keywords), value.flip(0))
    torch.testing.assert_close(torch.cat(one_by_one), value)


@named(PER_LABEL)
def test_labels_may_be_numbered_in_any_order(measure):
    keywords, _ = PER_LABEL[measure]
    generated, training = structured_label_maps(1)
    names = torch.tensor([0, 3, 1, 2])

    renamed = measure(names[generated], names[training], num_labels=4, **keywords)

    torch.testing.assert_close(renamed[:, names[1:] - 1], measure(generated, training, num_labels=4, **keywords))


@named(PER_LABEL)
@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_every_integer_dtype_gives_the_value_of_long(measure, dtype):
    keywords, _ = PER_LABEL[measure]
    generated, training = random_label_maps(0, (2, 6, 5), 4)

    value = measure(generated.to(dtype), training.to(dtype), num_labels=4, **keywords)

    torch.testing.assert_close(value, measure(generated, training, num_labels=4, **keywords))


@named(PER_LABEL)
def test_the_largest_label_of_a_byte_does_not_overflow(measure):
    keywords, _ = PER_LABEL[measure]
    generated, training = (labels * 85 for labels in random_label_maps(0, (2, 12, 10), 4))

    value = measure(generated.to(torch.uint8), training.to(torch.uint8), **keywords)

    assert value.shape == (2, 255)
    torch.testing.assert_close(
        value[:, [84, 169, 254]], measure(generated // 85, training // 85, num_labels=4, **keywords)
    )
    assert value.isnan().sum() == 2 * 252


@named(PER_LABEL)
def test_more_labels_than_a_byte_holds_are_told_apart(measure):
    keywords, _ = PER_LABEL[measure]
    labels = random_label_maps(0, (2, 6, 5), 3)
    generated, training = (torch.tensor([0, 1, 257])[each] for each in labels)

    value = measure(generated, training, **keywords)

    assert value.shape == (2, 257)
    torch.testing.assert_close(value[:, [0, 256]], measure(*labels, num_labels=3, **keywords))


@named(PER_LABEL)
def test_a_mask_is_a_map_of_the_labels_0_and_1(measure):
    keywords, _ = PER_LABEL[measure]
    generated, training = random_label_maps(0, (2, 6, 5), 2)

    value = measure(generated.bool(), training.bool(), **keywords)

    assert value.shape == (2, 1)
    torch.testing.assert_close(value, measure(generated, training, num_labels=2, **keywords))


@named(PER_LABEL)
def test_without_a_number_of_labels_it_is_the_largest_label_of_either_map_plus_one_and_at_least_2(measure):
    keywords, _ = PER_LABEL[measure]
    low, high = zeros(1, 3, 3), zeros(1, 3, 3)
    low[0, 1, 1], high[0, 1, 1] = 1, 3

    assert measure(low, high, **keywords).shape == (1, 3)
    assert measure(high, low, **keywords).shape == (1, 3)
    assert measure(low, low, **keywords).shape == (1, 1)
    assert measure(zeros(1, 3, 3), zeros(1, 3, 3), **keywords).shape == (1, 1)


@named(PER_LABEL)
def test_no_pairs_give_no_values(measure):
    keywords, _ = PER_LABEL[measure]

    assert measure(zeros(0, 4, 4), zeros(0, 4, 4), num_labels=3, **keywords).shape == (0, 2)
    assert measure(zeros(0, 4, 4), zeros(0, 4, 4), **keywords).shape == (0, 1)


@named(PER_LABEL)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 1, 1), (1, 1, 4), (1, 1, 1, 4), (1, 4, 1, 1)], ids=str)
def test_single_voxels_and_flat_maps_have_the_value_of_a_copy(measure, shape):
    keywords, worst = PER_LABEL[measure]
    labels = torch.ones(shape, dtype=torch.long)

    assert measure(labels, labels, **keywords).item() == (1.0 if worst == 0 else 0.0)


@named(EVERY)
@pytest.mark.parametrize(
    ("generated", "training", "message"),
    [
        (zeros(1, 2, 2).float(), zeros(1, 2, 2), "generated .* torch.float32"),
        (zeros(1, 2, 2), zeros(1, 2, 2).half(), "training .* torch.float16"),
        (zeros(1, 2, 2) / 0, zeros(1, 2, 2), "generated .* torch.float32"),
        (zeros(1, 2, 2), zeros(1, 2, 3), r"\(1, 2, 2\) and \(1, 2, 3\)"),
        (zeros(1, 2, 2), zeros(2, 2, 2), r"\(1, 2, 2\) and \(2, 2, 2\)"),
        (zeros(1, 4), zeros(1, 4), r"generated .* \(1, 4\)"),
        (zeros(1, 1, 2, 2, 2), zeros(1, 1, 2, 2, 2), r"generated .* \(1, 1, 2, 2, 2\).*squeeze"),
        (zeros(1, 0, 2), zeros(1, 0, 2), r"at least one voxel.* \(1, 0, 2\)"),
        (zeros(1, 2, 2) - 1, zeros(1, 2, 2), "generated .* hold -1 to -1"),
        (zeros(1, 2, 2), zeros(1, 2, 2).to(torch.int8) - 128, "training .* hold -128 to -128"),
    ],
)
def test_invalid_label_maps_are_refused_by_name(measure, generated, training, message):
    with pytest.raises(InvalidImageError, match=message):
        inspect.unwrap(measure)(generated, training, **EVERY[measure])


@named(WITH_NUM_LABELS)
def test_a_label_beyond_their_number_is_refused(measure):
    keywords = WITH_NUM_LABELS[measure]

    with pytest.raises(InvalidImageError, match="training label maps must hold labels from 0 to 1, but hold 0 to 3"):
        measure(zeros(1, 2, 2), torch.tensor([[[0, 3], [0, 0]]]), num_labels=2, **keywords)


@named(WITH_NUM_LABELS)
def test_a_number_of_labels_that_leaves_none_to_compare_is_refused(measure):
    with pytest.raises(ConfigurationError, match="num_labels=1"):
        measure(zeros(1, 2, 2), zeros(1, 2, 2), num_labels=1, **WITH_NUM_LABELS[measure])


@named(WITH_SPACING)
@pytest.mark.parametrize(
    "spacing_mm", [0.0, -1.0, math.nan, math.inf, 1e-60, 1e60, (1.0,), (1.0, 0.0), (1.0, 1.0, 1.0), ()], ids=str
)
def test_a_spacing_that_is_not_one_positive_number_per_axis_is_refused(measure, spacing_mm):
    keywords = {**WITH_SPACING[measure], "spacing_mm": spacing_mm}

    with pytest.raises(ConfigurationError, match=r"spacing_mm must be .* 2 spatial axes, but is spacing_mm="):
        measure(zeros(1, 2, 2), zeros(1, 2, 2), **keywords)


@named(WITH_SPACING)
def test_the_spacing_has_no_default(measure):
    keywords = {name: value for name, value in WITH_SPACING[measure].items() if name != "spacing_mm"}

    with pytest.raises(TypeError, match="spacing_mm"):
        inspect.unwrap(measure)(zeros(1, 2, 2), zeros(1, 2, 2), **keywords)


@pytest.mark.parametrize("measure", [centroid_distance, hausdorff_distance_95])
@given(seed=st.integers(0, 200), scale=st.floats(0.01, 100))
@settings(max_examples=10)
def test_distances_scale_with_the_voxel(measure, seed, scale):
    generated, training = structured_label_maps(seed, (2, 6, 7, 5))

    scaled = measure(generated, training, spacing_mm=(scale, 2 * scale, 0.5 * scale))

    value = measure(generated, training, spacing_mm=(1.0, 2.0, 0.5))
    torch.testing.assert_close(scaled, scale * value, atol=1e-6 * scale, rtol=1e-5)
    assert (value >= 0).all()


@pytest.mark.parametrize("measure", [centroid_distance, hausdorff_distance_95])
def test_each_axis_has_its_own_spacing(measure):
    generated, training = zeros(1, 7, 7, 7), zeros(1, 7, 7, 7)
    generated[0, 1, 1, 1], training[0, 2, 3, 4] = 1, 1

    value = measure(generated, training, spacing_mm=(4.0, 1.0, 0.5))

    assert value.item() == pytest.approx(math.sqrt(4**2 + 2**2 + 1.5**2))
