"""Bundles to measure with, from made-up clicks of Criteo's shape, so that a clean clone has some.

The fields, their cardinalities (capped) and the ranker's sizes are Criteo's and UMEC's; half of the
fields are the item's, and there is a catalogue. One pass over the rows trains the rankers: what is
timed does not depend on what they learnt.
"""

import csv
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.bench import DONE
from compress.config import RunConfig, check
from compress.export import export_plain
from compress.pipeline import make_dense, run, site_of
from compress.plan import resolve
from compress.progress import Lines
from model_store.store import open_store

NAME: Final = "criteo-shape"
ROWS: Final = 20_000
ITEMS: Final = 5_000
MOST_TOKENS: Final = 20_000
MISSING: Final = 0.05  # of the numbers; Criteo's lack more
REQUEST_NUMBERS: Final = 7
REQUEST_FIELDS: Final = 13
ITEM_ID: Final = "C26"
# Distinct values of C1..C26 in the Kaggle challenge's training file.
CARDINALITIES: Final = (
    *(1460, 583, 10_131_227, 2_202_608, 305, 24, 12_517, 633, 3, 93_145, 5683, 8_351_593, 3194),
    *(27, 14_992, 5_461_306, 10, 5652, 2173, 4, 7_046_547, 18, 15, 286_181, 105, 142_572),
)
SLIM: Final = {"method": {"type": "narrow", "budget": {"flops": 0.1}, "flops_of": "mlp"}}
INT8: Final = {
    "method": {"type": "narrow", "budget": {"flops": 0.05}, "flops_of": "mlp"},
    "table": {"type": "int8"},
    # Whatever it costs: quality is no part of this measurement.
    "quantize": {"numerics": "int8-static", "max_logloss_rise": 1.0, "max_auc_loss": 1.0},
}
NUMBERS: Final = tuple(f"I{i}" for i in range(1, 14))
FIELDS: Final = tuple(f"C{i}" for i in range(1, 27))


def make(folder: Path) -> None:
    """Fill ``folder``: a store with the aliases dense, slim and int8, and ``plain.onnx``.

    *slim* has a tenth of the dense ranker's FLOPs, *int8* a twentieth, tables and layers in eight
    bits. Both keep all fields: which of them UMEC drops hangs on what they tell, and these tell
    nothing. ``plain.onnx`` is the dense one with every row computed in full. Takes a minute.
    """
    rows = folder / "clicks.csv"
    rows.parent.mkdir(parents=True, exist_ok=True)
    write_clicks(rows, np.random.default_rng(1))
    _publish(folder, rows)
    (folder / DONE).touch()


def _publish(folder: Path, rows: Path) -> None:
    """Train, narrow in both ways, export and publish."""
    progress = Lines(lambda line: print(line, file=sys.stderr))
    plan = resolve(run_config(folder, rows, SLIM))
    versions = run(plan, progress).versions
    site = site_of(plan, progress)
    export_plain(make_dense(site, plan.config.seeds[0]).ranker, folder / "plain.onnx")
    small = run(resolve(run_config(folder, rows, INT8)), progress).versions["slim"]
    store = open_store(str(folder / "store"))
    for alias, version in (*versions.items(), ("int8", small)):
        store.set_alias(NAME, alias, version)


def run_config(folder: Path, rows: Path, slimming: Mapping[str, Any]) -> RunConfig:
    """The run: Criteo's ranker at UMEC's sizes, narrowed in one of two ways."""
    training = {"batch_size": 512, "epochs": 1}
    columns = [_numeric(i, name) for i, name in enumerate(NUMBERS)]
    columns += [_field(i, name) for i, name in enumerate(FIELDS)]
    table: dict[str, Any] = {
        "name": NAME,
        "runs": str(folder / "runs"),
        "threads": 1,
        "data": {
            "type": "table",
            "path": str(rows),
            "label": "label",
            "item_id": ITEM_ID,
            "columns": columns,
        },
        "ranker": {
            "type": "dlrm",
            "interaction": "cat",
            "dim": 16,
            "bottom": [512, 256, 64],
            "top": [512, 256],
        },
        "train": training,
        "finetune": training,
        "publish": {"store": str(folder / "store")},
        **slimming,
    }
    return check(RunConfig, table, where=__name__)


def _numeric(place: int, name: str) -> dict[str, Any]:
    side = "context" if place < REQUEST_NUMBERS else "item"
    return {"name": name, "kind": "numeric", "side": side, "transform": "log1p"}


def _field(place: int, name: str) -> dict[str, Any]:
    side = "user" if place < REQUEST_FIELDS else "item"
    return {"name": name, "kind": "categorical", "side": side}


def write_clicks(path: Path, rng: np.random.Generator) -> None:
    """Write the rows: item fields belong to the item, the others are drawn anew for each."""
    catalogue = [_values(place, ITEMS, rng) for place in _places("item")]
    catalogue[-1] = [_token(len(FIELDS) - 1, code) for code in range(ITEMS)]  # C26, the item id
    shown = (ITEMS * rng.random(ROWS) ** 2).astype(np.int64)
    request = [_values(place, ROWS, rng) for place in _places("request")]
    labels = _labels(shown, rng)
    names = [_name(place) for side in ("request", "item") for place in _places(side)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["label", *names])
        for row, item in enumerate(shown):
            values = [column[row] for column in request] + [column[item] for column in catalogue]
            writer.writerow([labels[row], *values])


def _labels(shown: NDArray[np.int64], rng: np.random.Generator) -> list[int]:
    liked = rng.normal(-1.0, 1.0, ITEMS)
    return [int(click) for click in rng.random(ROWS) < 1 / (1 + np.exp(-liked[shown]))]


def _places(side: str) -> list[int]:
    """Columns of a side: 0..12 are I1..I13, 13..38 C1..C26."""
    fields = len(NUMBERS)
    if side == "request":
        return [*range(REQUEST_NUMBERS), *range(fields, fields + REQUEST_FIELDS)]
    return [*range(REQUEST_NUMBERS, fields), *range(fields + REQUEST_FIELDS, fields + len(FIELDS))]


def _name(place: int) -> str:
    return (NUMBERS + FIELDS)[place]


def _values(place: int, count: int, rng: np.random.Generator) -> list[str]:
    """Values of a column as a CSV holds them: a count or nothing; a token of eight hex digits."""
    if place < len(NUMBERS):
        counts = rng.gamma(0.5, 40.0, count).astype(np.int64)
        empty = rng.random(count) < MISSING
        return ["" if none else str(n) for n, none in zip(counts, empty, strict=True)]
    field = place - len(NUMBERS)
    size = min(CARDINALITIES[field], MOST_TOKENS)
    codes = (size * rng.random(count) ** 2).astype(np.int64)
    return [_token(field, code) for code in codes]


def _token(field: int, code: int) -> str:
    return f"{crc32(f'{field}:{code}'.encode()):08x}"


if __name__ == "__main__":
    make(Path(sys.argv[1]))
