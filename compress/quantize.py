"""Whether a slim bundle's graph goes out in eight bits: forms built, measured, one chosen or none.

All forms and fp32 score the same validation rows and time the same requests, in turn in one
process. What ships is the fastest form that loses no more than the config allows and pays (or the
one asked for by name, if it loses no more); else fp32 stays, and the card says why. No test row is
read, and calibration takes training rows.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from compress import int8
from compress.config import QuantizeConfig
from compress.data.base import Part
from compress.data.encode import Batch, Dataset
from compress.export import click_card, golden_inputs
from compress.graph import (
    Feeds,
    GraphSession,
    interleaved,
    one_request,
    repeat_request,
    rotation,
)
from compress.metrics import auc, logloss
from compress.train import Columns
from model_store.bundle import Bundle, seal
from model_store.encoding import FIRST
from model_store.manifest import (
    MOST_TOLERANCE,
    NumericsTrial,
    Quantization,
    VocabularyEncoding,
)
from model_store.packing import GZIP, packed

FP32: Final = "fp32"
MANY: Final = 1000  # candidates of the requests that are timed besides the config's
ROUNDS: Final = 300
SETS: Final = 16  # of rows to rotate through, so that look-ups find no warm cache
ROWS: Final = 4096  # a graph call's

Timer = Callable[[Sequence[GraphSession], Sequence[Sequence[Feeds]], int], NDArray[np.float64]]


def quantize(
    bundle: Bundle,
    dataset: Dataset,
    options: QuantizeConfig,
    candidates: int,
    seed: int,
    *,
    timer: Timer = interleaved,
) -> Bundle:
    """Choose the precision of a bundle's graph, put it in place and seal the bundle anew.

    Args:
        bundle: of a click-through ranker, in fp32.
        dataset: the one it was trained on.
        options: what may be lost, and what must be gained.
        candidates: of the requests that are timed; others have `MANY`.
        seed: draws the calibration rows.
        timer: as `interleaved`.

    Returns:
        The bundle, its card with the choice and its reason; an int8 one has its own golden scores.
    """
    with TemporaryDirectory() as folder:
        graphs = {FP32: bundle.path(bundle.manifest.graph)}
        graphs |= build_forms(bundle, dataset, options, seed, Path(folder))
        if len(graphs) == 1:
            reason = "kept fp32: no layer of the candidates is wide enough"
            return _sealed(bundle, Quantization(chosen=FP32, reason=reason, trials=()))
        trials = measure(graphs, bundle, dataset, candidates, timer)
        chosen, reason = decide(trials, options)
        found = Quantization(chosen=chosen, reason=reason, trials=tuple(trials))
        if chosen == FP32:
            return _sealed(bundle, found)
        _replace_graph(bundle, graphs[chosen])
    _rewrite_golden(bundle, dataset)
    moved = next(trial.moved for trial in trials if trial.numerics == chosen)
    # What else is kept small stays in the words: "fp32 (tables kept in int8)".
    numerics = bundle.manifest.numerics.replace(FP32, chosen, 1)
    return _sealed(bundle, found, numerics=numerics, golden_tolerance=moved)


def build_forms(
    bundle: Bundle, dataset: Dataset, options: QuantizeConfig, seed: int, folder: Path
) -> dict[str, Path]:
    """Write the graph in the forms to choose from; none if no layer gains by it."""
    source = bundle.path(bundle.manifest.graph)
    if not int8.Draft(int8.load(source)).layers:
        return {}
    rng = np.random.default_rng(seed)
    rows = options.calibration_rows
    calibration = next(_Rows(dataset, bundle).parts("train", rows, rng))[0]
    wanted = int8.FORMS if options.numerics == "auto" else (options.numerics,)
    written = {}
    for name in wanted:
        written[name] = folder / name / source.name
        written[name].parent.mkdir()
        int8.save(int8.FORMS[name](int8.load(source), calibration), written[name])
    return written


def measure(
    graphs: Mapping[str, Path],
    bundle: Bundle,
    dataset: Dataset,
    candidates: int,
    timer: Timer = interleaved,
) -> list[NumericsTrial]:
    """Quality, time and bytes of graphs of one ranker, the first of which is fp32."""
    sessions = {name: GraphSession(path) for name, path in graphs.items()}
    given = _Rows(dataset, bundle)
    scores: dict[str, list[NDArray[np.float32]]] = {name: [] for name in graphs}
    labels, first = [], next(given.parts("validation", ROWS))[0]
    for feeds, label in given.parts("validation", ROWS):
        labels.append(label)
        for name, session in sessions.items():
            scores[name].append(session.run(feeds))
    y, whole = np.concatenate(labels), {n: np.concatenate(parts) for n, parts in scores.items()}

    times = {}
    for count in sorted({candidates, MANY}):
        rows = next(given.parts("validation", SETS * count))[0]
        sets = [rotation(rows, count)] * len(sessions)
        times[count] = timer(list(sessions.values()), sets, ROUNDS)
    return [
        NumericsTrial(
            numerics=name,
            auc=auc(y, whole[name]),
            logloss=logloss(y, whole[name]),
            moved=float(np.abs(whole[name] - whole[FP32]).max()),
            split_gap=_split_gap(session, first),
            bytes=_graph_bytes(graphs[name]),
            us_per_request={n: float(np.median(took[place])) for n, took in times.items()},
            speedup={n: _quartiles(took[0] / took[place]) for n, took in times.items()},
        )
        for place, (name, session) in enumerate(sessions.items())
    ]


class _Rows:
    """A data set's rows as the graph of a bundle takes them."""

    def __init__(self, dataset: Dataset, bundle: Bundle) -> None:
        self._dataset, self._columns = dataset, Columns(dataset.features, bundle.manifest)
        self._places = [
            (spec, _places(dataset.tokens[spec.name], bundle.tokens(spec.name)))
            for spec in bundle.manifest.features
            if isinstance(spec.encoding, VocabularyEncoding) and not spec.pruned
        ]

    def parts(
        self, part: Part, rows: int, rng: np.random.Generator | None = None
    ) -> Iterator[tuple[dict[Any, Any], NDArray[np.float32]]]:
        """Inputs and labels of a part, so many rows at a time."""
        return ((self._fed(batch), batch.label) for batch in self._dataset.batches(part, rows, rng))

    def _fed(self, batch: Batch) -> dict[Any, Any]:
        arrays = {name: array.copy() for name, array in self._columns.arrays(batch).items()}
        for spec, places in self._places:
            if spec.tensor is not None:
                columns = arrays[spec.tensor][:, spec.start : spec.start + spec.length]
                columns[:] = places[columns]
        return {name: array for name, array in arrays.items() if array.shape[1]}


def _places(ours: Sequence[str], theirs: Sequence[str] | None) -> NDArray[np.int32]:
    """Row by the data set's vocabulary -> row by the bundle's, which may be in another order."""
    rows = {token: row for row, token in enumerate(theirs or (), start=FIRST)}
    return np.array([*range(FIRST), *(rows[token] for token in ours)], np.int32)


def _split_gap(session: GraphSession, rows: Feeds) -> float:
    once = one_request(rows)
    count = len(next(iter(rows.values())))
    return float(np.abs(session.run(once) - session.run(repeat_request(once, count))).max())


def _graph_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in _graph_files(path))


def _graph_files(path: Path) -> list[Path]:
    # Large weights lie in a second file, whose name goes on after the graph's.
    return [file for file in path.parent.iterdir() if file.name.startswith(path.name)]


def _quartiles(ratios: NDArray[np.float64]) -> tuple[float, float, float]:
    low, middle, high = np.percentile(ratios, (25, 50, 75))
    return float(low), float(middle), float(high)


def decide(trials: Sequence[NumericsTrial], options: QuantizeConfig) -> tuple[str, str]:
    """What to ship of trials, the first of which is fp32, and why, in words for the card."""
    fp32, *others = trials
    least = options.min_speedup if options.numerics == "auto" else 0.0
    faults = {trial.numerics: _fault(trial, fp32, options, least) for trial in others}
    fit = [trial for trial in others if not faults[trial.numerics]]
    if not fit:
        return FP32, "kept fp32: " + "; ".join(f"{name} {fault}" for name, fault in faults.items())
    best = max(fit, key=lambda trial: geometric_mean(_medians(trial)))
    return best.numerics, (
        f"{best.numerics}: {_speeds(best)}, {best.bytes / fp32.bytes:.0%} of the graph's bytes; "
        f"log loss {best.logloss - fp32.logloss:+.6f}, AUC {best.auc - fp32.auc:+.6f} "
        "on validation rows"
    )


def _medians(trial: NumericsTrial) -> list[float]:
    return [middle for _, middle, _ in trial.speedup.values()]


def _fault(
    trial: NumericsTrial, fp32: NumericsTrial, options: QuantizeConfig, least: float
) -> str | None:
    """Why a form may not ship, None if it may."""
    rise, fall = trial.logloss - fp32.logloss, fp32.auc - trial.auc
    if rise > options.max_logloss_rise:
        return f"raises log loss by {rise:.6f}, over {options.max_logloss_rise:g}"
    if fall > options.max_auc_loss:
        return f"loses {fall:.6f} of AUC, over {options.max_auc_loss:g}"
    if trial.moved > MOST_TOLERANCE:
        return f"moves a score by {trial.moved:.3f}, over {MOST_TOLERANCE:g}"
    if trial.split_gap > trial.moved:
        return f"scores a request given once and repeated {trial.split_gap:.2g} apart"
    if min(_medians(trial)) < least:
        return f"does not pay: {_speeds(trial)}, under {least:g}x"
    return None


def _speeds(trial: NumericsTrial) -> str:
    """Its speed beside fp32's, with the quartiles of the calls."""
    return "faster by " + ", ".join(
        f"{middle:.2f}x at {count} candidates ({low:.2f}-{high:.2f})"
        for count, (low, middle, high) in trial.speedup.items()
    )


def _replace_graph(bundle: Bundle, graph: Path) -> None:
    for old in _graph_files(bundle.path(bundle.manifest.graph)):
        old.unlink()
    for new in _graph_files(graph):
        shutil.copyfile(new, bundle.root / new.name)


def _rewrite_golden(bundle: Bundle, dataset: Dataset) -> None:
    """The golden requests with the scores of the graph that is in the bundle now."""
    session, encoders = GraphSession(bundle.path(bundle.manifest.graph)), bundle.encoders()
    cases = []
    for case in bundle.golden():
        feeds = golden_inputs(bundle.manifest.features, encoders, case.request, dataset)
        scores = [float(score) for score in session.run(feeds)]
        cases.append({"request": case.request, "scores": scores})
    raw = f"{json.dumps(cases, ensure_ascii=False, allow_nan=False)}\n".encode()
    path = bundle.path(bundle.manifest.golden)
    path.write_bytes(packed(raw) if path.suffix == GZIP else raw)


def _sealed(bundle: Bundle, found: Quantization, **update: Any) -> Bundle:
    card = click_card(bundle).model_copy(update={"quantization": found})
    return seal(bundle.root, bundle.manifest.model_copy(update={**update, "card": card}))
