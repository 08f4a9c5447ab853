"""The registry of session rankers: a new one is a file and a line here."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from compress.sessions.rankers.base import SessionRanker
from compress.sessions.rankers.floors import FLOORS
from compress.sessions.rankers.sasrec import SasRec
from compress.sessions.rankers.stamp import Stamp

SESSION_RANKERS: Final[Mapping[str, type[SessionRanker]]] = MappingProxyType(
    {"sasrec": SasRec, "stamp": Stamp, **FLOORS}
)
