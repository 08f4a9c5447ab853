"""MovieLens 100k: fetched when first used, checked by hash, kept in a cache folder.

Its terms forbid passing it on, so the project ships none of it. It comes out of the `recbole` wheel
on the Python package index, which holds it as an example, or else from GroupLens. A rating of 4 or
5 is a positive row. Titles go into no bundle; `titles` has them for whoever shows films.
"""

import hashlib
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final

import polars as pl
from pydantic import field_validator

from compress.data.base import PARTS, ColumnSpec, DataError, Part, Schema, Tally, digest
from compress.data.folders import locked, writable
from compress.data.split import ROW, Cut, Split, resolve_cut
from model_store.manifest import DataSpec, Frozen

logger = logging.getLogger(__name__)

LABEL: Final = "rating"
TIME: Final = "timestamp"
MAX_GENRES: Final = 6
CHUNK_ROWS: Final = 1 << 15
SUMS: Final = "SHA256SUMS"
TITLES: Final = "titles.json"

RECBOLE_SHA256: Final = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
GROUPLENS_SHA256: Final = "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229"
GROUPLENS_URL: Final = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
PIP_TIMEOUT_S: Final = 300
URL_TIMEOUT_S: Final = 60

TERMS: Final = (
    "MovieLens 100k, © GroupLens Research, University of Minnesota. For research use; it may not "
    "be redistributed without permission, nor used for revenue. In publications acknowledge: "
    "F. Maxwell Harper and Joseph A. Konstan (2015), The MovieLens Datasets: History and Context, "
    "ACM Transactions on Interactive Intelligent Systems 5, 4."
)
# The flags of a line of u.item, in their order.
GENRES: Final = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime"),
    *("Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance"),
    *("Sci-Fi", "Thriller", "War", "Western"),
)


@dataclass(frozen=True, slots=True)
class Tables:
    """The three tables, in one shape whatever the origin; ids and zip codes are strings."""

    ratings: pl.DataFrame  # user_id, item_id, rating, timestamp
    films: pl.DataFrame  # item_id, title, year, genres
    users: pl.DataFrame  # user_id, age, gender, occupation, zip_code


@dataclass(frozen=True, slots=True)
class Origin:
    """A place where the data can be had.

    Attributes:
        name: of its folder in the cache.
        where: what the user is told.
        fetch: puts the archive into a folder and returns its path.
        sha256: of the archive, a zip.
        members: file in the cache -> path in the archive.
        parse: reads those files.
    """

    name: str
    where: str
    fetch: Callable[[Path], Path]
    sha256: str
    members: Mapping[str, str]
    parse: Callable[[Path], Tables]


class MovieLensConfig(Frozen):
    """Options of the source.

    Attributes:
        cache: a folder for downloads.
        min_count: ids, occupations, zip prefixes and years seen less often in training are out of
            vocabulary.
        split: fractions of the ratings by time, or boundary values of ``timestamp``.
    """

    cache: Path = Path("~/.cache/slimrank")
    min_count: int = 1
    split: Split = Split(column=TIME)

    @field_validator("split")
    @classmethod
    def _by_time(cls, split: Split) -> Split:
        if split.column not in {None, TIME}:
            raise ValueError(f"ratings are split by {TIME}")
        return split


class MovieLens:
    """Ratings in time order."""

    Config: ClassVar[type[Frozen]] = MovieLensConfig

    def __init__(self, config: MovieLensConfig, origins: Sequence[Origin] | None = None) -> None:
        self._config = config
        self._origins = ORIGINS if origins is None else origins

    def schema(self) -> Schema:
        """Who rates, at which hour, and the film."""

        def column(name: str, side: Any, **options: Any) -> ColumnSpec:
            given = {"kind": "categorical", "min_count": self._config.min_count} | options
            return ColumnSpec(name=name, side=side, column=name, **given)

        columns = (
            column("user_id", "user"),
            column("age", "user", kind="numeric", transform="standardize"),
            column("gender", "user"),
            column("occupation", "user"),
            column("zip_prefix", "user"),
            column("hour", "context"),
            column("item_id", "item"),
            column("year", "item"),
            column("genres", "item", kind="multi", length=MAX_GENRES),
        )
        data = DataSpec(label=LABEL, positive_from=4.0, time=TIME)
        return Schema(columns=columns, data=data, item_id="item_id")

    def chunks(
        self, parts: Sequence[Part] = PARTS, tally: Tally | None = None
    ) -> Iterator[tuple[Part, pl.DataFrame]]:
        """Ratings joined with users and films."""
        del tally  # no cell is bad: the bytes are known
        for frame in self._rows.iter_slices(CHUNK_ROWS):
            for part in parts:
                rows = self._cut.select(frame, part).drop(ROW)
                if len(rows):
                    yield part, rows

    def items(self) -> pl.DataFrame:
        """All films, rated in training or not."""
        return self._tables.films.select("item_id", "year", "genres")

    def fingerprint(self) -> str:
        """Over the tables and the split; where they came from does not matter."""
        settings = self._config.model_dump_json(exclude={"cache"})
        tables = (self._tables.ratings, self._tables.films.drop("title"), self._tables.users)
        return digest("ml-100k", settings, *(table.write_json() for table in tables))

    def notice(self) -> str:
        """The terms, and where this copy came from."""
        return f"{TERMS}\nThis copy: {self._copy[0].where}."

    def titles(self) -> dict[str, str]:
        """Titles with years by film id; also kept as titles.json in the cache."""
        return _titles(self._tables.films)

    @property
    def folder(self) -> Path:
        """Where this data set lies in the cache."""
        return self._config.cache.expanduser() / "ml-100k"

    @cached_property
    def _copy(self) -> tuple[Origin, Path]:
        return _find_or_fetch(self.folder, self._origins)

    @cached_property
    def _tables(self) -> Tables:
        origin, place = self._copy
        tables = origin.parse(place)
        if not (self.folder / TITLES).exists():
            _write_titles(self.folder, tables.films)
        return tables

    @cached_property
    def _rows(self) -> pl.DataFrame:
        tables = self._tables
        users = tables.users.with_columns(zip_prefix=pl.col("zip_code").str.head(2))
        hour = pl.from_epoch(TIME, time_unit="s").dt.hour().alias("hour")
        rows = tables.ratings.join(users, on="user_id", how="left").join(
            tables.films, on="item_id", how="left"
        )
        columns = [column.column for column in self.schema().columns]
        rows = rows.sort(TIME, "user_id", "item_id").select(
            LABEL, TIME, hour, *(name for name in columns if name != "hour")
        )
        return rows.with_row_index(ROW)

    @cached_property
    def _cut(self) -> Cut:
        times = self._rows[TIME].cast(pl.Float64).to_numpy()
        return resolve_cut(self._config.split, lambda: len(times), lambda: [times])


def titles(config: MovieLensConfig) -> dict[str, str]:
    """Titles by film id, from the cache (filled if need be)."""
    return MovieLens(config).titles()


def _titles(films: pl.DataFrame) -> dict[str, str]:
    names = pl.concat_str("title", pl.format(" ({})", "year"), ignore_nulls=True)
    return dict(films.select("item_id", names).iter_rows())


def _write_titles(folder: Path, films: pl.DataFrame) -> None:
    with writable(folder), tempfile.TemporaryDirectory(dir=folder, prefix=".titles-") as temp:
        staged = Path(temp) / TITLES
        staged.write_text(json.dumps(_titles(films), ensure_ascii=False, indent=0))
        staged.replace(folder / TITLES)


def _find_or_fetch(folder: Path, origins: Sequence[Origin]) -> tuple[Origin, Path]:
    """A copy in the cache whose files are unchanged; else the first origin that answers."""
    for origin in origins:
        place = folder / origin.name
        if _intact(place):
            return origin, place
    reasons = []
    for origin in origins:
        try:
            return origin, _fetch(origin, folder)
        except DataError as error:
            logger.info("no MovieLens 100k from %s: %s", origin.where, error)
            reasons.append(f"\n- from {origin.where}: {error}")
    raise DataError(f"MovieLens 100k cannot be had{''.join(reasons)}")


def _intact(place: Path) -> bool:
    try:
        sums = [line.split("  ", 1) for line in (place / SUMS).read_text().splitlines()]
        return bool(sums) and all(_sha256(place / name) == known for known, name in sums)
    except (OSError, ValueError):
        return False


def _fetch(origin: Origin, folder: Path) -> Path:
    """Download, check and unpack beside the place, then move there in one step."""
    place, staged = folder / origin.name, folder / f".{origin.name}.part"
    with writable(folder), locked(folder, origin.name):
        if _intact(place):  # another process was first
            return place
        shutil.rmtree(place, ignore_errors=True)
        shutil.rmtree(staged, ignore_errors=True)  # what a killed run left
        staged.mkdir()
        try:
            archive = origin.fetch(staged)
            if (got := _sha256(archive)) != origin.sha256:
                raise DataError(f"{archive.name}: expected sha256 {origin.sha256}, got {got}")
            _unpack(archive, origin.members, staged)
            archive.unlink()
            staged.rename(place)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    return place


def _unpack(archive: Path, members: Mapping[str, str], folder: Path) -> None:
    lines = []
    with zipfile.ZipFile(archive) as packed:
        for name, member in members.items():
            content = packed.read(member)
            (folder / name).write_bytes(content)
            lines.append(f"{hashlib.sha256(content).hexdigest()}  {name}\n")
    (folder / SUMS).write_text("".join(lines))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _from_index(folder: Path) -> Path:
    """The wheel, by the package index that this interpreter's pip is set up for."""
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder)]
    try:
        done = subprocess.run(  # noqa: S603  # no part of it is anybody's input
            [*command, "recbole==1.2.1"],
            capture_output=True,
            text=True,
            timeout=PIP_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DataError(f"pip took more than {PIP_TIMEOUT_S} s") from None
    wheels = list(folder.glob("recbole-*.whl"))
    if done.returncode or not wheels:
        last = done.stderr.strip().splitlines()[-1:] or ["no wheel"]
        raise DataError(f"pip download failed: {last[0]}")
    return wheels[0]


def from_url(url: str) -> Callable[[Path], Path]:
    """Fetches an archive by its address."""

    def fetch(folder: Path) -> Path:
        archive = folder / "archive.zip"
        try:
            with (
                urllib.request.urlopen(url, timeout=URL_TIMEOUT_S) as answer,  # noqa: S310
                archive.open("wb") as file,
            ):
                shutil.copyfileobj(answer, file)
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            raise DataError(f"{url}: {error}") from error
        return archive

    return fetch


def parse_recbole(folder: Path) -> Tables:
    """RecBole's tab-separated files, whose headers carry types ("age:token")."""

    def table(suffix: str) -> pl.DataFrame:
        frame = pl.read_csv(
            folder / f"ml-100k.{suffix}", separator="\t", infer_schema=False, quote_char=None
        )
        return frame.rename(lambda name: name.split(":")[0])

    films = table("item").rename({"movie_title": "title"})
    return _tables(
        table("inter"),
        films.select("item_id", "title", "release_year", pl.col("class").str.split(" ")),
        table("user"),
    )


def parse_grouplens(folder: Path) -> Tables:
    """GroupLens' own files, without headers; a film's genres are nineteen flags."""

    def table(name: str, columns: Sequence[str], separator: str) -> pl.DataFrame:
        return pl.read_csv(
            (folder / name).read_bytes().decode("latin-1").encode(),
            has_header=False,
            new_columns=list(columns),
            separator=separator,
            infer_schema=False,
            quote_char=None,
        )

    films = table("u.item", ("item_id", "title", "date", "video", "url", *GENRES), "|")
    flags = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in GENRES]
    year = r"\s*\((\d{4})\)\s*$"
    return _tables(
        table("u.data", ("user_id", "item_id", LABEL, TIME), "\t"),
        films.select(
            "item_id",
            pl.col("title").str.replace(year, ""),
            pl.col("title").str.extract(year).alias("year"),
            pl.concat_list(flags).list.drop_nulls().alias("genres"),
        ),
        table("u.user", ("user_id", "age", "gender", "occupation", "zip_code"), "|"),
    )


def _tables(ratings: pl.DataFrame, films: pl.DataFrame, users: pl.DataFrame) -> Tables:
    films = films.rename(
        dict(zip(films.columns, ("item_id", "title", "year", "genres"), strict=True))
    )
    known = pl.col("genres").list.filter(pl.element() != "unknown")
    return Tables(
        ratings.cast({LABEL: pl.Float64, TIME: pl.Float64}),
        # One film of the set is only a placeholder: its year is a word.
        films.with_columns(pl.col("year").str.extract(r"^(\d{4})$"), known.list.sort()),
        users.cast({"age": pl.Float64}),
    )


ORIGINS: Final = (
    Origin(
        name="recbole",
        where="the recbole 1.2.1 wheel of the Python package index",
        fetch=_from_index,
        sha256=RECBOLE_SHA256,
        members={
            f"ml-100k.{suffix}": f"recbole/dataset_example/ml-100k/ml-100k.{suffix}"
            for suffix in ("inter", "item", "user")
        },
        parse=parse_recbole,
    ),
    Origin(
        name="grouplens",
        where=GROUPLENS_URL,
        fetch=from_url(GROUPLENS_URL),
        sha256=GROUPLENS_SHA256,
        members={name: f"ml-100k/{name}" for name in ("u.data", "u.item", "u.user")},
        parse=parse_grouplens,
    ),
)
