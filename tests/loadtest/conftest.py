"""What the tests of the load test share: the stand-in service and a small bundle."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

STANDIN = Path(__file__).with_name("standin.py")


@pytest.fixture
def standin() -> Callable[..., list[str]]:
    """The command that runs the stand-in, given its options."""

    def command(*options: str) -> list[str]:
        return [sys.executable, str(STANDIN), *options]

    return command
