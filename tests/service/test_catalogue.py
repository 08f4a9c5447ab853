"""The catalogue of a session ranker: from a bundle, through a cache, and with fresh items."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from model_store.bundle import Bundle, open_bundle
from model_store.store import OpenedVersion
from service.caches import Blob
from service.catalogue import Catalogue
from service.errors import BundleRejected
from service.fresh import Fresh, Placed, Record
from service.item_ids import ItemIds
from service.item_scores import Shuffles
from service.session_ranking import make_ranking
from tests.service.sessions import DIM, FORMS, IDS, ITEMS, World

HELD = ItemIds.of(IDS)
QUERY = np.array([1.0, -0.5, 2.0, 0.25], np.float32)
ROWS = np.arange(ITEMS)


def bundle_of(form: str, folder: Path) -> Bundle:
    """A bundle with vectors of a form, and neighbours."""
    return World(FORMS[form]()).write(folder / "bundle")


def read_of(bundle: Bundle) -> Catalogue:
    """The catalogue of a bundle."""
    return Catalogue.read(bundle, HELD)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_packed_is_unpacked(form: str, tmp_path: Path) -> None:
    """The same vectors, mean item and neighbours, whatever the form."""
    bundle = bundle_of(form, tmp_path)
    read = read_of(bundle)
    found = Catalogue.unpack({k: bytes(v) for k, v in read.pack().items()}, bundle, HELD)

    assert found is not None
    assert found.ids(ROWS) == IDS
    np.testing.assert_array_equal(found.vectors(ROWS), read.vectors(ROWS))
    np.testing.assert_array_equal(
        found.scoring(QUERY)(ROWS, known=False), read.scoring(QUERY)(ROWS, known=False)
    )
    np.testing.assert_array_equal(found.base.mean, read.base.mean)
    assert found.base.neighbours is not None
    assert found.base.neighbours.of(3)[0].tolist() == [4, 5]
    assert found.nbytes == read.nbytes


@pytest.mark.parametrize(
    ("form", "parts"),
    [
        ("8 bits", {"codes", "codebooks"}),
        ("4 bits", {"blocks", "codebooks"}),
        ("radix", set()),
        ("dense", set()),
        ("train", set()),
    ],
)
def test_only_chosen_codes_are_packed(form: str, parts: set[str], tmp_path: Path) -> None:
    """What the bundle's files hold as it is used is mapped from there, so workers share it."""
    packed = read_of(bundle_of(form, tmp_path)).pack()

    always = {"offsets", "items", "weights"}
    assert {name.split(":")[0] for name in packed} == parts | always


def test_vectors_are_mapped_from_disk(tmp_path: Path) -> None:
    """Codes of one byte and dense vectors are views of the bundle's files: nothing is copied."""
    for form in ("8 bits", "dense"):
        catalogue = read_of(bundle_of(form, tmp_path / form))
        vectors = catalogue.base.vectors
        table = vectors.table  # type: ignore[union-attr]
        array = table.codes if form == "8 bits" else table.matrix

        assert not array.flags.owndata
        assert not array.flags.writeable


Harm = Callable[[dict[str, Blob]], object]


@pytest.mark.parametrize(
    "harm",
    [
        lambda blobs: blobs.pop("codes:|u1:40x2"),
        lambda blobs: blobs.update({"codes:|u1:40x2": bytes(79)}),
        lambda blobs: blobs.update({"codes:|u1:80x1": blobs.pop("codes:|u1:40x2")}),
        lambda blobs: blobs.update({"codes:|O:10x1": blobs.pop("codes:|u1:40x2")}),
        lambda blobs: blobs.update({"codes:<u2:40x2": b"\xff\xff" * 80}),
        lambda blobs: blobs.update({"codebooks:<f4:1x256x8": blobs.pop("codebooks:<f4:2x256x4")}),
        lambda blobs: blobs.update({"offsets:<i4:41": bytes(164)}),
        lambda blobs: blobs.update({"items:<i4:77": b"\xff" * 308}),
        lambda blobs: blobs.update({"strange": b""}),
        lambda blobs: blobs.update({"strange:|u1:0": b""}),
        lambda blobs: blobs.update({"codes:<i4:40x2": bytes(320)}),
        lambda blobs: blobs.update({"codes:|u1:" + "9" * 30: b""}),
        lambda blobs: blobs.update({"codebooks:<f4:2x256x4": b"\xff" * 8192}),
        lambda blobs: blobs.update({"codebooks:<i4:2x256x4": bytes(8192)}),
        lambda blobs: blobs.update({"offsets:<i4:41x1": blobs["offsets:<i4:41"]}),
        lambda blobs: blobs.update({"offsets:<f4:41": blobs["offsets:<i4:41"]}),
        lambda blobs: blobs.update({"weights:<i4:77": np.ones(77, "<i4").tobytes()}),
    ],
    ids=["no codes", "short", "another shape", "objects",
         "out of range", "other codebooks", "no rows", "no neighbours", "a stranger",
         "a stranger's array", "codes of a type of their own", "beyond all sizes",
         "codewords that are no numbers", "whole codewords", "rows in two axes", "broken rows",
         "whole weights"],
)  # fmt: skip
def test_what_does_not_fit_is_a_miss(harm: Harm, tmp_path: Path) -> None:
    """Codes are looked up unchecked, so what comes from a cache is checked as a bundle is."""
    bundle = bundle_of("8 bits", tmp_path)
    blobs = read_of(bundle).pack()
    harm(blobs)

    assert Catalogue.unpack(blobs, bundle, HELD) is None


def test_a_click_through_bundle_has_no_such_catalogue(bundles: Path) -> None:
    """Neither in its files nor in a cache; nor is a session ranker made of it."""
    bundle = open_bundle(bundles / "one")

    with pytest.raises(ValueError, match="holds no session ranker"):
        read_of(bundle)
    assert Catalogue.unpack({}, bundle, HELD) is None
    with pytest.raises(BundleRejected, match="holds no session ranker"):
        make_ranking(OpenedVersion(bundle, "ctr", "1"), None)  # type: ignore[arg-type]


def test_ids_alone_may_be_all(tmp_path: Path) -> None:
    """A ranker that only repeats has neither vectors nor neighbours."""
    bundle = World(None, ("repeat",)).write(tmp_path / "bundle")
    read = read_of(bundle)
    found = Catalogue.unpack(read.pack(), bundle, HELD)

    assert found is not None
    assert read.pack() == {}
    assert found.base.vectors is found.base.neighbours is None
    assert found.vectors(ROWS).tolist() == [[0.0]] * ITEMS
    assert found.nbytes == 0


@pytest.mark.parametrize(
    ("name", "blob"),
    [
        ("blocks:|u1:2x2x32", b"\x22" * 128),
        ("blocks:|u1:2x2x32", b"\x10" * 128),
        ("blocks:|u1:2x2x32", bytes(127) + b"\x01"),
        ("blocks:|u1:1x2x32", bytes(64)),
        ("blocks:|u1:2x1x32", bytes(64)),
        ("blocks:|u1:3x2x32", bytes(192)),
        ("blocks:|u1:4x2x16", bytes(128)),
        ("blocks:|u1:2x64", bytes(128)),
        ("blocks:<i4:2x2x32", bytes(512)),
        ("blocks:<f4:2x2x32", bytes(512)),
    ],
    ids=["no such codeword", "a book too many", "an item too many", "too few", "books too few",
         "too many", "of 16 items", "two axes", "whole numbers", "broken numbers"],
)  # fmt: skip
def test_codes_in_blocks_are_checked_as_well(name: str, blob: bytes, tmp_path: Path) -> None:
    """They are looked up unchecked, with what fills them up."""
    bundle = bundle_of("1 bit", tmp_path)
    blobs = read_of(bundle).pack()
    fitting = {**blobs}
    blobs.pop("blocks:|u1:2x2x32")
    blobs[name] = blob

    assert Catalogue.unpack(fitting, bundle, HELD) is not None
    assert Catalogue.unpack(blobs, bundle, HELD) is None


@pytest.mark.parametrize("form", ["radix", "dense"])
def test_codes_that_nobody_packs_are_not_taken(form: str, tmp_path: Path) -> None:
    """Those that follow from the row, or that a form does not have, whatever a cache says."""
    bundle = bundle_of(form, tmp_path)
    read = read_of(bundle)
    found = Catalogue.unpack({**read.pack(), "blocks:|u1:2x1x32": b"\xff" * 64}, bundle, HELD)

    assert found is not None
    np.testing.assert_array_equal(
        found.scoring(QUERY)(ROWS, known=False), read.scoring(QUERY)(ROWS, known=False)
    )


@pytest.mark.parametrize("form", ["4 bits", "8 bits"])
def test_what_is_cached_in_this_process_is_kept_once(form: str, tmp_path: Path) -> None:
    """A table that is unpacked looks up in the blobs themselves: no copy lies beside them."""
    bundle = bundle_of(form, tmp_path)
    packed = read_of(bundle).pack()
    found = Catalogue.unpack(packed, bundle, HELD)
    assert found is not None
    vectors = found.base.vectors
    held = vectors.blocks if isinstance(vectors, Shuffles) else vectors.table.codes  # type: ignore[union-attr]
    cached = next(packed[name] for name in packed if name.startswith(("codes:", "blocks:")))

    assert np.shares_memory(held, np.frombuffer(cached, np.uint8))


# Fresh items


def fresh(**vectors: tuple[float, ...]) -> Fresh:
    """Some fresh items by vector."""
    placed = [Placed(i, Record(item, vector=v)) for i, (item, v) in enumerate(vectors.items())]
    return Fresh().with_records(placed, len(placed))


def test_fresh_items_follow_those_of_the_bundle(tmp_path: Path) -> None:
    """In the order of their ids, in look-ups, scores and among the best."""
    base = read_of(bundle_of("dense", tmp_path))
    grown = base.with_fresh(fresh(zebra=(9.0, 0.0, 0.0, 0.0), ant=(0.0, 0.0, 8.0, 0.0)))
    rows = grown.rows(["zebra", "i3", "x", "ant"])

    assert rows.tolist() == [ITEMS + 1, 3, -1, ITEMS]
    assert grown.ids(rows[[0, 1, 3]]) == ["zebra", "i3", "ant"]
    assert len(grown) == ITEMS + 2
    assert grown.nbytes == base.nbytes + 2 * DIM * 4
    scores = grown.scoring(QUERY)(rows, known=False)
    expected = [9.0, base.scoring(QUERY)(rows[1:2], known=False)[0], base.base.mean @ QUERY, 16.0]
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    np.testing.assert_array_equal(grown.vectors(rows[:1]), [[9.0, 0.0, 0.0, 0.0]])
    assert grown.ids(grown.best(QUERY, 2).rows) == ["ant", "zebra"]
    assert len(grown.best(QUERY, 100).rows) == ITEMS + 2


def test_a_catalogue_never_changes(tmp_path: Path) -> None:
    """Requests that began with it go on with it; without fresh items it is as it was."""
    base = read_of(bundle_of("dense", tmp_path))
    grown = base.with_fresh(fresh(new=(1.0, 1.0, 1.0, 1.0)))

    assert base.rows(["new"]).tolist() == [-1]
    assert grown.base is base.base
    assert grown.with_fresh(Fresh()) == base
