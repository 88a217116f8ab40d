import pytest
import torch
from monai.data import MetaTensor

from relict_lightning.errors import SamplerError
from relict_lightning.interfaces import Sampler
from relict_lightning.samplers import (
    FunctionSampler,
    MethodSampler,
    PredictStepSampler,
    check_label_maps,
    check_samples,
    draw_chunk,
    resolve_sampler,
)


class SeededNoise(Sampler):
    """Returns noise that its seed decides; knows nothing of positions."""

    def sample(self, module, n, *, seed):
        return torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


class Fixed(Sampler):
    """Returns what it was given."""

    def __init__(self, images):
        self.images = images

    def sample(self, module, n, *, seed):
        return self.images


def _draw(sampler, *, positions=range(2), seeds=(7, 8)):
    return draw_chunk(sampler, None, positions=positions, seeds=list(seeds), image_shape=(1, 4, 4))


def test_a_sampler_is_taken_as_it_is():
    sampler = SeededNoise()

    assert resolve_sampler(sampler) is sampler


def test_nothing_means_the_method_sample_and_a_name_another_method():
    default, named = resolve_sampler(None), resolve_sampler("generate")

    assert isinstance(default, MethodSampler)
    assert isinstance(named, MethodSampler)
    assert (default.method, named.method) == ("sample", "generate")


def test_predict_step_is_called_as_the_trainer_calls_it():
    assert isinstance(resolve_sampler("predict_step"), PredictStepSampler)


def test_a_function_becomes_a_sampler():
    assert isinstance(resolve_sampler(lambda module, n: torch.zeros(n, 1, 4, 4)), FunctionSampler)


def test_a_sampler_that_knows_no_positions_gets_the_seed_of_the_first():
    assert torch.equal(_draw(SeededNoise()), SeededNoise().sample(None, 2, seed=7))


def test_a_sampler_that_knows_no_positions_has_no_label_maps():
    assert SeededNoise().label_maps_at(None, range(3)) is None


def test_samples_are_float32_plain_and_out_of_the_graph():
    weight = torch.ones((), requires_grad=True)

    samples = _draw(Fixed(weight * MetaTensor(torch.ones(2, 1, 4, 4, dtype=torch.bfloat16))))

    assert type(samples) is torch.Tensor
    assert samples.dtype == torch.float32
    assert not samples.requires_grad


def test_file_names_of_monai_tensors_are_left_behind():
    images = MetaTensor(torch.ones(2, 1, 4, 4), meta={"filename_or_obj": "/patients/anna.nii.gz"})

    plain = check_samples(images, count=2, image_shape=(1, 4, 4))

    assert type(plain) is torch.Tensor
    assert not hasattr(plain, "meta")


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
    sampler = MethodSampler()
    sampler.sample_at = lambda *_, **__: images

    with pytest.raises(SamplerError, match=message):
        _draw(sampler)


@pytest.mark.parametrize("given", [torch.ones(2, 4, 4), torch.ones(2, 1, 4, 4), torch.ones(2, 4, 4, dtype=torch.uint8)])
def test_label_maps_are_whole_numbers_without_channels(given):
    label_maps = check_label_maps(given, count=2, image_shape=(1, 4, 4))

    assert torch.equal(label_maps, torch.ones(2, 4, 4, dtype=torch.long))


def test_one_hot_label_maps_become_labels():
    labels = torch.arange(16).reshape(1, 4, 4) % 3
    one_hot = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).float()

    assert torch.equal(check_label_maps(one_hot, count=1, image_shape=(1, 4, 4)), labels)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(2), r"must have the shape \(2, 4, 4\), or one axis of channels more; got \(2,\)"),
        (torch.zeros(2, 8, 8), r"got \(2, 8, 8\)\. Give conditions on the samples' grid"),
        (torch.zeros(3, 4, 4), r"got \(3, 4, 4\)"),
        ([1, 2], "got list"),
        (torch.full((2, 4, 4), 0.5), r"whole numbers of at least 0, .*got torch\.float32"),
        (torch.full((2, 4, 4), -1), r"whole numbers of at least 0"),
        (torch.zeros(2, 1, 1, 4, 4), r"of shape \(2, 1, 1, 4, 4\)"),
        (torch.zeros(2, 3, 4, 4), r"3 channels must be one-hot, with a channel for the background"),
        (torch.full((2, 2, 4, 4), 0.5), r"2 channels must be one-hot"),
    ],
)
def test_what_are_no_label_maps_of_the_samples_is_refused_in_words(given, message):
    with pytest.raises(SamplerError, match=message):
        check_label_maps(given, count=2, image_shape=(1, 4, 4))
