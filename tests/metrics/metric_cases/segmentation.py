from metric_cases.case import Case, label_maps
from relict_lightning.functional import mean_dice
from relict_lightning.metrics import MeanDice

CASES = {
    "MeanDice": Case(
        metric=lambda: MeanDice(num_labels=4),
        samples=label_maps,
        twin=lambda g, t: mean_dice(g, t, num_labels=4).mean(),
        other=lambda: MeanDice(num_labels=4, include_background=True),
    ),
}
