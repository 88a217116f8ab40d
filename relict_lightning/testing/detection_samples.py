"""The samples of detection sets, made one at a time: altered copies, fresh patients, and what lies between.

`relict_lightning.testing.detection_sets` says what each kind is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from relict_lightning.alterations import draw_alteration
from relict_lightning.errors import ConfigurationError
from relict_lightning.testing.populations import AngiogramPopulation, PartedPopulation, Population
from relict_lightning.testing.scan_parts import Person

# Training patients are numbered from 0, so that these are free for patients and for sessions.
HELDOUT, FRESH, MODE, SESSION = 1_000_000, 2_000_000, 2_500_000, 3_000_000
# Mild copies: shares of the strengths in `relict_lightning.alterations`.
MILD = {"plain": 1.0, "intensity": 0.5, "shift": 0.35, "elastic": 0.4}
_MODES = 4
_MODE_STRENGTH = 0.4
_LARGEST_MEAN = 64
_AIR = 0.02
# How far the vessels of a replica stray from those of its source: a quarter of what two people differ by.
_BEND_MM = 0.5


@final
class SampleMaker:
    """Makes single samples, each an image `[1, *spatial]`, a label map, and where asked for its training image."""

    def __init__(
        self,
        population: Population,
        images: Tensor,
        labels: Tensor,
        people: Sequence[int],
        sessions: Sequence[int],
        stream: torch.Generator,
    ) -> None:
        self.population = population
        self.images = images
        self.labels = labels
        self.people = people
        self.sessions = sessions
        self.stream = stream
        self._used = 0
        self._mean: Tensor | None = None

    def sources(self, count: int) -> Iterator[int]:
        """Yield training images at random, none twice before each came once."""
        while count > 0:
            order = torch.randperm(len(self.images), generator=self.stream)[:count].tolist()
            count -= len(order)
            yield from order

    def copy(self, source: int, kind: str, *, mild: bool) -> tuple[Tensor, Tensor]:
        """Return an altered copy of a training image."""
        if kind == "other_background":
            return self._on_other_background(source)
        image, labels = self.images[source], self.labels[source]
        strength = MILD.get(kind, 1.0) if mild else 1.0
        drawn = draw_alteration(kind, self.population.shape, stream=self.stream, strength=strength)
        if kind != "transplant":
            return drawn.image(image), drawn.labels(labels)
        host, host_labels = self.population.host(self._number(FRESH))
        region = self.population.region(image, labels, self.stream)
        return (
            drawn.image(image, host=host, region=region),
            drawn.labels(labels, host=host_labels, region=region),
        )

    def negative(self, kind: str, *, collapsed: bool) -> tuple[int, tuple[Tensor, Tensor]]:
        """Return a sample that copies no training image, and the training image whose patient it shows, if one."""
        if kind == "fresh":
            return -1, self._mode() if collapsed else self._scan(self._number(FRESH))
        first, second = torch.randperm(len(self.images), generator=self.stream)[:2].tolist()
        if kind == "rescan":
            return first, self.rescan(first)
        number = self._number(FRESH)
        if kind == "copied_background":
            return first, self._composed(self.people[first], number, self.sessions[first])
        if kind == "lookalike":
            return -1, self._composed((self.people[first], number), number, number)
        if kind == "mean_background":
            return -1, self._composed(number, number, number, background=self._mean_background())
        # Two images of one patient are no two patients.
        while self.people[second] == self.people[first]:
            second = int(torch.randint(len(self.images), (), generator=self.stream))
        pair = (self.people[first], self.people[second])
        return -1, self._composed(pair, pair, number)

    def rescan(self, source: int) -> tuple[Tensor, Tensor]:
        """Return the patient of a training image in a session of which no image is in any set."""
        # Sessions of training images are numbered up to their count.
        number = self._number(SESSION + len(self.images))
        images, labels = self.population.scans([self.people[source]], [number])
        return images[0], labels[0]

    def _number(self, first: int) -> int:
        self._used += 1
        return first + self._used

    def _scan(self, person: int) -> tuple[Tensor, Tensor]:
        images, labels = self.population.scans([person], [person])
        return images[0], labels[0]

    def _mode(self) -> tuple[Tensor, Tensor]:
        """Return a variation of one of a few fresh patients."""
        mode = MODE + int(torch.randint(_MODES, (), generator=self.stream))
        image, labels = self._scan(mode)
        for name in ("elastic", "intensity"):
            drawn = draw_alteration(name, self.population.shape, stream=self.stream, strength=_MODE_STRENGTH)
            image, labels = drawn.image(image), drawn.labels(labels)
        return image, labels

    def _parted(self) -> PartedPopulation:
        if not isinstance(self.population, PartedPopulation):
            raise ConfigurationError(f"{type(self.population).__name__} has no background apart from its structure.")
        return self.population

    def _composed(
        self, anatomy: Person, structure: Person, scan: int, *, background: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        parts = self._parted().parts([anatomy], [structure], [scan])
        if background is not None:
            # Air is black in every scan, however noisy.
            parts = replace(parts, background=background[None], noise=parts.noise * (background > _AIR))
        return parts.images()[0], parts.labels[0]

    def _mean_background(self) -> Tensor:
        if self._mean is None:
            count = min(len(self.images), _LARGEST_MEAN)
            total = torch.zeros_like(self.images[0])
            for person, session in zip(self.people[:count], self.sessions[:count], strict=True):
                total += self._parted().parts([person], [person], [session]).background[0].clamp(0, 1)
            self._mean = total / count
        return self._mean

    def _on_other_background(self, source: int) -> tuple[Tensor, Tensor]:
        """Return the vessels of a training image, bent, moved and recoloured, in a fresh patient's head."""
        if not isinstance(self.population, AngiogramPopulation):
            raise ConfigurationError(f"{type(self.population).__name__} has no vessels to put on another background.")
        fresh = self._number(FRESH)
        parts = self.population.parts([fresh], [self.people[source]], [fresh], bend_mm=_BEND_MM)
        # What a generator takes for bright is not what the scanner did.
        brightness = 0.85 + 0.25 * float(torch.rand((), generator=self.stream))
        image = replace(parts, colour=torch.minimum(parts.colour * brightness, parts.opacity)).images()
        return image[0], parts.labels[0]
