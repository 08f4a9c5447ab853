"""The curves of a run, as a bundle keeps them beside the graph: columns of numbers, as few bytes.

{"train": {"step": [0, 9], "logloss": [0.7, 0.6]}, …}
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from model_store.packing import GZIP, packed, unpacked

HISTORY_FILE: Final = "history.json"
PACKED_HISTORY_FILE: Final = HISTORY_FILE + GZIP
DIGITS: Final = 5

Curve = Sequence[Mapping[str, float | None]]


def write_curves(path: Path, curves: Mapping[str, Curve]) -> None:
    """Write them, in gzip if the path ends so; what is not a number is null."""
    columns = {name: _columns(curve) for name, curve in curves.items()}
    raw = (json.dumps(columns, separators=(",", ":"), allow_nan=False) + "\n").encode()
    path.write_bytes(packed(raw) if path.suffix == GZIP else raw)


def history_file(root: Path) -> Path | None:
    """Where a bundle's folder holds its curves; None if it holds none."""
    paths = (root / HISTORY_FILE, root / PACKED_HISTORY_FILE)
    return next((path for path in paths if path.exists()), None)


def read_curves(path: Path) -> dict[str, Curve]:
    """What `write_curves` wrote, or rows, as bundles used to hold them."""
    held: dict[str, Any] = json.loads(unpacked(path))
    return {
        name: curve if isinstance(curve, list) else _rows(curve) for name, curve in held.items()
    }


def _columns(curve: Curve) -> dict[str, list[float | None]]:
    return {key: [_short(row[key]) for row in curve] for key in (curve[0] if curve else {})}


def _rows(columns: Mapping[str, Sequence[float | None]]) -> Curve:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _short(number: float | None) -> float | None:
    if number is None or not math.isfinite(number):
        return None
    if number == int(number):
        return int(number)
    return float(f"{number:.{DIGITS}g}")
