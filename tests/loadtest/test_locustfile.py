"""The Locust file by hand, before there is any load."""

import subprocess
import sys
from pathlib import Path

import pytest

LOCUSTFILE = Path(__file__).parents[2] / "loadtest" / "locustfile.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--rates", "-5"), "expected up to 40 arrivals a second"),
        (("--rates", "10", "--connections", "0"), "expected a whole number from 1 on"),
        (("--host", "127.0.0.1:8000"), "expected --host http://NAME:PORT, got 127.0.0.1:8000"),
        (("--out", "nowhere/run.json"), "expected --out in a folder that is there"),
    ],
)
def test_what_makes_no_load_is_refused(flags: tuple[str, ...], told: str, store: Path) -> None:
    """At once and in words: a negative rate was a timetable without end."""
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless"]
    command += ["--host", "http://127.0.0.1:1", "--bundle", str(store / "ctr/versions/1"), *flags]

    ended = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=60, cwd=store
    )

    assert ended.returncode not in {0, None}
    assert told in ended.stderr
