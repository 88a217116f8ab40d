import pytest
import torch
from monai.data import MetaTensor

from relict_lightning.errors import SamplerError
from relict_lightning.interfaces import Sampler
from relict_lightning.samplers import FunctionSampler, MethodSampler, check_samples, chunk_seeds, draw, resolve_sampler


class SeededNoise(Sampler):
    """Returns noise that its seed decides."""

    def sample(self, module, n, *, seed):
        return torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


class Fixed(Sampler):
    """Returns what it was given."""

    def __init__(self, images):
        self.images = images

    def sample(self, module, n, *, seed):
        return self.images


def _nothing(_):
    return None


def _draw(sampler, seeds, *, chunk_size=2, before_chunk=_nothing, after_chunk=_nothing):
    return draw(
        sampler,
        None,
        seeds=seeds,
        chunk_size=chunk_size,
        image_shape=(1, 4, 4),
        before_chunk=before_chunk,
        after_chunk=after_chunk,
    )


def test_a_sampler_is_taken_as_it_is():
    sampler = SeededNoise()

    assert resolve_sampler(sampler) is sampler


def test_nothing_means_the_method_sample_and_a_name_another_method():
    default, named = resolve_sampler(None), resolve_sampler("generate")

    assert isinstance(default, MethodSampler)
    assert isinstance(named, MethodSampler)
    assert (default.method, named.method) == ("sample", "generate")


def test_a_function_becomes_a_sampler():
    assert isinstance(resolve_sampler(lambda module, n: torch.zeros(n, 1, 4, 4)), FunctionSampler)


@pytest.mark.parametrize(("num_samples", "chunk_size", "chunks"), [(1, 8, 1), (8, 8, 1), (9, 8, 2), (64, 8, 8)])
def test_there_are_as_many_seeds_as_chunks(num_samples, chunk_size, chunks):
    seeds = chunk_seeds(num_samples=num_samples, chunk_size=chunk_size, seed=0, evaluation=1)

    assert len(seeds) == len(set(seeds)) == chunks


def test_seeds_differ_between_runs_evaluations_and_chunks():
    seeds = [
        seed
        for run in range(5)
        for evaluation in range(5)
        for seed in chunk_seeds(num_samples=64, chunk_size=8, seed=run, evaluation=evaluation)
    ]

    assert len(set(seeds)) == 5 * 5 * 8


def test_more_samples_go_on_with_the_same_chunks():
    few, many = (chunk_seeds(num_samples=n, chunk_size=8, seed=3, evaluation=2) for n in (24, 64))

    assert many[:3] == few


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_any_number_of_processes_draws_the_same_samples(processes):
    seeds = chunk_seeds(num_samples=12, chunk_size=2, seed=0, evaluation=1)
    alone = _draw(SeededNoise(), seeds)

    shares = [_draw(SeededNoise(), seeds[rank::processes]) for rank in range(processes)]

    chunks = [share.split(2) for share in shares]
    together = torch.cat([chunks[position % processes][position // processes] for position in range(len(seeds))])
    assert torch.equal(together, alone)


def test_every_chunk_is_announced_before_and_counted_after():
    calls = []

    _draw(SeededNoise(), [5, 7], before_chunk=lambda s: calls.append(("seed", s)), after_chunk=calls.append)

    assert calls == [("seed", 5), 2, ("seed", 7), 2]


def test_samples_are_float32_plain_and_out_of_the_graph():
    weight = torch.ones((), requires_grad=True)

    samples = _draw(Fixed(weight * MetaTensor(torch.ones(2, 1, 4, 4, dtype=torch.bfloat16))), [0])

    assert type(samples) is torch.Tensor
    assert samples.dtype == torch.float32
    assert not samples.requires_grad


def test_file_names_of_monai_tensors_are_left_behind():
    images = MetaTensor(torch.ones(2, 1, 4, 4), meta={"filename_or_obj": "/patients/anna.nii.gz"})

    plain = check_samples(images, count=2, image_shape=(1, 4, 4))

    assert type(plain) is torch.Tensor
    assert not hasattr(plain, "meta")


def test_a_process_without_chunks_draws_nothing():
    assert _draw(SeededNoise(), []).shape == (0, 1, 4, 4)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            (torch.zeros(2, 1, 4, 4), 1),
            r"must return a tensor of shape \(2, 1, 4, 4\); got tuple\. .*`\.images` of a pipeline's output",
        ),
        (torch.zeros(2, 1, 4, 4).numpy(), r"must return a tensor of shape \(2, 1, 4, 4\); got ndarray"),
        (None, r"got NoneType"),
        (torch.zeros(3, 1, 4, 4), r"asked for 2 images and returned 3\. .*would falsify the rate"),
        (torch.zeros(0, 1, 4, 4), r"asked for 2 images and returned 0"),
        (torch.zeros(2, 4, 4, 1), r"images of shape \(2, 1, 4, 4\), .* got \(2, 4, 4, 1\)\. .*put channels first"),
        (torch.zeros(2, 4, 4), r"images of shape \(2, 1, 4, 4\), .* got \(2, 4, 4\)"),
        (torch.zeros(2, 1, 2, 2), r"got \(2, 1, 2, 2\)\. Decode latents"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), r"floating-point images .*; got torch\.uint8"),
        (torch.tensor([0.0, torch.nan]).repeat(8).reshape(1, 1, 4, 4).repeat(2, 1, 1, 1), r"in 2 of 2 images"),
        (torch.cat([torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), torch.inf)]), r"NaN or infinite .*1 of 2 images"),
    ],
    ids=["tuple", "array", "none", "many", "none of them", "last", "no channel", "latent", "uint8", "nan", "inf"],
)
def test_what_is_not_the_images_asked_for_is_refused_in_words(images, message):
    with pytest.raises(SamplerError, match=message):
        _draw(Fixed(images), [0])
