"""What ready samplers have in common: conditions, and label maps that are such conditions."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from relict_lightning.errors import ConfigurationError, SamplerError
from relict_lightning.interfaces import Sampler
from relict_lightning.samplers.conditions import Conditions
from relict_lightning.samplers.noise import derived_seed


class ConditionedSampler(Sampler, ABC):
    """A sampler that draws by position and seed, with conditions where there are any.

    Args:
        conditions: What samples are conditioned on: a tensor or array `[m, ...]`, a sequence or map-style data set, or
            the name of an attribute of the datamodule or the model. They are cycled by the position of the sample.
        conditions_are_label_maps: Whether the conditions are label maps, `[m, *spatial]` or `[m, 1, *spatial]`, or
            one-hot with the background first. They are then the samples' label maps for the detector.

    Raises:
        ConfigurationError: If conditions are empty, or are to be label maps and there are none.
    """

    def __init__(self, *, conditions: Any = None, conditions_are_label_maps: bool = False) -> None:
        if conditions is None and conditions_are_label_maps:
            raise ConfigurationError(
                f"{type(self).__name__}(conditions_are_label_maps=True) needs conditions. Pass `conditions=`."
            )
        self.conditions = Conditions(conditions, of=type(self).__name__)
        self.conditions_are_label_maps = conditions_are_label_maps

    def sample(self, module: Any, n: int, *, seed: int) -> Any:
        """Return `n` images, the first ones of an evaluation."""
        seeds = [seed, *(derived_seed(seed, position) for position in range(1, n))]
        return self.sample_at(module, range(n), seeds)

    @abstractmethod
    def sample_at(
        self, module: Any, positions: Sequence[int], seeds: Sequence[int], *, image_shape: tuple[int, ...] | None = None
    ) -> Any:
        """Return the images of an evaluation that have these positions."""

    def label_maps_at(self, module: Any, positions: Sequence[int]) -> Tensor | None:
        """Return the conditions of these samples where they are label maps.

        Raises:
            SamplerError: If they are no tensors.
        """
        if not self.conditions_are_label_maps:
            return None
        label_maps = self.conditions.at(module, positions)
        if not isinstance(label_maps, Tensor):
            raise SamplerError(
                f"{type(self).__name__}(conditions_are_label_maps=True) needs label maps [m, *spatial] as conditions; "
                f"got a {type(label_maps).__name__} of them. Pass the label maps alone."
            )
        return label_maps
