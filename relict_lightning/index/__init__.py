"""The searchable store of training embeddings; the only part that knows FAISS."""

from relict_lightning.index.entry import Entry, EntryWriter, open_or_put_aside, writing
from relict_lightning.index.fingerprint import combine, digest_module
from relict_lightning.index.flat import FlatIndex
from relict_lightning.index.reference import (
    IntensityScale,
    Reference,
    Scan,
    build_reference,
    read_reference,
    scan,
    subset,
    write_reference,
)
from relict_lightning.index.views import coarse_view, feature_view

__all__ = [
    "Entry",
    "EntryWriter",
    "FlatIndex",
    "IntensityScale",
    "Reference",
    "Scan",
    "build_reference",
    "coarse_view",
    "combine",
    "digest_module",
    "feature_view",
    "open_or_put_aside",
    "read_reference",
    "scan",
    "subset",
    "write_reference",
    "writing",
]
