"""Finds out whether a data set gives the same item twice.

A reference with random augmentation hides copies: a sample is compared with another version of its original. Two reads
show most of it. An augmentation that acts on few items is betrayed by the random state that it moves, and then more
reads decide.
"""

import torch

from relict_lightning.data.isolation import MapStyle, Snapshot, global_random_state, random_state_kept
from relict_lightning.data.items import ARGUMENTS, ImageItem, Role, item_name, parse_item
from relict_lightning.errors import NondeterministicDataError

# A flip of one image in ten shows in 48 reads of two items with a probability above 99.99 %.
_READS_WHEN_STATE_MOVES = 48


def check_repeatable(dataset: MapStyle, *, role: Role = "training") -> None:
    """Raise an error if the first or the middle item of a data set differs between reads.

    The data set is copied and the copy is read; neither the data set nor the global random state changes.

    Args:
        dataset: A map-style data set with at least one item.
        role: Which set it is, for messages.

    Raises:
        NondeterministicDataError: If two reads of one item are not bit-identical.
        ConfigurationError: If the data set cannot be copied.

    Example:
        >>> check_repeatable([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)])
    """
    refuse_random(Snapshot(dataset, **_names(role)).copy(), role=role)


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
    before = Snapshot(items, **_names(role)).state
    with random_state_kept():
        moves = [_is_moved_by_reading(items, position, role=role, reads=2) for position in _probed(items)]
        if any(moves) or Snapshot(items, **_names(role)).state != before:
            for position in _probed(items):
                _is_moved_by_reading(items, position, role=role, reads=_READS_WHEN_STATE_MOVES)


def _names(role: Role) -> dict[str, str]:
    return {"name": f"{role} set", "argument": ARGUMENTS[role]}


def _probed(items: MapStyle) -> list[int]:
    return sorted({0, len(items) // 2})


def _is_moved_by_reading(items: MapStyle, position: int, *, role: Role, reads: int) -> bool:
    before = global_random_state()
    raw = items[position]
    is_moved = global_random_state() != before
    first = parse_item(raw, role=role, position=position)
    # A read may change its result in place if a cache handed it out, so what is compared is kept apart.
    kept = first.image.clone()
    for _ in range(reads - 1):
        _refuse_difference(kept, first, items, position, role=role)
    return is_moved


def _refuse_difference(kept: torch.Tensor, first: ImageItem, items: MapStyle, position: int, *, role: Role) -> None:
    second = parse_item(items[position], role=role, position=position)
    is_equal = torch.equal(kept, second.image)
    if first.segmentation is not None and second.segmentation is not None:
        is_equal = is_equal and torch.equal(first.segmentation, second.segmentation)
    if not is_equal:
        raise NondeterministicDataError(
            f"{item_name(position, role)} differs between two reads, as with random augmentation; expected the same "
            f"values at every read. Pass `{ARGUMENTS[role]}` a data set without random transforms."
        )
