import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from monai.inferers import DiffusionInferer
from monai.networks.nets import DiffusionModelUNet, SPADEDiffusionModelUNet
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler, PNDMScheduler
from torch import Tensor, nn

from relict_lightning.errors import ConfigurationError, SamplerError
from relict_lightning.samplers import DiffusionSampler

schedulers = pytest.importorskip("monai.networks.schedulers")
_SMALL = {
    "spatial_dims": 2, "out_channels": 1, "channels": (8, 8), "attention_levels": (False, False),
    "num_res_blocks": 1, "norm_num_groups": 4,
}  # fmt: skip


def awaken(network: nn.Module) -> None:
    """Give weights to the layers that MONAI begins with zeros, so that all inputs count."""
    for weight in network.parameters():
        if weight.ndim > 1 and not weight.any():
            nn.init.normal_(weight, std=0.2)


class Diffusion(nn.Module):
    """A denoising network and its schedulers, as a LightningModule holds them."""

    number = 3

    def __init__(self, *, in_channels: int = 1, **options: Any) -> None:
        super().__init__()
        self.unet = DiffusionModelUNet(in_channels=in_channels, **{**_SMALL, **options})
        awaken(self.unet)
        self.scheduler = DDIMScheduler(num_train_timesteps=30, clip_sample=False)
        self.ddpm = DDPMScheduler(num_train_timesteps=3)


def _crossing() -> Diffusion:
    """A network that attends to tokens of 4 features."""
    return Diffusion(attention_levels=(False, True), num_head_channels=4, with_conditioning=True, cross_attention_dim=4)


def _rectified(**options: Any) -> nn.Module:
    if not hasattr(schedulers, "RFlowScheduler"):
        pytest.skip("this MONAI has no rectified flow")
    return schedulers.RFlowScheduler(num_train_timesteps=30, **options)


def test_samples_are_those_of_monais_inferer():
    module = Diffusion().eval()
    scheduler = copy.deepcopy(module.scheduler)
    scheduler.set_timesteps(3)
    noise = torch.stack([torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in (5, 9)])
    expected = DiffusionInferer(scheduler).sample(noise, module.unet, verbose=False)

    images = DiffusionSampler("unet", num_inference_steps=3).sample_at(module, [0, 1], [5, 9], image_shape=(1, 16, 16))

    assert images.shape == (2, 1, 16, 16)
    assert torch.equal(images, expected)
    assert not torch.allclose(images, noise)


@pytest.mark.parametrize(
    "scheduler", ["scheduler", "ddpm", PNDMScheduler(30, skip_prk_steps=True), "rectified", "resized"]
)
def test_a_sample_is_the_same_however_many_are_drawn_at_a_time(in_chunks, scheduler):
    if scheduler == "rectified":
        scheduler = _rectified()
    elif scheduler == "resized":
        scheduler = _rectified(use_timestep_transform=True, base_img_size_numel=64, spatial_dim=2)
    module = Diffusion()
    sampler = DiffusionSampler("unet", scheduler, num_inference_steps=None if scheduler == "ddpm" else 3)

    one, three, eight = (in_chunks(sampler, module, chunk_size=size) for size in (1, 3, 8))

    assert len({image.sum().item() for image in one}) == 6
    assert torch.allclose(one, three, atol=1e-5)
    assert torch.allclose(one, eight, atol=1e-5)


def test_noise_of_the_steps_belongs_to_the_sample_and_is_not_that_it_starts_from(in_chunks):
    module = Diffusion()
    nn.init.zeros_(module.unet.out[-1].conv.weight)
    module.ddpm = DDPMScheduler(num_train_timesteps=2, clip_sample=False)
    one = DiffusionSampler("unet", "ddpm")

    images = one.sample_at(module, range(2), [5, 9], image_shape=(1, 16, 16))

    start = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(5))
    added = images[0] - start * (images[0] * start).mean() / (start * start).mean()
    assert added.std() > 1e-3
    assert abs(torch.corrcoef(torch.stack([added.flatten(), images[1].flatten()]))[0, 1]) < 0.3


def test_the_scheduler_of_the_module_and_the_random_state_are_left_alone():
    module = Diffusion().eval()
    before, random_state = copy.deepcopy(module.scheduler.__dict__), torch.get_rng_state()

    for name in ("scheduler", "ddpm"):
        DiffusionSampler("unet", name, num_inference_steps=3, image_shape=[1, 16, 16]).sample(module, 2, seed=1)

    assert torch.equal(module.scheduler.timesteps, before["timesteps"])
    assert module.scheduler.num_inference_steps == before["num_inference_steps"]
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_given_shape_is_that_of_the_samples():
    sampler = DiffusionSampler("unet", num_inference_steps=2, image_shape=[1, 8, 8])

    assert sampler.sample_at(Diffusion(), [0], [1], image_shape=(1, 16, 16)).shape == (1, 1, 8, 8)


@pytest.mark.parametrize("conditions", [torch.eye(4)[:3], torch.eye(4)[:3, None]], ids=["embeddings", "tokens"])
def test_conditions_are_attended_to_and_cycled(in_chunks, conditions):
    module = _crossing()
    sampler = DiffusionSampler("unet", num_inference_steps=2, conditions=conditions)

    images = sampler.sample_at(module, range(4), [5, 5, 5, 5], image_shape=(1, 16, 16))

    assert torch.allclose(images[0], images[3], atol=1e-5)
    assert not torch.allclose(images[0], images[1], atol=1e-5)
    assert torch.allclose(in_chunks(sampler, module, chunk_size=1), in_chunks(sampler, module, chunk_size=4), atol=1e-5)


def test_guidance_strengthens_the_condition():
    module, sampled = _crossing(), {}
    if "cfg" not in inspect.signature(DiffusionInferer.sample).parameters:
        pytest.skip("this MONAI has no guidance")

    for cfg in (None, 1.0, 5.0):
        sampler = DiffusionSampler("unet", num_inference_steps=2, conditions=torch.eye(4), cfg=cfg)
        sampled[cfg] = sampler.sample_at(module, [0], [5], image_shape=(1, 16, 16))

    assert torch.allclose(sampled[None], sampled[1.0], atol=1e-5)
    assert not torch.allclose(sampled[None], sampled[5.0], atol=1e-5)


@pytest.mark.parametrize("with_channel", [True, False])
def test_masks_are_joined_as_channels_and_are_the_label_maps(with_channel):
    module = Diffusion(in_channels=2)
    module.masks = (torch.arange(3).reshape(3, 1, 1) == torch.arange(16)[None, :, None]).expand(3, 16, 16).long()
    if with_channel:
        module.masks = module.masks[:, None]
    sampler = DiffusionSampler(
        "unet", num_inference_steps=2, conditions="masks", mode="concat", conditions_are_label_maps=True
    )

    images = sampler.sample_at(module, range(4), [5, 5, 5, 5], image_shape=(1, 16, 16))

    assert torch.allclose(images[0], images[3], atol=1e-5)
    assert not torch.allclose(images[0], images[1], atol=1e-5)
    assert torch.equal(sampler.label_maps_at(module, range(4)), module.masks[[0, 1, 2, 0]])


def test_classes_are_whole_numbers():
    module = Diffusion(num_class_embeds=3)
    sampler = DiffusionSampler("unet", num_inference_steps=2, conditions=[0, 1, 2], mode="class_labels")

    images = sampler.sample_at(module, range(4), [5, 5, 5, 5], image_shape=(1, 16, 16))

    assert torch.allclose(images[0], images[3], atol=1e-5)
    assert not torch.allclose(images[0], images[1], atol=1e-5)


def test_networks_that_take_label_maps_get_them():
    module = Diffusion()
    module.unet = SPADEDiffusionModelUNet(in_channels=1, label_nc=3, spade_intermediate_channels=4, **_SMALL)
    awaken(module.unet)
    one_hot = torch.zeros(2, 3, 16, 16)
    one_hot[0, 0], one_hot[1, 2] = 1, 1
    sampler = DiffusionSampler("unet", num_inference_steps=2, conditions=one_hot, mode="seg")

    images = sampler.sample_at(module, range(3), [5, 5, 5], image_shape=(1, 16, 16))

    assert torch.allclose(images[0], images[2], atol=1e-5)
    assert not torch.allclose(images[0], images[1], atol=1e-5)


def test_further_arguments_reach_the_network_for_every_sample():
    seen = []

    class Spaced(nn.Module):
        def forward(
            self, images: Tensor, *, timesteps: Tensor, context: Any, spacing: Tensor, region: Tensor
        ) -> Tensor:
            seen.append((spacing.tolist(), region.tolist()))
            return images

    module = Diffusion()
    module.unet = Spaced()
    sampler = DiffusionSampler(
        "unet", num_inference_steps=1, network_arguments={"spacing": [1.0, 1.5], "region": 2}, image_shape=[1, 16, 16]
    )

    sampler.sample(module, 2, seed=0)

    assert seen == [([[1.0, 1.5], [1.0, 1.5]], [2, 2])]


def test_half_precision_networks_get_noise_of_their_type():
    module = Diffusion().to(torch.bfloat16)

    images = DiffusionSampler("unet", num_inference_steps=2, image_shape=[1, 16, 16]).sample(module, 2, seed=0)

    assert images.dtype == torch.bfloat16


def test_a_sampler_can_be_copied_and_pickled():
    sampler = DiffusionSampler("unet", DDIMScheduler(30), num_inference_steps=2, image_shape=[1, 16, 16])
    module = Diffusion().eval()
    expected = sampler.sample(module, 2, seed=0)

    for copied in (copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):  # noqa: S301 - written in this line
        assert torch.equal(copied.sample(module, 2, seed=0), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("model",), r"DiffusionSampler\(network=\.\.\.\) names .*'model' .*Its parts are: unet, scheduler, ddpm"),
        (("unet", "noise"), r"DiffusionSampler\(scheduler=\.\.\.\) names .*'noise'"),
        (("unet", "unet"), r"needs a scheduler of MONAI's kind, .*got a DiffusionModelUNet"),
        (("number",), r"network='number'\) must name a network; got a int"),
    ],
)
def test_parts_that_are_missing_are_named(arguments, message):
    with pytest.raises(SamplerError, match=message):
        DiffusionSampler(*arguments, num_inference_steps=2, image_shape=[1, 16, 16]).sample(Diffusion(), 1, seed=0)


def test_a_shape_is_needed():
    with pytest.raises(SamplerError, match="takes the shape of its samples from the training images"):
        DiffusionSampler("unet", num_inference_steps=2).sample(Diffusion(), 1, seed=0)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([3, 16, 16], r"'unet' takes 1 channels; it would get noise of 3, from .*\[3, 16, 16\]"),
        ([1, 15, 15, 15], r"noise of shape \(1, 15, 15, 15\) through 'unet', which failed\. RuntimeError"),
    ],
)
def test_a_shape_that_the_network_does_not_take_is_named(shape, message):
    with pytest.raises(SamplerError, match=message):
        DiffusionSampler("unet", num_inference_steps=2, image_shape=shape).sample(Diffusion(), 1, seed=0)


def test_conditions_of_another_kind_are_refused():
    with pytest.raises(SamplerError, match=r"must be tensors or numbers; got a batch of type list"):
        DiffusionSampler("unet", num_inference_steps=2, image_shape=[1, 16, 16], conditions=["old"]).sample(
            Diffusion(), 1, seed=0
        )


def test_masks_for_a_network_that_has_no_channel_for_them_are_refused():
    sampler = DiffusionSampler(
        "unet", num_inference_steps=2, image_shape=[1, 16, 16], conditions=torch.ones(1, 1, 16, 16), mode="concat"
    )

    with pytest.raises(SamplerError, match="takes 1 channels; it would get noise of 1 and conditions of 1"):
        sampler.sample(Diffusion(), 1, seed=0)


def test_fewer_steps_than_monais_ddpm_needs_are_refused():
    with pytest.raises(SamplerError, match=r"so 2 of its 3 steps end in noise\. Leave .* pass a DDIMScheduler"):
        DiffusionSampler("unet", "ddpm", num_inference_steps=2, image_shape=[1, 16, 16]).sample(Diffusion(), 1, seed=0)


def test_more_steps_than_the_scheduler_has_are_refused():
    with pytest.raises(SamplerError, match="set 31 steps of DDIMScheduler, which failed"):
        DiffusionSampler("unet", num_inference_steps=31, image_shape=[1, 16, 16]).sample(Diffusion(), 1, seed=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1, got 0"),
        ({"mode": "adding"}, "mode must be one of crossattn, concat, class_labels, seg, got 'adding'"),
        ({"mode": "concat"}, "mode='concat' needs conditions"),
        ({"cfg": 2.0}, "this sampler has no conditions"),
        ({"cfg": 2.0, "mode": "seg", "conditions": [1]}, "this sampler has mode='seg'"),
        ({"image_shape": [1, 0]}, r"image_shape must be numbers of at least 1, got \[1, 0\]"),
        ({"conditions_are_label_maps": True}, "needs conditions"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused_at_once(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        DiffusionSampler(**arguments)
