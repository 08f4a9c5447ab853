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

    def has(self, way: str) -> bool:
        """Whether the graph has that output."""
        return way in self._names

    def encode(self, session: NDArray[np.float32]) -> Ways:
        """What the graph says of the vectors (L, dim) of a session's items, oldest first.

        Raises:
            BadScores: the graph failed, or answered in other shapes or with no finite number.
        """
        length, dim = session.shape
        found = {}
        outputs = self._graph.run({"session": session[None]})
        for name, output in zip(self._names, outputs, strict=True):
            expected = (1, dim if name == "query" else length)
            if output.shape != expected or output.dtype != kernels.FLOAT32:
                raise BadScores(
                    f"the graph answered with {name} as {output.dtype}{[*output.shape]}, expected "
                    f"float32{[*expected]}"
                )
            require_finite(output)
            found[name] = output[0]
        return Ways(**found)


def require_finite(numbers: NDArray[np.float32]) -> None:
    """Let finite numbers pass.

    Raises:
        BadScores: one is not.
    """
    if not kernels.all_finite(numbers):
        raise BadScores("the graph answered with a score that is not a finite number")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
