import re
import stat

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relict_lightning.errors import ConfigurationError, UnreadableDataError
from relict_lightning.report import read_ratings, write_rating_page


@pytest.fixture
def rating_page(tmp_path, pair):
    def write(*, count=4, seed=0, **changes):
        pairs = [pair(1, 8, 8, seed=position, match_id=f"sub-{position}") for position in range(count)]
        return write_rating_page(tmp_path / "rating.html", pairs=pairs, seed=seed, **changes).read_text("utf-8")

    return write


def order(page):
    return [int(position) for position in re.findall(r'data-pair="(\d+)"', page)]


def test_the_rater_sees_images_and_neither_scores_nor_ids(rating_page, decoded):
    page = rating_page()

    assert len(decoded(page)) == 8
    for hint in ("sub-", "patient-007", "4.25", "0.0049", "ssim", "ifference"):
        assert hint not in page


def test_every_pair_is_shown_once_in_an_order_that_the_seed_decides(rating_page):
    first, again, other = order(rating_page(seed=1)), order(rating_page(seed=1)), order(rating_page(seed=2))

    assert sorted(first) == list(range(4))
    assert first == again
    assert first != other


def test_the_position_belongs_to_its_images_whatever_the_order(rating_page):
    def images(seed):
        sections = re.findall(r'data-pair="(\d+)"(.*?)</section>', rating_page(count=3, seed=seed), flags=re.DOTALL)
        return {position: re.findall(r"base64,[^\"]+", section) for position, section in sections}

    assert images(1) == images(2)


def test_the_page_loads_nothing_and_runs_its_own_script_only(rating_page):
    page = rating_page()

    assert "http://" not in page
    assert "https://" not in page
    assert re.search(r"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-[\w+/]+=", page)


def test_a_hostile_title_is_text(rating_page):
    assert rating_page(title="<script>alert(1)</script>").count("<script>") == 1


def test_the_page_is_for_its_owner_only(rating_page, tmp_path):
    rating_page()

    assert stat.S_IMODE((tmp_path / "rating.html").stat().st_mode) == 0o600


def test_a_page_without_pairs_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"pairs=\[\]"):
        write_rating_page(tmp_path / "rating.html", pairs=[])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    ratings=st.dictionaries(st.integers(0, 999), st.sampled_from(["replica", "not a replica", "cannot tell"])),
    mark=st.sampled_from(["", "\ufeff"]),
    delimiter=st.sampled_from(",;"),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_ratings_survive_the_file_and_the_spreadsheet(tmp_path, ratings, mark, delimiter, end):
    lines = [f"pair{delimiter}rating", *(f"{pair}{delimiter}{rating}" for pair, rating in ratings.items())]
    path = tmp_path / "ratings.csv"
    path.write_bytes((mark + end.join(lines) + end).encode())

    known = {pair: rating for pair, rating in ratings.items() if rating != "cannot tell"}
    assert read_ratings(path) == {pair: rating == "replica" for pair, rating in known.items()}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with ''"),
        (b"0,replica\n", "begins with '0,replica'"),
        (b"pair,rating\n0,yes\n", "Line 2 .* has 'yes'"),
        (b"pair,rating\n-1,replica\n", "Line 2 .* has '-1'"),
        (b"pair,rating\n1.5,replica\n", "Line 2 .* has '1.5'"),
        (b"pair,rating\n0,replica\n0,replica\n", "Line 3 .* rates pair 0 a second time"),
        (b"pair,rating\n0\n", "Line 2 .* 2 fields"),
        (b"\x89PNG\r\n\x1a\n\xff", "Cannot read ratings"),
        (b"pair,rating\n\x000,replica\n", "Line 2"),
    ],
)
def test_a_corrupt_file_is_refused_with_the_line_and_what_stands_there(tmp_path, content, message):
    path = tmp_path / "ratings.csv"
    path.write_bytes(content)

    with pytest.raises(UnreadableDataError, match=message):
        read_ratings(path)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(UnreadableDataError, match=r"ratings\.csv"):
        read_ratings(tmp_path / "ratings.csv")
