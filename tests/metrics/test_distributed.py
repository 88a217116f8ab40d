import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import relict_lightning
from relict_lightning.functional import (
    closer_to_training_share,
    neighbor_ratio_fraction,
    normalized_cross_correlation,
    replica_rate,
)


def test_two_processes_with_unequal_shares_agree_with_one(tmp_path):
    generator = torch.Generator().manual_seed(0)
    scores, others = torch.rand(10, generator=generator), torch.rand(10, generator=generator)
    images, training = torch.rand(10, 1, 8, 8, generator=generator), torch.rand(10, 1, 8, 8, generator=generator)
    torch.save((scores, others, images, training), tmp_path / "samples.pt")
    package = str(Path(relict_lightning.__file__).parent.parent)

    processes = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("two_processes.py")), str(rank), str(tmp_path)],
            env={**os.environ, "PYTHONPATH": package},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors

    for rank, own_samples in ((0, 3), (1, 7)):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found == {
            "rate": pytest.approx(replica_rate(scores, 0.5).value),
            "successes": replica_rate(scores, 0.5).successes,
            "trials": 10,
            "fraction": pytest.approx(neighbor_ratio_fraction(scores)),
            "share": pytest.approx(closer_to_training_share(scores, others)),
            "correlation": pytest.approx(normalized_cross_correlation(images, training).mean().item(), abs=1e-6),
            "own_samples": own_samples,
        }
