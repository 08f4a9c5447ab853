"""Small sources of every kind, made on the spot."""

import hashlib
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from compress.data.base import Source
from compress.data.criteo import CATEGORICAL, COLUMNS, NUMERIC, Criteo, CriteoConfig
from compress.data.movielens import (
    MovieLens,
    MovieLensConfig,
    Origin,
    parse_grouplens,
    parse_recbole,
)
from compress.data.split import Split
from compress.data.synthetic import Synthetic, SyntheticConfig
from compress.data.table import TableConfig, UserTable

RECBOLE = {
    "inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    + "".join(f"{i % 3 + 1}\t{i % 4 + 1}\t{i % 5 + 1}\t{7200 * (99 - i)}\n" for i in range(100)),
    "item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    "1\tToy Story\t1995\tComedy Animation\n2\tMisérables, Les\t1995\tDrama\n"
    "3\tunkonwn\tunkonwn\tunknown\n4\tNosferatu\t1922\tHorror\n5\tNever Rated\t1950\tWar\n",
    "user": "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
    "1\t24\tM\ttechnician\t85711\n2\t53\tF\tother\t94043\n3\t31\tM\twriter\tV3N4P\n",
}
FLAGS = {"1": (3, 5), "2": (8,), "3": (0,), "4": (11,), "5": (17,)}
GROUPLENS = {
    "u.data": RECBOLE["inter"].split("\n", 1)[1],
    "u.item": "".join(
        f"{id_}|{title}|01-Jan-1990||http://x|"
        + "|".join(str(int(i in FLAGS[id_])) for i in range(19))
        + "\n"
        for id_, title in (
            ("1", "Toy Story (1995)"),
            ("2", "Misérables, Les (1995)"),
            ("3", "unknown"),
            ("4", "Nosferatu (1922)"),
            ("5", "Never Rated (1950)"),
        )
    ),
    "u.user": "1|24|M|technician|85711\n2|53|F|other|94043\n3|31|M|writer|V3N4P\n",
}


def packed(path: Path, files: dict[str, bytes]) -> Path:
    """A zip of some files."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def origin(name: str, folder: Path, fetch: Callable[[Path], Path] | None = None) -> Origin:
    """A place that hands out a small archive of this machine, in one of the two formats."""
    if name == "recbole":
        files = {f"ml-100k.{suffix}": text.encode() for suffix, text in RECBOLE.items()}
    else:
        files = {file: text.encode("latin-1") for file, text in GROUPLENS.items()}
    archive = packed(folder / f"{name}.zip", {f"in/{file}": files[file] for file in files})
    return Origin(
        name=name,
        where=f"a test's {name}",
        fetch=fetch or (lambda place: Path(shutil.copy(archive, place))),
        sha256=hashlib.sha256(archive.read_bytes()).hexdigest(),
        members={file: f"in/{file}" for file in files},
        parse=parse_recbole if name == "recbole" else parse_grouplens,
    )


def criteo_frame(rows: int, seed: int = 0) -> pl.DataFrame:
    """Rows of the shape of Criteo's, with a chunk of time."""
    rng = np.random.default_rng(seed)

    def with_gaps(values: pl.Series) -> pl.Series:
        return values.set(pl.Series(rng.random(rows) < 0.2), None)

    columns = {"label": pl.Series(rng.integers(0, 2, rows), dtype=pl.Int8)}
    for name in NUMERIC:
        columns[name] = with_gaps(pl.Series(rng.integers(-2, 500, rows), dtype=pl.Int32))
    for name in CATEGORICAL:
        columns[name] = with_gaps(pl.Series([f"{x:08x}" for x in rng.zipf(1.5, rows) % 97]))
    columns["chunk"] = pl.Series(np.arange(rows) * 10 // rows, dtype=pl.UInt8)
    return pl.DataFrame(columns)


@pytest.fixture
def criteo_tsv(tmp_path: Path) -> Path:
    """A small file as the challenge has them."""
    path = tmp_path / "criteo.tsv"
    criteo_frame(200).select(COLUMNS).write_csv(path, separator="\t", include_header=False)
    return path


def table(folder: Path, **options: object) -> UserTable:
    """A shop's clicks and its catalogue."""
    rows = range(120)
    pl.DataFrame(
        {
            "clicked": [int(i % 3 == 0) for i in rows],
            "country": [("de", "fr", None)[i % 3] for i in rows],
            "sku": [i % 7 for i in rows],
            "day": [i // 10 for i in rows],
        }
    ).write_csv(folder / "clicks.csv")
    pl.DataFrame(
        {
            "sku": [float(i) for i in range(6)],
            "price": [1.5 * i for i in range(6)],
            "tags": ["a|b", "", "c", "a", "a|c|d", None],
        }
    ).write_parquet(folder / "products.parquet")
    config = {
        "path": str(folder / "clicks.csv"),
        "label": "clicked",
        "time": "day",
        "item_id": "product",
        "items": str(folder / "products.parquet"),
        "columns": [
            {"name": "country", "kind": "categorical", "side": "user"},
            {"name": "product", "kind": "categorical", "side": "item", "column": "sku"},
            {"name": "price", "kind": "numeric", "side": "item", "transform": "standardize"},
            {"name": "tags", "kind": "multi-valued", "side": "item", "length": 2},
        ],
    }
    return UserTable(TableConfig.model_validate(config | options))


@pytest.fixture(params=["ml-100k", "criteo", "table", "synthetic"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    """A small one of each kind."""
    match request.param:
        case "ml-100k":
            config = MovieLensConfig(cache=tmp_path / "cache")
            return MovieLens(config, [origin("recbole", tmp_path)])
        case "criteo":
            criteo_frame(300).write_parquet(tmp_path / "criteo.parquet")
            split = Split(column="chunk", validation_from=7, test_from=8)
            return Criteo(CriteoConfig(path=str(tmp_path / "criteo.parquet"), split=split))
        case "table":
            return table(tmp_path)
        case _:
            return Synthetic(SyntheticConfig(rows=1000, catalogue=20))
