"""Rows of numbers that belong to the images of a set, wherever they lie: vectors, volumes, label maps."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, TypeAlias, final

import numpy as np

Array: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[Any]]


class Rows(ABC):
    """One row per image, `[m, *row]`, read by position."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape `(m, *row)`."""

    @abstractmethod
    def __getitem__(self, positions: Array) -> Array:
        """Return copies of the rows at some positions, `[p, *row]`."""

    @abstractmethod
    def blocks(self) -> Iterator[tuple[int, Array]]:
        """Return all rows in order, in pieces: the position of a piece's first row, and its rows.

        A piece may be memory-mapped and read-only, and is valid only until the next one is asked for.
        """

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.shape[0]


@final
class MemoryRows(Rows):
    """Rows in memory.

    Args:
        values: `[m, *row]`.
    """

    def __init__(self, values: Array) -> None:
        self.values = values

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape `(m, *row)`."""
        return self.values.shape

    def __getitem__(self, positions: Array) -> Array:
        """Return copies of the rows at some positions, `[p, *row]`."""
        taken: Array = self.values[np.asarray(positions, dtype=np.int64)]
        return taken

    def blocks(self) -> Iterator[tuple[int, Array]]:
        """Return all rows as one piece."""
        if len(self.values):
            yield 0, self.values
