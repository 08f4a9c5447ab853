"""The registry of rankers: a new one is a file and a line here."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from compress.rankers.base import Ranker
from compress.rankers.dcnv2 import DcnV2
from compress.rankers.dlrm import Dlrm

RANKERS: Final[Mapping[str, type[Ranker]]] = MappingProxyType({"dlrm": Dlrm, "dcnv2": DcnV2})
