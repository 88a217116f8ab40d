"""Sampling by the module's own `predict_step`, through the strategy, which works however the model is sharded."""

from collections.abc import Sequence
from typing import Any, ClassVar, final

from relict_lightning.errors import SamplerError
from relict_lightning.samplers.attributes import attached_trainer, device_of
from relict_lightning.samplers.conditioned import ConditionedSampler


@final
class PredictStepSampler(ConditionedSampler):
    """Calls the module's `predict_step(batch, batch_idx)` as `trainer.predict` does, through the strategy.

    `batch` is a dictionary:

    - `n`: number of images to return;
    - `seed`: seed of the call, for a step that draws all images from one `torch.Generator`;
    - `seeds`: one seed per image, for a step whose images are not to depend on how many are drawn at a time;
    - `positions`: the images' positions in the evaluation, counted over all processes from 0;
    - `condition`: the images' conditions, batched and on the module's device, where there are conditions.

    The step returns a floating-point tensor `[n, c, *spatial]` on the training images' intensity scale and grid. The
    global random state is seeded as well, and put back afterwards. Every process calls the step equally often.

    Args:
        conditions: What samples are conditioned on: a tensor, a sequence, or the name of an attribute of the datamodule
            or the model. They are cycled.
        conditions_are_label_maps: Whether the conditions are the samples' label maps, for the detector.

    Raises:
        ConfigurationError: If conditions are empty, or are to be label maps and there are none.
    """

    calls_strategy: ClassVar[bool] = True

    def __init__(self, *, conditions: Any = None, conditions_are_label_maps: bool = False) -> None:
        super().__init__(conditions=conditions, conditions_are_label_maps=conditions_are_label_maps)

    def sample_at(
        self, module: Any, positions: Sequence[int], seeds: Sequence[int], *, image_shape: tuple[int, ...] | None = None
    ) -> Any:
        """Return what the step returns.

        Raises:
            SamplerError: If the module is attached to no trainer, or has no `predict_step` of its own.
        """
        trainer = attached_trainer(module)
        if trainer is None:
            raise SamplerError(
                f"PredictStepSampler goes through the trainer's strategy, and {type(module).__name__} is attached to "
                f"no trainer. Use it while a trainer fits, or pass another sampler."
            )
        step = getattr(type(module), "predict_step", None)
        # Lightning's own hands the batch to `forward`.
        if step is None or step.__qualname__ == "LightningModule.predict_step":
            raise SamplerError(
                f"{type(module).__name__} has no `predict_step(batch, batch_idx)` of its own to draw samples with. Add "
                f'one that returns batch["n"] images [n, c, *spatial], or pass another sampler.'
            )
        batch = {"n": len(positions), "seed": seeds[0], "seeds": list(seeds), "positions": list(positions)}
        condition = self.conditions.at(module, positions, device=device_of(module))
        if condition is not None:
            batch["condition"] = condition
        return trainer.strategy.predict_step(batch, positions[0] // len(positions))
