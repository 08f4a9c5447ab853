"""The service with something otherwise that is no setting, to learn what it is worth.

python -m benchmarks.steady.altered gc-off arena-off
"""

import gc
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import onnxruntime as ort

import service.__main__
import service.loader
import service.scorer


def _options(change: Callable[[Any], None]) -> None:
    """Sessions are made with options that were changed last, whatever the service sets."""
    session = ort.InferenceSession

    def made(graph: Any, sess_options: Any, providers: Any) -> Any:
        change(sess_options)
        return session(graph, sess_options=sess_options, providers=providers)

    ort.InferenceSession = made


def _no_arena(options: Any) -> None:
    options.enable_cpu_mem_arena = False


def _no_patterns(options: Any) -> None:
    options.enable_mem_pattern = False


def _two_threads(options: Any) -> None:
    options.intra_op_num_threads = 2


def _two_that_spin(options: Any) -> None:
    options.intra_op_num_threads = 2
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")


def _unfrozen() -> None:
    gc.freeze = lambda: None


def _long_turns() -> None:
    sys.setswitchinterval(0.005)  # Python's own
    sys.setswitchinterval = lambda _: None


def _untrimmed() -> None:
    service.loader.give_back = lambda: None


ALTERATIONS: Final[Mapping[str, Callable[[], None]]] = MappingProxyType(
    {
        "gc-off": gc.disable,
        "gc-unfrozen": _unfrozen,
        "arena-off": lambda: _options(_no_arena),
        "patterns-off": lambda: _options(_no_patterns),
        "two-threads": lambda: _options(_two_threads),
        "two-spinning": lambda: _options(_two_that_spin),
        "untrimmed": _untrimmed,
        "long-turns": _long_turns,
    }
)


def main() -> int:
    """Alter and serve."""
    for name in sys.argv[1:]:
        if name not in ALTERATIONS:
            raise SystemExit(f"no alteration {name!r}; there are: {', '.join(ALTERATIONS)}")
        ALTERATIONS[name]()
    return service.__main__.main()


if __name__ == "__main__":
    sys.exit(main())
