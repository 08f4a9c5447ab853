"""The registry of compression methods: a new one is a file and a line here."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from compress.methods.base import Compressed, Method
from compress.methods.ecc import Ecc
from compress.methods.group_lasso import GroupLasso
from compress.methods.lpfs import Lpfs
from compress.methods.magnitude import Magnitude
from compress.methods.narrow import Narrow
from compress.methods.none import NoMethod
from compress.methods.permutation import Permutation
from compress.methods.shark import Shark
from compress.methods.taylor import Taylor
from compress.methods.umec import Umec

METHODS: Final[Mapping[str, type[Method]]] = MappingProxyType(
    {
        "ecc": Ecc,
        "group-lasso": GroupLasso,
        "lpfs": Lpfs,
        "magnitude": Magnitude,
        "narrow": Narrow,
        "none": NoMethod,
        "permutation": Permutation,
        "shark": Shark,
        "taylor": Taylor,
        "umec": Umec,
    }
)

__all__ = ["METHODS", "Compressed", "Method"]
