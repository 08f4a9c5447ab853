"""The registry of what a click-through ranker's tables ship as: a new one is a file and a line."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from compress.tables.base import ShippedTable, TableMethod, look_up, reordered
from compress.tables.floats import Float16, Float32
from compress.tables.int4 import Int4
from compress.tables.int8 import Int8
from compress.tables.pq import Pq

TABLES: Final[Mapping[str, type[TableMethod]]] = MappingProxyType(
    {"float32": Float32, "float16": Float16, "int8": Int8, "int4": Int4, "pq": Pq}
)

__all__ = ["TABLES", "ShippedTable", "TableMethod", "look_up", "reordered"]
