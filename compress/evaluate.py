"""Quality of an exported bundle on a data file. Knows nothing but these two: no config, no torch.

Every published figure comes from here, so from the graph, the vocabularies and the item table that
serving loads.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from compress.data.base import DataError, Tally
from compress.data.cells import Role, Rules
from compress.data.encode import encode_series
from compress.data.files import Files
from compress.graph import Array, GraphSession, pack
from compress.metrics import MetricError, quality
from compress.progress import Progress, Silent
from model_store.bundle import Bundle, open_bundle
from model_store.encoding import Encoder, token
from model_store.errors import BundleNotFound
from model_store.manifest import MANIFEST_FILE, FeatureSpec, Manifest, Quality
from model_store.store import open_store

ROWS: Final = 4096  # a graph call's: larger ones only fill the memory


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Metrics, and the rows left out for a bad cell."""

    quality: Quality
    skipped: int


def find_bundle(reference: str, store: str | None, tier: str | None = None) -> Bundle:
    """Open a bundle by its folder, or by ``name@version|alias`` in a store; or a tier of it.

    Raises:
        StoreError: there is none, or it is damaged.
    """
    found = _find_whole(reference, store)
    if tier is None:
        return found
    try:
        return found.tier(tier)
    except KeyError:
        names = ", ".join(each.name for each in found.manifest.tiers) or "none"
        raise BundleNotFound(f"{reference}: no tier {tier!r}; its tiers: {names}") from None


def _find_whole(reference: str, store: str | None) -> Bundle:
    folder = Path(reference)
    if store is None and not (folder / MANIFEST_FILE).is_file():
        raise BundleNotFound(
            f"{reference}: no folder with a {MANIFEST_FILE}; "
            "for a published bundle give --store as well"
        )
    return open_bundle(folder) if store is None else open_store(store).open(reference).bundle


def evaluate(bundle: Bundle, data: Path, *, skip_bad: bool, progress: Progress) -> Evaluation:
    """Score every row of a data file and compare with its labels.

    Of a row, its score and label are kept: 8 bytes.

    Args:
        bundle: opened, thereby verified.
        data: parquet, CSV or TSV (plain or gzip). Item features whose columns it does not have
            are joined from the bundle's item table.
        skip_bad: leave rows with a bad cell out and count them.
        progress: told of the rows done.

    Raises:
        DataError: the file does not fit the bundle; `BadCell` names row, column and value.
    """
    session = GraphSession(bundle.path(bundle.manifest.graph))
    encoders = bundle.encoders()
    tally = Tally()
    files = _files(bundle.manifest, data, skip_bad=skip_bad)
    join = _Join.of(bundle, encoders, files.columns())
    files = _reading(files, bundle.manifest, join)

    labels: list[NDArray[np.float32]] = []
    scores: list[NDArray[np.float32]] = []
    for frame in files.frames(tally):
        columns = {**_encoded(frame, encoders, join), **join.columns(frame)}
        labels.append(_labels(frame, bundle.manifest))
        scores.extend(_scores(session, bundle.manifest.features, columns, len(frame)))
        progress.step("evaluate", sum(map(len, labels)), None)
    if not any(map(len, labels)):
        left_out = f" ({tally.rows} left out for a bad cell)" if tally.rows else ""
        raise DataError(f"{data}: no rows to evaluate{left_out}")
    try:
        return Evaluation(quality(np.concatenate(labels), np.concatenate(scores)), tally.rows)
    except MetricError as error:
        raise DataError(f"{data}: {error}") from None


def evaluate_folder(folder: Path, data: Path) -> Quality:
    """Quality of the bundle in a folder: what a process of its own is asked for."""
    return evaluate(open_bundle(folder), data, skip_bad=False, progress=Silent()).quality


@dataclass(frozen=True, slots=True)
class _Join:
    """Item features that come from the bundle's item table.

    Attributes:
        key: the data column of the item id.
        rows: item id -> row of the table.
        values: feature -> (items + 1, length); the last row is for unknown items.
    """

    key: str | None
    rows: Mapping[str, int]
    values: Mapping[str, Array]

    @classmethod
    def of(cls, bundle: Bundle, encoders: Mapping[str, Encoder], columns: list[str]) -> "_Join":
        key = _key_column(bundle.manifest)
        table = bundle.item_table()
        absent = [
            encoder.spec
            for encoder in encoders.values()
            if not encoder.spec.request_side and encoder.spec.column not in columns
        ]
        if table is None or key not in columns or not absent:
            return cls(None, {}, {})
        values = {}
        for spec in absent:
            if spec.tensor is not None:
                tensor = table.tensors[spec.tensor][:, spec.start : spec.start + spec.length]
                unknown = encoders[spec.name].encode([None])
                values[spec.name] = np.concatenate([tensor, unknown])
        return cls(key, {text: row for row, text in enumerate(table.ids)}, values)

    def columns(self, frame: pl.DataFrame) -> dict[str, Array]:
        """The joined features of a frame's items."""
        if self.key is None:
            return {}
        distinct = frame[self.key].unique()
        found = [self.rows.get(str(token(value)), len(self.rows)) for value in distinct]
        pairs = pl.DataFrame({"value": distinct, "row": found})
        rows = frame.select(value=self.key).join(
            pairs, on="value", how="left", nulls_equal=True, maintain_order="left"
        )["row"]
        return {name: values[rows.to_numpy()] for name, values in self.values.items()}


def _key_column(manifest: Manifest) -> str | None:
    return next((f.column for f in manifest.features if f.name == manifest.item_id), None)


def _files(manifest: Manifest, data: Path, *, skip_bad: bool) -> Files:
    headerless = manifest.data.tsv_columns if ".parquet" not in data.suffixes else None
    return Files(
        paths=(data,),
        rules=Rules({manifest.data.label: "label"}, manifest.data.positive_from),
        names=headerless,
        separator="\t" if headerless else None,
        quote=headerless is None,
        on_bad_cell="skip" if skip_bad else "error",
    )


def _reading(files: Files, manifest: Manifest, join: _Join) -> Files:
    roles: dict[str, Role] = {manifest.data.label: "label"}
    if join.key is not None:
        roles[join.key] = "categorical"
    for feature in manifest.features:
        if not feature.pruned and feature.name not in join.values:
            roles[feature.column] = _role(feature)
    return replace(files, rules=replace(files.rules, roles=roles))


def _role(feature: FeatureSpec) -> Role:
    # A bucketed number is categorical to the graph, and a number in the file.
    if feature.encoding.type in {"numeric", "buckets"}:
        return "numeric"
    return "multi" if feature.kind == "multi" else "categorical"


def _encoded(frame: pl.DataFrame, encoders: Mapping[str, Encoder], join: _Join) -> dict[str, Array]:
    return {
        name: encode_series(encoder, frame[encoder.spec.column])
        for name, encoder in encoders.items()
        if name not in join.values
    }


def _labels(frame: pl.DataFrame, manifest: Manifest) -> NDArray[np.float32]:
    positive_from = 1.0 if manifest.data.positive_from is None else manifest.data.positive_from
    return (frame[manifest.data.label].to_numpy() >= positive_from).astype(np.float32)


def _scores(
    session: GraphSession,
    features: tuple[FeatureSpec, ...],
    columns: Mapping[str, Array],
    rows: int,
) -> Iterator[NDArray[np.float32]]:
    feeds = pack(features, columns)
    for start in range(0, rows, ROWS):
        yield session.run({name: array[start : start + ROWS] for name, array in feeds.items()})
