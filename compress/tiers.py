"""Siblings of one run in one bundle: tiers, from which serving may choose under load."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from compress.export import click_card
from model_store.bundle import Bundle, seal
from model_store.manifest import (
    Card,
    FeatureSpec,
    ItemTableSpec,
    Manifest,
    Tier,
    VocabularyEncoding,
)

TIERS_FOLDER: Final = "tiers"


def join(slim: Bundle, siblings: Mapping[str, Bundle], folder: Path) -> Bundle:
    """Write a bundle that is ``slim`` with its siblings as tiers.

    A file that a sibling has in common with what is there already, name and content, is not kept
    twice: vocabularies mostly are.

    Args:
        slim: what the bundle is without its tiers.
        siblings: by tier's name, the one to be named first first.
        folder: of the new bundle; what is there goes.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(slim.root, folder)
    there = {entry.path: entry.sha256 for entry in slim.manifest.files}
    tiers = []
    for name, sibling in siblings.items():
        places = {
            entry.path: _place(name, entry.path, entry.sha256, there)
            for entry in sibling.manifest.files
        }
        for entry in sibling.manifest.files:
            place = places[entry.path]
            there[place] = entry.sha256
            if not (folder / place).exists():
                (folder / place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(sibling.path(entry.path), folder / place)
        tiers.append(_tier(name, sibling.manifest, click_card(sibling), places))
    return seal(folder, slim.manifest.model_copy(update={"tiers": tuple(tiers)}))


def _place(tier: str, path: str, digest: str, there: Mapping[str, str]) -> str:
    return path if there.get(path) == digest else f"{TIERS_FOLDER}/{tier}/{path}"


def _tier(name: str, manifest: Manifest, card: Card, places: Mapping[str, str]) -> Tier:
    return Tier(
        name=name,
        graph=places[manifest.graph],
        numerics=manifest.numerics,
        flops=manifest.flops,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        features=tuple(_feature(spec, places) for spec in manifest.features),
        items=None if manifest.items is None else _items(manifest.items, places),
        golden=places[manifest.golden],
        golden_tolerance=manifest.golden_tolerance,
        card=card,
    )


def _feature(spec: FeatureSpec, places: Mapping[str, str]) -> FeatureSpec:
    encoding = spec.encoding
    if spec.pruned or not isinstance(encoding, VocabularyEncoding):
        return spec
    moved = encoding.model_copy(update={"file": places[encoding.file]})
    return spec.model_copy(update={"encoding": moved})


def _items(spec: ItemTableSpec, places: Mapping[str, str]) -> ItemTableSpec:
    return spec.model_copy(
        update={
            "ids": places[spec.ids],
            "tensors": {name: places[file] for name, file in spec.tensors.items()},
            "values": None if spec.values is None else places[spec.values],
        }
    )
