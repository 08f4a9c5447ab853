"""The registry of ways to compress an item table: a new one is a file and a line here."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from compress.sessions.tables.base import ItemTable, TableMethod, Teacher
from compress.sessions.tables.dense import Dense
from compress.sessions.tables.eodrec import Eodrec
from compress.sessions.tables.hashing import Hashing
from compress.sessions.tables.int8 import Int8
from compress.sessions.tables.opq import Opq
from compress.sessions.tables.pq import Pq
from compress.sessions.tables.qr import Qr
from compress.sessions.tables.recjpq import RecJpq
from compress.sessions.tables.rq import Rq
from compress.sessions.tables.tensor_train import Sttd, Tt

TABLES: Final[Mapping[str, type[TableMethod]]] = MappingProxyType(
    {
        "dense": Dense,
        "eodrec": Eodrec,
        "hashing": Hashing,
        "int8": Int8,
        "opq": Opq,
        "pq": Pq,
        "qr": Qr,
        "recjpq": RecJpq,
        "rq": Rq,
        "sttd": Sttd,
        "tt": Tt,
    }
)

__all__ = ["TABLES", "ItemTable", "TableMethod", "Teacher"]
