"""Reading files: what is wrong is named, what is skipped is counted, text equals parquet."""

import gzip
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from compress.data import files as module
from compress.data.base import BadCell, DataError, Tally
from compress.data.cells import Role, Rules
from compress.data.files import Files, find_files
from compress.data.split import ROW

ROLES: dict[str, Role] = {"y": "label", "x": "numeric", "c": "categorical"}


def write(path: Path, text: str | bytes) -> Path:
    """A file with this content."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(
    *paths: Path, roles: dict[str, Role] | None = None, tally: Tally | None = None, **options: Any
) -> pl.DataFrame:
    """All rows of some files."""
    rules = {
        name: options.pop(name) for name in ("positive_from", "time_format") if name in options
    }
    files = Files(paths, Rules(roles or ROLES, **rules), **options)
    return pl.concat(files.frames(tally))


def bad_cell(*paths: Path, **options: Any) -> BadCell:
    """The error that reading raises."""
    with pytest.raises(BadCell) as caught:
        read(*paths, **options)
    return caught.value


def test_text_becomes_typed_columns(tmp_path: Path) -> None:
    """Numbers are Float64, categories strings as written, empty fields missing."""
    rows = read(write(tmp_path / "a.csv", "c,x,y\n007,1.5,1\n,,0\n"))

    assert rows.select("y", "x", "c").rows() == [(1.0, 1.5, "007"), (0.0, None, None)]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "csv.gz", "tsv.gz", "parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    """Text, compressed text and parquet of one frame read alike."""
    frame = pl.DataFrame({"y": [1, 0, 1], "x": [1.5, None, -2.0], "c": ["a", None, "é"]})
    path = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        frame.write_parquet(path)
    else:
        text = frame.write_csv(separator="\t" if suffix.startswith("tsv") else ",").encode()
        write(path, gzip.compress(text) if suffix.endswith("gz") else text)

    rows = read(path)

    assert rows.select("y", "x", "c").rows() == [
        (1.0, 1.5, "a"),
        (0.0, None, None),
        (1.0, -2.0, "é"),
    ]
    assert rows[ROW].to_list() == [0, 1, 2]


def test_rows_are_numbered_over_all_files(tmp_path: Path) -> None:
    """The second file goes on where the first one ends."""
    first = write(tmp_path / "1.csv", "y,x,c\n1,1,a\n0,1,a\n")
    second = write(tmp_path / "2.csv", "y,x,c\n1,2,b\n")

    assert read(first, second)[ROW].to_list() == [0, 1, 2]
    assert Files((first, second), Rules(ROLES)).count() == 3


@pytest.mark.parametrize(
    ("line", "column", "value", "expected"),
    [
        ("1,abc,a", "x", "abc", "a number within"),
        ("1,1e39,a", "x", "1e39", "a number within"),
        ("1,inf,a", "x", "inf", "a number within"),
        ("2,1,a", "y", "2", "0 or 1"),
        (",1,a", "y", None, "0 or 1"),
        ("yes,1,a", "y", "yes", "0 or 1"),
    ],
)
def test_a_bad_cell_is_named_by_row_column_and_value(
    tmp_path: Path, line: str, column: str, value: str | None, expected: str
) -> None:
    """The row is the line of the file, the header counted."""
    path = write(tmp_path / "a.csv", f"y,x,c\n1,1,a\n{line}\n")

    error = bad_cell(path)

    assert (error.path, error.row, error.column, error.value) == (path, 3, column, value)
    assert f"{path}: row 3: column {column!r}: expected {expected}" in str(error)


def test_the_first_bad_cell_is_reported(tmp_path: Path) -> None:
    """By row first, whatever the order of the columns."""
    path = write(tmp_path / "a.csv", "y,x,c\n1,1,a\n1,bad,a\nworse,1,a\n")

    assert (bad_cell(path).row, bad_cell(path).column) == (3, "x")


def test_a_bad_cell_before_a_short_line_is_reported_first(tmp_path: Path) -> None:
    """The line that comes first in the file, whatever is wrong with it."""
    first = write(tmp_path / "a.csv", "y,x,c\n1,bad,a\n1,1\n")
    second = write(tmp_path / "b.csv", "y,x,c\n1,1\n1,bad,a\n")

    assert [bad_cell(path).row for path in (first, second)] == [2, 2]
    assert [bad_cell(path).column for path in (first, second)] == ["x", None]


def test_a_bad_cell_of_a_file_without_header_counts_from_its_first_line(tmp_path: Path) -> None:
    """Line 2 is row 2."""
    path = write(tmp_path / "a.tsv", "1\t1\ta\n1\t?\ta\n")

    assert bad_cell(path, names=("y", "x", "c")).row == 2


def test_a_bad_cell_of_parquet_counts_rows_from_one(tmp_path: Path) -> None:
    """The second row is row 2; NaN is missing, infinity is bad."""
    path = tmp_path / "a.parquet"
    pl.DataFrame({"y": [1, 0], "x": [float("nan"), float("inf")], "c": ["a", "b"]}).write_parquet(
        path
    )

    error = bad_cell(path)

    assert (error.row, error.column, error.value) == (2, "x", float("inf"))


@pytest.mark.parametrize("line", ["1,1", "1,1,a,b"])
def test_a_line_of_the_wrong_number_of_fields_is_named(tmp_path: Path, line: str) -> None:
    """Its text and the number of fields are shown."""
    path = write(tmp_path / "a.csv", f"y,x,c\n1,1,a\n{line}\n1,1,a\n")

    error = bad_cell(path)

    assert (error.row, error.column, error.value) == (3, None, line)
    assert f"expected 3 fields ({line.count(',') + 1} found)" in str(error)


def test_a_cell_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    """Its bytes are shown escaped."""
    path = write(tmp_path / "a.csv", b"y,x,c\n1,1,a\n1,1,caf\xe9\n")

    error = bad_cell(path)

    assert (error.row, error.column, error.value) == (3, "c", "caf\\xe9")


def test_bad_rows_can_be_skipped_and_are_counted(tmp_path: Path) -> None:
    """Each bad row counts once, however many of its cells are bad; the others keep their number."""
    lines = [b"1,1,a", b"1,1", b"2,bad,b", b"0,1,\xff", b"0,2,c", b"1,1,d,e", b"1,3,f"]
    path = write(tmp_path / "a.csv", b"y,x,c\n" + b"\n".join(lines) + b"\n")
    tally = Tally()

    rows = read(path, tally=tally, on_bad_cell="skip")

    assert tally.rows == 4
    assert rows["c"].to_list() == ["a", "c", "f"]
    assert rows[ROW].to_list() == [0, 4, 6]


def test_rows_are_numbered_rightly_across_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Skipped lines in one block do not shift the numbers in the next."""
    monkeypatch.setattr(module, "BLOCK_BYTES", 64)
    good = [f"1,{i},a" for i in range(100)]
    path = write(
        tmp_path / "a.csv", "\n".join(["y,x,c", *good[:10], "1", "2", *good[10:], "1,z,a"])
    )
    tally = Tally()

    rows = read(path, tally=tally, on_bad_cell="skip")

    assert tally.rows == 3
    assert rows[ROW].to_list() == [*range(10), *range(12, 102)]
    with pytest.raises(BadCell, match="row 12: expected 3 fields"):
        read(path)


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    """A trailing empty line is no bad row, and later rows keep their line."""
    path = write(tmp_path / "a.csv", "y,x,c\n1,1,a\n\n0,2,b\n\n")
    wrong = write(tmp_path / "b.csv", "y,x,c\n1,1,a\n\n0,bad,b\n")

    assert read(path)["c"].to_list() == ["a", "b"]
    assert bad_cell(wrong).row == 4


def test_quoted_fields_may_hold_separators_and_line_breaks(tmp_path: Path) -> None:
    """A CSV as RFC 4180 describes it."""
    path = write(tmp_path / "a.csv", 'y,x,c\n1,1,"a,b\n""c"""\n0,2,d\n')

    assert read(path)["c"].to_list() == ['a,b\n"c"', "d"]


def test_windows_line_ends_and_a_byte_order_mark_are_no_content(tmp_path: Path) -> None:
    """As spreadsheets save them."""
    path = write(tmp_path / "a.csv", b"\xef\xbb\xbfy,x,c\r\n1,1,a\r\n")

    assert read(path).select("y", "x", "c").rows() == [(1.0, 1.0, "a")]


def test_other_texts_can_mean_missing(tmp_path: Path) -> None:
    """The config names them, for numbers and categories alike."""
    path = write(tmp_path / "a.csv", "y,x,c\n1,NA,NA\n")

    assert read(path, missing=("", "NA")).select("x", "c").rows() == [(None, None)]


def test_a_missing_column_is_reported_with_the_nearest_one(tmp_path: Path) -> None:
    """What was expected, what was found, and what was probably meant."""
    path = write(tmp_path / "a.csv", "label,x,colour\n1,1,a\n")
    roles: dict[str, Role] = {"label": "label", "color": "categorical"}

    with pytest.raises(DataError) as caught:
        read(path, roles=roles)

    assert str(caught.value) == (
        f"{path}: no column 'color' (nearest: 'colour'); expected label, color; "
        "found label, x, colour"
    )


def test_labels_can_be_numbers_over_a_threshold(tmp_path: Path) -> None:
    """With positive_from any number is a label, and only a missing one is bad."""
    path = write(tmp_path / "a.csv", "y,x,c\n4.5,1,a\n-1,1,a\n")
    wrong = write(tmp_path / "b.csv", "y,x,c\n,1,a\n")

    assert read(path, positive_from=4.0)["y"].to_list() == [4.5, -1.0]
    assert bad_cell(wrong, positive_from=4.0).expected == "a number"


def test_times_are_read_as_seconds(tmp_path: Path) -> None:
    """Text in the format that the config names, dates and times of parquet as they are."""
    roles: dict[str, Role] = {"y": "label", "t": "time"}
    path = write(tmp_path / "a.csv", "y,t\n1,2020-01-01 00:00\n0,1970-01-02 00:00\n")
    frame = pl.DataFrame({"y": [1, 0], "t": [datetime(2020, 1, 1), datetime(1970, 1, 2)]})  # noqa: DTZ001
    frame.write_parquet(tmp_path / "a.parquet")
    zoned = frame["t"].dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Tokyo")
    frame.with_columns(zoned).write_parquet(tmp_path / "z.parquet")
    frame.with_columns(pl.col("t").cast(pl.Date)).write_parquet(tmp_path / "d.parquet")

    text = read(path, roles=roles, time_format="%Y-%m-%d %H:%M")

    assert text["t"].to_list() == [1577836800.0, 86400.0]
    for name in ("a", "z", "d"):
        assert read(tmp_path / f"{name}.parquet", roles=roles)["t"].equals(text["t"])


def test_a_time_that_cannot_be_read_is_a_bad_cell(tmp_path: Path) -> None:
    """A row without a time has no part."""
    roles: dict[str, Role] = {"y": "label", "t": "time"}
    path = write(tmp_path / "a.csv", "y,t\n1,2020-01-01\n0,yesterday\n")

    error = bad_cell(path, roles=roles, time_format="%Y-%m-%d")

    assert (error.row, error.value, error.expected) == (3, "yesterday", "a time as %Y-%m-%d")


def test_a_column_of_an_impossible_type_is_refused(tmp_path: Path) -> None:
    """A list is no number; the type is named."""
    path = tmp_path / "a.parquet"
    pl.DataFrame({"y": [1], "x": [[1.0]], "c": ["a"]}).write_parquet(path)

    with pytest.raises(DataError, match=r"column 'x': expected a number .* its type is List"):
        read(path)


def test_all_of_parquets_token_types_are_kept(tmp_path: Path) -> None:
    """Whole numbers, booleans, dictionaries and empty columns can be categories."""
    roles: dict[str, Role] = dict.fromkeys("ibdn", "categorical") | {"y": "label", "m": "multi"}
    frame = pl.DataFrame({"y": [True], "i": [7], "b": [False], "m": [[1, 2]], "n": [None]})
    frame.with_columns(d=pl.lit("x").cast(pl.Categorical)).write_parquet(tmp_path / "a.parquet")

    rows = read(tmp_path / "a.parquet", roles=roles)

    assert rows.select("y", "i", "b", "d", "m", "n").rows() == [(1.0, 7, False, "x", [1, 2], None)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.parquet", b"PAR1 and no more"),
        ("a.csv.gz", gzip.compress(b"y,x,c\n1,1,a\n" * 999)[:60]),
        ("a.csv", b""),
    ],
    ids=["parquet", "cut short", "empty"],  # the bytes of a gzip tell the time
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    """Truncated or empty files are an error, never fewer rows."""
    path = write(tmp_path / name, content)

    with pytest.raises(DataError, match=f"{name}: cannot be read"):
        read(path)


def test_files_of_a_folder_come_in_natural_order(tmp_path: Path) -> None:
    """day_2 before day_10; what is no data file is left out."""
    for name in ("day_10.tsv", "day_2.tsv.gz", "day_1.parquet", "README.md"):
        write(tmp_path / name, "")

    names = ["day_1.parquet", "day_2.tsv.gz", "day_10.tsv"]
    assert [path.name for path in find_files(str(tmp_path))] == names
    assert [path.name for path in find_files(str(tmp_path / "day_*"))] == names
    assert find_files(str(tmp_path / "README.md")) == (tmp_path / "README.md",)


def test_no_files_is_an_error(tmp_path: Path) -> None:
    """The text says which files would do."""
    with pytest.raises(DataError, match=r"no such file, and no folder or pattern of .parquet"):
        find_files(str(tmp_path / "*.csv"))


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    """A copy has the same one; one byte more, another."""
    first, copy = write(tmp_path / "a.csv", "y\n1\n"), write(tmp_path / "b.csv", "y\n1\n")
    other = write(tmp_path / "c.csv", "y\n1\n0\n")

    prints = [Files((path,), Rules({"y": "label"})).fingerprint() for path in (first, copy, other)]
    assert prints[0] == prints[1] != prints[2]
