"""MovieLens 100k: fetched once, checked, the same from either origin."""

import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from compress.data.base import DataError
from compress.data.encode import prepare
from compress.data.movielens import MovieLens, MovieLensConfig, Origin, from_url
from compress.progress import Silent
from tests.compress.data.conftest import origin


def unreachable(folder: Path) -> Path:
    """An origin without a network."""
    raise DataError(f"no route to a host for {folder.name}")


def films(cache: Path, *origins: Origin) -> MovieLens:
    """The source with these origins."""
    return MovieLens(MovieLensConfig(cache=cache), origins)


def test_rows_are_ratings_with_the_user_and_the_film(tmp_path: Path) -> None:
    """In time order, whatever the order of the file."""
    source = films(tmp_path / "cache", origin("recbole", tmp_path))

    rows = pl.concat(rows for _, rows in source.chunks())

    assert rows["timestamp"].is_sorted()
    assert rows.row(0, named=True) == {
        "rating": 5.0,
        "timestamp": 0.0,
        "user_id": "1",
        "age": 24.0,
        "gender": "M",
        "occupation": "technician",
        "zip_prefix": "85",
        "hour": 0,
        "item_id": "4",
        "year": "1922",
        "genres": ["Horror"],
    }
    assert rows["hour"].to_list()[:3] == [0, 2, 4]


def test_ratings_of_four_and_five_are_positive(tmp_path: Path) -> None:
    """Two in five of these."""
    dataset = prepare(
        films(tmp_path / "cache", origin("recbole", tmp_path)), tmp_path / "p", Silent()
    )

    assert dataset.rows == {"train": 80, "validation": 10, "test": 10}
    assert sum(dataset.positives.values()) == 40


def test_both_origins_give_the_same_data(tmp_path: Path) -> None:
    """Rows, catalogue, titles and fingerprint."""
    one = films(tmp_path / "1", origin("recbole", tmp_path))
    other = films(tmp_path / "2", origin("grouplens", tmp_path))

    assert pl.concat(r for _, r in one.chunks()).equals(pl.concat(r for _, r in other.chunks()))
    assert one.items().equals(other.items())
    assert one.fingerprint() == other.fingerprint()
    assert {**one.titles(), "3": ""} == {**other.titles(), "3": ""}


def test_the_catalogue_has_all_films(tmp_path: Path) -> None:
    """Those never rated too; the placeholder film has neither year nor genre."""
    items = films(tmp_path / "cache", origin("recbole", tmp_path)).items()

    assert items["item_id"].to_list() == ["1", "2", "3", "4", "5"]
    assert items.row(2) == ("3", None, [])


def test_titles_are_kept_beside_the_cache(tmp_path: Path) -> None:
    """For a program that cannot import this one."""
    source = films(tmp_path / "cache", origin("recbole", tmp_path))

    source.items()

    kept = json.loads((source.folder / "titles.json").read_text())
    assert kept == source.titles()
    assert kept["2"] == "Misérables, Les (1995)"


def test_the_second_origin_answers_when_the_first_does_not(tmp_path: Path) -> None:
    """And the notice says which one it was, with the terms."""
    first = replace(origin("recbole", tmp_path), fetch=unreachable)

    notice = films(tmp_path / "cache", first, origin("grouplens", tmp_path)).notice()

    assert "Harper and Joseph A. Konstan (2015)" in notice
    assert "may not be redistributed" in notice
    assert "This copy: a test's grouplens." in notice


def test_no_origin_at_all_lists_the_reasons(tmp_path: Path) -> None:
    """Each origin with its own."""
    broken = [
        replace(origin("recbole", tmp_path), fetch=unreachable),
        replace(origin("grouplens", tmp_path), sha256="0" * 64),
    ]

    with pytest.raises(DataError) as caught:
        films(tmp_path / "cache", *broken).items()

    assert "from a test's recbole: no route to a host" in str(caught.value)
    assert "from a test's grouplens: grouplens.zip: expected sha256 0000" in str(caught.value)
    assert not [path for path in (tmp_path / "cache" / "ml-100k").iterdir() if path.is_dir()]


def test_once_cached_no_origin_is_asked(tmp_path: Path) -> None:
    """It works offline."""
    given = origin("recbole", tmp_path)
    rows = len(films(tmp_path / "cache", given).items())

    assert len(films(tmp_path / "cache", replace(given, fetch=unreachable)).items()) == rows


def test_a_damaged_file_in_the_cache_is_fetched_again(tmp_path: Path) -> None:
    """Each use checks the hashes that were kept when it was unpacked."""
    given = origin("recbole", tmp_path)
    source = films(tmp_path / "cache", given)
    before = source.fingerprint()
    path = source.folder / "recbole" / "ml-100k.inter"
    path.write_bytes(path.read_bytes()[:500])

    assert films(tmp_path / "cache", given).fingerprint() == before
    path.write_bytes(b"")
    with pytest.raises(DataError, match="no route"):
        films(tmp_path / "cache", replace(given, fetch=unreachable)).items()


def test_a_fetch_that_was_cut_short_is_begun_anew(tmp_path: Path) -> None:
    """What a killed run left is neither used nor in the way."""
    left = tmp_path / "cache" / "ml-100k" / ".recbole.part"
    left.mkdir(parents=True)
    (left / "recbole.zip").write_bytes(b"half")

    assert len(films(tmp_path / "cache", origin("recbole", tmp_path)).items()) == 5
    assert not left.exists()


def test_an_archive_is_fetched_by_its_address(tmp_path: Path) -> None:
    """Whole, or an error that names the address."""
    given = origin("recbole", tmp_path)
    address = (tmp_path / "recbole.zip").as_uri()

    assert len(films(tmp_path / "1", replace(given, fetch=from_url(address))).items()) == 5
    with pytest.raises(DataError, match=r"nowhere.zip"):
        films(tmp_path / "2", replace(given, fetch=from_url(f"{address}/nowhere.zip"))).items()


def test_the_split_is_by_time_only(tmp_path: Path) -> None:
    """Another column is refused, as it would leak the future into training."""
    with pytest.raises(ValueError, match="split by timestamp"):
        MovieLensConfig.model_validate({"split": {"column": "rating"}})
