import numpy as np
import pytest
import torch
from built_references import build

from relict_lightning.functional import affine_identity, shift, warp_affine
from relict_lightning.index import Entry, writing
from relict_lightning.population import (
    Population,
    describe_population,
    read_population,
    working_factors,
    write_population,
)
from relict_lightning.testing import simulate_heads


@pytest.fixture(scope="module")
def heads():
    return simulate_heads(40, shape=(48, 48), lesion_probability=0.0).images


@pytest.fixture(scope="module")
def population(heads):
    return describe_population(build(heads[:30]))


@pytest.mark.parametrize(
    ("spatial", "factors"),
    [
        ((64, 64), (1, 1)),
        ((256, 256), (2, 2)),
        ((48, 64, 64), (2, 2, 2)),
        ((256, 256, 256), (8, 8, 8)),
        ((2, 512, 512), (2, 3, 3)),
    ],
)
def test_the_working_grid_has_some_thirty_thousand_voxels_at_most(spatial, factors):
    assert working_factors(spatial) == factors


def test_gain_offset_bias_and_contrast_of_a_scanner_are_no_ones_own(population):
    mean = population.mean[None]
    place = torch.linspace(-1, 1, 48)
    scanned = 0.1 + mean * (1.3 + 0.2 * place) - 0.3 * mean.square()

    assert population.residual(scanned).abs().max() < 0.01


def test_a_lesion_stands_out_where_it_is_and_nowhere_else(population, heads):
    image = population.working(heads[35:36])
    image = warp_affine(image, population.place(image))
    with_lesion = image.clone()
    with_lesion[..., 20:25, 20:25] += 0.5

    change = population.residual(with_lesion) - population.residual(image)

    assert change[..., 20:25, 20:25].min() > 2
    assert change[..., :15, :].abs().mean() < 0.2
    assert change[..., 30:, :].abs().mean() < 0.2


def test_the_residuals_of_most_people_are_about_one(population, heads):
    images = torch.cat([warp_affine(one, population.place(one)) for one in heads[30:].split(1)])

    head = population.mean > 0.1
    size = population.residual(images)[:, head].abs().median(dim=1).values

    # The median absolute value of a normal variable is 0.67.
    assert (size > 0.3).all()
    assert (size < 1.5).all()


def test_people_who_lie_elsewhere_do_not_blur_the_mean(heads):
    one = heads[:1]
    steps = torch.randint(-2, 3, (20, 2), generator=torch.Generator().manual_seed(0))
    moved = shift(one.repeat(20, 1, 1, 1), steps)

    mean = describe_population(build(moved + 1e-4 * torch.arange(20).reshape(-1, 1, 1, 1))).mean

    def sharpness(image):
        return float((image[..., 1:] - image[..., :-1]).abs().mean())

    assert sharpness(mean) > 0.85 * sharpness(one)
    assert sharpness(moved.median(dim=0).values) < 0.8 * sharpness(one)


def test_one_odd_patient_does_not_change_what_is_usual(heads, population):
    odd = heads[:30].clone()
    odd[3, :, 10:30, 10:30] = 1.0

    other = describe_population(build(odd))

    assert (other.mean - population.mean).abs().max() < 0.15
    assert (other.mean - population.mean).abs().mean() < 0.005


def test_a_patient_with_many_scans_counts_once(heads):
    alone = describe_population(build(heads[:10]))
    scans = torch.cat([heads[:10], heads[:1].repeat(15, 1, 1, 1) + 1e-5 * torch.arange(15).reshape(-1, 1, 1, 1)])

    together = describe_population(build(scans, groups=[f"patient {n}" for n in range(10)] + ["patient 0"] * 15))

    torch.testing.assert_close(together.mean, alone.mean, atol=2e-3, rtol=0)


def test_a_residual_is_the_same_to_the_bit_in_every_batch(population, heads):
    images = population.working(heads[30:36])

    together = population.residual(images)

    assert torch.equal(population.residual(images[2:3]), together[2:3])
    assert torch.equal(population.residual(images[1:4]), together[1:4])
    assert population.residual(images[:0]).shape == (0, 1, 48, 48)


@pytest.mark.parametrize("value", [0.0, 0.2, 1.0])
def test_a_blank_image_has_nothing_of_its_own(population, value):
    assert not population.residual(torch.full((1, 1, 48, 48), value)).any()


def test_blank_training_images_have_a_population_too():
    images = torch.full((4, 1, 16, 16), 0.3) + 0.1 * torch.arange(4).reshape(-1, 1, 1, 1)

    population = describe_population(build(images))

    assert torch.isfinite(population.mean).all()
    assert (population.spread > 0).all()
    assert torch.isfinite(population.residual(torch.rand(2, 1, 16, 16))).all()
    assert torch.equal(population.place(population.mean[None]), affine_identity(1, 2))


def test_a_population_that_is_read_is_the_one_written(population, tmp_path):
    with writing(tmp_path / "entry", {}) as writer:
        write_population(population, writer, prefix="population_")

    read = read_population(Entry(tmp_path / "entry"), prefix="population_")

    assert isinstance(read, Population)
    assert read.factors == population.factors
    np.testing.assert_array_equal(read.mean, population.mean)
    np.testing.assert_array_equal(read.spread, population.spread)
