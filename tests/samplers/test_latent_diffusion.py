import pytest
import torch
from monai.networks.nets import VQVAE, AutoencoderKL, DiffusionModelUNet
from monai.networks.schedulers import DDIMScheduler
from torch import nn

from relict_lightning.errors import ConfigurationError, SamplerError
from relict_lightning.samplers import LatentDiffusionSampler


class LatentDiffusion(nn.Module):
    """A denoising network in the latents of an autoencoder, a quarter of the side."""

    def __init__(self) -> None:
        super().__init__()
        self.autoencoder = AutoencoderKL(
            spatial_dims=2, in_channels=1, out_channels=1, channels=(4, 4, 4), latent_channels=3, num_res_blocks=1,
            norm_num_groups=2, attention_levels=(False, False, False), with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
        )  # fmt: skip
        self.network = DiffusionModelUNet(
            spatial_dims=2, in_channels=3, out_channels=3, channels=(8,), attention_levels=(False,),
            num_res_blocks=1, norm_num_groups=4,
        )  # fmt: skip
        self.scheduler = DDIMScheduler(num_train_timesteps=30, clip_sample=False)
        self.register_buffer("scale", torch.tensor(0.5))


def _drawn(module, *, shape=(3, 4, 4), **options):
    sampler = LatentDiffusionSampler(list(shape), num_inference_steps=2, **options)
    with torch.no_grad():
        return sampler.sample_at(module.eval(), [0, 1], [5, 9], image_shape=(1, 16, 16))


def test_samples_are_decoded_latents():
    module = LatentDiffusion()
    latents = torch.stack([torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in (5, 9)])
    scheduler = module.scheduler
    with torch.no_grad():
        # The network's output is zero at first, so that only the scheduler acts.
        scheduler.set_timesteps(2)
        for time in scheduler.timesteps:
            latents, _ = scheduler.step(torch.zeros_like(latents), time, latents)
        expected = module.eval().autoencoder.decode(latents / 0.5)

    assert torch.allclose(_drawn(module, scale_factor=0.5), expected, atol=1e-5)
    assert torch.equal(_drawn(module, scale_factor="scale"), _drawn(module, scale_factor=0.5))
    assert not torch.allclose(_drawn(module), expected, atol=1e-3)


def test_a_sample_is_the_same_however_many_are_drawn_at_a_time(in_chunks):
    module = LatentDiffusion()
    sampler = LatentDiffusionSampler([3, 4, 4], num_inference_steps=2)

    one, three, eight = (in_chunks(sampler, module, chunk_size=size) for size in (1, 3, 8))

    assert one.shape == (6, 1, 16, 16)
    assert torch.allclose(one, three, atol=1e-5)
    assert torch.allclose(one, eight, atol=1e-5)


def test_padded_latents_are_cropped_before_they_are_decoded():
    module = LatentDiffusion()

    assert _drawn(module, shape=(3, 8, 8), autoencoder_latent_shape=[4, 4]).shape == (2, 1, 16, 16)


def test_a_quantizing_autoencoder_will_do():
    module = LatentDiffusion()
    module.autoencoder = VQVAE(
        spatial_dims=2, in_channels=1, out_channels=1, channels=(4, 4), num_res_channels=(4, 4), num_res_layers=1,
        downsample_parameters=((2, 4, 1, 1), (2, 4, 1, 1)), upsample_parameters=((2, 4, 1, 1, 0), (2, 4, 1, 1, 0)),
        num_embeddings=8, embedding_dim=3,
    )  # fmt: skip

    assert _drawn(module).shape == (2, 1, 16, 16)


def test_maisi_gets_its_spacing():
    maisi = pytest.importorskip("monai.apps.generation.maisi.networks.diffusion_model_unet_maisi")
    module = LatentDiffusion()
    module.network = maisi.DiffusionModelUNetMaisi(
        spatial_dims=2, in_channels=3, out_channels=3, num_channels=(8,), attention_levels=(False,), num_res_blocks=1,
        norm_num_groups=4, include_spacing_input=True,
    )  # fmt: skip
    for weight in module.network.parameters():
        if not weight.any():
            nn.init.normal_(weight)

    coarse, fine = (_drawn(module, network_arguments={"spacing_tensor": [mm, mm, mm]}) for mm in (9.0, 1.0))

    assert coarse.shape == (2, 1, 16, 16)
    assert not torch.allclose(coarse, fine)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (4, 4)}, r"as many axes as the training images \[1, 16, 16\]; got \[4, 4\]"),
        ({"shape": (4, 4, 4)}, r"'network' takes 3 channels; it would get noise of 4"),
        ({"autoencoder": "vae"}, r"LatentDiffusionSampler\(autoencoder=\.\.\.\) names .*'vae'"),
        ({"autoencoder": "network"}, r"decode_stage_2_outputs`; got a DiffusionModelUNet"),
        ({"scale_factor": "factor"}, r"LatentDiffusionSampler\(scale_factor=\.\.\.\) names .*'factor'"),
        ({"network": "unet"}, r"LatentDiffusionSampler\(network=\.\.\.\) names .*'unet'"),
    ],
)
def test_parts_that_do_not_fit_are_named(options, message):
    with pytest.raises(SamplerError, match=message):
        _drawn(LatentDiffusion(), **options)


def test_a_shape_without_sides_is_refused_at_once():
    with pytest.raises(ConfigurationError, match=r"latent_shape must be numbers of at least 1, got \[\]"):
        LatentDiffusionSampler([])
