"""The scorer: one ONNX Runtime session, shared by all threads of the process."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state

from model_store.manifest import TensorSpec
from service import kernels
from service.errors import BadScores, BundleRejected
from service.features import Tensors

# They share no base but Exception.
ORT_ERRORS: Final[tuple[type[Exception], ...]] = (
    *(
        kind
        for kind in vars(onnxruntime_pybind11_state).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ),
    RuntimeError,
    ValueError,
)
MOST_AT_ONCE: Final = 32  # sessions in a run
ITEMS_AT_ONCE: Final = 1024  # of all of them: long sessions gain little, and take memory for good
TRIED: Final = frozenset({2, 3, 5, 8, 16})  # sessions at once, besides as many as there may be


class OrtGraph:
    """A graph, ready to run. `Run` may be called from several threads at once."""

    def __init__(
        self, graph: Path, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> None:
        options = ort.SessionOptions()
        # Processes are for cores: a second thread only takes the core of another request.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # It would keep a plan of memory for each number of candidates that ever came, and blocks of
        # the arena to fit: 20 MB a worker, and half of requests of varying size would take longer.
        options.enable_mem_pattern = False
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(
                graph, sess_options=options, providers=["CPUExecutionProvider"]
            )
        except ORT_ERRORS as error:
            raise BundleRejected(f"the graph cannot be loaded: {_line(error)}") from None
        self._outputs = [spec.name for spec in outputs]
        asked = {spec.name for spec in self._session.get_inputs()}
        declared = {spec.name for spec in inputs}
        if asked != declared:
            raise BundleRejected(
                f"the graph takes {sorted(asked)}, the manifest declares {sorted(declared)}"
            )

    def run(self, feeds: Mapping[Any, NDArray[Any]]) -> list[NDArray[Any]]:
        """The declared outputs.

        Raises:
            BadScores: the graph failed.
        """
        try:
            found: list[NDArray[Any]] = self._session.run(self._outputs, feeds)
        except ORT_ERRORS as error:
            raise BadScores(f"the graph failed: {_line(error)}") from None
        return found


class OrtScorer:
    """Scores candidates with a graph."""

    def __init__(
        self, graph: Path, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> None:
        self._graph = OrtGraph(graph, inputs, outputs[:1])

    def score(self, feeds: Tensors, candidates: int) -> NDArray[np.float32]:
        """(N,) scores.

        Raises:
            BadScores: the graph failed, or a score is not a finite number.
        """
        # Graphs of other types are served, too.
        scores = np.asarray(self._graph.run(feeds)[0], np.float32).reshape(-1)
        if scores.shape[0] != candidates:
            # All candidate features were pruned: one score holds for all of them.
            scores = np.broadcast_to(scores, (candidates,))
        require_finite(scores)
        return scores


class Ways(NamedTuple):
    """What a session ranker's graph says of a session; None for what it has no output for.

    Attributes:
        query: (dim,), to be multiplied with the items' vectors.
        repeat: (L,) log weights of the session's own items.
        follow: (L,) log weights of what follows them.
    """

    query: NDArray[np.float32] | None = None
    repeat: NDArray[np.float32] | None = None
    follow: NDArray[np.float32] | None = None


class OrtEncoder:
    """Encodes sessions with a graph."""

    def __init__(
        self, graph: Path, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> None:
        self._names = [spec.name for spec in outputs]
        if not self._names or not set(Ways._fields).issuperset(self._names):
            raise BundleRejected(
                f"the manifest declares the outputs {self._names}, a session ranker has some of "
                f"{', '.join(Ways._fields)}"
            )
        self._graph = OrtGraph(graph, inputs, outputs)
        self._takes_several = False

    def has(self, way: str) -> bool:
        """Whether the graph has that output."""
        return way in self._names

    def encode(self, sessions: NDArray[np.float32]) -> list[Ways]:
        """What the graph says of sessions of one length.

        Args:
            sessions: (R, L, dim) the vectors of their items, oldest first.

        Raises:
            BadScores: the graph failed, or answered in other shapes or with no finite number.
        """
        if len(sessions) == 1:
            return self._run(sessions)
        step = _most(sessions.shape[1]) if self._takes_several else 1
        runs = (self._run(sessions[at : at + step]) for at in range(0, len(sessions), step))
        return [ways for run in runs for ways in run]

    def try_several(self, length: int, dim: int) -> None:
        """Find out whether sessions encoded at once come to what each comes to alone.

        To the last bit, or they never are: an answer must not depend on what else was asked. How
        a product is summed up can depend on how many rows it has, by the runtime's kernels for
        this processor: so it is tried, with some lengths and numbers of sessions.
        """
        rng = np.random.default_rng(0)
        self._takes_several = all(
            self._same_at_once(rng.standard_normal((_most(items), items, dim), np.float32))
            for items in sorted({1, 2, 3, 7, length})
            if items <= length
        )

    def _same_at_once(self, sessions: NDArray[np.float32]) -> bool:
        try:
            alone = [self._run(session[None])[0] for session in sessions]
            counts = {count for count in TRIED if count < len(sessions)} | {len(sessions)}
            at_once = [self._run(sessions[:count]) for count in sorted(counts)]
        except BadScores:  # several are not for this graph, or it makes nothing of such numbers
            return False
        return all(
            one is None or other is None or np.array_equal(one, other)  # None of both, or of none
            for some in at_once
            for pair in zip(alone, some, strict=False)
            for one, other in zip(*pair, strict=True)
        )

    def _run(self, sessions: NDArray[np.float32]) -> list[Ways]:
        count, length, dim = sessions.shape
        found = {}
        outputs = self._graph.run({"session": sessions})
        for name, output in zip(self._names, outputs, strict=True):
            expected = (count, dim if name == "query" else length)
            if output.shape != expected or output.dtype != kernels.FLOAT32:
                raise BadScores(
                    f"the graph answered with {name} as {output.dtype}{[*output.shape]}, expected "
                    f"float32{[*expected]}"
                )
            require_finite(output)
            found[name] = output
        if count == 1:
            return [Ways(**{name: found[name][0] for name in found})]
        # Copied: what is remembered of one session must not hold all that came with it.
        return [
            Ways(**{name: found[name][place].copy() for name in found}) for place in range(count)
        ]


def _most(items: int) -> int:
    """How many sessions of so many items are encoded at once."""
    return max(1, min(MOST_AT_ONCE, ITEMS_AT_ONCE // max(1, items)))


def require_finite(numbers: NDArray[np.float32]) -> None:
    """Let finite numbers pass.

    Raises:
        BadScores: one is not.
    """
    if not kernels.all_finite(numbers):
        raise BadScores("the graph answered with a score that is not a finite number")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
