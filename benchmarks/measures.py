"""Measures the measures, each against a named alternative in the same run.

- Structural similarity of volumes against MONAI's `SSIMMetric`, which convolves with the dense window. Bar: at least 5
  times faster on CPU. The limit is memory bandwidth: five maps are read and written once per axis.
- Distances of surfaces, 95th percentile and surface Dice together, against MONAI's two metrics. Bar: at least 3 times
  faster at the same values. The limit is one search for the nearest surface voxel in each direction.
- Correlation of all pairs of 50 samples and 774 training volumes of 64 * 64 * 64 voxels against a bare matrix product
  of the same numbers, samples by volumes; beside it the product with its factors exchanged, which is often faster. Bar:
  at least 80 % of its speed. The limit is that product, plus the squares of all voxels for the norms.

The two sides of each ratio take turns, and the smallest time of each counts: the machine may be busy with other work,
which can only add to a time.

Run with `python benchmarks/measures.py`, or name the parts to run: `python benchmarks/measures.py correlation`.
"""

import argparse
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from monai.metrics import HausdorffDistanceMetric, SSIMMetric, SurfaceDiceMetric
from scipy import ndimage

from relict_lightning.functional import (
    pairwise_normalized_cross_correlation,
    structural_similarity,
    surface_agreement,
)

STRUCTURE_BAR = 5.0
SURFACE_BAR = 3.0
CORRELATION_BAR = 0.8
TOLERANCE_MM = 1.0


def best_seconds(*calls: Callable[[], object], repeats: int = 7) -> list[float]:
    """Return the smallest time of each call; the calls take turns, so that all meet the same machine."""
    best = [float("inf")] * len(calls)
    # The first round warms up caches, threads and allocators.
    for round_number in range(repeats + 1):
        for position, call in enumerate(calls):
            started = time.perf_counter()
            call()
            if round_number:
                best[position] = min(best[position], time.perf_counter() - started)
    return best


def verdict(ratio: float, bar: float) -> str:
    """Return the ratio beside its bar, in words."""
    return f"{ratio:.2f} ({'meets' if ratio >= bar else 'MISSES'} {bar:g})"


def structure() -> None:
    """Print what structural similarity costs beside MONAI's."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((64, 64, 64), (32, 128, 128)):
        training = torch.rand(4, 1, *shape, generator=generator)
        generated = 0.7 * training + 0.3 * torch.rand(training.shape, generator=generator)
        metric = SSIMMetric(spatial_dims=3, data_range=1.0, win_size=11, kernel_sigma=1.5, reduction="none")
        ours, monai = best_seconds(
            lambda generated=generated, training=training: structural_similarity(generated, training, data_range=1.0),
            lambda generated=generated, training=training, metric=metric: metric(generated, training),
            repeats=5,
        )
        difference = (
            structural_similarity(generated, training, data_range=1.0) - metric(generated, training).flatten()
        ).abs()
        print(
            f"structural similarity {shape}: {1e3 * ours / 4:.1f} ms a pair, MONAI {1e3 * monai / 4:.1f} ms, "
            f"ratio {verdict(monai / ours, STRUCTURE_BAR)}, values differ by {difference.max():.1e}"
        )


Mask = np.ndarray
MaskPair = tuple[Mask, Mask]


def ball(side: int, *, center: tuple[float, ...], radii: tuple[float, ...]) -> Mask:
    """Return an ellipsoid in a cube, or an ellipse in a square."""
    axes = np.ogrid[tuple(slice(side) for _ in center)]
    return sum(((axis - middle) / radius) ** 2 for axis, middle, radius in zip(axes, center, radii, strict=True)) <= 1


def lesions(*, count: int, seed: int) -> MaskPair:
    """Return balls of radius 4 to 10 in 64^3, and the same ones moved and resized by up to a voxel."""
    generator = np.random.default_rng(seed)
    sample, patient = np.zeros((2, 64, 64, 64), dtype=bool)
    for _ in range(count):
        center, radius = generator.uniform(10, 54, 3), generator.uniform(4, 10)
        patient |= ball(64, center=tuple(center), radii=(radius,) * 3)
        center, radius = center + generator.uniform(-1, 1, 3), radius + generator.uniform(-1, 1)
        sample |= ball(64, center=tuple(center), radii=(radius,) * 3)
    return sample, patient


def vessels(*, seed: int) -> Mask:
    """Return 25 winding tubes, three voxels wide, in 32 x 128 x 128."""
    generator = np.random.default_rng(seed)
    shape = np.array([32, 128, 128])
    tree = np.zeros(shape, dtype=bool)
    for _ in range(25):
        position, direction = generator.uniform(0, 1, 3) * shape, generator.standard_normal(3)
        for _ in range(120):
            direction += 0.3 * generator.standard_normal(3) * [0.3, 1, 1]
            direction /= np.linalg.norm(direction)
            position += direction
            tree[tuple(np.clip(position.astype(int), 0, shape - 1))] = True
    return ndimage.binary_dilation(tree)


def brain(*, seed: int, radii: tuple[float, float, float] = (52.0, 60.0, 46.0)) -> Mask:
    """Return an ellipsoid with bumps in 128^3."""
    axes = np.ogrid[:128, :128, :128]
    distance = np.sqrt(sum(((axis - 63.5) / radius) ** 2 for axis, radius in zip(axes, radii, strict=True)))
    bumps = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((128,) * 3), 4)
    return distance + 0.03 * bumps / bumps.std() <= 1


def concentric(*, inner: float) -> MaskPair:
    """Return two balls in 128^3 with one centre, where half a sphere is about equally near: the worst for a tree."""
    outer, center = 60.0, (63.5,) * 3
    return ball(128, center=center, radii=(outer,) * 3), ball(128, center=center, radii=(inner,) * 3)


def surface_cases() -> dict[str, MaskPair]:
    """Return pairs of masks by name: copies, other patients, and shapes that are hard to search."""
    noise = np.random.default_rng(0).random((2, 64, 64, 64)) < 0.3
    vessel = vessels(seed=0)
    return {
        "one lesion, 64^3": lesions(count=1, seed=1),
        "six lesions, 64^3": lesions(count=6, seed=2),
        "six lesions of another patient, 64^3": (lesions(count=6, seed=2)[0], lesions(count=6, seed=3)[0]),
        "vessels moved by a voxel, 32x128x128": (vessel, np.roll(vessel, 1, axis=2)),
        "vessels of another patient, 32x128x128": (vessel, vessels(seed=1)),
        "brain, 128^3": (brain(seed=0), brain(seed=1)),
        "brain of another size, 128^3": (brain(seed=0), brain(seed=1, radii=(46.0, 54.0, 40.0))),
        "ball of 20 in ball of 60, 128^3": concentric(inner=20.0),
        "ball of 56 in ball of 60, 128^3": concentric(inner=56.0),
        "noise, 64^3": (noise[0], noise[1]),
        "slice of a brain, 256^2": (
            ball(256, center=(128.0, 128.0), radii=(80.0, 90.0)),
            ball(256, center=(130.0, 128.0), radii=(82.0, 87.0)),
        ),
    }


def surface() -> None:
    """Print what the distances of surfaces cost beside MONAI's two metrics, and how far the values differ."""
    hausdorff = HausdorffDistanceMetric(percentile=95, reduction="none")
    dice = SurfaceDiceMetric(class_thresholds=[TOLERANCE_MM], reduction="none")
    for name, masks in surface_cases().items():
        spacing = (3.0, 1.0, 1.0)[-masks[0].ndim :]
        generated, training = (torch.from_numpy(mask)[None] for mask in masks)
        one_hot = [torch.stack([~mask, mask], dim=1).float() for mask in (generated, training)]

        def by_monai(one_hot: list[torch.Tensor] = one_hot, spacing: tuple[float, ...] = spacing) -> list[torch.Tensor]:
            with warnings.catch_warnings():
                # MONAI calls itself with an argument that it has deprecated.
                warnings.filterwarnings("ignore", category=FutureWarning, module="monai")
                return [metric(*one_hot, spacing=spacing) for metric in (hausdorff, dice)]

        def ours(
            generated: torch.Tensor = generated,
            training: torch.Tensor = training,
            spacing: tuple[float, ...] = spacing,
        ) -> list[torch.Tensor]:
            agreement = surface_agreement(generated, training, spacing_mm=spacing, tolerance_mm=TOLERANCE_MM)
            return [agreement.hausdorff_distance_95, agreement.surface_dice]

        difference = max(float((a - b).abs().max()) for a, b in zip(by_monai(), ours(), strict=True))
        our_seconds, monai = best_seconds(ours, by_monai, repeats=3)
        print(
            f"surfaces of {name}: {1e3 * our_seconds:.1f} ms, MONAI {1e3 * monai:.1f} ms, "
            f"ratio {verdict(monai / our_seconds, SURFACE_BAR)}, values differ by {difference:.1e}"
        )


def correlation() -> None:
    """Print what the correlation of all pairs costs beside a bare matrix product."""
    generator = torch.Generator().manual_seed(0)
    generated = torch.rand(50, 1, 64, 64, 64, generator=generator)
    training = torch.rand(774, 1, 64, 64, 64, generator=generator)
    rows, columns = generated.flatten(1), training.flatten(1)
    ours, *bare = best_seconds(
        lambda: pairwise_normalized_cross_correlation(generated, training),
        lambda: rows @ columns.T,
        lambda: columns @ rows.T,
        repeats=12,
    )
    for seconds, order in zip(bare, ("samples by volumes", "volumes by samples"), strict=True):
        print(
            f"correlation of 50 x 774 volumes of 64^3: {1e3 * ours:.0f} ms, bare product, {order}: "
            f"{1e3 * seconds:.0f} ms ({2 * 50 * 774 * 64**3 / seconds / 1e9:.0f} GFLOP/s), "
            f"share {verdict(seconds / ours, CORRELATION_BAR)}"
        )


PARTS = {"structure": structure, "surface": surface, "correlation": correlation}


def main() -> None:
    """Print each ratio, and whether it meets its bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"Of {', '.join(PARTS)}; by default all.")
    parts = parser.parse_args().parts or list(PARTS)
    print(f"{torch.get_num_threads()} thread(s), torch {torch.__version__}")
    for part in parts:
        PARTS[part]()


if __name__ == "__main__":
    main()
