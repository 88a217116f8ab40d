"""Two and four processes that share a reference find what one finds, to the bit."""

from pathlib import Path

import pytest
import shared_by_processes
import torch
from ranks import run_ranks

from relict_lightning.index import contents
from relict_lightning.processes import Processes

# One worker for all of them: the processes are started once.
pytestmark = pytest.mark.xdist_group("shared by processes")

SCRIPT = Path(shared_by_processes.__file__)


def _run(folder, count, *numbers):
    """Starts so many processes; returns for each number of images what each of them found."""
    for images in numbers:
        (folder / str(images)).mkdir()
    run_ranks(SCRIPT, folder, *numbers, count=count)
    return {
        images: [torch.load(folder / str(images) / f"{rank}.pt", weights_only=True) for rank in range(count)]
        for images in numbers
    }


# 23 images are six chunks, the last one ragged; 9 are three, so that one of four processes has none.
@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return _run(tmp_path_factory.mktemp("two"), 2, 23)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return _run(tmp_path_factory.mktemp("four"), 4, 23, 9)


def _assert_same(found, expected):
    for where, hits in expected["hits"].items():
        for name, arrays in hits.items():
            for array, other in zip(found["hits"][where][name], arrays, strict=True):
                assert torch.equal(array, other), (where, name)
    assert str(found["said"]) == str(expected["said"])
    assert str(found["loaded"]) == str(expected["loaded"])
    assert all(torch.equal(one, other) for one, other in zip(found["pairs"], expected["pairs"], strict=True))


# Copies among the training images are warned of.
@pytest.mark.filterwarnings("ignore::relict_lightning.errors.RelictWarning")
@pytest.mark.parametrize(
    ("several", "images"), [("two", 23), ("four", 23), ("four", 9)], ids=["two", "four", "one of four empty"]
)
def test_processes_that_share_find_what_one_finds(tmp_path, monkeypatch, request, several, images):
    reports = request.getfixturevalue(several)[images]
    monkeypatch.setattr(contents, "chunk_rows", lambda _: 4)
    expected = shared_by_processes.everything(Processes(), tmp_path, images)

    for report in reports:
        _assert_same(report, expected)
    assert expected["said"] == expected["loaded"]
    assert {report["error"].split(":")[0] for report in reports[:-1]} == {"OtherProcessError"}
    assert reports[-1]["error"] == "ZeroDivisionError: only here"


def test_one_process_alone_is_the_default():
    processes = Processes.current()

    assert (processes.rank, processes.count, processes.is_first) == (0, 1, True)
    assert processes.gather(lambda: 3, doing="Counting") == [3]
    assert processes.together(lambda: 3, doing="Counting") == 3
