import torch

from relict_lightning.samplers import sample_seeds, seeded_noise


def test_there_is_a_seed_for_each_sample():
    seeds = sample_seeds(num_samples=64, seed=0, evaluation=1)

    assert len(seeds) == len(set(seeds)) == 64


def test_seeds_differ_between_runs_evaluations_and_samples():
    seeds = [
        seed
        for run in range(5)
        for evaluation in range(5)
        for seed in sample_seeds(num_samples=16, seed=run, evaluation=evaluation)
    ]

    assert len(set(seeds)) == 5 * 5 * 16


def test_more_samples_go_on_with_the_same_seeds():
    few, many = (sample_seeds(num_samples=n, seed=3, evaluation=2) for n in (24, 64))

    assert many[:24] == few


def test_every_library_takes_the_seeds():
    assert all(0 <= seed < 2**32 for seed in sample_seeds(num_samples=100, seed=2**40, evaluation=2**33))


def test_noise_belongs_to_its_seed_whatever_lies_beside_it():
    noise = seeded_noise([5, 6, 7], (2, 3))

    assert torch.equal(noise[1:2], seeded_noise([6], (2, 3)))
    assert torch.equal(noise[2], torch.randn(2, 3, generator=torch.Generator().manual_seed(7)))
    assert not torch.equal(noise[0], noise[1])


def test_noise_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()

    seeded_noise([5, 6, 7], (2, 3))

    assert torch.equal(torch.get_rng_state(), before)


def test_noise_has_the_type_that_is_asked_for():
    assert seeded_noise([5], (2,), dtype=torch.bfloat16).dtype == torch.bfloat16
