"""What the tests of the load test share: the stand-in service and a store of small bundles."""

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from loadtest import histograms
from loadtest.measured import Measured
from loadtest.shapes import Level

STANDIN = Path(__file__).with_name("standin.py")
ITEMS = [f"i{n}" for n in range(60)]
PEOPLE = [
    {"user": {"age": 24, "occupation": "technician"}, "context": {"hour": 21}},
    {"user": {"age": 51, "occupation": "librarian"}, "context": {"hour": 7}},
]
CARD = {
    "results": [
        {
            "seed": 1,
            "dense": {"auc": 0.78, "logloss": 0.55},
            "slim": {"auc": 0.78, "logloss": 0.54},
        },
        {
            "seed": 2,
            "dense": {"auc": 0.80, "logloss": 0.55},
            "slim": {"auc": 0.79, "logloss": 0.54},
        },
    ],
    "dense": {
        "flops": 9000,
        "bytes": {"embedding tables": 3000, "history": 1000},
        "us_per_request": 400.0,
    },
    "slim": {
        "flops": 3000,
        "bytes": {"embedding tables": 1000, "history": 1000},
        "us_per_request": 500.0,
    },
}
SESSION_CARD = {
    "results": [
        {
            "seed": 1,
            "dense": {"metrics": {"P@20": 0.5, "MRR@20": 0.25, "NDCG@10": 0.3}},
            "coded": {"metrics": {"P@20": 0.5, "MRR@20": 0.24, "NDCG@10": 0.31}},
        }
    ],
    "dense": {"flops": 1, "bytes": {"item table": 9000}, "us_per_request": 90.0},
    "coded": {"flops": 1, "bytes": {"item table": 100}, "us_per_request": 30.0},
}
SESSIONS = [{"session_items": []}, {"session_items": ["i1", "i2", "i3"]}]
MANIFEST = {
    "golden": "golden.json",
    "items": {"ids": "items/ids.json"},
    "card": CARD,
    "numerics": "fp32",
    "flops": 9000,
    "features": [{"name": "age", "tensor": "request_numeric"}, {"name": "hour", "tensor": None}],
}


@pytest.fixture(scope="session")
def standin() -> Callable[..., list[str]]:
    """The command that runs the stand-in, given its options."""

    def command(*options: str) -> list[str]:
        return [sys.executable, str(STANDIN), *options]

    return command


@pytest.fixture
def measured() -> Callable[..., Measured]:
    """A measured window with the times given, in µs; 8 users, 2 s and a calm machine otherwise."""

    def make(
        side: str,
        times_us: Iterable[int],
        level: Level = Level(8),  # noqa: B008 - frozen
        number: int = 0,
        lag_us: int = 50,
        **changes: float,
    ) -> Measured:
        times, lag = histograms.new(), histograms.new()
        for time_us in times_us:
            histograms.record(times, time_us / 1e6)
            histograms.record(lag, lag_us / 1e6)
        values = {
            "seconds": 2.0,
            "failures": 0,
            "unsent": 0,
            "generator_cpu": 0.5,
            "service_cpu": 0.8,
            "foreign_cpu": 0.0,
        }
        return Measured(
            side=side,
            round=number,
            level=level,
            times=times,
            after_send=times,
            lag=lag,
            **(values | changes),
        )

    return make


@pytest.fixture(scope="session")
def make_store() -> Callable[[Path], Path]:
    """A folder laid out as a store, with the files of a bundle that a load is drawn from."""

    def make(folder: Path) -> Path:
        for version in ("1", "2"):
            bundle = folder / "store/ctr/versions" / version
            (bundle / "items").mkdir(parents=True)
            (bundle / "items/ids.json").write_text(json.dumps(ITEMS))
            (bundle / "manifest.json").write_text(json.dumps(MANIFEST))
            golden = [{"request": {**person, "candidates": {"ids": ["i1"]}}} for person in PEOPLE]
            (bundle / "golden.json").write_text(json.dumps(golden))
            alias = folder / "store/ctr/aliases" / f"{'dense' if version == '1' else 'slim'}.json"
            alias.parent.mkdir(exist_ok=True)
            alias.write_text(json.dumps({"version": version, "previous": []}))
            bundle = folder / "store/session/versions" / version
            bundle.mkdir(parents=True)
            manifest = {"golden": "golden.json", "session": {"items": 3}, "card": SESSION_CARD}
            (bundle / "manifest.json").write_text(json.dumps(manifest))
            cases = [{"request": request} for request in SESSIONS]
            (bundle / "golden.json").write_text(json.dumps(cases))
        return folder / "store"

    return make


@pytest.fixture
def store(make_store, tmp_path: Path) -> Path:
    """A store of one's own."""
    return make_store(tmp_path)
