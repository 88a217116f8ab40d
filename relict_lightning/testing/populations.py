"""Populations that detection sets are drawn from: who can be scanned, scanned again, and taken apart.

A person of a population is a number; so is a scan. Equal numbers give equal images, whatever else is asked for.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from relict_lightning.alterations import draw_alteration
from relict_lightning.testing.heads import LABELS, simulate_heads
from relict_lightning.testing.hemorrhage import hemorrhage_parts
from relict_lightning.testing.scan_parts import Person, ScanParts, rendered
from relict_lightning.testing.vessels import angiogram_parts

# What a transplant keeps where there is no lesion: this share of the head, or of the vessels, around a point of it.
_REGION_SHARE = 0.25
_LESION = LABELS.index("lesion")
# Another session of a simulated head: a part of the strength of an alteration, and the noise of `simulate_heads`.
_SESSION_STRENGTH = 0.25
_SESSION_NOISE = 0.01


class Population(ABC):
    """People of one kind of image, all under one seed.

    Args:
        seed: Seed of the population, at least 0.
        shape: Sides of the images in voxels.
    """

    def __init__(self, seed: int, shape: tuple[int, ...]) -> None:
        self.seed = seed
        self.shape = shape

    @abstractmethod
    def scans(self, people: Sequence[int], scans: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return images `[n, 1, *spatial]` and label maps `[n, *spatial]`.

        Args:
            people: Number of each person.
            scans: Number of each scan; the first scan of a person has the person's own number.
        """

    @abstractmethod
    def region(self, image: Tensor, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Return the voxels of a scan that a transplant keeps, `[*spatial]`."""

    def host(self, person: int) -> tuple[Tensor, Tensor]:
        """Return the image and the label map of a person who receives a transplant."""
        images, labels = self.scans([person], [person])
        return images[0], labels[0]


class PartedPopulation(Population):
    """A population whose scans come apart into background and structure."""

    @abstractmethod
    def parts(self, anatomies: Sequence[Person], structures: Sequence[Person], scans: Sequence[int]) -> ScanParts:
        """Return the parts of scans, anatomy and structure of any people."""

    def scans(self, people: Sequence[int], scans: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return images and label maps."""
        return rendered(self.parts, people, scans, shape=self.shape)


@final
class HemorrhagePopulation(PartedPopulation):
    """Head CT with hemorrhages."""

    def parts(self, anatomies: Sequence[Person], structures: Sequence[Person], scans: Sequence[int]) -> ScanParts:
        """Return heads and hemorrhages apart."""
        return hemorrhage_parts(seed=self.seed, anatomies=anatomies, lesions=structures, scans=scans, shape=self.shape)

    def region(self, image: Tensor, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Return the hemorrhage."""
        return labels > 0

    def host(self, person: int) -> tuple[Tensor, Tensor]:
        """Return a head without a hemorrhage of its own."""
        parts = self.parts([person], [person], [person])
        return (parts.background + parts.noise).clamp(0, 1)[0], torch.zeros_like(parts.labels[0])


@final
class AngiogramPopulation(PartedPopulation):
    """Time-of-flight angiograms of the circle of Willis."""

    def parts(
        self,
        anatomies: Sequence[Person],
        structures: Sequence[Person],
        scans: Sequence[int],
        *,
        bend_mm: float = 0.0,
    ) -> ScanParts:
        """Return tissue and arteries apart; `bend_mm` is that of `angiogram_parts`."""
        return angiogram_parts(
            seed=self.seed, anatomies=anatomies, trees=structures, scans=scans, shape=self.shape, bend_mm=bend_mm
        )

    def region(self, image: Tensor, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Return a ball that holds a quarter of the vessels."""
        return ball(labels > 0, share=_REGION_SHARE, stream=stream)


@final
class HeadPopulation(Population):
    """T1-weighted heads, or slices of them; see `simulate_heads`."""

    def scans(self, people: Sequence[int], scans: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return images and label maps."""
        images = torch.empty((len(people), 1, *self.shape))
        labels = torch.empty((len(people), *self.shape), dtype=torch.uint8)
        start = 0
        while start < len(people):
            stop = start + 1
            while stop < len(people) and people[stop] == people[stop - 1] + 1:
                stop += 1
            made = simulate_heads(stop - start, seed=self.seed, first_subject=people[start], shape=self.shape)
            images[start:stop], labels[start:stop] = made.images, made.labels
            start = stop
        for position, (person, scan) in enumerate(zip(people, scans, strict=True)):
            if scan != person:
                images[position], labels[position] = self._again(images[position], labels[position], scan)
        return images, labels

    def _again(self, image: Tensor, labels: Tensor, scan: int) -> tuple[Tensor, Tensor]:
        stream = torch.Generator().manual_seed(1_000_003 * self.seed + scan)
        for name in ("rotation", "shift", "intensity"):
            drawn = draw_alteration(name, self.shape, stream=stream, strength=_SESSION_STRENGTH)
            image, labels = drawn.image(image), drawn.labels(labels)
        noise = _SESSION_NOISE * torch.randn(image.shape, generator=stream) * (labels > 0)
        return (image + noise).clamp(0, 1), labels

    def region(self, image: Tensor, labels: Tensor, stream: torch.Generator) -> Tensor:
        """Return the lesion, or a ball that holds a quarter of the head."""
        lesion = labels == _LESION
        return lesion if bool(lesion.any()) else ball(labels > 0, share=_REGION_SHARE, stream=stream)


def ball(mask: Tensor, *, share: float, stream: torch.Generator) -> Tensor:
    """Return a ball around a random voxel of a mask that holds a share of the mask, `[*spatial]`."""
    inside = mask.nonzero()
    if not len(inside):
        return torch.zeros_like(mask)
    centre = inside[int(torch.randint(len(inside), (), generator=stream))]
    radius = (inside - centre).square().sum(1).sort().values[int(share * (len(inside) - 1))]
    grid = torch.stack(torch.meshgrid(*[torch.arange(side) for side in mask.shape], indexing="ij"), -1)
    return (grid - centre).square().sum(-1) <= radius
