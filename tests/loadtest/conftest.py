"""What the tests of the load test share: the stand-in service and a store of small bundles."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

STANDIN = Path(__file__).with_name("standin.py")
ITEMS = [f"i{n}" for n in range(60)]
PEOPLE = [
    {"user": {"age": 24, "occupation": "technician"}, "context": {"hour": 21}},
    {"user": {"age": 51, "occupation": "librarian"}, "context": {"hour": 7}},
]


@pytest.fixture
def standin() -> Callable[..., list[str]]:
    """The command that runs the stand-in, given its options."""

    def command(*options: str) -> list[str]:
        return [sys.executable, str(STANDIN), *options]

    return command


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A folder laid out as a store, with the files of a bundle that a load is drawn from."""
    for version in ("1", "2"):
        bundle = tmp_path / "store" / "ctr" / version
        (bundle / "items").mkdir(parents=True)
        (bundle / "items/ids.json").write_text(json.dumps(ITEMS))
        manifest = {"golden": "golden.json", "items": {"ids": "items/ids.json"}}
        (bundle / "manifest.json").write_text(json.dumps(manifest))
        golden = [{"request": {**person, "candidates": {"ids": ["i1"]}}} for person in PEOPLE]
        (bundle / "golden.json").write_text(json.dumps(golden))
    return tmp_path / "store"
