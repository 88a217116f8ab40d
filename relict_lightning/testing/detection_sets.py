"""Data on which detectors of replicas can be compared: patients, and samples of which the truth is known.

| name | images | samples |
| --- | --- | --- |
| `ncct` | head CT with hemorrhages | 90 % replicas, copied mildly; the rest are fresh patients |
| `tof` | time-of-flight angiograms | 10 % replicas, which keep the vessels and take another background |
| `ncct_hard`, `tof_hard` | the same | half replicas through every alteration; all kinds of negatives |
| `ncct_null`, `tof_null` | the same | nothing is copied |
| `t1`, `slices` | T1-weighted heads, 3-D or 2-D | half replicas through every alteration; fresh patients |

Every sample has passed the look of a generator (`apply_generator_look`), replica or not. Negatives:

- `fresh`: a patient who is in no set.
- `mean_background`: the mean background of the training patients, with a new structure.
- `lookalike`: a background halfway between a training patient's and a stranger's, with a new structure. It looks like
  that patient's more than like anybody else's.
- `interpolation`: a patient halfway between two training patients in everything that makes a patient.

Classes of their own, to be scored apart, copy no training image as a whole, but show a training patient:

- `rescan`: a training patient in a new session: other noise and position, slightly other size of lesion or flow.
- `copied_background`: the background of a training image voxel by voxel, noise included, with a new structure: the
  counterpart of a transplant.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from relict_lightning.alterations import ALTERATION_NAMES
from relict_lightning.errors import ConfigurationError
from relict_lightning.testing.detection_samples import HELDOUT, MILD, SESSION, SampleMaker
from relict_lightning.testing.look import apply_generator_look, gaussian_blur
from relict_lightning.testing.populations import (
    AngiogramPopulation,
    HeadPopulation,
    HemorrhagePopulation,
)

GENERATORS: tuple[str, ...] = ("ordinary", "blurred", "collapsed")

APART: tuple[str, ...] = ("rescan", "copied_background")
"""Kinds of samples that are neither replicas nor negatives."""

_HARD_NEGATIVES = ("fresh", "mean_background", "lookalike", "interpolation", *APART)
_BLUR_VOXELS = 2.0


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    """What the samples of a set are made of."""

    population: type[HemorrhagePopulation | AngiogramPopulation | HeadPopulation]
    replica_share: float
    replicas: Sequence[str] = ALTERATION_NAMES
    negatives: Sequence[str] = ("fresh",)
    mild: bool = False
    dims: int = 3


_RECIPES = {
    "ncct": _Recipe(population=HemorrhagePopulation, replica_share=0.9, replicas=tuple(MILD), mild=True),
    "ncct_hard": _Recipe(population=HemorrhagePopulation, replica_share=0.5, negatives=_HARD_NEGATIVES),
    "ncct_null": _Recipe(population=HemorrhagePopulation, replica_share=0.0),
    "tof": _Recipe(population=AngiogramPopulation, replica_share=0.1, replicas=("other_background",), mild=True),
    "tof_hard": _Recipe(population=AngiogramPopulation, replica_share=0.5, negatives=_HARD_NEGATIVES),
    "tof_null": _Recipe(population=AngiogramPopulation, replica_share=0.0),
    "t1": _Recipe(population=HeadPopulation, replica_share=0.5),
    "slices": _Recipe(population=HeadPopulation, replica_share=0.5, dims=2),
}
DETECTION_SETS: tuple[str, ...] = tuple(_RECIPES)


@dataclass(frozen=True, kw_only=True)
class DetectionSet:
    """Training, held-out and generated images with the truth about each.

    Attributes:
        training_images: `[m, 1, *spatial]`, float32 in [0, 1], as all images.
        training_labels: Label maps, `[m, *spatial]`.
        training_groups: The patient of each training image.
        heldout_images: `[h, 1, *spatial]`.
        heldout_labels: Label maps, `[h, *spatial]`.
        heldout_groups: The patient of each held-out image, as far as its name tells.
        heldout_source: Training image that a leaked held-out image is a scan or a copy of, else -1, `[h]`.
        generated_images: `[n, 1, *spatial]`.
        generated_labels: True label maps of the samples, `[n, *spatial]`.
        is_replica: Whether a sample is an altered training image, `[n]`.
        source: Training image that a replica, a rescan or a copied background was made of, else -1, `[n]`.
        kind: The alteration of each replica, the kind of each negative, or one of `APART`.
    """

    training_images: Float[Tensor, "m 1 *spatial"]
    training_labels: UInt8[Tensor, "m *spatial"]
    training_groups: tuple[str, ...]
    heldout_images: Float[Tensor, "h 1 *spatial"]
    heldout_labels: UInt8[Tensor, "h *spatial"]
    heldout_groups: tuple[str, ...]
    heldout_source: Int[Tensor, " h"]
    generated_images: Float[Tensor, "n 1 *spatial"]
    generated_labels: UInt8[Tensor, "n *spatial"]
    is_replica: Bool[Tensor, " n"]
    source: Int[Tensor, " n"]
    kind: tuple[str, ...]


def make_detection_set(
    name: str,
    *,
    seed: int,
    shape: Sequence[int] = (48, 64, 64),
    training: int = 400,
    heldout: int = 200,
    generated: int = 100,
    look: float = 1.0,
    generator: str = "ordinary",
    scans_per_patient: int = 1,
    leaked: int = 0,
) -> DetectionSet:
    """Return one set of the benchmark.

    Args:
        name: One of `DETECTION_SETS`.
        seed: Seed of everything, at least 0.
        shape: Three sides in voxels; `slices` takes the last two.
        training: Number of training images, at least 2.
        heldout: Number of held-out images.
        generated: Number of samples.
        look: Strength of the look of the generator; 1.1 and 1.5 are 10 and 50 % stronger, 0 is none.
        generator: `ordinary`; `blurred`, whose samples lose all detail; `collapsed`, whose fresh patients all lie near
            four.
        scans_per_patient: Training images of each patient, in sessions of their own.
        leaked: Number of held-out images that are, by turns, rescans and mild copies of training images, under names
            of other patients.

    Raises:
        ConfigurationError: If a name is unknown or a number lies outside its range.
        MissingDependencyError: If nilearn, which ships the template, is not installed.

    Example:
        >>> made = make_detection_set("slices", seed=0, shape=(32, 32), training=6, heldout=3, generated=4)
        >>> made.generated_images.shape, int(made.is_replica.sum())
        (torch.Size([4, 1, 32, 32]), 2)
    """
    _check(name, seed, training, heldout, generated, generator, scans_per_patient, leaked)
    recipe = _RECIPES[name]
    sides = tuple(int(side) for side in shape)[-recipe.dims :]
    population = recipe.population(seed, sides)
    people = [position // scans_per_patient for position in range(training)]
    sessions = [
        person if position % scans_per_patient == 0 else SESSION + position for position, person in enumerate(people)
    ]
    images, labels = population.scans(people, sessions)
    outside = range(HELDOUT, HELDOUT + heldout)
    held_images, held_labels = population.scans(outside, outside)
    maker = SampleMaker(population, images, labels, people, sessions, torch.Generator().manual_seed(seed))
    held_source = torch.full((heldout,), -1)
    for turn, position in enumerate(range(heldout - leaked, heldout)):
        source = int(torch.randint(training, (), generator=maker.stream))
        held_source[position] = source
        copy = maker.rescan(source) if turn % 2 == 0 else maker.copy(source, "elastic", mild=True)
        held_images[position], held_labels[position] = copy[0].clamp(0, 1), copy[1]

    plan = _plan(recipe, generated, maker.stream)
    sources = maker.sources(sum(is_replica for _, is_replica in plan))
    samples, maps = torch.empty((generated, 1, *sides)), torch.empty((generated, *sides), dtype=torch.uint8)
    source_of = torch.full((generated,), -1)
    for position, (kind, is_replica) in enumerate(plan):
        if is_replica:
            source = next(sources)
            made = maker.copy(source, kind, mild=recipe.mild)
        else:
            source, made = maker.negative(kind, collapsed=generator == "collapsed")
        samples[position], maps[position], source_of[position] = made[0].clamp(0, 1), made[1], source
    if generator == "blurred":
        samples = gaussian_blur(samples, sigma=_BLUR_VOXELS)
    return DetectionSet(
        training_images=images,
        training_labels=labels,
        training_groups=tuple(f"patient-{person:05d}" for person in people),
        heldout_images=held_images,
        heldout_labels=held_labels,
        heldout_groups=tuple(f"patient-{number}" for number in outside),
        heldout_source=held_source,
        generated_images=apply_generator_look(samples, strength=look, seed=seed),
        generated_labels=maps,
        is_replica=torch.tensor([is_replica for _, is_replica in plan], dtype=torch.bool),
        source=source_of,
        kind=tuple(kind for kind, _ in plan),
    )


def _check(
    name: str,
    seed: int,
    training: int,
    heldout: int,
    generated: int,
    generator: str,
    scans_per_patient: int,
    leaked: int,
) -> None:
    if name not in _RECIPES:
        raise ConfigurationError(f"name must be one of {DETECTION_SETS}, got {name!r}.")
    if generator not in GENERATORS:
        raise ConfigurationError(f"generator must be one of {GENERATORS}, got {generator!r}.")
    for argument, value, least in (
        ("seed", seed, 0),
        ("training", training, 2),
        ("heldout", heldout, 0),
        ("generated", generated, 0),
        ("scans_per_patient", scans_per_patient, 1),
        ("leaked", leaked, 0),
    ):
        if value < least:
            raise ConfigurationError(f"{argument} must be at least {least}, got {argument}={value}.")
    if leaked > heldout:
        raise ConfigurationError(f"leaked must be at most heldout={heldout}, got leaked={leaked}.")
    if (training - 1) // scans_per_patient < 1:
        raise ConfigurationError(
            f"At least two patients are needed, got training={training} images at {scans_per_patient} per patient."
        )


def _plan(recipe: _Recipe, generated: int, stream: torch.Generator) -> list[tuple[str, bool]]:
    """Return the kind of each sample and whether it is a replica, in random order; kinds occur equally often."""
    count = round(recipe.replica_share * generated)
    plan = [(recipe.replicas[turn % len(recipe.replicas)], True) for turn in range(count)]
    plan += [(recipe.negatives[turn % len(recipe.negatives)], False) for turn in range(generated - count)]
    return [plan[position] for position in torch.randperm(generated, generator=stream).tolist()]
