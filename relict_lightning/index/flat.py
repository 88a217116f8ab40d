"""Exact search for the most similar embeddings, by FAISS."""

from typing import Any, final

import faiss
import numpy as np

from relict_lightning.errors import IndexStaleError, InvalidImageError

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]


@final
class FlatIndex:
    """Searches unit vectors by cosine similarity, exactly.

    Args:
        index: A FAISS inner-product index of unit vectors.
    """

    def __init__(self, index: "faiss.Index") -> None:
        self.index = index

    @classmethod
    def from_vectors(cls, vectors: Array) -> "FlatIndex":
        """Return an index of `[m, d]` unit vectors, float32."""
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(np.ascontiguousarray(vectors, dtype=np.float32))
        return cls(index)

    def __len__(self) -> int:
        """Return the number of vectors."""
        return int(self.index.ntotal)

    def search(self, queries: Array, k: int) -> tuple[Array, Array]:
        """Return the `k` most similar vectors of each query, most similar first.

        Args:
            queries: `[n, d]` unit vectors.
            k: Number of hits, at least 1; fewer come back when the index holds fewer vectors.

        Returns:
            Cosine similarity `[n, k]` in [-1, 1], and positions `[n, k]`.

        Raises:
            InvalidImageError: If a query is not finite: FAISS would answer it with position -1, which is the last
                patient's.
            IndexStaleError: If queries have another number of dimensions than the vectors.
        """
        if queries.shape[1] != self.index.d:
            raise IndexStaleError(
                f"The index holds vectors of {self.index.d} numbers, but the encoder returned {queries.shape[1]} for "
                f"the images looked up. Use the encoder that the index was built with, one whose output size does not "
                f"depend on the images, or fit again with an empty cache folder."
            )
        if not np.isfinite(queries).all():
            bad = np.flatnonzero(~np.isfinite(queries).all(axis=1)).tolist()
            raise InvalidImageError(
                f"Embeddings must be finite; those of images {bad[:10]} are not. "
                f"Check the encoder on these images, and its precision."
            )
        similarity, positions = self.index.search(np.ascontiguousarray(queries, dtype=np.float32), min(k, len(self)))
        return np.clip(similarity, -1.0, 1.0), positions
