"""What a sweep's cells came to, a row each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import polars as pl

from compress.card import SeedRun
from compress.data.folders import replaced
from compress.export import click_card
from compress.pipeline import finished
from compress.sweep.cells import Cell, Microseconds
from compress.sweep.launchers.base import Fault
from compress.sweep.plan import toml
from model_store.bundle import open_bundle
from model_store.manifest import Card

BY_THE_CLOCK: Final = ("p50_us", "speedup")


@dataclass(frozen=True, slots=True)
class Result:
    """A cell that is done.

    Attributes:
        card: as far as the cell's bundle tells it: what was asked for, achieved and kept.
        us: None if no times were taken.
    """

    cell: Cell
    found: SeedRun
    card: Card
    us: Microseconds | None

    @property
    def auc_lost(self) -> float:
        """To the dense ranker of the same seed."""
        return self.found.result.dense.auc - self.found.result.slim.auc

    @property
    def logloss_risen(self) -> float:
        """Over the dense ranker of the same seed."""
        return self.found.result.slim.logloss - self.found.result.dense.logloss

    @property
    def flops_left(self) -> float:
        """As a share of the dense ranker's."""
        return self.found.slim.flops / self.found.dense.flops

    @property
    def bundle_bytes(self) -> int:
        """Of the slim bundle, all its files."""
        return sum(self.found.slim.bytes.values())

    @property
    def bytes_left(self) -> float:
        """As a share of the dense bundle's."""
        return self.bundle_bytes / sum(self.found.dense.bytes.values())

    @property
    def speedup(self) -> float | None:
        """Both timed in turn."""
        return self.us[0] / self.us[1] if self.us else None


def results_of(cells: Sequence[Cell], times: Mapping[str, Microseconds]) -> list[Result]:
    """Those of the cells that are done."""
    return [
        Result(
            cell=cell,
            found=found,
            card=click_card(open_bundle(cell.slim, verify=False)),
            us=times.get(str(cell.slim)),
        )
        for cell in cells
        if (found := finished(cell.site, cell.seed)) is not None
    ]


def write_table(
    path: Path, cells: Sequence[Cell], results: Sequence[Result], faults: Mapping[str, Fault]
) -> None:
    """Write a parquet file, a row a cell: of one that failed, why."""
    found = {result.cell.name: dict(_figures(result)) for result in results}
    rows = []
    for cell in cells:
        fault = faults.get(cell.name)
        rows.append({**_identity(cell), **found.get(cell.name, {}), "error": fault and fault.text})
    texts = {"run": pl.String, "error": pl.String}
    frame = pl.from_dicts(rows, infer_schema_length=None, schema_overrides=texts)
    with replaced(path) as staged:
        frame.select(pl.exclude(*texts), *texts).write_parquet(staged)


def _identity(cell: Cell) -> dict[str, Any]:
    swept = {key: _plain(value) for key, value in cell.variant.budget.items()}
    return {
        "method": cell.variant.method,
        "budget": cell.variant.at,
        **swept,
        "seed": cell.seed,
        "run": str(cell.site.of_seed(cell.seed)),
    }


def _plain(value: Any) -> Any:
    """Numbers stay numbers; what is no single value is text."""
    return toml(value) if isinstance(value, Mapping | list | tuple) else value


def achieved(result: Result) -> dict[str, float]:
    """Shares of the dense ranker's: of bytes and time those found, where the card may hold told."""
    found = {**result.card.achieved, "bytes": result.bytes_left}
    if result.speedup is None:
        return {name: share for name, share in found.items() if name not in BY_THE_CLOCK}
    return {**found, "p50_us": 1 / result.speedup, "speedup": result.speedup}


def _figures(result: Result) -> Iterator[tuple[str, Any]]:
    found, card = result.found, result.card
    for metric in ("auc", "logloss"):
        for kind in ("dense", "slim"):
            yield f"{metric}.{kind}", getattr(getattr(found.result, kind), metric)
    yield "auc.lost", result.auc_lost
    yield "logloss.risen", result.logloss_risen
    for name, value in card.requested.items():
        yield f"requested.{name}", value
    for name, value in achieved(result).items():
        yield f"achieved.{name}", value
    for what in ("flops", "parameters"):
        for kind in ("dense", "slim"):
            yield f"{what}.{kind}", getattr(getattr(found, kind), what)
    for kind in ("dense", "slim"):
        resources = getattr(found, kind)
        yield f"bytes.{kind}", sum(resources.bytes.values())
        for what, parts in (("flops", resources.flops_parts), ("bytes", resources.bytes)):
            for part, amount in parts.items():
                yield f"{what}.{kind}.{part}", amount
    yield "flops.left", result.flops_left
    yield "bytes.left", result.bytes_left
    yield "fields.kept", len(card.kept_features)
    yield "fields", len(card.kept_features) + len(card.pruned_features)
    yield "seconds", found.seconds
    if result.us:
        yield "us_per_request.dense", result.us[0]
        yield "us_per_request.slim", result.us[1]
        yield "speedup", result.speedup
