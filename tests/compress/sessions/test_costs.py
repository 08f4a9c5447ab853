"""What a bundle costs is counted on its files, by the papers' rules where they have some."""

import doctest
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.sessions import costs
from compress.sessions.costs import achieved, bytes_by_part, request_us, resources, usage
from model_store.bundle import Bundle
from model_store.codebooks import CodedTable
from model_store.errors import BundleCorrupt
from model_store.item_vectors import DenseTable, FactoredTable, Int8Table, ItemVectors, Neighbours
from model_store.manifest import HashedCodes
from tests.compress.sessions.bundles import session_bundle

ITEMS, DIM = 90, 8
Make = Callable[..., Bundle]


@pytest.fixture
def made(tmp_path: Path) -> Make:
    """Seals a bundle of item vectors; its graph has no weights."""

    def make(vectors: ItemVectors | None, name: str = "bundle") -> Bundle:
        ids = tuple(f"item{row}" for row in range(ITEMS))
        if vectors is not None:
            return session_bundle(tmp_path / name, ids, vectors=vectors)
        offsets, none = np.zeros(ITEMS + 1, np.int32), np.empty(0, np.int32)
        follow = Neighbours(offsets, none, none.astype(np.float32))
        return session_bundle(tmp_path / name, ids, neighbours=follow, ways=("follow",))

    return make


def dense() -> DenseTable:
    """Drawn vectors."""
    return DenseTable(np.random.default_rng(0).normal(size=(ITEMS, DIM)).astype(np.float32))


def coded(codes: np.ndarray | None = None, size: int = 16) -> CodedTable:
    """Three codebooks, their words and, unless given, codes drawn."""
    rng = np.random.default_rng(1)
    if codes is None:
        codes = rng.integers(0, size, (ITEMS, 3))
    books = rng.normal(size=(codes.shape[1], size, DIM)).astype(np.float32)
    return CodedTable(codes.astype(np.uint8), books, concatenated=False)


def hashed() -> CodedTable:
    """Codes that are computed, so that none is stored."""
    factors = (3, 7, 11)
    codes = np.arange(1, ITEMS + 1)[:, None] * factors % 2_147_483_647 % 16
    spec = HashedCodes(factors=factors)
    return CodedTable(codes.astype(np.uint8), coded().codebooks, False, spec)


def factored() -> FactoredTable:
    """A tensor train of two cores, 9·10 items and 4·2 entries."""
    rng = np.random.default_rng(2)
    shapes = ((1, 9, 4, 3), (3, 10, 2, 1))
    return FactoredTable.of([rng.normal(size=s).astype(np.float32) for s in shapes], 1, ITEMS)


def test_every_byte_on_disk_is_of_one_part(made: Make) -> None:
    """The ids apart from the table, which is all else under items/."""
    bundle = made(coded())

    parts = bytes_by_part(bundle.root)

    files = [path for path in bundle.root.rglob("*") if path.is_file()]
    assert sum(parts.values()) == sum(path.stat().st_size for path in files)
    size = {path.name: path.stat().st_size for path in files}
    assert parts["item table"] == size["codes.npy"] + size["codebooks.npy"]
    assert parts["item ids"] == size["ids.json"]
    assert parts["graph"] == size["model.onnx"]


@pytest.mark.parametrize(
    ("table", "candidate", "parameters"),
    [
        (dense, 2 * DIM, ITEMS * DIM),
        (lambda: Int8Table.of(dense().matrix), 2 * DIM, ITEMS * DIM),
        (coded, 3, ITEMS * 3 + 3 * 16 * DIM),
        (hashed, 3, 3 * 16 * DIM),
        (factored, 2 * DIM, 9 * 4 * 3 + 3 * 10 * 2),
    ],
    ids=["dense", "int8", "coded", "hashed", "factored"],
)
def test_a_table_costs_what_is_stored_and_looked_up(
    made: Make, table: Callable[[], ItemVectors], candidate: int, parameters: int
) -> None:
    """A candidate costs a product, or a look-up a codebook; computed codes take no room."""
    found = resources(made(table()), us=7.0)

    assert found.flops == found.flops_parts["candidate"] == candidate
    assert found.parameters == parameters
    assert found.us_per_request == 7.0


def test_sub_scores_are_counted_once_a_request(made: Make) -> None:
    """A product with each codeword, whatever the number of candidates."""
    found = resources(made(coded()), None).flops_parts

    assert found["sub-scores, once a request"] == 2 * 3 * 16 * DIM


def test_of_the_graph_only_weights_are_parameters(
    made: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the shapes, places and factors that the exporter keeps beside them."""
    bundle = made(dense())
    kept = [
        numpy_helper.from_array(np.ones((4, 5), np.float32), "weight"),
        numpy_helper.from_array(np.ones((3, 7), np.float16), "half"),
        numpy_helper.from_array(np.array([1, 2, 3], np.int64), "shape"),
        numpy_helper.from_array(np.array(0.5, np.float32), "factor"),
    ]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["weight"], ["out"])],
        "weights",
        [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        initializer=kept,
    )
    monkeypatch.setattr(costs.onnx, "load", lambda _: helper.make_model(graph))

    assert resources(bundle, None).parameters == ITEMS * DIM + 4 * 5 + 3 * 7


def test_ratios_are_of_bytes_on_disk(made: Make) -> None:
    """And, of codes, the papers' count beside."""
    before, after = made(dense(), "dense"), made(coded(), "coded")
    was, now = bytes_by_part(before.root), bytes_by_part(after.root)

    found = achieved(before, after)

    assert found["table compression"] == was["item table"] / now["item table"]
    assert found["bundle compression"] == round(sum(was.values()) / sum(now.values()), 3)
    assert found["table compression, papers' count"] == ITEMS * DIM / (ITEMS * 3 + 3 * 16 * DIM)


def test_codes_that_are_computed_take_nothing_in_the_papers_count(made: Make) -> None:
    """Only the codebooks are there to be counted."""
    found = achieved(made(dense(), "dense"), made(hashed(), "hashed"))

    assert found["table compression, papers' count"] == ITEMS * DIM / (3 * 16 * DIM)


def test_of_a_table_without_codes_no_codes_are_told(made: Make) -> None:
    """Only what both have: bytes."""
    found = achieved(made(dense(), "dense"), made(factored(), "factored"))

    assert set(found) == {"table compression", "bundle compression"}


def test_shared_codes_and_unused_words_are_told(made: Make) -> None:
    """Worked by hand: one codebook of 16 words, of which two are used alike."""
    halves = np.zeros((ITEMS, 1), np.int64)
    halves[ITEMS // 2 :] = 5

    found = achieved(made(dense(), "dense"), made(coded(halves), "coded"))

    assert found["items that share all their codes"] == ITEMS - 2
    assert found["code usage"] == pytest.approx(1 / 4)  # one bit of four


def test_examples_in_docstrings_hold() -> None:
    """What a docstring shows is what comes out."""
    assert doctest.testmod(costs).failed == 0


def test_usage_is_entropy_over_that_of_equal_use() -> None:
    """All codewords alike: 1; one codeword only, or none besides it: 0 and 1."""
    assert usage(np.arange(8), 8) == pytest.approx(1.0)
    assert usage(np.zeros(8, np.uint8), 8) == 0.0
    assert usage(np.zeros(8, np.uint8), 1) == 1.0


@pytest.mark.parametrize(("words", "share"), [(16, 1.0), (1, 0.0)])
def test_usage_is_whole_where_all_words_are_used_alike(
    made: Make, words: int, share: float
) -> None:
    """And nothing where one is used alone."""
    codes = np.arange(ITEMS)[:, None].repeat(2, axis=1) % words

    found = achieved(made(dense(), "dense"), made(coded(codes), "coded"))

    assert found["code usage"] == pytest.approx(share, abs=5e-3)


def test_times_are_taken_of_each_bundle(made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """In turn, and in microseconds: by a clock that moves 3 µs a look, each call takes 3."""
    now = iter(range(0, 10**9, 3000))
    monkeypatch.setattr(costs.time, "perf_counter_ns", lambda: next(now))
    monkeypatch.setattr(costs, "ROUNDS", 20)

    assert request_us([made(dense(), "dense"), made(coded(), "coded")], 7) == [3.0, 3.0]


def test_a_bundle_without_item_vectors_is_no_trained_one(made: Make) -> None:
    """It is said so."""
    with pytest.raises(BundleCorrupt, match="expected a session ranker with item vectors"):
        resources(made(None), None)
