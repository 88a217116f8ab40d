import torch

from metric_cases.case import Case, vectors
from relict_lightning.functional import (
    area_under_roc,
    balanced_accuracy_at_optimal_threshold,
    benjamini_hochberg,
    clopper_pearson_interval,
    conformal_p_value,
)
from relict_lightning.metrics import (
    AreaUnderRoc,
    BalancedAccuracyAtOptimalThreshold,
    BenjaminiHochberg,
    ClopperPearsonInterval,
    ConformalPValue,
)

CONTROL = torch.arange(30.0) / 30


def decisions(seed: int, n: int) -> tuple[torch.Tensor]:
    """Return which samples are called replicas."""
    return (vectors(seed, n)[0] < 0.3,)


def p_values(seed: int, n: int) -> tuple[torch.Tensor]:
    """Return p-values of which some are small."""
    return (vectors(seed, n)[0] ** 4,)


def ratings(seed: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scores and ratings; of several, one rating of each kind at least."""
    scores, chances = vectors(seed, n)
    labels = chances < 0.5
    labels[:1], labels[1:2] = True, False
    return scores + 0.3 * labels, labels


CASES = {
    "ClopperPearsonInterval": Case(
        metric=ClopperPearsonInterval,
        samples=decisions,
        twin=lambda called: torch.tensor(clopper_pearson_interval(int(called.sum()), len(called))),
        other=lambda: ClopperPearsonInterval(confidence=0.5),
    ),
    "ConformalPValue": Case(
        metric=lambda: ConformalPValue(control_scores=CONTROL),
        samples=lambda seed, n: vectors(seed, n)[:1],
        twin=lambda scores: conformal_p_value(scores, CONTROL).sort().values,
        other=lambda: ConformalPValue(control_scores=CONTROL / 2),
    ),
    "BenjaminiHochberg": Case(
        metric=BenjaminiHochberg,
        samples=p_values,
        twin=lambda p_values: benjamini_hochberg(p_values).double().mean(),
        other=lambda: BenjaminiHochberg(fdr=0.5),
    ),
    "BalancedAccuracyAtOptimalThreshold": Case(
        metric=BalancedAccuracyAtOptimalThreshold,
        samples=ratings,
        twin=lambda scores, labels: balanced_accuracy_at_optimal_threshold(scores, labels)[0],
    ),
    "AreaUnderRoc": Case(
        metric=AreaUnderRoc,
        samples=ratings,
        twin=lambda scores, labels: area_under_roc(scores, labels).value,
    ),
}
