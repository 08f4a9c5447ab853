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
MOST_BYTES: Final = 4 << 10  # of what a bundle keeps packed
FEWEST: Final = 8  # rows of a curve that are left however many bytes they take
EMPTY: Final = 256  # bytes at most of names and of gzip
LOOK: Final = 64  # and of a look at validation

Curve = Sequence[Mapping[str, float | None]]


def write_curves(path: Path, curves: Mapping[str, Curve]) -> None:
    """Write them; what is not a number is null.

    If the path ends so, in gzip, and with as few rows as `MOST_BYTES` takes: budgets of bytes count
    these files before there is a curve.
    """
    if path.suffix == GZIP:
        path.write_bytes(_packed(curves))
    else:
        path.write_bytes(_as_json(curves))


def bytes_to_come(looks: int) -> int:
    """What curves of so many looks at validation take at most, if nothing else is recorded."""
    return min(MOST_BYTES, EMPTY + LOOK * looks)


def _packed(curves: Mapping[str, Curve]) -> bytes:
    while len(raw := packed(_as_json(curves))) > MOST_BYTES:
        longest = max(curves, key=lambda name: len(curves[name]))
        if len(curves[longest]) <= FEWEST:
            return raw
        every_other = curves[longest][::-1][::2][::-1]  # the last row stays
        curves = {**curves, longest: every_other}
    return raw


def _as_json(curves: Mapping[str, Curve]) -> bytes:
    columns = {name: _columns(curve) for name, curve in curves.items()}
    return (json.dumps(columns, separators=(",", ":"), allow_nan=False) + "\n").encode()


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
