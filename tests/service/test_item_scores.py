"""Scores of item vectors in every form, against the vectors themselves."""

import numpy as np
import pytest

from model_store.codebooks import CodedTable
from model_store.item_vectors import ItemVectors
from service import kernels
from service.item_scores import Best, LookUps, Products, Shuffles, fastest
from tests.service.sessions import DIM, FORMS, ITEMS, coded


@pytest.fixture(params=list(FORMS))
def table(request: pytest.FixtureRequest) -> ItemVectors:
    """A table of each form."""
    return FORMS[request.param]()


def test_scores_are_products_with_the_vectors(table: ItemVectors) -> None:
    """Of some rows, in any order."""
    items, query = fastest(table), np.array([1.0, -0.5, 2.0, 0.25], np.float32)
    rows = np.array([3, 0, 39, 3])
    vectors = table.vectors(np.arange(ITEMS))

    assert len(items) == ITEMS
    np.testing.assert_array_equal(items.vectors(rows), vectors[rows])
    np.testing.assert_allclose(items.scoring(query)(rows), vectors[rows] @ query, atol=1e-5)


@pytest.mark.parametrize("count", [1, 7, ITEMS, 10 * ITEMS])
def test_the_best_come_first(table: ItemVectors, count: int) -> None:
    """As many as were asked for or as there are, with the scores that they have elsewhere."""
    items, query = fastest(table), np.array([1.0, -0.5, 2.0, 0.25], np.float32)
    scores = items.scoring(query)(np.arange(ITEMS))
    best = items.best(query, count)

    assert len(best.rows) == min(count, ITEMS)
    np.testing.assert_allclose(best.scores, np.sort(scores)[::-1][:count], atol=1e-6)
    np.testing.assert_allclose(best.scores, scores[best.rows], atol=1e-6)
    if not isinstance(items, Products):
        np.testing.assert_array_equal(best.scores, scores[best.rows])


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ("dense", Products),
        ("train", Products),
        ("1 bit", Shuffles),
        ("4 bits", Shuffles),
        ("radix", Shuffles),
        ("8 bits", LookUps),
        ("9 bits", LookUps),
    ],
)
def test_every_form_has_its_fastest_way(form: str, kind: type) -> None:
    """Up to four bits shuffles, beyond that look-ups, and products for what has no codes."""
    assert type(fastest(FORMS[form]())) is kind


def test_without_compiled_loops_four_bits_are_looked_up_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Numpy would take the blocks apart in every request."""
    monkeypatch.setattr(kernels, "COMPILED", False)

    assert type(fastest(FORMS["4 bits"]())) is LookUps


def test_codebooks_beyond_what_16_bits_can_add_are_looked_up() -> None:
    """No sum of bytes may overflow."""
    assert type(fastest(coded(16, books=257))) is LookUps
    assert type(fastest(coded(16, books=256))) is Shuffles


def test_four_bits_take_half_a_byte_each() -> None:
    """In blocks of 32 items, of which the last is filled up."""
    items = fastest(coded(16, books=6))
    assert isinstance(items, Shuffles)

    assert items.blocks.nbytes == 64 * 3
    assert items.nbytes == 64 * 3 + 6 * 16 * DIM * 4
    np.testing.assert_array_equal(items.codes(np.arange(ITEMS)), coded(16, books=6).codes)


def test_codes_may_lie_in_any_order_in_memory() -> None:
    """What the kernels cannot take as it is, is copied once."""
    table = coded(256)
    turned = CodedTable(np.asfortranarray(table.codes), table.codebooks, False)
    query = np.ones(DIM, np.float32)

    np.testing.assert_array_equal(fastest(turned).best(query, 5), fastest(table).best(query, 5))


def test_the_best_of_several_lots_are_put_in_order() -> None:
    """By score descending, then by row."""
    found = Best.sorted(np.array([4, 2, 9]), np.array([1.0, 1.0, 3.0], np.float32), 2)

    assert found.rows.tolist() == [9, 2]


def test_blocks_let_go_of_the_codes_that_they_are_made_from() -> None:
    """Else four bits would take the memory of twelve."""
    table = coded(16, books=8)
    items = Shuffles.of(table)

    assert items.words.codes.base is None
    assert len(items.words.codes) == 0
