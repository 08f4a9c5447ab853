"""The scorer: one ONNX Runtime session, shared by all threads of the process."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state

from model_store.manifest import TensorSpec
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


class OrtScorer:
    """Scores candidates with a graph. `Run` may be called from several threads at once."""

    def __init__(
        self, graph: Path, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> None:
        options = ort.SessionOptions()
        # Processes are for cores: a second thread only takes the core of another request.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(
                graph, sess_options=options, providers=["CPUExecutionProvider"]
            )
        except ORT_ERRORS as error:
            raise BundleRejected(f"the graph cannot be loaded: {_line(error)}") from None
        self._outputs = [outputs[0].name]
        asked = {spec.name for spec in self._session.get_inputs()}
        declared = {spec.name for spec in inputs}
        if asked != declared:
            raise BundleRejected(
                f"the graph takes {sorted(asked)}, the manifest declares {sorted(declared)}"
            )

    def score(self, feeds: Tensors, candidates: int) -> NDArray[np.float32]:
        """(N,) scores.

        Raises:
            BadScores: the graph failed, or a score is not a finite number.
        """
        try:
            scores: NDArray[np.float32] = self._session.run(self._outputs, feeds)[0].reshape(-1)
        except ORT_ERRORS as error:
            raise BadScores(f"the graph failed: {_line(error)}") from None
        if scores.shape[0] != candidates:
            # All candidate features were pruned: one score holds for all of them.
            scores = np.broadcast_to(scores, (candidates,))
        if not np.isfinite(scores).all():
            raise BadScores("the graph answered with a score that is not a finite number")
        return scores


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
