"""What a ranker of some sizes takes on disk, and how long a request takes on this machine.

`compress.budget.Pricing` for rankers of a run, told before any of them is trained: bytes are those
of a bare bundle and what is added to it, part by part; times come from a small table of measured
rankers, fitted, and checked on others that the fit has not seen.
"""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from compress.budget import TIMES_WITHIN
from compress.config import CompressError, ExportConfig
from compress.costs import bytes_by_part
from compress.curves import history_file
from compress.data.encode import Dataset
from compress.data.folders import locked
from compress.export import export, export_split, graph_inputs, make_encoders, real_rows
from compress.graph import Feeds, GraphSession, interleaved, rotation
from compress.progress import Progress
from compress.rankers.base import Ranker
from compress.rankers.structure import Field, Keep, Layer, Sizes
from compress.shipping import shipped
from compress.slim import slim
from compress.stages import write_whole
from compress.tables import TableMethod
from compress.vocabularies import in_few_bytes
from model_store.bundle import Bundle, manifest_text, open_bundle
from model_store.errors import StoreError
from model_store.manifest import (
    Card,
    FeatureSpec,
    FileEntry,
    Manifest,
    Resources,
    VocabularyEncoding,
)
from model_store.packing import packed

FLOAT_BYTES: Final = 4
KIND: Final = 1100  # bytes at most of nodes for a list, a bottom MLP, the pairs of a side
IDS: Final = 900  # and of the inputs and files that a side's first embedded field brings
IDS_OF: Final = ("candidate_ids", "request_ids")
SCORES_MARGIN: Final = 0.03  # by which golden scores of other weights may pack worse
FITTED: Final = 24  # rankers that the times are fitted on
HELD_OUT: Final = 8  # and those that the fit is judged on
ROUNDS: Final = 200
NARROWEST: Final = 0.02
LANES: Final = 16  # of a vector register, in float32: narrower products cost as much


@dataclass(frozen=True, slots=True)
class Outline:
    """Bundles that tell what others take: sizes do not depend on what the weights are.

    Attributes:
        dense: of the ranker, as it lies open.
        bare: of the same with as few fields as there can be, as slim bundles are kept.
    """

    ranker: Ranker
    dense: Bundle
    bare: Bundle


def outline(ranker: Ranker, dataset: Dataset, folder: Path, options: ExportConfig) -> Outline:
    """Export a ranker whole and bare, or open what was exported.

    Args:
        ranker: trained or not.
        dataset: it is for.
        folder: whose the bundles are.
        options: of the run's bundles.
    """

    def made(name: str, small: Ranker, *, few_bytes: bool) -> Bundle:
        flops = Resources(flops=sum(small.flops().values()))
        card = Card(method="none", ranker="", seed=0, dense=flops, slim=flops, kept_features=())
        with contextlib.suppress(StoreError):
            return open_bundle(folder / name)
        shutil.rmtree(folder / name, ignore_errors=True)  # not begun, or cut off
        return export(
            small.eval(), dataset, folder / name, name="outline", card=card, options=options,
            history={}, few_bytes=few_bytes,
        )  # fmt: skip

    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, "outline"):  # the others of a run, and other runs, find them done
        return Outline(
            ranker,
            made("dense", ranker, few_bytes=False),
            made("bare", slim(ranker, Keep(_bare(ranker), {})), few_bytes=True),
        )


def _bare(ranker: Ranker) -> tuple[str, ...]:
    """Numeric fields, and the smallest embedded ones that the ranker cannot do without."""
    cheapest = sorted(ranker.fields, key=lambda f: f.rows * f.width)
    kept = {field.name for field in cheapest if field.numeric}
    for request in (True, False):
        if side := [f for f in cheapest if f.request is request]:
            kept.add(side[0].name)
    missing = ranker.prunable().least - len(kept)
    kept |= set([f.name for f in cheapest if f.name not in kept][: max(0, missing)])
    return tuple(field.name for field in ranker.fields if field.name in kept)


class ByteTable:
    """Bytes of a slim bundle by its ranker's sizes: those of the bare one, and what is added.

    Tables, as they ship, and layers are counted exactly; with a field come its vocabulary, its
    share of the catalogue and its lines of the manifest. Nodes of the graph are counted by kinds of
    fields and by tables, generously. The card and the curves of the run come, in both bundles.

    Args:
        made: whole and bare.
        method: how tables ship.
        card: as long as the run's.
        curves: bytes at most of the run's.
    """

    def __init__(self, made: Outline, method: TableMethod, card: Card, curves: int) -> None:
        self._ranker, self._method = made.ranker, method
        self._rows = {field.name: field.rows for field in made.ranker.fields}
        self._lists = {f.name for f in made.ranker.features if f.kind == "multi"}
        self._aligned = made.ranker.prunable().aligned
        extras = _bytes_by_feature(made)
        self._extras = {
            field.name: sum(extras[name] for name in field.features) for field in made.ranker.fields
        }
        self.dense = _with_card(made.dense, card, curves)
        live = {f.name for f in made.bare.manifest.features if not f.pruned}
        bare = self._sizes_of(live)
        self._kinds = self._kinds_of(bare)
        in_float32 = FLOAT_BYTES * sum(self._rows[n] * w for n, w in bare.widths.items())
        nodes = TableMethod.NODES * self._tensors(bare)
        golden = made.bare.path(made.bare.manifest.golden).stat().st_size
        rest = _with_card(made.bare, card, curves) - in_float32 - nodes - self._counted(bare)
        self._fixed = rest + SCORES_MARGIN * golden

    def __call__(self, sizes: Sizes) -> float:
        """Bytes on disk."""
        added = self._kinds_of(sizes) - self._kinds
        kinds = sum(IDS if kind in IDS_OF else KIND for kind in added)
        nodes = kinds + self._method.NODES * self._tensors(sizes)
        return self._fixed + self._tables(sizes) + nodes + self._counted(sizes)

    def _counted(self, sizes: Sizes) -> float:
        """Of layers, and of what comes with fields."""
        layers = sum(layer.parameters for layer in self._ranker.layers_at(sizes))
        return FLOAT_BYTES * layers + sum(
            self._extras[name] for name, width in sizes.widths.items() if width
        )

    def _sizes_of(self, features: Set[str]) -> Sizes:
        """Of the ranker with nothing but these features."""
        whole = self._ranker.sizes()
        kept = {f.name for f in self._ranker.fields if set(f.features) <= features}
        return Sizes({n: w if n in kept else 0 for n, w in whole.widths.items()}, whole.hidden)

    def _kinds_of(self, sizes: Sizes) -> set[str]:
        """What has nodes, inputs or files of its own."""
        live = [field for field in self._ranker.fields if sizes.widths[field.name]]
        alone = {f.name for f in live if f.numeric or f.name in self._lists}
        sides = [f.request for f in live if self._aligned]
        pairs = {f"pairs of {side}" for side in sides if sides.count(side) > 1}
        return alone | pairs | {IDS_OF[f.request] for f in live if not f.numeric}

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


def _with_card(bundle: Bundle, card: Card, curves: int) -> float:
    """What a bundle of an outline takes under a run's card, and with its curves."""
    empty = history_file(bundle.root)
    carded = bundle.manifest.model_copy(update={"card": card})
    grown = _manifest_bytes(carded) - _manifest_bytes(bundle.manifest)
    replaced = curves - (0 if empty is None else empty.stat().st_size)
    return sum(bytes_by_part(bundle.root).values()) + grown + replaced


def _manifest_bytes(manifest: Manifest) -> int:
    return len(manifest_text(manifest).encode())


def _bytes_by_feature(made: Outline) -> dict[str, float]:
    """Of each feature: its vocabulary, its part of the catalogue, its lines of the manifest."""
    whole, found = made.dense, {}
    items = whole.manifest.items
    values, zipped = {}, 0.0
    if items and items.values:
        raw = whole.path(items.values).read_bytes()
        values, zipped = json.loads(raw), len(packed(raw)) / len(raw)
    for feature in whole.manifest.features:
        size = float(_with_vocabulary(made, feature))
        if items is not None and feature.tensor in items.tensors:
            size += items.items * feature.length * FLOAT_BYTES
        if feature.name in values:
            size += zipped * len(json.dumps(values[feature.name], ensure_ascii=False))
        found[feature.name] = size
    return found


def _with_vocabulary(made: Outline, feature: FeatureSpec) -> int:
    """What a feature's vocabulary takes, and its lines of the manifest."""
    tokens = made.dense.tokens(feature.name)
    if tokens is None or not isinstance(feature.encoding, VocabularyEncoding):
        return _lines(made.bare.manifest, feature)
    kept = in_few_bytes(feature.encoding, tokens)
    file = FileEntry(path=kept.encoding.file, sha256="0" * 64, bytes=len(kept.raw))
    spec = feature.model_copy(update={"encoding": kept.encoding})
    return len(kept.raw) + _lines(made.bare.manifest, spec, file)


def _lines(manifest: Manifest, feature: FeatureSpec, *files: FileEntry) -> int:
    """Bytes of a manifest that a feature takes more than it would if it were pruned."""
    gone = feature.model_copy(update={"tensor": None, "start": 0})

    def size(spec: FeatureSpec, files: Sequence[FileEntry]) -> int:
        features = tuple(spec if f.name == spec.name else f for f in manifest.features)
        update = {"features": features, "files": (*manifest.files, *files)}
        return _manifest_bytes(manifest.model_copy(update=update))

    return size(feature, files) - size(gone, ())


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
    """Bytes and times of the slimmed versions of one dense ranker; nothing is measured unasked.

    Both depend on sizes alone, so the ranker need not be trained.

    Attributes:
        ranker: dense.
        dataset: gives the rows that requests are made of.
        options: of the run's bundles; requests have as many candidates as are timed.
        tables: how the slimmed versions' tables ship.
        card: makes one as long as the run's, for the dense bundle.
        curves: bytes at most of the run's.
        folder: where the outline is kept.
        cache: where the measured table is kept.
        progress: told of the rankers measured.
    """

    ranker: Ranker
    dataset: Dataset
    options: ExportConfig
    tables: TableMethod
    card: Callable[[Ranker, Bundle], Card]
    curves: int
    folder: Path
    cache: Path
    progress: Progress

    @cached_property
    def _bytes(self) -> ByteTable:
        made = outline(self.ranker, self.dataset, self.folder, self.options)
        card = self.card(self.ranker, made.dense)
        return ByteTable(made, self.tables, card, self.curves)

    @cached_property
    def _latency(self) -> LatencyTable:
        timed = self._measured()
        table = LatencyTable(self.ranker, timed[:FITTED], self.options.timing_candidates)
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
        candidates = self.options.timing_candidates
        timed = measure(self.ranker, self.dataset, candidates, self.tables, self.progress)
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
