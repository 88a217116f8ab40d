"""From any segmenter's output to label maps."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from relict_lightning.data import images_per_batch
from relict_lightning.errors import InvalidImageError


@torch.no_grad()
def label_maps(
    segmenter: nn.Module, images: Float[Tensor, "n c *spatial"], *, device: torch.device
) -> Int[Tensor, "n *spatial"]:
    """Return the label maps of images, int64, on the CPU.

    Args:
        segmenter: Any module that returns label maps `[n, *spatial]` or scores per label `[n, labels, *spatial]`, of
            which the best label is taken.
        images: The images.
        device: Where to segment.

    Raises:
        InvalidImageError: If the segmenter returns something else.
    """
    parts = []
    for batch in torch.split(images, images_per_batch(tuple(images.shape[1:]))):
        output = segmenter(batch.to(device))
        shape = (len(batch), *batch.shape[2:])
        if isinstance(output, Tensor) and tuple(output.shape) == shape:
            parts.append(output.long().cpu())
        elif isinstance(output, Tensor) and output.ndim == len(shape) + 1 and output.shape[1] > 1:
            parts.append(_best_label(output, segmenter, shape))
        else:
            raise _unusable(output, segmenter, shape)
    return torch.cat(parts)


def _best_label(scores: Tensor, segmenter: nn.Module, shape: tuple[int, ...]) -> Tensor:
    best = scores.argmax(1)
    if tuple(best.shape) != shape:
        raise _unusable(scores, segmenter, shape)
    return best.cpu()


def _unusable(output: object, segmenter: nn.Module, shape: tuple[int, ...]) -> InvalidImageError:
    found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    return InvalidImageError(
        f"Segmenter {type(segmenter).__name__} must return label maps {shape} or scores per label "
        f"{(shape[0], 'labels', *shape[1:])}; got {found}."
    )
