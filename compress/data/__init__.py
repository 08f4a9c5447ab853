"""Data sources by name: where rows come from. Everything after them is the same."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from compress.data.base import Source
from compress.data.criteo import Criteo
from compress.data.movielens import MovieLens
from compress.data.synthetic import Synthetic
from compress.data.table import UserTable

SOURCES: Final[Mapping[str, type[Source]]] = MappingProxyType(
    {"ml-100k": MovieLens, "criteo": Criteo, "table": UserTable, "synthetic": Synthetic}
)
