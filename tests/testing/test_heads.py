import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from relict_lightning.errors import ConfigurationError, MissingDependencyError
from relict_lightning.testing import LABELS, simulate_heads
from relict_lightning.testing.template import load_template


@pytest.fixture(scope="module")
def population():
    return simulate_heads(60)


def _nearest_correlation(images: Tensor) -> Tensor:
    correlation = torch.corrcoef(images.flatten(1))
    return correlation.fill_diagonal_(-1).max(1).values


@settings(max_examples=15)
@given(first=st.integers(0, 59), count=st.integers(1, 70))
def test_a_subject_is_the_same_in_whatever_count_it_is_made(population, first, count):
    count = min(count, 60 - first)

    part = simulate_heads(count, first_subject=first)

    assert torch.equal(part.images, population.images[first : first + count])
    assert torch.equal(part.labels, population.labels[first : first + count])
    assert part.ids == population.ids[first : first + count]


def test_a_subject_is_the_same_on_one_thread(population):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = simulate_heads(2, first_subject=3)
    finally:
        torch.set_num_threads(threads)

    assert torch.equal(alone.images, population.images[3:5])


def test_a_volume_is_the_same_alone_and_in_a_batch():
    together = simulate_heads(3, shape=(24, 24, 24))
    alone = simulate_heads(1, first_subject=2, shape=(24, 24, 24))

    assert together.images.shape == (3, 1, 24, 24, 24)
    assert together.labels.shape == (3, 24, 24, 24)
    assert torch.equal(together.images[2:], alone.images)


def test_another_seed_gives_other_people():
    assert not torch.equal(simulate_heads(1, seed=0).images, simulate_heads(1, seed=1).images)


def test_global_random_state_is_left_alone():
    before = torch.get_rng_state()

    simulate_heads(2)

    assert torch.equal(torch.get_rng_state(), before)


def test_images_lie_in_the_unit_interval_and_use_it(population):
    assert population.images.dtype == torch.float32
    assert population.images.min() == 0
    assert population.images.amax((1, 2, 3)).min() > 0.7
    assert population.images.max() <= 1


def test_labels_are_positions_in_the_list_of_labels(population):
    assert population.labels.dtype == torch.uint8
    assert set(population.labels.unique().tolist()) == set(range(len(LABELS)))


def test_tissues_are_as_bright_as_on_a_t1_weighted_image(population):
    images, labels = population.images[:, 0], population.labels
    darker = [
        image[label == lower].mean() < image[label == upper].mean()
        for image, label in zip(images, labels, strict=True)
        for lower, upper in ((0, 1), (1, 2), (2, 3))
    ]

    assert all(darker)


def test_labels_lie_on_their_image_and_not_on_its_mirror(population):
    images, labels = population.images[:, 0], population.labels

    def edge(label: Tensor) -> Tensor:
        return torch.stack([image[part].mean() for image, part in zip(images, label == 3, strict=True)])

    assert (edge(labels) > edge(labels.flip(-1))).all()


def test_anterior_comes_first_and_the_head_fits(population):
    head = population.labels > 0
    border = torch.cat([head[:, 0], head[:, -1], head[:, :, 0], head[:, :, -1]], dim=1)

    assert border.float().mean() < 0.01
    assert 0.25 < head.float().mean() < 0.6
    assert population.spacing_mm == pytest.approx(204 / 64)


def test_no_lesion_is_made_at_probability_zero_and_every_one_at_probability_one():
    none = simulate_heads(12, lesion_probability=0.0)
    every = simulate_heads(12, lesion_probability=1.0)

    assert not (none.labels == 4).any()
    assert (every.labels == 4).flatten(1).any(1).all()


def test_a_lesion_changes_the_image_where_it_is_labelled_and_not_far_away():
    without = simulate_heads(12, lesion_probability=0.0)
    lesioned = simulate_heads(12, lesion_probability=1.0)
    change = (without.images - lesioned.images)[:, 0].abs()
    lesion = lesioned.labels == 4
    near = torch.nn.functional.max_pool2d(lesion.float()[:, None], 9, stride=1, padding=4)[:, 0] > 0

    assert change[lesion].mean() > 0.1
    assert change[~near].mean() < 1e-3


def test_subjects_are_alike_as_heads_and_distinct_as_people(population):
    nearest = _nearest_correlation(population.images)

    assert nearest.min() > 0.8
    assert nearest.median() < 0.95
    assert nearest.max() < 0.97


def test_zero_subjects_are_an_empty_set():
    empty = simulate_heads(0)

    assert empty.images.shape == (0, 1, 64, 64)
    assert empty.ids == ()


def test_noise_is_confined_to_the_head():
    clean, noisy = simulate_heads(4, noise=0.0), simulate_heads(4, noise=0.05)
    change = noisy.images - clean.images

    assert change[:, 0][clean.labels == 0].abs().mean() < 0.005
    assert change[:, 0][clean.labels == 2].std() == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": -1}, "count=-1"),
        ({"count": 1, "seed": -2}, "seed=-2"),
        ({"count": 1, "first_subject": -3}, "first_subject=-3"),
        ({"count": 1, "shape": (64,)}, r"shape=\(64,\)"),
        ({"count": 1, "shape": (64, 8)}, r"shape=\(64, 8\)"),
        ({"count": 1, "lesion_probability": 1.5}, "got 1.5"),
        ({"count": 1, "noise": float("nan")}, "got nan"),
    ],
)
def test_simulate_heads_names_the_argument_that_is_out_of_range(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        simulate_heads(**arguments)


def test_without_nilearn_the_message_says_what_to_install(monkeypatch):
    load_template.cache_clear()
    monkeypatch.setitem(sys.modules, "nilearn", None)
    monkeypatch.setitem(sys.modules, "nilearn.datasets", None)

    with pytest.raises(MissingDependencyError, match=r'pip install "relict-lightning\[examples\]"'):
        simulate_heads(1)
