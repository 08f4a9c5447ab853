"""The registry of ways to compress an item table: a new one is a file and a line here."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from compress.sessions.tables.base import ItemTable, TableMethod, Teacher
from compress.sessions.tables.pq import Pq
from compress.sessions.tables.rq import Rq

TABLES: Final[Mapping[str, type[TableMethod]]] = MappingProxyType({"pq": Pq, "rq": Rq})

__all__ = ["TABLES", "ItemTable", "TableMethod", "Teacher"]
