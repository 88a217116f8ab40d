"""Centrelines of the circle of Willis and its branches, of one person at a time.

Everybody shares a layout, as people do, and differs in which arteries there are, in their calibre, course and flow.

Conventions: points are millimetres of MNI space, ordered z, y, x; x runs from left to right and y from posterior to
anterior. A tree is a function of `TREE_DRAWS` normal numbers, so that the mean of two people's numbers is a person
between them.

References:
    Krabbe-Hartkamp et al. (1998), doi:10.1148/radiology.207.1.9530305 (how often arteries of the circle are missing or
    thin in time-of-flight angiograms, which the shares below follow roughly).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.special import ndtr

_WAVES = 8
_BRANCHES = 40
_PER_BRANCH = 11
_PERSON = 40
BEND_DRAWS = 7 * _WAVES
TREE_DRAWS = _PERSON + 7 * _WAVES + _PER_BRANCH * _BRANCHES

CENTRE_MM = (-15.0, -14.0, 0.0)
# How far an artery strays from the layout: smooth displacement shared by neighbours, and its own tortuosity.
_STRAY_MM = 1.5
_TORTUOSITY_MM = 0.9
_WAVELENGTH_MM = 70.0
_SAMPLING_MM = 0.5
_THINNEST_MM = 0.35


# Ordered x, y, z, as atlases print it.
_Point: TypeAlias = tuple[int | float, int | float, int | float]


@dataclass(frozen=True, kw_only=True)
class VesselTree:
    """Densely sampled centrelines of one person.

    Attributes:
        points_mm: `[p, 3]`, ordered z, y, x.
        radius_mm: `[p]`.
        signal: Flow signal in [0, 1], `[p]`.
        branches: Names of the arteries that this person has.
    """

    points_mm: np.ndarray
    radius_mm: np.ndarray
    signal: np.ndarray
    branches: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Branch:
    """One artery of the layout: control points ordered x, y, z, radii in mm, and flow signal at both ends."""

    name: str
    course: Sequence[_Point]
    radii: tuple[float, float]
    signal: tuple[float, float] = (1.0, 1.0)


def grow_tree(draws: np.ndarray) -> VesselTree:
    """Return the tree that `TREE_DRAWS` standard normal numbers stand for."""
    person, waves, own = np.split(draws.astype(np.float64), [_PERSON, _PERSON + 7 * _WAVES])
    own = own.reshape(_BRANCHES, _PER_BRANCH)
    uniform = ndtr(person[20:])
    branches = [*_side(-1.0, person[:10], uniform[:8]), *_side(1.0, person[10:20], uniform[8:16])]
    branches += _middle(uniform[16:])
    calibre, winding = 1.12 * math.exp(0.08 * person[36]), math.exp(0.3 * person[37])
    points, radii, signals, names = [], [], [], []
    for branch, numbers in zip(branches, own, strict=False):
        width = calibre * math.exp(0.10 * numbers[9])
        if branch.radii[0] * width < _THINNEST_MM:
            continue
        course = _course(branch, numbers[:9].reshape(3, 3), winding)
        along = np.linspace(0, 1, len(course))
        points.append(course)
        radii.append(width * (branch.radii[0] + (branch.radii[1] - branch.radii[0]) * along))
        flow = branch.signal[0] + (branch.signal[1] - branch.signal[0]) * along
        signals.append(flow * (1 - 0.06 * abs(numbers[10]) * along))
        names.append(branch.name)
    placed = _placed(np.concatenate(points)[:, ::-1], person, waves.reshape(_WAVES, 7))
    return VesselTree(
        points_mm=placed,
        radius_mm=np.concatenate(radii),
        signal=np.clip(np.concatenate(signals), 0.15, 1),
        branches=tuple(names),
    )


def _course(branch: _Branch, numbers: np.ndarray, winding: float) -> np.ndarray:
    """Return points along one artery, ordered x, y, z; its ends stay where they are, so that arteries stay joined."""
    control = np.array(branch.course)
    chord = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(control, axis=0), axis=1))])
    count = max(4, math.ceil(1.15 * chord[-1] / _SAMPLING_MM))
    along = np.linspace(0, 1, count)[:, None]
    bends = sum(np.sin((k + 1) * math.pi * along) * numbers[k] / (k + 1) for k in range(3))
    size = winding * min(_TORTUOSITY_MM, 0.06 * chord[-1])
    return np.asarray(CubicSpline(chord, control)(along[:, 0] * chord[-1]) + size * bends)


def _placed(points: np.ndarray, person: np.ndarray, waves: np.ndarray) -> np.ndarray:
    """Return the points, ordered z, y, x, in one person's head: bent smoothly, stretched, sheared and moved."""
    centred = points - np.array(CENTRE_MM)
    bent = centred + _STRAY_MM * _waves(centred, waves)
    stretch = np.exp(0.03 * person[[0, 1, 10]])
    shear = np.eye(3) + 0.02 * np.array(
        [[0, person[2], person[3]], [person[4], 0, person[5]], [person[12], person[13], 0]]
    )
    return np.asarray((bent * stretch) @ shear + 0.8 * person[[14, 15, 16]] + np.array(CENTRE_MM))


def bend_tree(points_mm: np.ndarray, draws: np.ndarray, *, size_mm: float) -> np.ndarray:
    """Return points displaced smoothly, by about `size_mm` along each axis, so that arteries stay joined."""
    waves = draws.astype(np.float64).reshape(_WAVES, 7)
    return np.asarray(points_mm + size_mm * _waves(points_mm - np.array(CENTRE_MM), waves))


def _waves(points: np.ndarray, waves: np.ndarray) -> np.ndarray:
    """Return a sum of sine waves of unit variance along each axis, at the points."""
    phase = points @ (waves[:, :3].T * (2 * math.pi / _WAVELENGTH_MM)) + 2 * math.pi * waves[:, 6]
    return np.asarray(math.sqrt(2 / _WAVES) * np.sin(phase) @ waves[:, 3:6])


def _side(side: float, normal: np.ndarray, uniform: np.ndarray) -> list[_Branch]:
    """Return the arteries of one side; `side` is -1 on the left and 1 on the right."""

    def at(*points: _Point) -> list[_Point]:
        return [(side * x, y, z) for x, y, z in points]

    siphon = 2.0 * normal[6]
    fork = (31.0 + 2.5 * normal[7], 2.0 + normal[8], -14.0 + normal[9])
    top, knee = (13.0, 0.0, -12.0), (2.6, 7.0, -11.0)
    back = (9.5, -22.0, -17.0)
    fetal = uniform[0] < 0.12
    # Shares of missing, thin and ordinary posterior communicating arteries.
    communicating = 1.1 if fetal else (0.0, 0.55, 0.8)[int(uniform[0] > 0.40) + int(uniform[0] > 0.65)]
    first = (0.0, 0.5, 1.15)[int(uniform[1] > 0.04) + int(uniform[1] > 0.13)]
    trunk = (0.6 if uniform[2] < 0.5 else 0.8) if fetal else 1.1
    loss = 0.12 + 0.25 * uniform[3]
    weak = 0.75 - 0.25 * uniform[4]
    branches = [
        _Branch(
            name="carotid",
            course=at(
                (25, -16, -60),
                (24, -17, -48),
                (21, -15, -41),
                (15, -8, -37),
                (12.5, -4, -33),
                (12, 1, -29),
                (12, 7 + siphon, -27),
                (12, 10 + siphon, -23),
                (12, 7, -19.5),
                (12, 2, -16.5),
                top,
            ),
            radii=(2.4, 1.8),
            signal=(1.0, 1 - 0.6 * loss),
        ),
        _Branch(name="m1", course=at(top, (18, 2, -12.5), (25, 3.5, -14), fork), radii=(1.4, 1.25)),
        _Branch(
            name="m2 superior",
            course=at(fork, (36, 2, -10), (39, 0, -1), (41, -7, 8), (45, -15, 15), (48, -20, 24)),
            radii=(1.1, 0.75),
            signal=(1.0, weak),
        ),
        _Branch(
            name="m2 inferior",
            course=at(fork, (36, -2, -12), (40, -11, -7), (42, -22, -1), (46, -34, 4), (50, -44, 10)),
            radii=(1.1, 0.75),
            signal=(1.0, weak),
        ),
        _Branch(name="a1", course=at(top, (9, 3, -13.5), (5, 6, -12.5), knee), radii=(first, first)),
        _Branch(
            name="a2",
            course=at(knee, (2.2, 13, -10), (2, 22, -5), (2, 30, 3), (2.2, 32, 13), (2, 27, 22)),
            radii=(1.05, 0.8),
            signal=(1.0, weak),
        ),
        _Branch(
            name="pcom",
            course=at((12, 1.5, -16), (10.5, -7, -17.5), (9.5, -15, -17.5), back),
            radii=(communicating, communicating),
            signal=(0.95, 0.9),
        ),
        _Branch(name="p1", course=[(0, -21, -19), *at((4, -20.5, -17.5), back)], radii=(trunk, trunk)),
        _Branch(
            name="p2",
            course=at(back, (15, -28, -16), (19, -37, -12), (19, -47, -8), (16, -57, -4), (13, -68, 1)),
            radii=(1.05, 0.75),
            signal=(0.95, weak),
        ),
        _Branch(
            name="vertebral",
            course=[*at((11, -38, -62), (7, -33, -56), (3, -29, -51)), (0, -27, -46)],
            radii=(0.7 if uniform[5] < 0.15 else 1.45, 1.35),
        ),
    ]
    if uniform[6] > 0.4:
        branches.append(
            _Branch(
                name="m2 anterior",
                course=at(fork, (36, 7, -11), (39, 15, -5), (42, 22, 3), (45, 26, 12)),
                radii=(1.0, 0.7),
                signal=(1.0, weak),
            )
        )
    if uniform[7] > 0.3:
        branches.append(
            _Branch(
                name="superior cerebellar",
                course=at((0.5, -23, -22), (8, -25, -22.5), (15, -33, -20), (18, -44, -17)),
                radii=(0.8, 0.6),
                signal=(0.9, 0.5),
            )
        )
    return branches


def _middle(uniform: np.ndarray) -> list[_Branch]:
    """Return the arteries that cross or follow the midline."""
    branches = [
        _Branch(
            name="basilar",
            course=[(0, -27, -46), (0, -27.5, -38), (0, -26, -29), (0, -21, -19)],
            radii=(1.65, 1.4),
            signal=(1.0, 0.95),
        )
    ]
    if uniform[0] > 0.06:
        width = 0.6 + 0.4 * uniform[1]
        branches.append(
            _Branch(name="acom", course=[(-2.6, 7, -11), (0, 7.8, -10.8), (2.6, 7, -11)], radii=(width, width))
        )
    return branches
