"""The curves of a run, as a bundle keeps them beside the graph: columns of numbers, as few bytes.

{"train": {"step": [0, 9], "logloss": [0.7, 0.6]}, …}
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

HISTORY_FILE: Final = "history.json"
DIGITS: Final = 5

Curve = Sequence[Mapping[str, float | None]]


def write_curves(path: Path, curves: Mapping[str, Curve]) -> None:
    """Write them; what is not a number is null."""
    columns = {name: _columns(curve) for name, curve in curves.items()}
    path.write_text(json.dumps(columns, separators=(",", ":"), allow_nan=False) + "\n")


def read_curves(path: Path) -> dict[str, Curve]:
    """What `write_curves` wrote, or rows, as bundles used to hold them."""
    held: dict[str, Any] = json.loads(path.read_text())
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
