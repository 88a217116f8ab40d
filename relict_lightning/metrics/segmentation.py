"""How alike pairs of label maps are, on average: the metrics of `relict_lightning.functional.segmentation`.

`update(generated, training)` takes label maps `[n, *spatial]`, integer or boolean. Where a measure has one value per
label, so has its mean, `[l]`, or one number where there is one label: over the pairs in which at least one map has the
label. A label that only one map has counts with the worst value, so one such pair makes the mean of a distance
infinite.
"""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from relict_lightning.functional.segmentation import (
    centerline_dice,
    centroid_distance,
    dice,
    hausdorff_distance_95,
    matched_lesions,
    mean_dice,
    surface_dice,
    volumetric_similarity,
)
from relict_lightning.functional.segmentation.centerline import check_thinning
from relict_lightning.functional.segmentation.label_maps import (
    LabelMaps,
    check_num_labels,
    check_spacing,
    check_tolerance,
)
from relict_lightning.functional.segmentation.lesions import SAME_LESION_DICE, check_matching_settings
from relict_lightning.metrics.base import ReplicaMetric
from relict_lightning.metrics.mean import MeanOverPairs


@final
class Dice(MeanOverPairs):
    """Mean Dice coefficient of `(generated, training)` pairs of label maps, per label, in [0, 1].

    Larger is more alike.

    Args:
        num_labels: Number of labels, background included.
        include_background: Whether label 0 counts.
        **kwargs: Passed on to `torchmetrics.Metric`.

    Raises:
        ConfigurationError: If `num_labels` leaves no label to compare.

    Example:
        >>> metric = Dice(num_labels=4)
        >>> metric.update(torch.tensor([[[1, 1, 0, 2]]]), torch.tensor([[[1, 0, 0, 0]]]))
        >>> metric.compute()
        tensor([0.6667, 0.0000,    nan])

    References:
        Dice (1945), Measures of the amount of ecologic association between species, doi:10.2307/1932409.
    """

    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(self, *, num_labels: int, include_background: bool = False, **kwargs: Any) -> None:
        check_num_labels(num_labels, include_background=include_background)
        settings = {"num_labels": num_labels, "include_background": include_background}
        labels = _label_names(num_labels, include_background=include_background)
        super().__init__(dice, settings, columns=labels, **kwargs)


@final
class MeanDice(MeanOverPairs):
    """Mean Dice coefficient of `(generated, training)` pairs of label maps, in [0, 1].

    Each pair counts with its mean over the labels that either map has, and with 0 if neither has any. Larger is more
    alike.

    Args:
        num_labels: Number of labels, background included.
        include_background: Whether label 0 counts.
        **kwargs: Passed on to `torchmetrics.Metric`.

    Raises:
        ConfigurationError: If `num_labels` leaves no label to compare.

    Example:
        >>> metric = MeanDice(num_labels=3)
        >>> metric.update(torch.tensor([[[1, 1, 0, 2]]]), torch.tensor([[[1, 0, 0, 0]]]))
        >>> metric.compute()
        tensor(0.3333)

    References:
        Dice (1945), Measures of the amount of ecologic association between species, doi:10.2307/1932409.
    """

    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(self, *, num_labels: int, include_background: bool = False, **kwargs: Any) -> None:
        check_num_labels(num_labels, include_background=include_background)
        settings = {"num_labels": num_labels, "include_background": include_background}
        super().__init__(mean_dice, settings, **kwargs)


@final
class VolumetricSimilarity(MeanOverPairs):
    """Mean volumetric similarity of `(generated, training)` pairs of label maps, per label, in [0, 1].

    Larger is more alike.

    Args:
        num_labels: Number of labels, background included.
        include_background: Whether label 0 counts.
        **kwargs: Passed on to `torchmetrics.Metric`.

    Raises:
        ConfigurationError: If `num_labels` leaves no label to compare.

    Example:
        >>> metric = VolumetricSimilarity(num_labels=3)
        >>> metric.update(torch.tensor([[[1, 1, 0, 2]]]), torch.tensor([[[0, 0, 1, 0]]]))
        >>> metric.compute()
        tensor([0.6667, 0.0000])

    References:
        Taha, Hanbury (2015), Metrics for evaluating 3D medical image segmentation: analysis, selection, and tool,
        doi:10.1186/s12880-015-0068-x.
    """

    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(self, *, num_labels: int, include_background: bool = False, **kwargs: Any) -> None:
        check_num_labels(num_labels, include_background=include_background)
        settings = {"num_labels": num_labels, "include_background": include_background}
        super().__init__(
            volumetric_similarity,
            settings,
            columns=_label_names(num_labels, include_background=include_background),
            **kwargs,
        )


@final
class HausdorffDistance95(MeanOverPairs):
    """Mean 95th percentile Hausdorff distance of `(generated, training)` pairs of label maps, per label, in mm.

    Smaller is more alike.

    Args:
        num_labels: Number of labels, background included.
        spacing_mm: Size of a voxel in mm: one number for all axes, or one per spatial axis.
        **kwargs: Passed on to `torchmetrics.Metric`.

    Raises:
        ConfigurationError: If `num_labels` leaves no label to compare, or `spacing_mm` is not positive and finite.

    Example:
        >>> metric = HausdorffDistance95(num_labels=2, spacing_mm=0.5)
        >>> metric.update(torch.tensor([[[1, 1, 0, 0]]]), torch.tensor([[[0, 0, 1, 0]]]))
        >>> metric.compute()
        tensor(0.9750)

    References:
        Huttenlocher, Klanderman, Rucklidge (1993), Comparing images using the Hausdorff distance,
        doi:10.1109/34.232073; Taha, Hanbury (2015), Metrics for evaluating 3D medical image segmentation: analysis,
        selection, and tool, doi:10.1186/s12880-015-0068-x.
    """

    higher_is_better = True

    def __init__(self, *, num_labels: int, spacing_mm: float | Sequence[float], **kwargs: Any) -> None:
        check_num_labels(num_labels, include_background=False)
        settings = {"num_labels": num_labels, "spacing_mm": _spacing(spacing_mm)}
        super().__init__(hausdorff_distance_95, settings, columns=_label_names(num_labels), **kwargs)


@final
class SurfaceDice(MeanOverPairs):
    """Mean share of the surfaces of `(generated, training)` pairs of label maps that agree, per label, in [0, 1].

    Larger is more alike.

    Args:
        num_labels: Number of labels, background included.
        spacing_mm: Size of a voxel in mm: one number for all axes, or one per spatial axis.
        tolerance_mm: Largest distance in mm at which surfaces agree: one number for all labels, or one per label from 1
            on.
        **kwargs: Passed on to `torchmetrics.Metric`.

    Raises:
        ConfigurationError: If `num_labels` leaves no label to compare, `spacing_mm` is not positive and finite, or
            `tolerance_mm` is negative, not finite or does not fit the labels.

    Example:
        >>> metric = SurfaceDice(num_labels=2, spacing_mm=0.5, tolerance_mm=0.5)
        >>> metric.update(torch.tensor([[[1, 1, 0, 0]]]), torch.tensor([[[0, 0, 1, 0]]]))
        >>> metric.compute()
        tensor(0.6667)

    References:
        Nikolov et al. (2021), Clinically applicable segmentation of head and neck anatomy for radiotherapy,
        doi:10.2196/26151; Seidlitz et al. (2022), Robust deep learning-based semantic organ segmentation in
        hyperspectral images, doi:10.1016/j.media.2022.102488.
    """

    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(
        self,
        *,
        num_labels: int,
        spacing_mm: float | Sequence[float],
        tolerance_mm: float | Sequence[float],
        **kwargs: Any,
    ) -> None:
        check_num_labels(num_labels, include_background=False)
        settings = {
            "num_labels": num_labels,
            "spacing_mm": _spacing(spacing_mm),
            "tolerance_mm": check_tolerance(tolerance_mm, labels=num_labels - 1),
        }
        super().__init__(surface_dice, settings, columns=_label_names(num_labels), **kwargs)


@final
class CentroidDistance(MeanOverPairs):
    """Mean distance between the centres of mass in `(generated, training)` pairs of label maps, per label, in mm.

    Smaller is more alike.

    Args:
        num_labels: Number of labels, background included.
        spacing_mm: Size of a voxel in mm: one number for all axes, or one per spatial axis.
        **kwargs: Passed on to `torchmetrics.Metric`.

    Raises:
        ConfigurationError: If `num_labels` leaves no label to compare, or `spacing_mm` is not positive and finite.

    Example:
        >>> metric = CentroidDistance(num_labels=2, spacing_mm=0.5)
        >>> metric.update(torch.tensor([[[1, 1, 0, 0]]]), torch.tensor([[[0, 0, 1, 0]]]))
        >>> metric.compute()
        tensor(0.7500)
    """

    higher_is_better = True

    def __init__(self, *, num_labels: int, spacing_mm: float | Sequence[float], **kwargs: Any) -> None:
        check_num_labels(num_labels, include_background=False)
        settings = {"num_labels": num_labels, "spacing_mm": _spacing(spacing_mm)}
        super().__init__(centroid_distance, settings, columns=_label_names(num_labels), **kwargs)


@final
class CenterlineDice(MeanOverPairs):
    """Mean centreline Dice (clDice) of `(generated, training)` pairs of label maps, per label, in [0, 1].

    Larger is more alike.

    Args:
        num_labels: Number of labels, background included.
        **kwargs: Passed on to `torchmetrics.Metric`.

    Raises:
        ConfigurationError: If `num_labels` leaves no label to compare.
        MissingDependencyError: If scikit-image, which the extra `vessels` brings, is not installed.

    Example:
        >>> metric = CenterlineDice(num_labels=2)
        >>> generated, training = torch.zeros(1, 5, 8).bool(), torch.zeros(1, 5, 8).bool()
        >>> generated[0, 2, :4], training[0, 2] = True, True
        >>> metric.update(generated, training)
        >>> metric.compute()
        tensor(0.6667)

    References:
        Shit et al. (2021), clDice: a novel topology-preserving loss function for tubular structure segmentation,
        arXiv:2003.07311.
    """

    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(self, *, num_labels: int, **kwargs: Any) -> None:
        check_num_labels(num_labels, include_background=False)
        check_thinning()
        super().__init__(centerline_dice, {"num_labels": num_labels}, columns=_label_names(num_labels), **kwargs)


@final
class MatchedLesions(ReplicaMetric):
    """Share of all lesions of all samples that copy a lesion of the training image, in [0, 1].

    Larger is more alike. Samples without lesions add nothing.

    Args:
        label: The label of lesions, at least 1; None where every label but 0 is one.
        min_dice: Smallest Dice coefficient of a match, above 0 and at most 1; see `matched_lesions`.
        **kwargs: Passed on to `torchmetrics.Metric`.

    Raises:
        ConfigurationError: If `label` is less than 1, or `min_dice` lies outside (0, 1].

    Example:
        >>> metric = MatchedLesions()
        >>> metric.update(torch.tensor([[[1, 1, 0, 0, 1, 0, 1]]]), torch.tensor([[[0, 0, 0, 0, 1, 0, 1]]]))
        >>> metric.compute()
        tensor(0.6667)

    References:
        Kirillov et al. (2019), Panoptic segmentation, arXiv:1801.00868.
    """

    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    matched: Tensor
    lesions: Tensor

    def __init__(self, *, label: int | None = None, min_dice: float = SAME_LESION_DICE, **kwargs: Any) -> None:
        check_matching_settings(label=label, min_dice=min_dice)
        super().__init__(settings={"label": label, "min_dice": min_dice}, **kwargs)
        self.label = label
        self.min_dice = min_dice
        self.add_state("matched", default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("lesions", default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, generated: LabelMaps, training: LabelMaps) -> None:
        """Add a batch of pairs.

        Args:
            generated: Label maps of the generated images.
            training: Label maps of the training images, one for each generated image.
        """
        # Which lesions match does not depend on the size of a voxel.
        for pair in matched_lesions(generated, training, spacing_mm=1.0, label=self.label, min_dice=self.min_dice):
            self.matched += len(pair.matches)
            self.lesions += pair.generated_lesions

    def value(self) -> Tensor:
        """Return the share, NaN without lesions."""
        return self.matched / self.lesions


def _label_names(num_labels: int, *, include_background: bool = False) -> list[str]:
    return [f"label {label}" for label in range(0 if include_background else 1, num_labels)]


def _spacing(spacing_mm: float | Sequence[float]) -> float | tuple[float, ...]:
    """Return the size of a voxel, one number where one was given, so that it fits any number of axes."""
    checked = check_spacing(spacing_mm, axes=None)
    return checked[0] if len(checked) == 1 else checked
