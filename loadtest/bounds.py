"""Numbers on command lines, within bounds: what is out of them is refused before anything starts.

Each function is a ``type`` of argparse: from the text to its value.
"""

import argparse
import math
from typing import Final

NONE: Final = "none"
MOST_USERS: Final = 256
MOST_LEVELS: Final = 40
MOST_RATE: Final = 20_000.0
MOST_SHARE: Final = 2.0
LONGEST_S: Final = 600.0


def levels(text: str) -> list[int]:
    """Numbers of users, ascending; of "none" no one."""
    found = _numbers(text, "numbers of users", MOST_USERS)
    if not all(level.is_integer() for level in found):
        raise argparse.ArgumentTypeError(f"expected whole numbers of users, got {text!r}")
    return [int(level) for level in found]


def rates(text: str) -> list[float]:
    """Arrivals a second, ascending; of "none" no one."""
    return _numbers(text, "arrivals a second", MOST_RATE)


def shares(text: str) -> list[float]:
    """Shares of a capacity, ascending; of "none" no one."""
    return _numbers(text, "shares of the capacity", MOST_SHARE)


def users(text: str) -> int:
    """A number of users, or of connections."""
    found = count(text)
    if found > MOST_USERS:
        raise argparse.ArgumentTypeError(f"expected up to {MOST_USERS}, got {text!r}")
    return found


def count(text: str) -> int:
    """A whole number from 1 on."""
    found = _number(text)
    if not (found >= 1 and found.is_integer()):
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(found)


def ratio(text: str) -> float:
    """A number from 0 on."""
    found = _number(text)
    if not 0 <= found < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number from 0 on, got {text!r}")
    return found


def seconds(text: str) -> float:
    """A length of time, of ten minutes at most."""
    found = _number(text)
    if not 0 < found <= LONGEST_S:
        raise argparse.ArgumentTypeError(f"expected seconds up to {LONGEST_S:g}, got {text!r}")
    return found


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _numbers(text: str, kind: str, most: float) -> list[float]:
    if text == NONE:
        return []
    found = sorted({_number(part) for part in text.split(",")})
    if not all(0 < value <= most for value in found) or len(found) > MOST_LEVELS:
        raise argparse.ArgumentTypeError(
            f"expected up to {MOST_LEVELS} {kind} up to {most:g} like 1,8,32, or none, got {text!r}"
        )
    return found
