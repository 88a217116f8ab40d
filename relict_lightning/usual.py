"""What is usual in training images: what detectors keep of it, and how it is kept on disk."""

from dataclasses import dataclass, replace
from typing import final

import torch

from relict_lightning.index import Entry, EntryWriter, Reference
from relict_lightning.patches import Patches, describe_patches, read_patches, write_patches
from relict_lightning.population import Population, describe_population, read_population, write_population
from relict_lightning.saliency import Saliency, describe_saliency, read_saliency, write_saliency


@final
@dataclass(frozen=True, kw_only=True)
class Usual:
    """What is usual in training images.

    Attributes:
        population: What whole images have in common, and what sets one apart.
        saliency: What is usual in details, and what stands out of each training image.
        patches: The training images, cut into blocks.
    """

    population: Population
    saliency: Saliency
    patches: Patches

    def to(self, device: torch.device) -> "Usual":
        """Return the same on a device."""
        return replace(self, population=self.population.to(device), saliency=self.saliency.to(device))


def describe_usual(training: Reference) -> Usual:
    """Return what is usual in training images; all processes that share the reference call this.

    Args:
        training: The training images.
    """
    return Usual(
        population=describe_population(training),
        saliency=describe_saliency(training),
        patches=describe_patches(training),
    )


def write_usual(usual: Usual, writer: EntryWriter, *, prefix: str) -> None:
    """Write what is usual into a folder, its files' names starting with `prefix`."""
    write_population(usual.population, writer, prefix=f"{prefix}population_")
    write_saliency(usual.saliency, writer, prefix=f"{prefix}saliency_")
    write_patches(usual.patches, writer, prefix=f"{prefix}patches_")


def read_usual(entry: Entry, *, prefix: str) -> Usual:
    """Return what `write_usual` put into a folder."""
    return Usual(
        population=read_population(entry, prefix=f"{prefix}population_"),
        saliency=read_saliency(entry, prefix=f"{prefix}saliency_"),
        patches=read_patches(entry, prefix=f"{prefix}patches_"),
    )
