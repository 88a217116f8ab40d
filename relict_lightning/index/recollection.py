"""Recognising a set of images without reading all of it.

Hashing every image takes as long as reading it, at every fit. Where a user trusts the files, a set is recognised by a
few of its images, read in full, and by the names, sizes and dates of all files where the images are files.
"""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path

from relict_lightning.data import ImageSource
from relict_lightning.errors import IndexCorruptError
from relict_lightning.index.durable import make_private_folder, write_durably
from relict_lightning.index.entry import Entry
from relict_lightning.index.fingerprint import combine, digest_array, digest_rows
from relict_lightning.processes import Processes

_SAMPLED = 32


class Recollection:
    """What a cache remembers of a set by a sample of its images.

    It does not see images outside of the sample that changed where the data are no files, or where a file was
    rewritten with its old size and date.

    Args:
        source: The images; a data set without positions is not sampled.
        cache_dir: The cache.
        settings: What else a finished folder depends on.
        processes: Who shares the set.
    """

    def __init__(
        self, source: ImageSource, cache_dir: Path, settings: Mapping[str, object], processes: Processes
    ) -> None:
        count = len(source)
        sampled = sorted({position * (count - 1) // max(1, _SAMPLED - 1) for position in range(_SAMPLED)})
        batch = source.read(sampled)
        maps = batch.segmentations
        seen = {
            "files": source.stamp(),
            "count": count,
            "role": source.role,
            "given_groups": source.given_groups,
            "images": digest_array(digest_rows(batch.images.numpy())),
            "label_maps": None if maps is None else digest_array(maps.numpy()),
            "ids": batch.ids,
            "groups": batch.groups,
            "share": [processes.rank, processes.count],
        }
        self._cache_dir = cache_dir
        self._path = cache_dir / f".sampled-{combine({**seen, **settings})}.json"

    def entry(self) -> Entry | None:
        """Return the finished folder of the set that looked like this; None where there is none."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, IndexCorruptError):
            remembered = json.loads(self._path.read_bytes())
            name = remembered["folder"]
            if remembered["checksum"] == combine({"folder": name}):
                return Entry(self._cache_dir / name).verify()
        return None

    def keep(self, folder: Path) -> None:
        """Remember the finished folder of the set."""
        make_private_folder(self._cache_dir)
        text = json.dumps({"folder": folder.name, "checksum": combine({"folder": folder.name})}).encode()
        write_durably(self._cache_dir, lambda file: file.write(text), name=self._path.name)
