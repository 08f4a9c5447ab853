"""The registry of compression methods: a new one is a file and a line here."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from compress.methods.base import Compressed, Method
from compress.methods.none import NoMethod
from compress.methods.umec import Umec

METHODS: Final[Mapping[str, type[Method]]] = MappingProxyType({"none": NoMethod, "umec": Umec})

__all__ = ["METHODS", "Compressed", "Method"]
