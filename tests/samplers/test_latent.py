import pytest
import torch
from monai.networks.nets import Generator, VarAutoEncoder
from torch import Tensor, nn

from relict_lightning.errors import ConfigurationError, SamplerError
from relict_lightning.samplers import LatentSampler


class Adversarial(nn.Module):
    """A generator of MONAI's, another that takes labels, and an autoencoder."""

    number = 3

    def __init__(self) -> None:
        super().__init__()
        self.generator = Generator(latent_shape=(6,), start_shape=(4, 8, 8), channels=(4, 1), strides=(2, 1))
        self.vae = VarAutoEncoder(
            spatial_dims=2, in_shape=(1, 16, 16), out_channels=1, latent_size=5, channels=(4,), strides=(2,)
        )
        self.labelled = Labelled()

    def decode(self, latents: Tensor) -> Tensor:
        return latents.mean(1).reshape(-1, 1, 1, 1).expand(-1, 1, 16, 16)


class Labelled(nn.Module):
    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        return labels.float().reshape(-1, 1, 1, 1).expand(-1, 1, 16, 16)


@pytest.mark.parametrize(("shape", "network"), [([6], "generator"), ([5], "vae.decode_forward"), ([3], "decode")])
def test_a_sample_is_the_same_however_many_are_drawn_at_a_time(in_chunks, shape, network):
    module = Adversarial()
    sampler = LatentSampler(shape, network)

    one, three, eight = (in_chunks(sampler, module, chunk_size=size) for size in (1, 3, 8))

    assert len({image.sum().item() for image in one}) == 6
    assert torch.allclose(one, three, atol=1e-5)
    assert torch.allclose(one, eight, atol=1e-5)


def test_latents_are_standard_normal():
    latents = torch.stack([torch.randn(3, generator=torch.Generator().manual_seed(seed)) for seed in (5, 9)])

    images = LatentSampler([3], "decode").sample_at(Adversarial(), [0, 1], [5, 9])

    assert torch.equal(images[:, 0, 0, 0], latents.mean(1))


def test_conditions_have_the_name_that_the_network_gives_them():
    sampler = LatentSampler([3], "labelled", conditions=[7, 8], condition_name="labels")

    assert sampler.sample_at(Adversarial(), range(3), [0, 1, 2])[:, 0, 0, 0].tolist() == [7, 8, 7]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (
            ([6], "decoder"),
            {},
            r"LatentSampler\(network=\.\.\.\) names .*'decoder'.*: generator, vae, labelled",
        ),
        (([6], "number"), {}, r"network='number'\) must name a network or a method; got a int"),
        (([7], "generator"), {}, r"called 'generator' on latents \(1, 7\), which failed\. RuntimeError"),
        (([3], "labelled"), {"conditions": [7]}, r"takes no parameter 'condition' or 'conditions'"),
    ],
)
def test_what_does_not_fit_is_named(arguments, options, message):
    with pytest.raises(SamplerError, match=message):
        LatentSampler(*arguments, **options).sample(Adversarial(), 1, seed=0)


def test_a_network_that_returns_more_than_images_is_refused(in_chunks):
    module = Adversarial()
    module.pair = lambda latents: (latents, latents)

    with pytest.raises(SamplerError, match=r"must return a tensor of shape .*; got tuple"):
        in_chunks(LatentSampler([3], "pair"), module, chunk_size=2)


def test_memory_that_runs_out_stays_an_error_of_memory():
    class Greedy(nn.Module):
        def generator(self, latents: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        LatentSampler([3]).sample(Greedy(), 1, seed=0)


def test_a_shape_of_nothing_is_refused_at_once():
    with pytest.raises(ConfigurationError, match=r"latent_shape must be numbers of at least 1, got \[0\]"):
        LatentSampler([0])
