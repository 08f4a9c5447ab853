"""An exported graph, fed and run by ONNX Runtime as serving does. Nothing here needs torch."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from compress.data.encode import INPUTS, widths
from model_store.manifest import FeatureSpec, InputName, TensorSpec

OUTPUT: Final = "score"
# Protobuf ends at 2 GiB; the weights of larger graphs lie in a file beside it.
EXTERNAL_ABOVE_BYTES: Final = 1 << 30
Array = NDArray[Any]
Feeds = Mapping[InputName, Array]


class GraphSession:
    """One session of a graph, set up as serving's: one thread, no spinning."""

    def __init__(self, path: Path) -> None:
        self._session = _session(path)

    def run(self, feeds: Feeds) -> NDArray[np.float32]:
        """The scores, (N,)."""
        scores: NDArray[np.float32] = self.values([OUTPUT], feeds)[OUTPUT]
        return scores

    def values(self, names: Sequence[str], feeds: Feeds) -> dict[str, Array]:
        """Those of the graph's outputs, by name."""
        return dict(zip(names, self._session.run(list(names), dict(feeds)), strict=True))


class SessionGraph:
    """The graph of a session ranker: vectors of sessions in, the ways to their next items out."""

    def __init__(self, path: Path) -> None:
        self._session = _session(path)
        self._input = self._session.get_inputs()[0].name
        self.names = [output.name for output in self._session.get_outputs()]

    def run(self, sessions: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """(R, L, dim) -> ``query`` (R, dim), ``repeat`` and ``follow`` (R, L), those there are."""
        found = self._session.run(self.names, {self._input: sessions})
        return dict(zip(self.names, found, strict=True))


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), sess_options=options, providers=["CPUExecutionProvider"])


def is_numeric(name: InputName) -> bool:
    """Whether an input carries float32 numbers (and not int32 rows)."""
    return name.endswith("_numeric")


def is_request(name: InputName) -> bool:
    """Whether an input is of the request side."""
    return name.startswith("request_")


def input_specs(features: Sequence[FeatureSpec]) -> dict[InputName, TensorSpec]:
    """The graph's inputs: those that hold at least one column."""
    return {
        name: TensorSpec(
            name=name,
            dtype="float32" if is_numeric(name) else "int32",
            shape=("R" if is_request(name) else "N", columns),
        )
        for name, columns in widths(features).items()
        if columns
    }


def pack(features: Sequence[FeatureSpec], columns: Mapping[str, Array]) -> dict[InputName, Array]:
    """Lay encoded features side by side as the graph's inputs.

    Args:
        features: kept ones are packed; pruned ones are left out.
        columns: feature name -> (rows, length), as its encoder made it.
    """
    packed: dict[InputName, Array] = {}
    for name in INPUTS:
        held = sorted((f for f in features if f.tensor == name), key=lambda f: f.start)
        if held:
            dtype = np.float32 if is_numeric(name) else np.int32
            parts = [columns[feature.name] for feature in held]
            packed[name] = np.concatenate(parts, axis=1).astype(dtype, copy=False)
    return packed


def one_request(feeds: Feeds) -> dict[InputName, Array]:
    """The first row's request with the candidates of all rows: R = N becomes R = 1."""
    return {name: array[:1] if is_request(name) else array for name, array in feeds.items()}


def repeat_request(feeds: Feeds, rows: int) -> dict[InputName, Array]:
    """R = 1 becomes R = N: the request's row once a candidate."""
    return {
        name: array.repeat(rows, axis=0) if is_request(name) else array
        for name, array in feeds.items()
    }


def rotation(rows: Feeds, candidates: int) -> list[Feeds]:
    """Requests to rotate through, of so many candidates each: input sets with R = 1.

    Few rows go round again, so that every request has all its candidates.
    """
    count = len(next(iter(rows.values())))

    def taken(start: int) -> Feeds:
        places = range(start, start + candidates)
        return {
            name: np.ascontiguousarray(array.take(places, axis=0, mode="wrap"))
            for name, array in rows.items()
        }

    return [one_request(taken(i * candidates)) for i in range(max(1, count // candidates))]


def interleaved(
    sessions: Sequence[GraphSession], feeds: Sequence[Sequence[Feeds]], rounds: int
) -> NDArray[np.float64]:
    """Microseconds of each call, (sessions, rounds); they take turns, so they share disturbances.

    Of the calling thread's CPU time, which is all that a session of one thread takes: what other
    processes do to the clock on a busy machine is no part of it.

    Args:
        sessions: the graphs to compare.
        feeds: for each session its input sets, used in rotation.
        rounds: calls of each session that count; a tenth as many warm up before them.
    """
    times = np.zeros((len(sessions), rounds))
    for turn in range(-(rounds // 10) - 1, rounds):
        for i, session in enumerate(sessions):
            batch = feeds[i][turn % len(feeds[i])]
            start = time.thread_time_ns()
            session.run(batch)
            if turn >= 0:
                times[i, turn] = time.thread_time_ns() - start
    return times / 1e3


def interleaved_us(
    sessions: Sequence[GraphSession], feeds: Sequence[Sequence[Feeds]], rounds: int
) -> list[float]:
    """The medians of `interleaved`, a session each."""
    return [float(us) for us in np.median(interleaved(sessions, feeds, rounds), axis=1)]
