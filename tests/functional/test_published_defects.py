"""Published rules that mislead, each beside what this package does instead. The rule at fault runs in its test."""

import math

import pytest
import torch
from scipy import stats

from relict_lightning.functional import (
    authenticity,
    clopper_pearson_interval,
    conformal_p_value,
    frechet_distance,
    memorization_distance,
    memorization_informed_frechet_distance,
    nearest_training_distances,
    neighbor_ratio,
    neighbor_ratio_fraction,
)
from relict_lightning.results import AuthenticityEstimate


def largest_similarities(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    return -torch.cdist(images, others).amin(dim=-1)


def test_the_percentile_of_training_to_validation_similarity_calls_fresh_samples_copies():
    # A copy is what lies nearer to training than 95 % of the training images lie to validation. But a sample has 120
    # training images to be near to, and a training image only 50 validation images.
    generator = torch.Generator().manual_seed(0)
    repeats, level = 1000, 0.05
    training, validation, fresh = (torch.randn(repeats, size, 8, generator=generator) for size in (120, 50, 1))
    scores = largest_similarities(fresh, training)[:, 0]

    thresholds = torch.quantile(largest_similarities(training, validation), 1 - level, dim=1)
    called_by_percentile = int((scores >= thresholds).sum())
    controls = largest_similarities(validation, training)
    pairs = zip(scores[:, None], controls, strict=True)
    p_values = torch.cat([conformal_p_value(score, control) for score, control in pairs])
    called_by_p_value = int((p_values <= level).sum())

    # Every repeat has data of its own, so calls are binomial.
    assert called_by_percentile > stats.binom.ppf(0.999, repeats, level)
    assert stats.binom.ppf(0.001, repeats, 0.10) <= called_by_percentile <= stats.binom.ppf(0.999, repeats, 0.14)
    assert called_by_p_value <= stats.binom.ppf(0.999, repeats, level)


def test_f_mem_finds_no_copy_of_patients_who_were_scanned_twice_unless_scans_are_grouped():
    generator = torch.Generator().manual_seed(0)
    patients = torch.randn(100, 16, generator=generator)
    # Two scans of a patient differ as much as a copy differs from either.
    scans = patients.repeat(2, 1) + 0.05 * torch.randn(200, 16, generator=generator)
    groups = torch.arange(100).repeat(2)
    copies = patients[:50] + 0.05 * torch.randn(50, 16, generator=generator)
    fresh = torch.randn(50, 16, generator=generator)

    def neighbors(samples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        distances, positions = torch.cdist(samples, scans).topk(5, largest=False)
        return distances, groups[positions]

    distances, _ = neighbors(copies)
    ungrouped = (distances[:, 0] / distances[:, 1] < 1 / 3).double().mean()

    assert ungrouped == 0
    assert neighbor_ratio_fraction(neighbor_ratio(*neighbors(copies))) == 1
    assert neighbor_ratio_fraction(neighbor_ratio(*neighbors(fresh))) == 0


def test_mifid_averaged_over_training_images_does_not_punish_copies_of_a_few_of_them():
    generator = torch.Generator().manual_seed(0)
    training = torch.randn(1000, 32, generator=generator)
    copies = training[:10].repeat(20, 1)
    heldout = torch.randn(200, 32, generator=generator)
    threshold = 0.1

    def averaged_over_training(generated: torch.Tensor) -> float:
        cosines = torch.nn.functional.normalize(generated) @ torch.nn.functional.normalize(training).T
        return float((1 - cosines.abs().amax(dim=0)).mean())

    # Only 1 % of the training images has a copy, so the mean over them hardly moves. That of the samples is 0.
    assert averaged_over_training(copies) > 3 * threshold
    assert memorization_distance(copies, training) == pytest.approx(0, abs=1e-12)
    assert memorization_distance(heldout, training) > 3 * threshold
    assert memorization_informed_frechet_distance(copies, training, threshold=threshold) > 1e10 * frechet_distance(
        copies, training
    )
    assert memorization_informed_frechet_distance(heldout, training, threshold=threshold) == frechet_distance(
        heldout, training
    )


def authenticity_of_fresh_draws(dimension: int, *, copies: int = 0) -> AuthenticityEstimate:
    generator = torch.Generator().manual_seed(0)
    training, fresh, heldout = (torch.randn(size, dimension, generator=generator) for size in (300, 400, 400))
    fresh[:copies] = training[:copies]
    distances, reference_distances = nearest_training_distances(fresh, training)
    heldout_distances, heldout_reference_distances = nearest_training_distances(heldout, training)
    return authenticity(
        distances,
        reference_distances,
        heldout_distances=heldout_distances,
        heldout_reference_distances=heldout_reference_distances,
        # Given the training set, draws are independent, so the exact interval misses the share once in a thousand.
        confidence=0.999,
    )


def test_authpct_of_fresh_draws_drifts_with_the_dimension_and_its_control_drifts_along():
    flat, deep = authenticity_of_fresh_draws(2), authenticity_of_fresh_draws(256)

    # Nothing is copied in either, and no threshold for the value suits both.
    assert flat.value.high < 0.5
    assert deep.value.low > 0.65
    for estimate in (flat, deep):
        assert estimate.value.low < estimate.control.value < estimate.value.high


def test_authpct_of_copies_in_many_dimensions_looks_better_than_that_of_fresh_draws_in_two_but_not_than_its_control():
    copied, fresh = authenticity_of_fresh_draws(256, copies=120), authenticity_of_fresh_draws(2)

    assert copied.value.low > fresh.value.high
    assert copied.value.high < copied.control.low


def test_the_normal_interval_of_no_hits_in_50_is_a_point_and_the_exact_one_is_not():
    hits, samples = 0, 50
    rate = hits / samples
    half_width = stats.norm.ppf(0.975) * math.sqrt(rate * (1 - rate) / samples)

    low, high = clopper_pearson_interval(hits, samples)

    assert (rate - half_width, rate + half_width) == (0, 0)
    assert (low, high) == (0, pytest.approx(0.0711, abs=1e-4))
    # At a true rate of 7 % the point is wrong, and no hits come up in one of forty looks.
    assert (1 - high) ** samples == pytest.approx(0.025)
