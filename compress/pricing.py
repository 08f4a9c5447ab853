"""What a ranker of some sizes takes on disk, and how long a request takes on this machine.

`compress.budget.Pricing` for rankers of a run: bytes are those of the dense bundle, part by part;
times come from a small table of measured rankers, fitted, and checked on others that the fit has
not seen.
"""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from compress.budget import TIMES_WITHIN
from compress.config import CompressError
from compress.costs import bytes_by_part
from compress.curves import MOST_BYTES, history_file
from compress.data.encode import Dataset
from compress.data.folders import locked
from compress.export import export_split, graph_inputs, make_encoders, real_rows
from compress.graph import Feeds, GraphSession, interleaved, rotation
from compress.progress import Progress
from compress.rankers.base import Field, Keep, Layer, Ranker, Sizes
from compress.shipping import shipped
from compress.slim import slim
from compress.stages import write_whole
from compress.tables import TableMethod
from compress.vocabularies import in_few_bytes
from model_store.bundle import Bundle, manifest_text
from model_store.manifest import Card, Manifest, VocabularyEncoding
from model_store.packing import packed

FLOAT_BYTES: Final = 4
FITTED: Final = 24  # rankers that the times are fitted on
HELD_OUT: Final = 8  # and those that the fit is judged on
ROUNDS: Final = 200
NARROWEST: Final = 0.02
LANES: Final = 16  # of a vector register, in float32: narrower products cost as much


class ByteTable:
    """Bytes of a slim bundle by its ranker's sizes: the dense bundle's, packed, less what goes.

    Tables, as they ship, and layers are counted exactly; of a field that goes, its vocabulary and
    its share of the catalogue go with it. Nodes of the graph are counted by tables, generously.
    Features in the manifest, golden requests and other nodes are taken to stay; the card and the
    curves of the run come, in both bundles.

    Args:
        ranker: dense.
        bundle: its, as it lies there before the run has a card.
        method: how tables ship.
        card: as long as the run's.
    """

    def __init__(self, ranker: Ranker, bundle: Bundle, method: TableMethod, card: Card) -> None:
        self._ranker, self._method = ranker, method
        self._rows = {field.name: field.rows for field in ranker.fields}
        packed_files = _packed_sizes(bundle)
        extras = _bytes_by_feature(bundle, packed_files)
        self._extras = {
            field.name: sum(extras.get(name, 0) for name in field.features)
            for field in ranker.fields
        }
        curves = history_file(bundle.root)
        grown = _manifest_bytes(bundle.manifest, card) - _manifest_bytes(bundle.manifest)
        replaced = MOST_BYTES - (0 if curves is None else curves.stat().st_size)
        self.dense = sum(bytes_by_part(bundle.root).values()) + grown + replaced
        files = {entry.path: entry.bytes for entry in bundle.manifest.files}
        saved = sum(files[name] - size for name, size in packed_files.items())
        trained = sum(field.rows * field.width for field in ranker.fields) * FLOAT_BYTES
        graph = trained - self._tables(ranker.sizes())
        nodes = (TableMethod.NODES - method.NODES) * self._tensors(ranker.sizes())
        self._fixed = self.dense - saved - graph - nodes - self._counted(ranker.sizes())

    def __call__(self, sizes: Sizes) -> float:
        """Bytes on disk."""
        return self._fixed + self._counted(sizes)

    def _counted(self, sizes: Sizes) -> float:
        layers = sum(layer.parameters for layer in self._ranker.layers_at(sizes))
        extras = sum(self._extras[name] for name, width in sizes.widths.items() if width)
        nodes = self._method.NODES * self._tensors(sizes)
        return self._tables(sizes) + FLOAT_BYTES * layers + extras + nodes

    def _tensors(self, sizes: Sizes) -> int:
        """Tables that the two sides look up: one a width each."""
        widths = {
            (field.request, sizes.widths[field.name]) for field in self._ranker.fields if field.rows
        }
        return sum(width > 0 for _, width in widths)

    def _tables(self, sizes: Sizes) -> float:
        return self._method.bytes(
            (self._rows[name], width)
            for name, width in sizes.widths.items()
            if width and self._rows[name]
        )


def _manifest_bytes(manifest: Manifest, card: Card | None = None) -> int:
    """Of a manifest, as it is or under another card."""
    under = manifest if card is None else manifest.model_copy(update={"card": card})
    return len(manifest_text(under).encode())


def _packed_sizes(bundle: Bundle) -> dict[str, int]:
    """What files of a dense bundle take in a slim one, by name: those that are packed there."""
    manifest = bundle.manifest
    sizes = {
        feature.encoding.file: len(in_few_bytes(feature.encoding, tokens).raw)
        for feature in manifest.features
        if isinstance(feature.encoding, VocabularyEncoding)
        and (tokens := bundle.tokens(feature.name)) is not None
    }
    items = manifest.items
    for name in (manifest.golden, items and items.ids, items and items.values):
        if name:
            sizes[name] = len(packed(bundle.path(name).read_bytes()))
    return sizes


def _bytes_by_feature(bundle: Bundle, packed_sizes: Mapping[str, int]) -> dict[str, float]:
    """Of each feature: its vocabulary, its columns of the catalogue, its raw values there."""
    manifest, found = bundle.manifest, {}
    items = manifest.items
    values, zipped = {}, 0.0
    if items and items.values:
        raw = bundle.path(items.values).read_bytes()
        values, zipped = json.loads(raw), packed_sizes[items.values] / len(raw)
    for feature in manifest.features:
        size = 0.0
        if isinstance(feature.encoding, VocabularyEncoding):
            size += packed_sizes.get(feature.encoding.file, 0)
        if items is not None and feature.tensor in items.tensors:
            size += items.items * feature.length * FLOAT_BYTES
        if feature.name in values:
            size += zipped * len(json.dumps(values[feature.name], ensure_ascii=False))
        found[feature.name] = size
    return found


@dataclass(frozen=True, slots=True)
class Timed:
    """A ranker that was measured."""

    sizes: Sizes
    us: float


class LatencyTable:
    """Median microseconds of a request by a ranker's sizes, linear in what the graph does.

    Args:
        ranker: whose slimmed versions are meant.
        timed: what the coefficients are fitted on, by relative error; none is negative.
        candidates: of a request.
    """

    def __init__(self, ranker: Ranker, timed: Sequence[Timed], candidates: int) -> None:
        self._ranker, self._candidates = ranker, candidates
        self._features = {feature.name: feature for feature in ranker.features}
        work = np.stack([self._work(one.sizes) for one in timed])
        us = np.array([one.us for one in timed])
        self._scale = work.max(0).clip(min=1e-12)
        self._coefficients, _ = nnls(work / self._scale / us[:, None], np.ones(len(us)))

    def __call__(self, sizes: Sizes) -> float:
        """Microseconds."""
        return float(self._work(sizes) / self._scale @ self._coefficients)

    def errors(self, timed: Sequence[Timed]) -> NDArray[np.float64]:
        """Relative errors, told over measured less one."""
        return np.array([self(one.sizes) / one.us - 1 for one in timed])

    def _work(self, sizes: Sizes) -> NDArray[np.float64]:
        """What a request makes the graph do, in the terms of the fit."""
        layers, widths, rows = self._ranker.layers_at(sizes), sizes.widths, self._candidates
        live = [f for f in self._ranker.fields if widths[f.name]]
        request, candidate = ([f for f in live if f.request is side] for side in (True, False))
        each = [layer for layer in layers if not layer.once]
        looked_up = sum(self._length(f) * widths[f.name] for f in candidate if not f.numeric)
        parts = self._parts(candidate, sizes)
        return np.array(
            [
                1.0,
                float(len(layers)),
                float(sum(_lanes(layer) * (1 if layer.once else rows) for layer in layers)),
                float(rows * sum(layer.inputs + layer.outputs for layer in each)),
                float(rows * sum(self._ranker.other_flops(sizes).values())),
                float(rows * looked_up),
                float(rows * sum(self._pooled(f) for f in candidate)),
                float(self._parts(request, sizes)),
                float(parts),
                float(rows * sum(widths[f.name] for f in candidate) * (parts > 1)),  # put together
            ]
        )

    def _parts(self, fields: Sequence[Field], sizes: Sizes) -> int:
        """How many tensors a side's vectors come in: one a width; numbers and lists alone."""
        alone = [f for f in fields if f.numeric or self._pooled(f)]
        return len(alone) + len({sizes.widths[f.name] for f in fields if f not in alone})

    def _length(self, field: Field) -> int:
        """Ids of a field."""
        return sum(self._features[name].length for name in field.features)

    def _pooled(self, field: Field) -> bool:
        return any(self._features[name].kind == "multi" for name in field.features)


def _lanes(layer: Layer) -> int:
    """Multiplications of a row, the outputs being filled up to whole registers."""
    return layer.inputs * (-(-layer.outputs // LANES) * LANES)


@dataclass
class MeasuredPricing:
    """Bytes and times of the slimmed versions of one dense ranker; times are measured when asked.

    Attributes:
        ranker: dense.
        bundle: its.
        dataset: gives the rows that requests are made of.
        candidates: of a request.
        tables: how the slimmed versions' tables ship.
        card: makes one as long as the run's; not called before bytes are asked for.
        cache: where the measured table is kept.
        progress: told of the rankers measured.
    """

    ranker: Ranker
    bundle: Bundle
    dataset: Dataset
    candidates: int
    tables: TableMethod
    card: Callable[[], Card]
    cache: Path
    progress: Progress

    @cached_property
    def _bytes(self) -> ByteTable:
        return ByteTable(self.ranker, self.bundle, self.tables, self.card())

    @cached_property
    def _latency(self) -> LatencyTable:
        timed = self._measured()
        table = LatencyTable(self.ranker, timed[:FITTED], self.candidates)
        held_out = float(np.median(np.abs(table.errors(timed[FITTED:]))))
        self.progress.step("time rankers", len(timed), len(timed), error=held_out)
        if held_out > TIMES_WITHIN:
            raise CompressError(
                f"budget.p50_us: the times of {HELD_OUT} rankers that the fit had not seen were "
                f"missed by {held_out:.0%} (median; at most {TIMES_WITHIN:.0%}): other work may "
                f"disturb this machine; end it, remove {self.cache} and run again"
            )
        return table

    def bytes(self, sizes: Sizes) -> float:
        """Of the bundle on disk."""
        return self._bytes(sizes)

    def dense_bytes(self) -> float:
        """Of the dense bundle, as it will lie on disk."""
        return float(self._bytes.dense)

    def p50_us(self, sizes: Sizes) -> float:
        """Median microseconds of a request.

        Raises:
            CompressError: the times measured do not fit.
        """
        return self._latency(sizes)

    def _measured(self) -> list[Timed]:
        self.cache.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.cache.parent, self.cache.name):  # the others of a run get the same
            return self._measured_once()

    def _measured_once(self) -> list[Timed]:
        if self.cache.exists():
            held = json.loads(self.cache.read_text())
            return [Timed(Sizes(one["widths"], one["hidden"]), one["us"]) for one in held]
        timed = measure(self.ranker, self.dataset, self.candidates, self.tables, self.progress)
        rows = [
            {"widths": dict(t.sizes.widths), "hidden": dict(t.sizes.hidden), "us": t.us}
            for t in timed
        ]
        write_whole(self.cache, json.dumps(rows))
        return timed


def measure(
    ranker: Ranker,
    dataset: Dataset,
    candidates: int,
    tables: TableMethod,
    progress: Progress,
    *,
    count: int = FITTED + HELD_OUT,
) -> list[Timed]:
    """Time the ranker and slimmed versions of it, drawn at random, in this process.

    The first is the ranker itself, so that a fit on the first ones spans all sizes. Each of the
    others takes turns with it alone, as on a card: with more of them in turn, none would find any
    of its weights in the cache, as it does where it is served.

    Args:
        ranker: dense.
        dataset: gives the rows that requests are made of.
        candidates: of a request.
        tables: how their tables ship; those that must be learned ship as they are.
        progress: told of the rankers timed.
        count: how many.
    """
    rng = np.random.default_rng(0)
    keeps = [None, *(random_keep(ranker, rng) for _ in range(count - 1))]
    rows = real_rows(dataset, 16 * candidates)
    sessions, feeds, sizes = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for number, keep in enumerate(keeps):
            small = ranker if keep is None else slim(ranker, keep)
            path = Path(folder) / f"{number}.onnx"
            export_split(shipped(small.cpu(), tables).eval(), path)
            sessions.append(GraphSession(path))
            encoders = make_encoders(small.features, dataset.tokens)
            feeds.append(rotation(graph_inputs(rows, small.features, encoders), candidates))
            sizes.append(_whole(ranker, small))
            progress.step("time rankers", number, count)
        us = _beside_the_first(sessions, feeds)
    return [Timed(s, t) for s, t in zip(sizes, us, strict=True)]


def _beside_the_first(
    sessions: Sequence[GraphSession], feeds: Sequence[Sequence[Feeds]]
) -> list[float]:
    """Median microseconds of each, by how long it takes as against the first in the same turn."""
    firsts, ratios = [], []
    for session, own in zip(sessions[1:], feeds[1:], strict=True):
        first, other = interleaved([sessions[0], session], [feeds[0], own], ROUNDS)
        firsts.append(np.median(first))
        ratios.append(float(np.median(other / first)))
    us = float(np.median(firsts))
    return [us, *(us * ratio for ratio in ratios)]


def _whole(dense: Ranker, small: Ranker) -> Sizes:
    """The sizes of a slimmed ranker in the dense one's terms: fields that have gone are 0 wide."""
    sizes = small.sizes()
    return Sizes({name: sizes.widths.get(name, 0) for name in dense.sizes().widths}, sizes.hidden)


def random_keep(ranker: Ranker, rng: np.random.Generator) -> Keep:
    """Any share of each layer, narrow ones as likely as wide; fields of both sides; any widths."""
    hidden = {
        layer.name: _some(layer.width, np.exp(rng.uniform(np.log(NARROWEST), 0.0)), rng)
        for layer in ranker.hidden()
    }
    fields: list[str] = []
    for request in (True, False):
        side = [f.name for f in ranker.fields if f.request is request]
        fields += [side[i] for i in _some(len(side), rng.uniform(0.3, 1.0), rng)]
    prunable = ranker.prunable()
    live = [f for f in ranker.fields if f.name in fields]
    if len(live) < prunable.least:
        live = list(ranker.fields)
    dims: Mapping[str, tuple[int, ...]] = {}
    if rng.integers(2):
        quarters = rng.integers(1, 5, len(live))
        draw = _first if prunable.aligned else partial(_some, rng=rng)
        dims = {f.name: draw(f.width, q / 4) for f, q in zip(live, quarters, strict=True)}
    return Keep(tuple(f.name for f in live), hidden, dims)


def _first(count: int, share: float) -> tuple[int, ...]:
    return tuple(range(max(1, round(count * share))))


def _some(count: int, share: float, rng: np.random.Generator) -> tuple[int, ...]:
    kept = max(1, round(count * float(share)))
    return tuple(sorted(rng.choice(count, kept, replace=False).tolist())) if count else ()
