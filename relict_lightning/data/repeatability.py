"""Finds out whether a data set gives the same item twice.

A reference with random augmentation hides copies: a sample is compared with another version of its original. Two reads
show most of it. An augmentation that acts on few items is betrayed by the random state that it moves, and then more
reads decide.

An iterable data set is a new start with each copy, so that a random state of its own would give the same augmented
images in each. So the first two items of two copies are compared and, where any state moves, those of many passes over
one copy. That finds an iterable that shuffles as well, which cannot be told from one that augments.
"""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
from torch.utils.data import IterableDataset

from relict_lightning.data.isolation import MapStyle, Snapshot
from relict_lightning.data.items import ARGUMENTS, ImageItem, Role, item_name, parse_item
from relict_lightning.data.process_state import global_random_state, reading_state
from relict_lightning.errors import ConfigurationError, NondeterministicDataError

# A flip of one image in ten shows in 48 reads of two items with a probability above 99.99 %.
_READS_WHEN_STATE_MOVES = 48


def check_repeatable(dataset: MapStyle | Iterable[Any], *, role: Role = "training") -> None:
    """Raise an error if items of a data set differ between reads.

    Compared are the first and the middle item, of an iterable data set the first two. The data set is copied and the
    copy is read; neither the data set nor the global random state changes.

    Args:
        dataset: A map-style data set with at least one item, or an iterable one.
        role: Which set it is, for messages.

    Raises:
        NondeterministicDataError: If two reads of one item are not bit-identical.
        ConfigurationError: If the data set cannot be copied.

    Example:
        >>> check_repeatable([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)])
    """
    copy: Callable[[], Any] = Snapshot(dataset, **_names(role)).copy
    if isinstance(dataset, IterableDataset):
        refuse_random_stream(copy, role=role)
    else:
        refuse_random(copy(), role=role)


def refuse_random(items: MapStyle, *, role: Role) -> None:
    """Raise an error as `check_repeatable` does, by reading the items themselves and not a copy.

    Args:
        items: A copy that nothing else reads.
        role: Which set it is, for messages.

    Raises:
        NondeterministicDataError: If two reads of one item are not bit-identical.

    Example:
        >>> refuse_random([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)], role="training")
    """
    before = _own_state(items, role=role)
    with reading_state():
        moves = [_is_moved_by_reading(items, position, role=role, reads=2) for position in _probed(items)]
        if any(moves) or _own_state(items, role=role) != before:
            for position in _probed(items):
                _is_moved_by_reading(items, position, role=role, reads=_READS_WHEN_STATE_MOVES)


def refuse_random_stream(open_items: Callable[[], Any], *, role: Role) -> None:
    """Raise an error if the first two items of an iterable data set differ between copies or between passes.

    Args:
        open_items: Returns an independent copy at each call.
        role: Which set it is, for messages.

    Raises:
        NondeterministicDataError: If two reads of one item are not bit-identical.

    Example:
        >>> refuse_random_stream(lambda: [torch.zeros(1, 8, 8), torch.ones(1, 8, 8)], role="training")
    """
    with reading_state():
        items = open_items()
        own, everyones = _own_state(items, role=role), global_random_state()
        first = _first_two(items, role=role)
        is_moved = global_random_state() != everyones or _own_state(items, role=role) != own
        _refuse_other_start(first, open_items(), role=role)
        for _ in range(_READS_WHEN_STATE_MOVES - 1 if is_moved else 1):
            _refuse_other_start(first, items, role=role)


def _names(role: Role) -> dict[str, str]:
    return {"name": f"{role} set", "argument": ARGUMENTS[role]}


def _own_state(items: object, *, role: Role) -> bytes | None:
    """Return everything that the items own; None, which differs from before, where reading made them uncopyable."""
    try:
        return Snapshot(items, **_names(role)).state
    except ConfigurationError:
        return None


def _probed(items: MapStyle) -> list[int]:
    return sorted({0, len(items) // 2})


def _is_moved_by_reading(items: MapStyle, position: int, *, role: Role, reads: int) -> bool:
    before = global_random_state()
    raw = items[position]
    is_moved = global_random_state() != before
    first = _kept(raw, position, role=role)
    for _ in range(reads - 1):
        if _differs(first, items[position], position, role=role):
            raise NondeterministicDataError(
                f"{item_name(position, role)} differs between two reads, as with random augmentation; expected the "
                f"same values at every read. Pass `{ARGUMENTS[role]}` a data set without random transforms."
            )
    return is_moved


def _first_two(items: Iterable[Any], *, role: Role) -> list[ImageItem]:
    return [_kept(raw, position, role=role) for position, raw in enumerate(islice(items, 2))]


def _refuse_other_start(first: list[ImageItem], items: Iterable[Any], *, role: Role) -> None:
    differs = [
        position >= len(first) or _differs(first[position], raw, position, role=role)
        for position, raw in enumerate(islice(items, 2))
    ]
    if len(differs) == len(first) and not any(differs):
        return
    raise NondeterministicDataError(
        f"The {role} set gives other items at its second reading, as with random augmentation, shuffling, or a stream "
        f"that is used up; expected the same items in the same order whenever it is iterated. Pass "
        f"`{ARGUMENTS[role]}` a data set without random transforms and without shuffling."
    )


def _kept(raw: object, position: int, *, role: Role) -> ImageItem:
    """Return an item in memory of its own; a later read may change in place what a cache handed out."""
    item = parse_item(raw, role=role, position=position)
    segmentation = None if item.segmentation is None else item.segmentation.clone()
    return ImageItem(image=item.image.clone(), segmentation=segmentation)


def _differs(first: ImageItem, raw: object, position: int, *, role: Role) -> bool:
    second = parse_item(raw, role=role, position=position)
    if not torch.equal(first.image, second.image):
        return True
    if first.segmentation is None or second.segmentation is None:
        return False
    return not torch.equal(first.segmentation, second.segmentation)
