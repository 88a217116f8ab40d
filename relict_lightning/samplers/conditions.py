"""What samples are conditioned on: labels, masks or embeddings, dealt out by the position of the sample.

Conditions are cycled: the sample at position p gets number p modulo their number. Positions count over all processes,
so one process and several draw the same samples.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from relict_lightning.errors import ConfigurationError, SamplerError
from relict_lightning.samplers.attributes import find_in_run


@final
class Conditions:
    """The conditions of a sampler.

    Args:
        given: A tensor or array `[m, ...]`, a sequence or map-style data set of tensors, numbers, strings or
            dictionaries of these, or the name of an attribute of the datamodule or the model that is one of them. None
            for samples without conditions.
        of: Whose conditions they are, for messages.

    Raises:
        ConfigurationError: If there are none in it, or they have no length.
    """

    def __init__(self, given: Any, *, of: str) -> None:
        self.given = given
        self.of = of
        if given is not None and not isinstance(given, str):
            try:
                self._checked(given)
            except SamplerError as error:
                raise ConfigurationError(str(error)) from error

    def at(
        self,
        module: Any,
        positions: Sequence[int],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Any:
        """Return the conditions of the samples at these positions, batched; None without conditions.

        Args:
            module: The model under training.
            positions: Positions in the evaluation.
            device: Where to put tensors.
            dtype: Type of floating-point tensors; None takes float32.

        Raises:
            SamplerError: If the attribute is missing, or conditions cannot be put into one batch.
        """
        if self.given is None:
            return None
        conditions = self.given
        if isinstance(conditions, str):
            conditions = find_in_run(module, conditions, of=f"{self.of}(conditions=...)")
        chosen = [position % self._checked(conditions) for position in positions]
        return _moved(self._batch(conditions, chosen), device=device, dtype=dtype or torch.float32)

    def _checked(self, conditions: Any) -> int:
        """Return the number of conditions."""
        try:
            count = len(conditions)
        except TypeError as error:
            raise SamplerError(
                f"The conditions of {self.of} must be a tensor [m, ...] or a sequence; got "
                f"{type(conditions).__name__}, which has no length."
            ) from error
        if not count:
            raise SamplerError(f"The conditions of {self.of} are empty. Pass at least one.")
        return count

    def _batch(self, conditions: Any, chosen: list[int]) -> Any:
        if isinstance(conditions, Tensor):
            return conditions[torch.tensor(chosen, device=conditions.device)]
        if isinstance(conditions, np.ndarray):
            return torch.from_numpy(conditions[chosen])
        try:
            return default_collate([conditions[position] for position in chosen])
        except (RuntimeError, TypeError) as error:
            raise SamplerError(
                f"The conditions of {self.of} cannot be put into one batch: {error} Pass tensors of one shape, "
                f"numbers, strings, or dictionaries of these."
            ) from error


def _moved(value: Any, *, device: torch.device | str, dtype: torch.dtype) -> Any:
    """Return a batch with its tensors plain and in place."""
    if isinstance(value, Tensor):
        # Subclasses such as MONAI's MetaTensor carry file names along.
        plain = value.detach().as_subclass(Tensor).to(device)
        return plain.to(dtype) if plain.is_floating_point() else plain
    if isinstance(value, Mapping):
        return {key: _moved(part, device=device, dtype=dtype) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_moved(part, device=device, dtype=dtype) for part in value]
    return value
