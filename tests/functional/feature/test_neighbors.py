import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relict_lightning.errors import ConfigurationError
from relict_lightning.functional import calibrated_neighbor_ratio, copy_likeness, neighbor_ratio

INF = float("inf")


def random_neighbors(seed: int, *, n: int = 6, k: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    distances = (torch.rand(n, k, generator=generator) + 0.01).sort(dim=1).values
    return distances, torch.randint(0, 4, (n, k), generator=generator)


def copy_likeness_in_a_loop(distances: torch.Tensor, groups: torch.Tensor) -> list[float]:
    values = []
    for row, row_groups in zip(distances.tolist(), groups.tolist(), strict=True):
        others = sorted(d for d, g in zip(row, row_groups, strict=True) if g != row_groups[0])[:5]
        values.append(1 - row[0] / np.mean(others) if others else np.nan)
    return values


def test_the_neighbor_ratio_skips_other_scans_of_the_first_patient():
    distances, groups = torch.tensor([[1.0, 1.1, 4.0]]), torch.tensor([[7, 7, 3]])

    assert neighbor_ratio(distances, groups).item() == 0.25
    assert neighbor_ratio(distances, torch.tensor([[7, 3, 3]])).item() == pytest.approx(1 / 1.1)


@given(seed=st.integers(0, 1000))
@settings(max_examples=30)
def test_neighbor_measures_agree_with_a_loop(seed):
    distances, groups = random_neighbors(seed)

    expected = []
    for row, row_groups in zip(distances.tolist(), groups.tolist(), strict=True):
        others = [d for d, g in zip(row, row_groups, strict=True) if g != row_groups[0]]
        expected.append(row[0] / others[0] if others else np.nan)

    np.testing.assert_allclose(neighbor_ratio(distances, groups), expected, rtol=1e-5)
    np.testing.assert_allclose(
        copy_likeness(distances, groups), copy_likeness_in_a_loop(distances, groups), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("measure", [neighbor_ratio, copy_likeness])
@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 1000))
@settings(max_examples=25)
def test_neighbor_measures_are_scale_free_and_bounded(measure, scale, seed):
    distances, groups = random_neighbors(seed)

    value = measure(distances, groups)

    torch.testing.assert_close(measure(distances * scale, groups), value, equal_nan=True, atol=1e-5, rtol=1e-5)
    assert (value.isnan() | ((value >= 0) & (value <= 1))).all()


@pytest.mark.parametrize("measure", [neighbor_ratio, copy_likeness, calibrated_neighbor_ratio])
def test_a_missing_neighbor_changes_nothing(measure):
    distances, groups = random_neighbors(3)
    padded_distances = torch.cat([distances, torch.full((6, 2), INF)], dim=1)
    padded_groups = torch.cat([groups, torch.full((6, 2), -1)], dim=1)

    torch.testing.assert_close(measure(padded_distances, padded_groups), measure(distances, groups), equal_nan=True)


@pytest.mark.parametrize("measure", [neighbor_ratio, copy_likeness, calibrated_neighbor_ratio])
@pytest.mark.parametrize("distances", [torch.tensor([[0.5, 0.6]]), torch.tensor([[0.5, INF]]), torch.tensor([[0.5]])])
def test_neighbor_measures_are_nan_without_another_group(measure, distances):
    assert measure(distances, torch.zeros(distances.shape, dtype=torch.long)).isnan().all()


def test_an_exact_copy_has_ratio_0_and_likeness_1():
    distances, groups = torch.tensor([[0.0, 2.0, 3.0]]), torch.tensor([[0, 1, 2]])

    assert neighbor_ratio(distances, groups).item() == 0
    assert copy_likeness(distances, groups).item() == 1


def test_a_sample_that_lies_on_two_patients_at_once_stands_out_from_neither():
    distances, groups = torch.zeros(1, 3), torch.tensor([[0, 1, 2]])

    assert neighbor_ratio(distances, groups).item() == 1
    assert copy_likeness(distances, groups).item() == 0


def test_copy_likeness_uses_the_five_nearest_of_other_groups():
    distances = torch.tensor([[1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 2.0, 100.0]])
    groups = torch.tensor([[0, 0, 1, 2, 3, 4, 5, 6]])

    assert copy_likeness(distances, groups).item() == 0.5


def test_copy_likeness_is_negative_where_the_neighbor_in_question_is_the_farther():
    distances, groups = torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([[0, 1, 2]])

    assert copy_likeness(distances, groups).item() == -1


@pytest.mark.parametrize(
    ("distances", "message"),
    [
        (torch.tensor([[2.0, 1.0]]), "1 of 1 rows"),
        (torch.tensor([[-1.0, 1.0]]), "smallest is -1"),
        (torch.tensor([[torch.nan, 1.0]]), "1 of 2 values are NaN"),
        (torch.tensor([[INF, INF]]), "infinite first distance"),
    ],
)
def test_distances_that_make_no_sense_are_refused(distances, message):
    with pytest.raises(ConfigurationError, match=message):
        neighbor_ratio(distances, torch.tensor([[0, 1]]))


def test_distances_without_their_groups_are_refused():
    with pytest.raises(ConfigurationError, match=r"\(1, 2\) and \(1, 3\)"):
        inspect.unwrap(copy_likeness)(torch.ones(1, 2), torch.zeros(1, 3, dtype=torch.long))


def test_the_calibrated_ratio_of_worked_distances():
    distances, groups = torch.tensor([[1.0, 1.1, 3.0, 5.0]]), torch.tensor([[7, 7, 3, 4]])

    # The other scan of patient 7 does not count: 1 / (0.5 * 4).
    assert calibrated_neighbor_ratio(distances, groups).item() == pytest.approx(0.5)
    assert calibrated_neighbor_ratio(distances, groups, alpha=1.0).item() == pytest.approx(0.25)
    assert calibrated_neighbor_ratio(distances, groups, num_neighbors=1).item() == pytest.approx(1 / 1.5)
    of_reference = torch.tensor([[2.0, INF, 6.0, 10.0]])
    around_reference = calibrated_neighbor_ratio(
        distances, groups, centre="reference", reference_distances=of_reference, num_neighbors=2
    )
    assert around_reference.item() == pytest.approx(1 / (0.5 * 4))


@given(seed=st.integers(0, 1000), num_neighbors=st.integers(1, 8), alpha=st.floats(0.1, 2))
@settings(max_examples=30)
def test_the_calibrated_ratio_agrees_with_a_loop_in_both_readings(seed, num_neighbors, alpha):
    distances, groups = random_neighbors(seed)
    reference = torch.rand(6, 5, generator=torch.Generator().manual_seed(seed))
    around_sample, around_reference = [], []
    for row, row_groups, other in zip(distances.tolist(), groups.tolist(), reference.tolist(), strict=True):
        others = sorted(d for d, g in zip(row, row_groups, strict=True) if g != row_groups[0])[:num_neighbors]
        around_sample.append(row[0] / (alpha * np.mean(others)) if others else np.nan)
        around_reference.append(row[0] / (alpha * np.mean(sorted(other)[:num_neighbors])))
    options = {"num_neighbors": num_neighbors, "alpha": alpha}

    sample = calibrated_neighbor_ratio(distances, groups, **options)
    of_reference = calibrated_neighbor_ratio(
        distances, groups, centre="reference", reference_distances=reference, **options
    )

    np.testing.assert_allclose(sample, around_sample, rtol=1e-5)
    np.testing.assert_allclose(of_reference, around_reference, rtol=1e-5)


@given(seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e3))
@settings(max_examples=25)
def test_the_calibrated_ratio_is_scale_free_and_the_complement_of_the_likeness(seed, scale):
    distances, groups = random_neighbors(seed)

    value = calibrated_neighbor_ratio(distances * scale, groups, num_neighbors=5, alpha=1.0)

    torch.testing.assert_close(1 - value, copy_likeness(distances, groups), equal_nan=True, atol=1e-5, rtol=1e-5)


def test_the_readings_differ_on_a_patient_without_look_alikes():
    # Unrelated samples lie between all patients, also next to the one that has no look-alikes.
    training = torch.tensor([[0.0], [0.1], [0.2], [0.3], [3.0]])
    sample = torch.tensor([[2.4]])
    distances, order = torch.cdist(sample, training).sort(dim=1)
    of_reference = (training - training[4]).abs()[:4].T

    around_sample = calibrated_neighbor_ratio(distances, order)
    around_reference = calibrated_neighbor_ratio(distances, order, centre="reference", reference_distances=of_reference)

    assert around_reference < around_sample < 1


def test_the_calibrated_ratio_of_distances_of_0():
    on_one, on_all = torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, 0.0]])
    groups = torch.tensor([[0, 1]])

    assert calibrated_neighbor_ratio(on_one, groups).item() == 0
    assert calibrated_neighbor_ratio(on_all, groups).item() == 2
    off_all = calibrated_neighbor_ratio(
        torch.tensor([[1.0, 2.0]]), groups, centre="reference", reference_distances=torch.zeros(1, 3)
    )
    assert off_all.item() == INF


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_neighbors": 0}, "num_neighbors=0"),
        ({"alpha": 0.0}, r"alpha=0\.0"),
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"centre": "patient"}, "centre='patient'"),
        ({"centre": "reference"}, "reference_distances are missing"),
        ({"reference_distances": torch.ones(2, 3)}, "reference_distances are given"),
        ({"centre": "reference", "reference_distances": torch.ones(3, 3)}, r"\[2, r\].*\(3, 3\)"),
        ({"centre": "reference", "reference_distances": -torch.ones(2, 3)}, "smallest is -1"),
        ({"centre": "reference", "reference_distances": torch.full((2, 3), torch.nan)}, "6 of 6 values are NaN"),
    ],
)
def test_the_calibrated_ratio_names_what_it_refuses(options, message):
    distances, groups = torch.ones(2, 3), torch.arange(6).reshape(2, 3)

    with pytest.raises(ConfigurationError, match=message):
        inspect.unwrap(calibrated_neighbor_ratio)(distances, groups, **options)


@pytest.mark.parametrize("measure", [neighbor_ratio, copy_likeness, calibrated_neighbor_ratio])
@given(order=st.permutations(range(6)), seed=st.integers(0, 100), names=st.permutations(range(4)))
@settings(max_examples=15)
def test_neighbor_measures_look_at_each_sample_alone_and_not_at_the_names_of_patients(measure, order, seed, names):
    distances, groups = random_neighbors(seed)

    together = measure(distances, groups)

    alone = torch.cat([measure(distances[i : i + 1], torch.tensor(names)[groups[i : i + 1]]) for i in order])
    torch.testing.assert_close(together[list(order)], alone, equal_nan=True)


@pytest.mark.parametrize("measure", [neighbor_ratio, copy_likeness, calibrated_neighbor_ratio])
def test_no_samples_have_no_neighbor_measures(measure):
    assert measure(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.long)).shape == (0,)
