"""Whether samples lie farther from training images than these do from each other.

- `authenticity`: share of the samples that do (AuthPct), with the share of held-out images beside it.
"""

import warnings

from jaxtyping import Float
from torch import Tensor

from relict_lightning.errors import ConfigurationError, RelictWarning
from relict_lightning.functional.statistics import estimate_rate
from relict_lightning.functional.validation import check_not_nan, check_same_length
from relict_lightning.results import AuthenticityEstimate, RateEstimate


def authenticity(
    generated_distances: Float[Tensor, " n"],
    reference_distances: Float[Tensor, " n"],
    *,
    heldout_distances: Float[Tensor, " h"] | None = None,
    heldout_reference_distances: Float[Tensor, " h"] | None = None,
    confidence: float = 0.95,
) -> AuthenticityEstimate:
    """Return the share of authentic samples (AuthPct), with that of held-out images as its control.

    A sample is authentic if it lies farther from its nearest training image than that image lies from its own nearest
    training image of another group. There is no fixed value for a generator that copies nothing: for fresh draws of a
    normal distribution and 300 training images the share is 39 % in 2 dimensions and 82 % in 256. So a value alone
    says nothing, and a warning says so; it is low or high compared with the control only.

    Args:
        generated_distances: Distance of each sample to its nearest training image.
        reference_distances: Distance of that training image to its nearest training image of another group. Both come
            from `nearest_training_distances`.
        heldout_distances: The first distance, of held-out images; at least as many as samples make a good control.
        heldout_reference_distances: The second distance, of held-out images.
        confidence: Coverage of the intervals, between 0 and 1.

    Returns:
        Both shares with their exact intervals: larger is better, and below the control's is copying. Without samples
        the value is NaN and its interval [0, 1]; without held-out images the control is None.

    Raises:
        ConfigurationError: If lengths differ, a distance is NaN or negative, only one of the held-out arguments is
            given, or `confidence` lies outside (0, 1).

    Example:
        >>> import torch
        >>> estimate = authenticity(
        ...     torch.tensor([0.0, 0.1, 3.0, 0.2]),
        ...     torch.tensor([2.0, 2.0, 2.0, 1.0]),
        ...     heldout_distances=torch.tensor([2.5, 1.5, 3.0, 2.2]),
        ...     heldout_reference_distances=torch.tensor([2.0, 2.0, 2.0, 1.0]),
        ... )
        >>> estimate.value.value, estimate.control.value
        (0.25, 0.75)

    References:
        Alaa, van Breugel, Saveliev, van der Schaar (2022), How faithful is your synthetic data? Sample-level metrics
        for evaluating and auditing generative models, arXiv:2102.08921.
    """
    names = ("generated_distances", "reference_distances")
    value = authentic_share(generated_distances, reference_distances, names=names, confidence=confidence)
    if heldout_distances is None and heldout_reference_distances is None:
        warn_without_control(value)
        return AuthenticityEstimate(value=value, control=None)
    if heldout_distances is None or heldout_reference_distances is None:
        missing = "heldout_distances" if heldout_distances is None else "heldout_reference_distances"
        raise ConfigurationError(
            f"heldout_distances and heldout_reference_distances belong together, but {missing} is missing. Give both, "
            f"as `nearest_training_distances` returns them for held-out images."
        )
    names = ("heldout_distances", "heldout_reference_distances")
    control = authentic_share(heldout_distances, heldout_reference_distances, names=names, confidence=confidence)
    return AuthenticityEstimate(value=value, control=control)


def authentic_share(
    distances: Tensor, reference_distances: Tensor, *, names: tuple[str, str], confidence: float = 0.95
) -> RateEstimate:
    """Return the share of images that are authentic, of samples or of held-out images.

    Args:
        distances: Distance of each image to its nearest training image, `[n]`.
        reference_distances: Distance of that training image to its nearest one of another group.
        names: What the caller calls the two, for messages.
        confidence: Coverage of the interval.

    Raises:
        ConfigurationError: If lengths differ, a distance is NaN or negative, or `confidence` lies outside (0, 1).

    Example:
        >>> import torch
        >>> authentic_share(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0]), names=("first", "second")).value
        0.5
    """
    check_same_length(distances, reference_distances, names=names)
    for name, values in zip(names, (distances, reference_distances), strict=True):
        check_not_nan(values, name=name)
        if (values < 0).any():
            raise ConfigurationError(
                f"{name} must not be negative, but the smallest is {values.min():g}. Turn similarities into distances "
                f"first, as in `1 - similarity`."
            )
    return estimate_rate(int((distances > reference_distances).sum()), len(distances), confidence=confidence)


def warn_without_control(value: RateEstimate) -> None:
    """Warn that nothing stands beside a share of authentic samples.

    Args:
        value: The share.
    """
    warnings.warn(
        f"The share of authentic samples is {value}, but what it would be without copying depends on the dimension and "
        f"the size of the training set. Give held-out images as a control.",
        RelictWarning,
        stacklevel=3,
    )
