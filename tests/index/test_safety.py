"""Whatever happens to a build or to its files: a clear error or a rebuild, never a wrong hit, and nothing lost."""

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from built_references import above_half, build
from torch import nn

import relict_lightning
from relict_lightning import whole_files
from relict_lightning.errors import CacheWriteError, RelictError
from relict_lightning.index import contents

SCRIPT = Path(__file__).with_name("builders.py")
IMAGES = torch.rand((12, 1, 8, 8), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(contents, "chunk_rows", lambda _: 4)


def _start(*arguments):
    path = [str(Path(relict_lightning.__file__).parent.parent), str(SCRIPT.parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finished(process):
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(output), errors


def _build(cache_dir, **options):
    settings = {"encoder": nn.Flatten(), "segment": above_half, "segmenter": "halves", "scale": None}
    return build(IMAGES, cache_dir=cache_dir, **settings, **options)


def _looked_up(reference):
    """Everything that a detector reads of a reference."""
    everyone = np.arange(len(reference))
    queries = IMAGES[:3].flatten(1).numpy() - 0.5
    hits = reference.feature.search(queries, 4), reference.feature.range_search(queries, 0.0)
    coarse = reference.coarse.search(reference.coarse.vectors[everyone], 2)
    labels = reference.labels.search(reference.labels.vectors[everyone], 2)
    volumes, maps = reference.volumes(everyone), reference.label_maps[everyone]
    arrays = [*hits[0], *hits[1], *coarse, *labels, volumes, maps, reference.group_codes, reference.digests]
    return reference.ids, reference.groups, reference.scale, [array.tolist() for array in arrays]


def test_thirty_killed_builds_end_as_one_that_was_not_disturbed(tmp_path):
    outcome, _ = _finished(_start("kill", tmp_path, 30))

    assert outcome["same"] == 30
    assert outcome["killed"] >= 25
    assert outcome["had written"] >= 20
    assert outcome["rests"] == 0
    assert outcome["expected"] == 50 + 4


def test_of_two_builders_at_once_one_builds_and_both_find_the_same(tmp_path):
    results, errors = zip(*map(_finished, [_start("build", tmp_path) for _ in range(2)]), strict=True)

    assert sorted(result["shown"] for result in results) == [0, 40]
    assert results[0]["hits"] == results[1]["hits"]
    assert sum("waiting for it" in text for text in errors) == 1


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A cache, and what is looked up in it."""
    folder = tmp_path_factory.mktemp("pristine") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contents, "chunk_rows", lambda _: 4)
        return folder, _looked_up(_build(folder))


def _outcome(cache, expected):
    """Whether what is looked up in a harmed cache is right, or refused in words; and right once it is built again."""
    try:
        found = _looked_up(_build(cache))
    except RelictError as error:
        refusal = str(error)
    else:
        assert found == expected
        return "right"
    assert "damaged" in refusal
    assert _looked_up(_build(cache)) == expected
    return "refused"


@pytest.mark.filterwarnings("ignore::relict_lightning.errors.RelictWarning")
def test_no_flipped_bit_in_any_file_gives_a_wrong_hit(tmp_path, pristine):
    folder, expected = pristine
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    chance = random.Random(0)  # noqa: S311 - no secret
    outcomes = []
    for number in range(240):
        # Every file in turn; within it, its first bytes, where the header is, more often than they are many.
        path = paths[number % len(paths)]
        size = (folder / path).stat().st_size
        place = chance.randrange(min(size, 128)) if number % 3 == 0 else chance.randrange(size)
        cache = tmp_path / str(number)
        shutil.copytree(folder, cache)
        content = bytearray((cache / path).read_bytes())
        content[place] ^= 1 << chance.randrange(8)
        (cache / path).write_bytes(content)
        outcomes.append(_outcome(cache, expected))
        shutil.rmtree(cache)

    assert len(paths) >= 15
    assert outcomes.count("right") > 100
    assert outcomes.count("refused") > 20


@pytest.mark.filterwarnings("ignore::relict_lightning.errors.RelictWarning")
@pytest.mark.parametrize("rest", ["nothing", "half", "all but one byte"])
def test_no_truncated_file_gives_a_wrong_hit(tmp_path, pristine, rest):
    folder, expected = pristine
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        size = path.stat().st_size
        cache = tmp_path / str(number)
        shutil.copytree(folder, cache)
        os.truncate(
            cache / path.relative_to(folder),
            {"nothing": 0, "half": size // 2, "all but one byte": max(0, size - 1)}[rest],
        )
        _outcome(cache, expected)


@pytest.mark.parametrize("written", [0, 3, 11])
def test_a_full_disk_is_said_and_what_was_built_is_kept(tmp_path, monkeypatch, written):
    calls = []
    real = os.fsync

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) > written:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    first = _build(tmp_path, store="uint8")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(whole_files.os, "fsync", fsync)
    with pytest.raises(CacheWriteError, match=r"No space left on device.*Free some space.*'uint8'.*kept"):
        _build(tmp_path)
    monkeypatch.undo()

    assert {path: path.read_bytes() for path in before} == before
    monkeypatch.setattr(contents, "chunk_rows", lambda _: 4)
    assert _build(tmp_path, store="uint8").from_cache
    assert _looked_up(_build(tmp_path)) == _looked_up(_build(None))
    assert first.fingerprint != _build(tmp_path).fingerprint


def test_a_file_that_may_not_grow_is_said_by_the_operating_system_itself(tmp_path):
    script = f"""
        import resource, signal, sys
        sys.path[:0] = {[str(SCRIPT.parent)]!r}
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        import builders
        from pathlib import Path
        from relict_lightning.errors import CacheWriteError
        resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))
        try:
            builders.built(Path(sys.argv[1]))
        except CacheWriteError as error:
            print(str(error))
    """
    lines = "\n".join(line.strip() if not line.startswith("            ") else line[8:] for line in script.splitlines())
    environment = {**os.environ, "PYTHONPATH": str(Path(relict_lightning.__file__).parent.parent)}
    command = [sys.executable, "-c", lines, str(tmp_path / "cache")]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)

    assert "cannot be written (File too large). Free some space" in finished.stdout, finished.stderr[-2000:]
    assert not list((tmp_path / "cache").glob("**/*.npy"))


@pytest.fixture
def read_only():
    """A cache that this process may read and not write to, whoever runs it."""
    folder = Path(tempfile.mkdtemp())
    is_root = os.geteuid() == 0
    _build(folder / "cache")
    if is_root:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, 65534, 65534)
    for path in folder.rglob("*"):
        path.chmod(0o500 if path.is_dir() else 0o400)
    if is_root:
        os.seteuid(65534)
    yield folder / "cache"
    if is_root:
        os.seteuid(0)
    for path in (folder / "cache", *(folder / "cache").iterdir()):
        if path.is_dir():
            path.chmod(0o700)
    shutil.rmtree(folder)


def test_a_read_only_cache_is_read(read_only):
    assert _build(read_only).from_cache


def test_what_a_read_only_cache_lacks_is_said(read_only):
    before = sorted(read_only.rglob("*"))

    with pytest.raises(CacheWriteError, match=r"cannot be written \(Permission denied\).*this user may write to.*kept"):
        _build(read_only, store="uint8")

    assert sorted(read_only.rglob("*")) == before
