"""A page on which an expert rates pairs, and reading the ratings back: RELICT's protocol.

The rater is blind: the page holds neither scores nor p-values nor ids, and shows the pairs in an order that depends on
the seed alone. The ratings stay in the rater's browser until they are saved as a CSV file with the columns `pair` (the
position in the pairs that the page was made of) and `rating`.

References:
    RELICT: arXiv:2502.17360.
"""

import base64
import csv
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import torch

from relict_lightning.errors import ConfigurationError, UnreadableDataError
from relict_lightning.report.html import page_template
from relict_lightning.report.pictures import pair_pictures
from relict_lightning.report.private_file import write_private
from relict_lightning.results import MatchedPair

REPLICA = "replica"
NOT_A_REPLICA = "not a replica"
CANNOT_TELL = "cannot tell"

_RATINGS = (REPLICA, NOT_A_REPLICA, CANNOT_TELL)
_HEADER = ["pair", "rating"]


def write_rating_page(
    path: str | Path, *, pairs: Sequence[MatchedPair], seed: int = 0, title: str = "Rating of pairs"
) -> Path:
    """Write a local page on which an expert rates each pair, and return its absolute path.

    Args:
        path: Where to write; missing parent directories are created. The file gets mode 0600.
        pairs: Pairs to rate, at least one. For an honest rating some should be of held-out images.
        seed: Seed of the order in which the pairs are shown; give each rater another.
        title: Title of the page.

    Returns:
        The absolute path of the file.

    Raises:
        ConfigurationError: If there is no pair.
        InvalidImageError: If a pair holds images that cannot be shown side by side.
        UnreadableDataError: If the file cannot be written.

    Example:
        >>> import tempfile, torch
        >>> from relict_lightning.results import Transform, Verdict
        >>> verdict = Verdict(score=4.0, p_value=0.01, is_replica=True, match=7, match_id="a", match_group="a",
        ...                   transform=Transform(), evidence={})
        >>> pair = MatchedPair(generated=torch.rand(1, 8, 8), training=torch.rand(1, 8, 8), verdict=verdict)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_rating_page(Path(folder) / "rating.html", pairs=[pair]).name
        'rating.html'

    References:
        RELICT: arXiv:2502.17360.
    """
    if not pairs:
        raise ConfigurationError("A rating page needs at least one pair, but got pairs=[].")
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed)).tolist()
    pictures = [(position, pair_pictures(pairs[position], position=position)) for position in order]
    digest = hashlib.sha256()
    for _, shown in pictures:
        for picture in (*shown.generated, *shown.training):
            digest.update(picture.source.encode("ascii"))
    script = page_template("_rating_script.html.j2").render()
    page = page_template("rating.html.j2").render(
        title=title,
        pairs=pictures,
        # Ratings are kept under a name of their own, so that pages opened from one folder do not mix.
        storage_key=f"relict-rating-{digest.hexdigest()[:24]}",
        ratings=list(zip(_RATINGS, ("1", "2", "3"), strict=True)),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii"),
    )
    return write_private(Path(path), page)


def read_ratings(path: str | Path) -> dict[int, bool]:
    r"""Return whether each rated pair is a replica, from a file that a rating page saved.

    Args:
        path: CSV file with the columns `pair` and `rating`, separated by commas or, as some spreadsheets do it,
            by semicolons.

    Returns:
        Position of the pair to whether it is a replica; pairs of which the rater could not tell are left out.

    Raises:
        UnreadableDataError: If the file is missing, is no such CSV file, holds an unknown rating, or rates one pair
            twice.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "ratings.csv"
        ...     _ = path.write_text("pair,rating\n0,replica\n1,cannot tell\n2,not a replica\n")
        ...     read_ratings(path)
        {0: True, 2: False}
    """
    path = Path(path)
    try:
        # Spreadsheets put a byte order mark in front of a file that they save again.
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableDataError(
            f"Cannot read ratings from {path}: {error}. Expected the CSV file that a rating page saved."
        ) from error
    delimiter = ";" if text.startswith(";".join(_HEADER)) else ","
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    if not rows or rows[0] != _HEADER:
        raise UnreadableDataError(
            f"{path} must begin with the line 'pair,rating', but begins with {','.join(rows[0]) if rows else ''!r}. "
            f"Expected the CSV file that a rating page saved."
        )
    ratings: dict[int, str] = {}
    for line, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        pair, rating = _checked_row(row, where=f"Line {line} of {path}")
        if pair in ratings:
            raise UnreadableDataError(f"Line {line} of {path} rates pair {pair} a second time; keep one of the lines.")
        ratings[pair] = rating
    return {pair: rating == REPLICA for pair, rating in ratings.items() if rating != CANNOT_TELL}


def _checked_row(row: list[str], *, where: str) -> tuple[int, str]:
    """Return pair and rating of a line, or say what is wrong with it."""
    if len(row) != len(_HEADER):
        raise UnreadableDataError(f"{where} must have 2 fields, pair and rating, but has {len(row)}: {row}.")
    pair, rating = (field.strip() for field in row)
    if not (pair.isascii() and pair.isdigit()):
        raise UnreadableDataError(f"{where} must begin with the position of a pair, 0 or larger, but has {pair!r}.")
    if rating not in _RATINGS:
        raise UnreadableDataError(f"{where} must have one of the ratings {', '.join(_RATINGS)}, but has {rating!r}.")
    return int(pair), rating
