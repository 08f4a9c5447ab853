"""Curves come back as they were, to five digits; older bundles' too."""

import json
import math
from pathlib import Path

import numpy as np

from compress.curves import (
    MOST_BYTES,
    PACKED_HISTORY_FILE,
    history_file,
    read_curves,
    write_curves,
)


def test_curves_come_back(tmp_path: Path) -> None:
    """Whole numbers whole, what is not a number as nothing, an empty curve as none."""
    path = tmp_path / "history.json"
    train = [{"step": 1_234_567, "loss": 0.12345678}, {"step": 2_000_000, "loss": math.nan}]

    write_curves(path, {"train": train, "method": []})

    found = read_curves(path)
    assert found["train"] == [
        {"step": 1_234_567, "loss": 0.12346},
        {"step": 2_000_000, "loss": None},
    ]
    assert list(found["method"]) == []


def test_curves_come_back_from_gzip(tmp_path: Path) -> None:
    """Where the name says so; either file is found."""
    steps = [{"step": n, "loss": 0.5} for n in range(100)]
    assert history_file(tmp_path) is None

    write_curves(tmp_path / PACKED_HISTORY_FILE, {"train": steps})

    found = history_file(tmp_path)
    assert found is not None
    assert found.stat().st_size < 300
    assert read_curves(found) == {"train": steps}


def test_packed_curves_take_no_more_than_is_counted(tmp_path: Path) -> None:
    """Rows of the longest go, every other one, until the rest fits; the last stays."""
    path, draw = tmp_path / PACKED_HISTORY_FILE, np.random.default_rng(0)
    gates = [{"step": n, **{f"gate.{k}": draw.random() for k in range(40)}} for n in range(1, 101)]
    looks = [{"step": n, "logloss": draw.random()} for n in range(9)]

    write_curves(path, {"train": looks, "method": gates})

    found = read_curves(path)
    assert MOST_BYTES // 3 < path.stat().st_size <= MOST_BYTES
    assert [row["step"] for row in found["train"]] == list(range(9))
    kept = [int(row["step"] or 0) for row in found["method"]]
    assert kept == list(range(100, 0, -(kept[1] - kept[0])))[::-1]


def test_rows_are_read_too(tmp_path: Path) -> None:
    """Bundles held them so."""
    path = tmp_path / "history.json"
    rows = {"train": [{"step": 0, "logloss": 0.7}]}
    path.write_text(json.dumps(rows))

    assert read_curves(path) == rows
