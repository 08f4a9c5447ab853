"""Sources of sessions by name."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from compress.sessions.sources.base import SessionSource
from compress.sessions.sources.files import SessionFiles
from compress.sessions.sources.movielens import MovieLensSessions
from compress.sessions.sources.synthetic import SyntheticSessions

SESSION_SOURCES: Final[Mapping[str, type[SessionSource]]] = MappingProxyType(
    {
        "sessions": SessionFiles,
        "ml-100k-sessions": MovieLensSessions,
        "synthetic-sessions": SyntheticSessions,
    }
)
