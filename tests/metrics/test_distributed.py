from pathlib import Path

import pytest
import torch
from metric_cases import CASES
from ranks import run_ranks

# One worker for all of them: the processes are started once.
pytestmark = pytest.mark.xdist_group("metrics of two")

SHARES = {"unequal shares": (3, 7), "one process without samples": (0, 10)}


def _split(shares):
    return ",".join(map(str, shares))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder that two processes wrote to."""
    folder = tmp_path_factory.mktemp("two")
    run_ranks(Path(__file__).with_name("two_processes.py"), folder, *map(_split, SHARES.values()), count=2)
    return folder


@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES)
def test_two_processes_agree_with_one(written, shares):
    for rank in (0, 1):
        found = torch.load(written / f"{_split(shares)}-{rank}.pt", weights_only=True)
        assert set(found) == set(CASES)
        for name, case in CASES.items():
            expected = torch.as_tensor(case.twin(*case.samples(0, sum(shares)))).double()
            torch.testing.assert_close(
                found[name]["value"].double(),
                expected,
                atol=1e-6,
                rtol=1e-5,
                equal_nan=True,
                msg=lambda message, name=name: f"{name}: {message}",
            )
            assert found[name]["updates"] == (1 if shares[rank] else 0)
        scores = CASES["ReplicaRate"].samples(0, sum(shares))[0]
        assert found["ReplicaRate"]["successes"] == int((scores >= 0.5).sum())
        assert found["ReplicaRate"]["trials"] == sum(shares)
