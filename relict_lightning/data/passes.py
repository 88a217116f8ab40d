"""One pass over a set, in this process or in workers that read ahead of it."""

from collections.abc import Generator, Iterator, Sequence
from functools import partial

from relict_lightning.data.items import Role, item_name
from relict_lightning.data.reading import Contents, Form, Parcel, open_reader, open_stream
from relict_lightning.data.workers import iterate_ahead, map_ahead, may_start_workers
from relict_lightning.errors import InvalidImageError


def pass_by_position(
    contents: Contents, form: Form, chunks: Sequence[range], *, num_workers: int
) -> Generator[tuple[int, Parcel], None, None]:
    """Return the images of a set with positions.

    Args:
        contents: The set.
        form: What every image must have.
        chunks: The positions of each parcel.
        num_workers: Number of processes that read; 0 for this one.

    Returns:
        A generator of the position of the first image of a parcel, and the parcel.
    """
    open_here = partial(open_reader, contents, form)
    if num_workers > 0 and may_start_workers() and contents.may_be_read_by_workers:
        for chunk, parcel in zip(chunks, map_ahead(open_here, chunks, num_workers=num_workers), strict=True):
            yield chunk.start, parcel
        return
    read = open_here()
    for chunk in chunks:
        yield chunk.start, read(chunk)


def pass_in_order(
    contents: Contents, form: Form, batch_size: int, *, num_workers: int
) -> Generator[tuple[int, Parcel], None, None]:
    """Return the images of an iterable set, as `pass_by_position` does; with workers, one of them reads."""
    open_here = partial(open_stream, contents, form, batch_size)
    # Several would each see a share of the items, or each see all.
    is_ahead = num_workers > 0 and may_start_workers() and contents.may_be_read_by_workers
    position = 0
    for parcel in iterate_ahead(open_here) if is_ahead else open_here():
        yield position, parcel
        position += len(parcel.ids)


def unique(parcels: Iterator[tuple[int, Parcel]], *, role: Role) -> Iterator[Parcel]:
    """Return the parcels of a pass; raise an error at the second image of one id.

    Args:
        parcels: What a pass gives.
        role: Which set it is, for messages.

    Raises:
        InvalidImageError: If two images have one id.
    """
    positions_by_id: dict[str, int] = {}
    for start, parcel in parcels:
        for position, id_ in enumerate(parcel.ids, start):
            earlier = positions_by_id.setdefault(id_, position)
            if earlier != position:
                # Without the id itself: error messages travel further than patients' names should.
                raise InvalidImageError(
                    f"{item_name(position, role)} has the same id as item {earlier}; expected unique ids. Pass each "
                    f"image once, give each its own id, and images of one patient one group."
                )
        yield parcel
