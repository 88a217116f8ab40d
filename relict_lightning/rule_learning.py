"""Learning from expert ratings how the levels are put together, and whether that is any better.

A logistic regression weighs each level's excess over the usual, on a logarithmic scale and by weights of at least zero,
so that nothing looks less like a copy for being more alike. It is judged out of sample, by nested cross-validation in
which all samples that match one patient stay together: the inner one chooses the ridge, the outer one scores. The
learned rule is taken only where its area under the ROC curve is larger than the label-free rule's beyond chance, by
DeLong's test of paired scores. Few ratings do not show that, and then nothing changes.

p-values of new samples stay valid, because the weights know the ratings of other samples only, and the control is
scored alike. The rated samples themselves taught the rule, and their p-values are too small.

References:
    DeLong, DeLong, Clarke-Pearson (1988), Comparing the areas under two or more correlated receiver operating
    characteristic curves, doi:10.2307/2531595.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import optimize, special, stats

from relict_lightning.calibration import Rule, calibrate, level_excess
from relict_lightning.errors import ConfigurationError
from relict_lightning.functional import area_under_roc
from relict_lightning.results import RocAreaEstimate

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

_FOLDS = 5
_FEWEST_OF_EACH = 10
# From next to none to one that leaves little of the weights, which have the scale of logarithms.
_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class LearnedRule:
    """A rule that was learned from ratings, beside the label-free one.

    Attributes:
        rule: The better one: learned where that is better beyond chance, label-free elsewhere.
        is_better: Whether the learned one is.
        weights: Weight of each level in the learned rule, at least 0.
        learned_area: Area under the ROC curve of the learned rule, out of sample.
        label_free_area: The same of the label-free rule, which needs no ratings and so has no other.
        gain: By how much the first exceeds the second.
        gain_low: Lower bound of that gain, at one-sided 95 %; the learned rule is taken where it is above 0.
        rated: Number of ratings.
        replicas: How many of them say replica.
    """

    rule: Rule
    is_better: bool
    weights: dict[str, float]
    learned_area: RocAreaEstimate
    label_free_area: RocAreaEstimate
    gain: float
    gain_low: float
    rated: int
    replicas: int


def checked_ratings(is_replica: Sequence[bool] | Array, *, count: int) -> Array:
    """Return the ratings of so many samples as an array `[n]`.

    Raises:
        ConfigurationError: If there is not one per sample, they are not booleans, or there are fewer than 10 of either.
    """
    ratings = np.asarray(is_replica)
    if ratings.shape != (count,):
        raise ConfigurationError(
            f"There must be one rating per sample; got ratings {list(ratings.shape)} of {count} samples."
        )
    odd = ratings[~np.isin(ratings, (False, True))]
    if len(odd):
        raise ConfigurationError(f"Ratings must be booleans, True for a replica; got values such as {odd[0]!r}.")
    rated = ratings.astype(bool)
    copies = int(rated.sum())
    if min(copies, rated.size - copies) < _FEWEST_OF_EACH:
        raise ConfigurationError(
            f"Learning a rule needs at least {_FEWEST_OF_EACH} samples rated as replicas and {_FEWEST_OF_EACH} rated "
            f"as not; got {copies} and {rated.size - copies}. Rate more pairs."
        )
    return rated


def learn_rule(
    likeness: Array, control: Array, *, is_replica: Array, groups: Array, rule: Rule, seed: int = 0
) -> LearnedRule:
    """Return the rule that ratings teach, where it is better than the label-free one, and how both do.

    Args:
        likeness: Copy-likeness of the rated samples by each measure, `[n, c]`.
        control: Copy-likeness of held-out images, `[h, c]`.
        is_replica: The ratings, `[n]`.
        groups: Patient that each sample matches, by code or name, `[n]`.
        rule: The label-free rule.
        seed: Seed of the folds.

    Raises:
        ConfigurationError: If fewer than 10 samples, or samples of fewer than 5 patients, are rated as replicas or as
            not, or numbers of rows differ.
    """
    rated = checked_ratings(is_replica, count=len(likeness))
    if len(groups) != len(likeness):
        raise ConfigurationError(
            f"There must be one patient per sample; got {len(groups)} patients of {len(likeness)} samples."
        )
    for is_copy, said in ((True, "as replicas"), (False, "as not")):
        patients = len(set(groups[rated == is_copy].tolist()))
        if patients < _FOLDS:
            raise ConfigurationError(
                f"Learning a rule needs samples that match at least {_FOLDS} patients rated as replicas, and as many "
                f"rated as not; got {patients} patients rated {said}. Rate more pairs."
            )
    label_free = replace(rule, weights=())
    features = np.log1p(level_excess(likeness, control, label_free))
    stream = np.random.default_rng(seed)
    out_of_sample = np.full(len(rated), np.nan)
    for train, test in _folds(rated, groups, stream):
        weights, intercept = _fitted_by_best_ridge(features[train], rated[train], groups[train], stream)
        out_of_sample[test] = features[test] @ weights + intercept
    weights, _ = _fitted_by_best_ridge(features, rated, groups, stream)
    scores = calibrate(likeness, control, label_free).scores
    gain, deviation = _gain(out_of_sample, scores, rated)
    low = gain - float(stats.norm.ppf(_CONFIDENCE)) * deviation
    is_better = low > 0 and bool(weights.any())
    learned = replace(label_free, weights=tuple(float(weight) for weight in weights))
    return LearnedRule(
        rule=learned if is_better else label_free,
        is_better=is_better,
        weights=dict(zip(rule.levels, learned.weights, strict=True)),
        learned_area=_area(out_of_sample, rated),
        label_free_area=_area(scores, rated),
        gain=gain,
        gain_low=low,
        rated=len(rated),
        replicas=int(rated.sum()),
    )


def _area(scores: Array, rated: Array) -> RocAreaEstimate:
    return area_under_roc(torch.from_numpy(scores.copy()), torch.from_numpy(rated.copy()))


def _folds(rated: Array, groups: Array, stream: np.random.Generator) -> Iterator[tuple[Array, Array]]:
    """Yield which samples to learn from and which to score; patients stay together, and ratings are spread evenly.

    With at least as many patients of either rating as there are folds, every sample is scored once.
    """
    names, of_sample = np.unique(groups, return_inverse=True)
    counts = np.stack([np.bincount(of_sample, weights=rated == is_copy) for is_copy in (True, False)], axis=1)
    # The rarer rating comes first, so that no fold gets all of it.
    counts = counts[:, np.argsort(counts.sum(axis=0), kind="stable")]
    order = stream.permutation(len(names))
    # Patients with most ratings first, each to the fold that has fewest of the rarest rating that the patient has.
    order = order[np.lexsort(-counts[order].T[::-1])]
    held = np.zeros((_FOLDS, 2))
    fold = np.zeros(len(names), dtype=int)
    for patient in order:
        rarest = int((counts[patient] > 0).argmax())
        fold[patient] = np.lexsort((held.sum(axis=1), held[:, rarest]))[0]
        held[fold[patient]] += counts[patient]
    for number in range(_FOLDS):
        test = fold[of_sample] == number
        if test.any() and len(set(rated[~test].tolist())) > 1:
            yield np.flatnonzero(~test), np.flatnonzero(test)


def _fitted_by_best_ridge(
    features: Array, rated: Array, groups: Array, stream: np.random.Generator
) -> tuple[Array, float]:
    """Return weights and intercept of a logistic regression, its ridge chosen by cross-validation."""
    losses = np.zeros(len(_RIDGES))
    for train, test in _folds(rated, groups, stream):
        for number, ridge in enumerate(_RIDGES):
            weights, intercept = _logistic(features[train], rated[train], ridge)
            losses[number] += _losses(features[test] @ weights + intercept, rated[test]).sum()
    return _logistic(features, rated, _RIDGES[int(losses.argmin())])


def _logistic(features: Array, rated: Array, ridge: float) -> tuple[Array, float]:
    """Return weights of at least 0 and the intercept of a logistic regression in which both ratings weigh alike."""
    share = np.where(rated, rated.mean(), 1 - rated.mean())
    importance = 1 / (2 * share * len(rated))

    def loss(parameters: Array) -> tuple[float, Array]:
        weights = parameters[:-1]
        margin = features @ weights + parameters[-1]
        slope = importance * (special.expit(margin) - rated)
        gradient = np.append(slope @ features + 2 * ridge * weights, slope.sum())
        return float(importance @ _losses(margin, rated) + ridge * weights @ weights), gradient

    count = features.shape[1]
    found = optimize.minimize(
        loss, np.zeros(count + 1), jac=True, method="L-BFGS-B", bounds=[(0, None)] * count + [(None, None)]
    )
    parameters: Array = found.x
    return parameters[:-1], float(parameters[-1])


def _losses(margin: Array, rated: Array) -> Array:
    """Return the logistic loss of each rating."""
    losses: Array = np.logaddexp(0.0, np.where(rated, -margin, margin))
    return losses


def _gain(learned: Array, label_free: Array, rated: Array) -> tuple[float, float]:
    """Return by how much one area under the ROC curve exceeds another on the same samples, and its deviation."""
    one, other = (_placements(scores, rated) for scores in (learned, label_free))
    of_copies, of_others = (ours - theirs for ours, theirs in zip(one, other, strict=True))
    variance = of_copies.var(ddof=1) / len(of_copies) + of_others.var(ddof=1) / len(of_others)
    return float(of_copies.mean()), float(np.sqrt(variance))


def _placements(scores: Array, rated: Array) -> tuple[Array, Array]:
    """Return the share of the others that each copy exceeds, and of the copies that exceed each other; ties half."""
    difference = scores[rated][:, None] - scores[~rated][None, :]
    exceeds = (difference > 0) + 0.5 * (difference == 0)
    return exceeds.mean(axis=1), exceeds.mean(axis=0)
