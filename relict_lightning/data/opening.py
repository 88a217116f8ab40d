"""Opens whatever people train on.

Accepted are arrays and tensors `[m, c, *spatial]`, map-style and iterable data sets, data loaders (for their data set),
Lightning's data modules, and lists of images, paths or MONAI-style dictionaries.
"""

from collections.abc import Iterable
from typing import Any, get_args

from relict_lightning.data.containers import Opener, container_of
from relict_lightning.data.items import ARGUMENTS, Role, text_of
from relict_lightning.data.reading import Contents
from relict_lightning.data.repeatability import refuse_random, refuse_random_stream
from relict_lightning.data.source import ImageSource
from relict_lightning.errors import ConfigurationError


def open_images(
    source: object,
    *,
    role: Role,
    segmentations: object = None,
    groups: Iterable[Any] | None = None,
) -> ImageSource:
    """Return a repeatable, deterministic stream of the images of one set.

    The live data set, its augmentations and the global random state stay as they are. Of a data loader only the data
    set is used, all of it, in its own order; where the loader draws from a `SubsetRandomSampler`, the subset. Of a
    data module the training loader is used or, for `held-out`, the first validation loader; it is set up first, unless
    it is attached to a trainer. An iterable data set must give all images in every process that reads it.

    Args:
        source: Array or tensor `[m, c, *spatial]`, map-style or iterable data set, data loader, data module, or list
            of images, paths or dictionaries with `image` and, optionally, `label` (segmentation), `id` and `group`
            (the patient). Items of data sets are images, tuples that start with one, or such dictionaries.
        role: `training`, `held-out` or `generated`.
        segmentations: One label map `[*spatial]` or `[1, *spatial]` per image: an array, or a list of arrays or paths.
        groups: The patient of each image.

    Returns:
        The stream.

    Raises:
        ConfigurationError: If `source` is of another kind, cannot be copied, or if numbers of images, segmentations
            and groups differ; for an iterable data set that shows when a pass ends.
        EmptyDataError: If there is no image.
        InvalidImageError: If an image is not valid; the first one is checked here, all others when they are read.
        NondeterministicDataError: If two reads of one item of a data set differ.
        UnreadableDataError: If a file cannot be read.

    Example:
        >>> import torch
        >>> source = open_images(torch.zeros(3, 1, 8, 8), role="training", groups=["anna", "ben", "ben"])
        >>> next(source.batches(3)).groups
        ('anna', 'ben', 'ben')
    """
    if role not in get_args(Role):
        raise ConfigurationError(f"role={role!r}; expected one of {', '.join(get_args(Role))}.")
    images = Opener(container_of(source, role=role), name=f"{role} set", argument=ARGUMENTS[role])
    maps = None
    if segmentations is not None:
        container = container_of(segmentations, role=role, what="segmentations")
        maps = Opener(container, name=f"segmentations of the {role} set", argument="segmentations=")
    if isinstance(groups, str):
        raise ConfigurationError(f"groups={groups!r}; expected one patient per image. Pass a list.")
    names = None if groups is None else tuple(text_of(group) for group in groups)
    contents = Contents(role=role, images=images, segmentations=maps, groups=names)
    opened = ImageSource(contents)
    if images.is_stream:
        refuse_random_stream(images, role=role)
    elif not images.is_inert:
        refuse_random(images(), role=role)
    return opened
