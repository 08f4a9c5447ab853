"""Curves come back as they were, to five digits; older bundles' too."""

import json
import math
from pathlib import Path

from compress.curves import read_curves, write_curves


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


def test_rows_are_read_too(tmp_path: Path) -> None:
    """Bundles held them so."""
    path = tmp_path / "history.json"
    rows = {"train": [{"step": 0, "logloss": 0.7}]}
    path.write_text(json.dumps(rows))

    assert read_curves(path) == rows
