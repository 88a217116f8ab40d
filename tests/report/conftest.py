import base64
import io
import re
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor

from relict_lightning.report import OnsetSummary
from relict_lightning.results import Evaluation, Level, MatchedPair, RateEstimate, Transform, Verdict


def _rate(successes: int, trials: int = 64) -> RateEstimate:
    interval = stats.binomtest(successes, trials).proportion_ci(confidence_level=0.95, method="exact")
    return RateEstimate(
        value=successes / trials,
        low=float(interval.low),
        high=float(interval.high),
        successes=successes,
        trials=trials,
    )


@pytest.fixture
def rate() -> Callable[..., RateEstimate]:
    """Make a rate with its exact interval."""
    return _rate


@pytest.fixture
def evaluations() -> Callable[..., list[Evaluation]]:
    """Make one evaluation per number of replicas, every 100 steps, with or without a control."""

    def make(*successes: int, control: bool = True) -> list[Evaluation]:
        records = []
        for position, count in enumerate(successes, start=1):
            measures = {"train_loss": 1 / position, "max_similarity": 0.9, "seconds_sampling": 2.0}
            if control:
                measures |= {"memorization_p_value": 0.5 / 10**count, "alpha_threshold": 0.03 / position**2}
            records.append(
                Evaluation(
                    step=100 * position,
                    epoch=position,
                    replica_rate=_rate(count) if control else None,
                    measures=measures,
                )
            )
        return records

    return make


@pytest.fixture
def onset() -> OnsetSummary:
    """Onset at step 300, with the checkpoint of step 200 to return to."""
    return OnsetSummary(
        step=300,
        epoch=3,
        reason="permutation test over 100 patients",
        replica_rate=_rate(12),
        p_value=0.0002,
        alpha_spent=0.0033,
        checkpoint_path="runs/step=200.ckpt",
        checkpoint_step=200,
        checkpoint_rate=_rate(0),
    )


@pytest.fixture
def pair() -> Callable[..., MatchedPair]:
    """Make a pair of a noisy, darkened copy and its original, drawn from a seed."""

    def make(
        *shape: int,
        seed: int = 0,
        match_id: str = "sub-007_T1w",
        transform: Transform | None = None,
        evidence: Mapping[Level, Mapping[str, float]] | None = None,
        generated: Tensor | None = None,
    ) -> MatchedPair:
        generator = torch.Generator().manual_seed(seed)
        training = torch.rand(*shape, generator=generator)
        noise = torch.rand(*shape, generator=generator)
        return MatchedPair(
            generated=0.3 * training + 0.01 * noise if generated is None else generated,
            training=training,
            verdict=Verdict(
                score=4.25,
                p_value=0.0049,
                is_replica=True,
                match=31,
                match_id=match_id,
                match_group="patient-007",
                transform=transform or Transform(),
                evidence=evidence or {"voxel": {"ssim": 0.94}, "segmentation": {"hausdorff_95_mm": 1.4}},
                level_p_values={"voxel": 0.0049},
            ),
        )

    return make


@pytest.fixture
def decoded() -> Callable[[str], list[np.ndarray]]:
    """Decode every PNG that stands in a page, in order."""

    def decode(page: str) -> list[np.ndarray]:
        found = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page)
        return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found]

    return decode
