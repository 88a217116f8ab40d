"""Sampling by a pipeline in the manner of diffusers, which returns its pictures as `.images`."""

from collections.abc import Sequence
from typing import Any, final

import torch

from relict_lightning.errors import ConfigurationError, SamplerError
from relict_lightning.samplers.attributes import device_of, find_attribute
from relict_lightning.samplers.calling import condition_argument, explained, parameters_of
from relict_lightning.samplers.conditioned import ConditionedSampler
from relict_lightning.samplers.pictures import pictures_to_images

_COUNT_NAMES = ("batch_size", "n", "num_images")
_CONDITION_NAMES = ("condition", "conditions", "prompt", "class_labels")


@final
class PipelineSampler(ConditionedSampler):
    """Calls a pipeline of the module, or a method that calls one, and takes the `.images` of what it returns.

    The number of samples is passed as `batch_size`, `n` or `num_images`, whichever the pipeline takes; where it takes
    none of them, as those that are given prompts, it follows from the conditions. A parameter `generator` gets a list
    of one CPU generator per sample, as diffusers' pipelines take it, so that a sample does not depend on how many are
    drawn at a time. Conditions are passed as `condition`, `conditions`, `prompt` or `class_labels`.

    Args:
        pipeline: Name of the module's pipeline or method; dots lead into its parts.
        arguments: Further keyword arguments, such as `num_inference_steps` or `output_type`.
        intensity_range: What the training images have where a picture has 0 and 1.
        conditions: What samples are conditioned on: a tensor, a sequence (of prompts, for instance), or the name of an
            attribute of the datamodule or the model. They are cycled by the position of the sample.
        conditions_are_label_maps: Whether the conditions are the samples' label maps, for the detector.
        condition_name: Name of the parameter that takes conditions, where it has another.

    Raises:
        ConfigurationError: If `intensity_range` does not rise, or conditions are empty.
    """

    def __init__(
        self,
        pipeline: str = "pipeline",
        arguments: dict[str, Any] | None = None,
        *,
        intensity_range: Sequence[float] = (0.0, 1.0),
        conditions: Any = None,
        conditions_are_label_maps: bool = False,
        condition_name: str | None = None,
    ) -> None:
        super().__init__(conditions=conditions, conditions_are_label_maps=conditions_are_label_maps)
        if len(intensity_range) != 2 or not intensity_range[0] < intensity_range[1]:
            raise ConfigurationError(f"intensity_range must be two numbers that rise, got {list(intensity_range)}.")
        self.pipeline = pipeline
        self.arguments = dict(arguments or {})
        self.intensity_range = (float(intensity_range[0]), float(intensity_range[1]))
        self.condition_name = condition_name

    def sample_at(
        self, module: Any, positions: Sequence[int], seeds: Sequence[int], *, image_shape: tuple[int, ...] | None = None
    ) -> Any:
        """Return the images of an evaluation that have these positions.

        Raises:
            SamplerError: If the module has no such pipeline, or it returns nothing that holds images.
        """
        pipeline = find_attribute(module, self.pipeline, of="PipelineSampler(pipeline=...)")
        of = f"PipelineSampler({self.pipeline!r})"
        if not callable(pipeline):
            raise SamplerError(f"{of} must name a pipeline or a method; got a {type(pipeline).__name__} of that name.")
        parameters = parameters_of(pipeline)
        condition = self.conditions.at(module, positions, device=device_of(module))
        names = _CONDITION_NAMES if self.condition_name is None else (self.condition_name,)
        arguments = {**self.arguments, **condition_argument(pipeline, condition, of=of, names=names)}
        counted = next((name for name in _COUNT_NAMES if name in parameters), None)
        if counted is not None:
            arguments[counted] = len(positions)
        if "generator" in parameters:
            arguments["generator"] = [torch.Generator().manual_seed(seed) for seed in seeds]
        with explained(f"{of} drew {len(positions)} samples with {', '.join(sorted(arguments)) or 'no arguments'}"):
            output = pipeline(**arguments)
        pictures = getattr(output, "images", None)
        if pictures is None:
            raise SamplerError(
                f"{of} must return an object with `.images`; got {type(output).__name__}. Pass "
                f"`arguments={{'return_dict': True}}` if the pipeline knows it, or use a MethodSampler."
            )
        low, high = self.intensity_range
        return pictures_to_images(pictures, image_shape=image_shape) * (high - low) + low
