from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from relict_lightning.errors import ConfigurationError, SamplerError
from relict_lightning.samplers import PipelineSampler


class Pipeline:
    """What diffusers' unconditional pipelines look like from outside."""

    def __call__(
        self, batch_size: int = 1, generator: list[torch.Generator] | None = None, output_type: str = "np"
    ) -> SimpleNamespace:
        rows = [torch.rand(16, 16, 1, generator=one) for one in generator]
        assert len(rows) == batch_size
        array = torch.stack(rows).numpy()
        if output_type == "pt":
            return SimpleNamespace(images=torch.from_numpy(array).movedim(-1, 1))
        if output_type == "pil":
            return SimpleNamespace(
                images=[Image.fromarray((one[..., 0] * 255).round().astype("uint8")) for one in array]
            )
        return SimpleNamespace(images=array)


class Prompted:
    """What those look like that are given prompts."""

    def __call__(self, prompt: list[str], **_: Any) -> SimpleNamespace:
        return SimpleNamespace(images=np.stack([np.full((16, 16, 1), len(text) / 10, "float32") for text in prompt]))


class Piped(nn.Module):
    number = 3

    def __init__(self) -> None:
        super().__init__()
        self.pipeline, self.prompted = Pipeline(), Prompted()
        self.images: Any = None

    def draw(self, n: int) -> SimpleNamespace:
        return SimpleNamespace(images=self.images)


@pytest.mark.parametrize("output_type", ["np", "pt", "pil"])
def test_a_sample_is_the_same_in_every_form_and_however_many_are_drawn_at_a_time(in_chunks, output_type):
    sampler = PipelineSampler(arguments={"output_type": output_type})

    one, three, eight = (in_chunks(sampler, Piped(), chunk_size=size) for size in (1, 3, 8))

    assert one.shape == (6, 1, 16, 16)
    assert torch.equal(one, three)
    assert torch.equal(one, eight)
    assert torch.allclose(one, in_chunks(PipelineSampler(), Piped(), chunk_size=2), atol=1 / 254)


def test_prompts_are_conditions_and_say_how_many():
    sampler = PipelineSampler("prompted", conditions=["old", "young"])

    assert sampler.sample(Piped(), 3, seed=0)[:, 0, 0, 0].tolist() == pytest.approx([0.3, 0.5, 0.3])


def test_intensities_are_put_on_the_training_scale():
    module = Piped()
    module.images = torch.tensor([0.0, 0.5, 1.0]).reshape(3, 1, 1, 1)

    images = PipelineSampler("draw", intensity_range=[-1.0, 1.0]).sample(module, 3, seed=0)

    assert images.flatten().tolist() == [-1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("images", "image_shape", "expected"),
    [
        (np.zeros((2, 8, 9, 3), "float32"), (3, 8, 9), (2, 3, 8, 9)),
        (np.zeros((2, 7, 8, 9, 1), "float32"), (1, 7, 8, 9), (2, 1, 7, 8, 9)),
        # Channels first already.
        (np.zeros((2, 1, 8, 9), "float32"), (1, 8, 9), (2, 1, 8, 9)),
        (torch.zeros(2, 1, 8, 9), (1, 8, 9), (2, 1, 8, 9)),
        ([Image.new("RGB", (9, 8))] * 2, (3, 8, 9), (2, 3, 8, 9)),
        ([Image.new("P", (9, 8))] * 2, (3, 8, 9), (2, 3, 8, 9)),
        ([[Image.new("L", (9, 8))] * 7] * 2, (1, 7, 8, 9), (2, 1, 7, 8, 9)),
    ],
)
def test_channels_come_first(images, image_shape, expected):
    module = Piped()
    module.images = images

    assert PipelineSampler("draw").sample_at(module, [0, 1], [0, 1], image_shape=image_shape).shape == expected


@pytest.mark.parametrize(
    "images",
    [
        np.full((1, 2, 2, 1), 255, "uint8"),
        np.full((1, 2, 2, 1), 65535, "uint16"),
        [Image.new("L", (2, 2), 255)],
        [Image.new("1", (2, 2), 1)],
        [Image.fromarray(np.full((2, 2), 1.0, "float32"))],
    ],
)
def test_bytes_become_fractions(images):
    module = Piped()
    module.images = images

    assert PipelineSampler("draw").sample(module, 1, seed=0).unique().tolist() == [1.0]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("a picture", r"must be a tensor .*a list of PIL pictures; got str"),
        ([], "got an empty list"),
        ([np.zeros((2, 2))], "must hold PIL pictures; got ndarray"),
        ([Image.new("L", (2, 2)), Image.new("L", (3, 2))], r"must have one size; got \[\(2, 2, 1\), \(2, 3, 1\)\]"),
        (np.zeros((1, 2, 2, 1), "int64"), "without sign; got torch.int64"),
        (None, r"PipelineSampler\('draw'\) must return an object with `\.images`; got SimpleNamespace"),
    ],
)
def test_what_is_no_picture_is_refused_in_words(images, message):
    module = Piped()
    module.images = images

    with pytest.raises(SamplerError, match=message):
        PipelineSampler("draw").sample(module, 1, seed=0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pipe", r"PipelineSampler\(pipeline=\.\.\.\) names the attribute 'pipe'"),
        ("number", r"must name a pipeline or a method; got a int"),
        ("prompted", r"drew 1 samples with no arguments, which failed\. TypeError: .*prompt"),
    ],
)
def test_a_pipeline_that_cannot_be_called_is_named(name, message):
    with pytest.raises(SamplerError, match=message):
        PipelineSampler(name).sample(Piped(), 1, seed=0)


def test_intensities_that_do_not_rise_are_refused_at_once():
    with pytest.raises(ConfigurationError, match=r"intensity_range must be two numbers that rise, got \[1\.0, 0\.0\]"):
        PipelineSampler(intensity_range=[1.0, 0.0])
