"""The training set on disk: embedded, stored, searchable; the only part that knows FAISS."""

from relict_lightning.index.build import BuildOptions, Check, Search, build_reference, default_memory
from relict_lightning.index.columns import COARSE, FEATURE, LABELS, VIEWS, Pipeline
from relict_lightning.index.entry import Entry, EntryWriter, open_or_put_aside, writing
from relict_lightning.index.exact import ExactIndex
from relict_lightning.index.fingerprint import combine, digest_module
from relict_lightning.index.reference import Reference, read_reference, subset, write_reference
from relict_lightning.index.rows import MemoryRows
from relict_lightning.index.search import merge_hits
from relict_lightning.index.sharing import SharedIndex
from relict_lightning.index.views import coarse_view, feature_view, label_view
from relict_lightning.index.volumes import IntensityScale, Store

__all__ = [
    "COARSE",
    "FEATURE",
    "LABELS",
    "VIEWS",
    "BuildOptions",
    "Check",
    "Entry",
    "EntryWriter",
    "ExactIndex",
    "IntensityScale",
    "MemoryRows",
    "Pipeline",
    "Reference",
    "Search",
    "SharedIndex",
    "Store",
    "build_reference",
    "coarse_view",
    "combine",
    "default_memory",
    "digest_module",
    "feature_view",
    "label_view",
    "merge_hits",
    "open_or_put_aside",
    "read_reference",
    "subset",
    "write_reference",
    "writing",
]
