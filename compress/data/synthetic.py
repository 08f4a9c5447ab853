"""Clicks made from a known rule, so that tests know what can be learnt and what cannot.

    logit = signal · (segment + hour + dwell + genre + price + tags + segment × genre) + bias

Each term is a function drawn once from the seed; the fields of `Synthetic.noise` enter nowhere.
The click is Bernoulli(sigmoid(logit)), so no ranker beats the AUC of the logit itself
(`bayes_auc`). Rows are made a chunk at a time, each chunk from its own seed: any number of them
takes no memory, and a part can be read without making the rows before it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, model_validator

from compress.data.base import PARTS, ColumnSpec, Part, Schema, Tally, digest
from compress.metrics import auc
from model_store.manifest import DataSpec, Frozen

LABEL: Final = "click"
CHUNK_ROWS: Final = 1 << 15
SEGMENTS: Final = 20
GENRES: Final = 12
TAGS: Final = 10
HOURS: Final = 24
MAX_TAGS: Final = 3

_FUNCTIONS, _ITEMS, _ROWS = range(3)  # streams of the seed


class SyntheticConfig(Frozen):
    """Options of the source.

    Attributes:
        rows: of all parts together.
        seed: of the rule, the catalogue and the rows.
        signal: the strength of the rule; 0 makes every field noise.
        bias: moves the click rate.
        noise_fields: categorical fields that mean nothing, alternately the user's and the item's.
        noise_cardinality: tokens of each of them.
        noise_numbers: numeric fields that mean nothing, alternately the context's and the item's.
        catalogue: number of items, whose features are fixed and whose id is a feature; 0: every
            row shows an item of its own, and there are no ids.
        missing: the share of cells that are empty, in the nullable fields.
        validation: the share of rows before the last.
        test: the share of the last rows.
    """

    rows: int = Field(default=20_000, ge=10)
    seed: int = Field(default=0, ge=0)
    signal: float = Field(default=1.0, ge=0.0)
    bias: float = -1.0
    noise_fields: int = Field(default=4, ge=0)
    noise_cardinality: int = Field(default=30, ge=1)
    noise_numbers: int = Field(default=2, ge=0)
    catalogue: int = Field(default=200, ge=0)
    missing: float = Field(default=0.05, ge=0.0, lt=1.0)
    min_count: int = Field(default=1, ge=1)
    hash_buckets: int | None = Field(default=None, ge=1)
    validation: float = Field(default=0.1, gt=0.0, lt=1.0)
    test: float = Field(default=0.1, gt=0.0, lt=1.0)

    @model_validator(mode="after")
    def _consistent(self) -> "SyntheticConfig":
        if self.validation + self.test >= 1.0:
            raise ValueError("validation and test leave no rows to train on")
        return self


@dataclass(frozen=True, slots=True)
class _Rule:
    """The terms of the logit by code; a missing value adds nothing."""

    segment: NDArray[np.float64]  # (SEGMENTS,)
    hour: NDArray[np.float64]  # (HOURS,)
    genre: NDArray[np.float64]  # (GENRES,)
    tag: NDArray[np.float64]  # (TAGS,)
    pair: NDArray[np.float64]  # (SEGMENTS, GENRES)


class Synthetic:
    """Rows by the rule."""

    Config: ClassVar[type[Frozen]] = SyntheticConfig

    def __init__(self, config: SyntheticConfig) -> None:
        self._config = config

    @property
    def informative(self) -> tuple[str, ...]:
        """The features that the click depends on."""
        return ("u_segment", "c_hour", "c_dwell", "i_genre", "i_price", "i_tags")

    @property
    def noise(self) -> tuple[str, ...]:
        """The features that it does not depend on (``item_id`` is neither: it tells the genre)."""
        return tuple(c.name for c in self.schema().columns if "noise" in c.name)

    def schema(self) -> Schema:
        """User, context and item features of all three kinds."""
        config = self._config

        def column(name: str, kind: Any, **options: Any) -> ColumnSpec:
            side = {"u": "user", "c": "context", "i": "item"}[name[0]]
            if kind != "numeric":
                options |= {"min_count": config.min_count, "hash_buckets": config.hash_buckets}
            return ColumnSpec(name=name, kind=kind, side=side, column=name, **options)

        noise = [
            column(f"{'ui'[i % 2]}_noise{i + 1}", "categorical") for i in range(config.noise_fields)
        ]
        numbers = [
            column(f"{'ci'[i % 2]}_noise_x{i + 1}", "numeric", transform="standardize")
            for i in range(config.noise_numbers)
        ]
        ids = [column("item_id", "categorical")] if config.catalogue else []
        columns = (
            column("u_segment", "categorical"),
            column("c_hour", "categorical"),
            column("c_dwell", "numeric", transform="log1p"),
            *ids,
            column("i_genre", "categorical"),
            column("i_price", "numeric", transform="standardize"),
            column("i_tags", "multi", length=MAX_TAGS),
            *noise,
            *numbers,
        )
        return Schema(
            columns=columns, data=DataSpec(label=LABEL), item_id="item_id" if ids else None
        )

    def chunks(
        self, parts: Sequence[Part] = PARTS, tally: Tally | None = None
    ) -> Iterator[tuple[Part, pl.DataFrame]]:
        """Rows; their number is the time."""
        del tally  # no cell is bad
        for part in PARTS:
            if part in parts:
                for rows, _ in self._made(part):
                    yield part, rows

    def items(self) -> pl.DataFrame | None:
        """The catalogue."""
        return pl.DataFrame(self._catalogue) if self._config.catalogue else None

    def fingerprint(self) -> str:
        """The config says it all."""
        return digest("synthetic", self._config.model_dump_json())

    def notice(self) -> None:
        """None: they are nobody's."""
        return

    def bayes_auc(self, part: Part = "test") -> float:
        """The AUC of the rule's own logits on the rows of a part: nothing can do better."""
        made = [(rows[LABEL].to_numpy(), logits) for rows, logits in self._made(part)]
        labels, logits = (np.concatenate(column) for column in zip(*made, strict=True))
        return auc(labels, logits)

    def _made(self, part: Part) -> Iterator[tuple[pl.DataFrame, NDArray[np.float64]]]:
        start, end = self._bounds(part)
        for chunk in range(start // CHUNK_ROWS, -(-end // CHUNK_ROWS)):
            first = chunk * CHUNK_ROWS
            rows, logits = self._chunk(chunk)
            here = slice(max(start - first, 0), min(end - first, CHUNK_ROWS))
            yield rows[here], logits[here]

    def _bounds(self, part: Part) -> tuple[int, int]:
        config = self._config
        test = config.rows - round(config.rows * config.test)
        edges = (0, test - round(config.rows * config.validation), test, config.rows)
        index = PARTS.index(part)
        return edges[index], edges[index + 1]

    def _chunk(self, chunk: int) -> tuple[pl.DataFrame, NDArray[np.float64]]:
        config, rng = self._config, np.random.default_rng([self._config.seed, _ROWS, chunk])
        segment = _zipf(rng, SEGMENTS, CHUNK_ROWS)
        hour = rng.integers(0, HOURS, CHUNK_ROWS)
        dwell = np.floor(rng.lognormal(2.0, 1.0, CHUNK_ROWS))
        empty = {name: rng.random(CHUNK_ROWS) < config.missing for name in ("u_segment", "c_dwell")}
        request = {
            "u_segment": _tokens("s", segment, empty["u_segment"]),
            "c_hour": pl.Series(hour.astype(np.int16)),
            "c_dwell": pl.Series(np.where(empty["c_dwell"], np.nan, dwell)).fill_nan(None),
        }
        noise = {c.name: self._noise(rng, c) for c in self.schema().columns if c.name in self.noise}
        if config.catalogue:
            shown = _zipf(rng, config.catalogue, CHUNK_ROWS)
            item = {name: column[shown] for name, column in self._item_codes.items()}
            columns = {name: series.gather(shown) for name, series in self._catalogue.items()}
        else:
            item = _item_codes(rng, CHUNK_ROWS)
            columns = _item_columns(item)
        logits = self._logits(segment, hour, dwell, empty, item)
        click = rng.random(CHUNK_ROWS) < 1.0 / (1.0 + np.exp(-logits))
        frame = pl.DataFrame({**request, **noise, **columns, LABEL: click.astype(np.int8)})
        return frame.select(LABEL, *(c.column for c in self.schema().columns)), logits

    def _logits(
        self,
        segment: NDArray[np.int64],
        hour: NDArray[np.int64],
        dwell: NDArray[np.float64],
        empty: dict[str, NDArray[np.bool_]],
        item: dict[str, NDArray[Any]],
    ) -> NDArray[np.float64]:
        rule, genre = self._rule, item["genre"]
        known = ~empty["u_segment"]
        terms = rule.hour[hour] + rule.genre[genre]
        terms += np.where(known, rule.segment[segment] + rule.pair[segment, genre], 0.0)
        terms += np.where(empty["c_dwell"], 0.0, 0.4 * (np.log1p(dwell) - 2.0))
        terms += -0.5 * (item["price"] - 10.0) / 5.0
        terms += (rule.tag[item["tags"]] * item["tagged"]).sum(axis=1)
        return np.asarray(self._config.signal * terms + self._config.bias)

    def _noise(self, rng: np.random.Generator, column: ColumnSpec) -> pl.Series:
        empty = rng.random(CHUNK_ROWS) < self._config.missing
        if column.kind == "numeric":
            values = rng.normal(3.0, 2.0, CHUNK_ROWS)
            return pl.Series(np.where(empty, np.nan, values)).fill_nan(None)
        codes = _zipf(rng, self._config.noise_cardinality, CHUNK_ROWS)
        return _tokens("n", codes, empty)

    @cached_property
    def _rule(self) -> _Rule:
        rng = np.random.default_rng([self._config.seed, _FUNCTIONS])
        return _Rule(
            segment=rng.normal(0.0, 0.5, SEGMENTS),
            hour=0.5 * np.sin(np.arange(HOURS) / HOURS * 2 * np.pi),
            genre=rng.normal(0.0, 0.5, GENRES),
            tag=rng.normal(0.0, 0.4, TAGS),
            pair=rng.normal(0.0, 0.8, (SEGMENTS, GENRES)),
        )

    @cached_property
    def _item_codes(self) -> dict[str, NDArray[Any]]:
        rng = np.random.default_rng([self._config.seed, _ITEMS])
        return _item_codes(rng, self._config.catalogue)

    @cached_property
    def _catalogue(self) -> dict[str, pl.Series]:
        """Columns of the catalogue; its noise is the item's own, not drawn anew for every row."""
        rng = np.random.default_rng([self._config.seed, _ITEMS, 1])
        size = self._config.catalogue
        ids = pl.Series([f"item{i + 1}" for i in range(size)], dtype=pl.String)
        noise = {}
        for c in self.schema().columns:
            if c.name in self.noise and c.side == "item":
                noise[c.name] = self._noise(rng, c)[:size]
        return {"item_id": ids, **_item_columns(self._item_codes), **noise}


def _zipf(rng: np.random.Generator, size: int, rows: int) -> NDArray[np.int64]:
    """Codes 0..size-1, low ones more often."""
    return np.minimum((size * rng.random(rows) ** 1.7).astype(np.int64), size - 1)


def _item_codes(rng: np.random.Generator, rows: int) -> dict[str, NDArray[Any]]:
    return {
        "genre": rng.integers(0, GENRES, rows),
        "price": np.round(rng.gamma(4.0, 2.5, rows), 2),
        "tags": np.argsort(rng.random((rows, TAGS)), axis=1)[:, :MAX_TAGS],  # distinct ones
        "tagged": np.arange(MAX_TAGS) < rng.integers(0, MAX_TAGS + 1, rows)[:, None],
    }


def _item_columns(item: dict[str, NDArray[Any]]) -> dict[str, pl.Series]:
    counts = item["tagged"].sum(axis=1)
    flat = pl.Series(item["tags"][item["tagged"]]).cast(pl.String)
    owner = np.repeat(np.arange(len(counts)), counts)
    lists = pl.DataFrame({"row": owner, "tag": "t" + flat}).group_by("row").agg("tag")
    every = pl.DataFrame({"row": np.arange(len(counts))}).join(
        lists, on="row", how="left", maintain_order="left"
    )
    return {
        "i_genre": _tokens("g", item["genre"], np.zeros(len(counts), np.bool_)),
        "i_price": pl.Series(item["price"]),
        "i_tags": every["tag"],
    }


def _tokens(prefix: str, codes: NDArray[Any], empty: NDArray[np.bool_]) -> pl.Series:
    known = pl.Series([f"{prefix}{i}" for i in range(int(codes.max(initial=0)) + 1)])
    tokens = known.gather(codes)
    return tokens.set(pl.Series(empty), None) if empty.any() else tokens
