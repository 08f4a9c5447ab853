"""Which bundles of a model are driven against each other: dense, slim, and slim in eight bits.

``dense`` and ``slim`` are the aliases that a run sets. ``int8`` is the alias of that name where
there is one; else slim's twin, the newest version with as many FLOPs and the same features whose
graph is in eight bits (or, where slim is in eight bits itself, whose graph is not: that is then the
slim one). Tiers of a bundle are not served by themselves and so are not driven.

The store is read as the plain files that it consists of.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from loadtest import traffic

DENSE: Final = "dense"
SLIM: Final = "slim"
INT8: Final = "int8"
SIDES: Final = (DENSE, SLIM, INT8)  # in the order of every table
EIGHT_BITS: Final = "int8-"


@dataclass(frozen=True, slots=True)
class Side:
    """One of the bundles that are compared.

    Attributes:
        name: one of ``SIDES``.
        version: in the store.
    """

    name: str
    version: str


def of_model(store: Path, model: str) -> list[Side]:
    """What there is to compare, dense first.

    Raises:
        BundleUnusable: there is no dense one, or nothing beside it.
    """
    dense = _alias(store, model, DENSE)
    slim = _alias(store, model, SLIM)
    missing = [name for name, version in ((DENSE, dense), (SLIM, slim)) if version is None]
    if dense is None or slim is None:
        raise traffic.BundleUnusable(
            f"{model!r} in {str(store)!r} has no alias {' and no '.join(missing)}: "
            "`python -m model_store alias` sets one"
        )
    eight = _alias(store, model, INT8) or _twin(store, model, slim, but=dense)
    if _in_eight_bits(store, model, slim):
        slim, eight = eight, slim
    found = ((DENSE, dense), (SLIM, slim), (INT8, eight))
    return [Side(name, version) for name, version in found if version is not None]


def _alias(store: Path, model: str, alias: str) -> str | None:
    path = store / model / "aliases" / f"{alias}.json"
    if not path.is_file():
        return None
    return str(json.loads(path.read_text())["version"])


def _twin(store: Path, model: str, version: str, but: str) -> str | None:
    like = _likeness(_manifest(store, model, version))
    eight = _in_eight_bits(store, model, version)
    others = (
        other
        for other in reversed(_versions(store, model))
        if other != but
        and _in_eight_bits(store, model, other) != eight
        and _likeness(_manifest(store, model, other)) == like
    )
    return next(others, None)


def _likeness(manifest: dict[str, Any]) -> tuple[int, list[str]]:
    # What quantizing leaves as it is.
    kept = [spec["name"] for spec in manifest["features"] if spec.get("tensor") is not None]
    return manifest["flops"], sorted(kept)


def _versions(store: Path, model: str) -> Sequence[str]:
    manifests = (store / model / "versions").glob(f"*/{traffic.MANIFEST}")
    return sorted((path.parent.name for path in manifests), key=int)


def _in_eight_bits(store: Path, model: str, version: str) -> bool:
    return str(_manifest(store, model, version).get("numerics", "")).startswith(EIGHT_BITS)


def _manifest(store: Path, model: str, version: str) -> dict[str, Any]:
    return traffic.read_manifest(traffic.bundle_folder(store, model, version))
