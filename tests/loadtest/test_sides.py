"""Which bundles are driven."""

import json
from pathlib import Path

import pytest

from loadtest import sides, traffic
from loadtest.sides import Side

STATIC = "int8-static"


def publish(store: Path, version: str, **changes: object) -> None:
    """One more version, like the slim one but for the changes."""
    manifest = json.loads((store / "ctr/versions/2/manifest.json").read_text())
    folder = store / "ctr/versions" / version
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))


def alias(store: Path, name: str, version: str) -> None:
    """Set an alias."""
    (store / f"ctr/aliases/{name}.json").write_text(json.dumps({"version": version}))


def test_dense_and_slim_are_the_aliases(store: Path) -> None:
    """With nothing in eight bits there are two sides."""
    assert sides.of_model(store, "ctr") == [Side("dense", "1"), Side("slim", "2")]


def test_slims_twin_in_eight_bits_comes_along(store: Path) -> None:
    """The newest version with slim's FLOPs and features in eight bits is the third side."""
    publish(store, "3", numerics=STATIC)
    publish(store, "9", numerics=STATIC)
    publish(store, "10", numerics=STATIC)
    publish(store, "11", numerics=STATIC, flops=7)
    publish(store, "12", numerics=STATIC, features=[])

    assert sides.of_model(store, "ctr")[2:] == [Side("int8", "10")]


def test_alias_int8_goes_before_a_twin(store: Path) -> None:
    """Who sets the alias says what int8 is."""
    publish(store, "3", numerics=STATIC)
    publish(store, "4", numerics=STATIC, flops=7)
    alias(store, "int8", "4")

    assert sides.of_model(store, "ctr")[2:] == [Side("int8", "4")]


def test_slim_alias_in_eight_bits_is_int8(store: Path) -> None:
    """After a run that quantizes, slim names the int8 version: its fp32 twin is then slim."""
    publish(store, "3", numerics=STATIC)
    alias(store, "slim", "3")

    assert sides.of_model(store, "ctr") == [
        Side("dense", "1"),
        Side("slim", "2"),
        Side("int8", "3"),
    ]


def test_dense_is_nobodys_twin(store: Path) -> None:
    """A method that removes nothing leaves slim like dense; dense stays dense."""
    publish(store, "2", numerics=STATIC)

    assert sides.of_model(store, "ctr") == [Side("dense", "1"), Side("int8", "2")]


def test_missing_alias_is_told(store: Path) -> None:
    """Without the alias slim there is nothing to compare, and the message names it."""
    (store / "ctr/aliases/slim.json").unlink()

    with pytest.raises(traffic.BundleUnusable, match=r"'ctr' .* has no alias slim"):
        sides.of_model(store, "ctr")
