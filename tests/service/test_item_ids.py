"""Ids and rows, packed and as Python holds them."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service import kernels
from service.item_ids import Chosen, ItemIds
from tests.service.conftest import by, ways

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


@ways
@given(st.lists(texts, unique=True, max_size=60), st.lists(texts, max_size=20))
@example([], ["a"])
@example([""], ["", "a"])
@example(["a\0", "a", "\0a"], ["a\0b", "\0"])
@example(["é", "e\u0301", "日本", "𝄞"], ["日", "é"])
def test_every_id_is_found_and_no_other(compiled: bool, ids: list[str], others: list[str]) -> None:
    """Whatever characters they are of; the ids of rows are theirs."""
    with by(compiled):
        held = ItemIds.of(ids)
    expected = [ids.index(other) if other in ids else -1 for other in others]

    assert held.rows(ids).tolist() == list(range(len(ids)))
    assert held.rows(others).tolist() == expected
    assert held.rows(tuple(others)).dtype == np.intp
    assert list(held) == ids
    assert len(held) == len(ids)
    assert [other in held for other in others] == [row >= 0 for row in expected]


@ways
def test_many_ids_of_one_beginning_are_told_apart(compiled: bool) -> None:
    """As shops number theirs."""
    ids = [f"product-{row:07}" for row in range(20_000)]
    with by(compiled):
        held = ItemIds.of(ids)

    assert held.rows(ids[::-1]).tolist() == list(range(20_000))[::-1]
    assert (held.rows([item + "0" for item in ids]) == -1).all()
    assert held[12_345] == "product-0012345"


# Of each pair either half leads FNV-1a, a hash without a key, to the same lower 48 bits.
PAIRS = {
    "clckcukk": "bqeasp4u", "ohvsfc1q": "k2szzipl", "hnea1v2r": "wecc1kov", "m4chamqo": "m1jh2q5h",
    "gwjbu0wg": "nxxzdfj3", "sbf1oock": "dy0naesx", "sjqs1z2y": "i1fahm5j", "55f5m0hr": "00zfqrir",
    "nn1r5dpj": "rq2epmpm", "fyp5lbyf": "hj4fzslh",
}  # fmt: skip


@pytest.mark.skipif(not kernels.COMPILED, reason="Python's dictionary has the same key")
def test_nobody_can_choose_ids_that_meet_in_one_slot() -> None:
    """Else each look-up would pass by all of them: 1024 ids took a million steps."""
    ids = ItemIds.of(["".join(chosen) for chosen in itertools.product(*PAIRS.items())])
    assert ids.index is not None
    taken = itertools.groupby((ids.index.slots != kernels.FREE).tolist())
    runs = [len([*run]) for is_taken, run in taken if is_taken]

    assert sum(runs) == 1024
    assert max(runs) < 100


@ways
def test_half_a_character_is_no_id(compiled: bool) -> None:
    """A lone surrogate, which JSON can spell and UTF-8 cannot."""
    with by(compiled):
        held = ItemIds.of(["a", "b"])

    assert held.rows(["\ud800", "b"]).tolist() == [-1, 1]
    with pytest.raises(ValueError, match="surrogates not allowed"):
        ItemIds.of(["\ud800"])


@ways
def test_an_unknown_row_has_no_id(compiled: bool) -> None:
    """-1 stands for what is not there, and not for the last."""
    with by(compiled):
        held = ItemIds.of(["a", "b"])

    for row in (-1, 2):
        with pytest.raises(IndexError):
            held[row]


def test_some_ids_are_decoded_one_by_one() -> None:
    """By their place among those that were chosen."""
    chosen = Chosen(ItemIds.of(["a", "é", "c"]), np.array([2, 1]))

    assert [chosen[place] for place in range(len(chosen))] == ["c", "é"]


@pytest.mark.skipif(not kernels.COMPILED, reason="no compiled loops")
@pytest.mark.parametrize(("count", "each"), [(kernels.FEW + 1, 10), (kernels.FEW - 1, 28)])
def test_ids_take_ten_bytes_each_beyond_their_own(count: int, each: int) -> None:
    """Where they end, and slots, more of them where ids are few; nothing else is kept."""
    ids = ItemIds.of([f"item-{row}" for row in range(count)])
    assert ids.index is not None
    kept = ids.packed.ends.nbytes + ids.index.slots.nbytes

    assert kept <= each * (count + 1)
    assert not ids._row_of


@pytest.mark.skipif(not kernels.COMPILED, reason="no compiled loops")
def test_ids_whose_hashes_look_alike_are_told_apart() -> None:
    """A hundred thousand ids have 15 bits of their hashes in slots: many share them."""
    ids = [f"{row}" for row in range(100_000)]
    held = ItemIds.of(ids)
    assert held.index is not None
    slots = held.index.slots[held.index.slots != kernels.FREE]

    assert len(np.unique(slots >> 17)) < 1 << 15 < len(ids)
    assert held.rows(ids).tolist() == list(range(100_000))
    assert (held.rows([f"{row}" for row in range(100_000, 200_000)]) == -1).all()


@ways
@pytest.mark.parametrize("wanted", [[1], ["a", b"a"], ["a", None]])
def test_what_is_no_text_is_refused(compiled: bool, wanted: list[str]) -> None:
    """Rather than read as one, or called unknown."""
    with by(compiled):
        held = ItemIds.of(["a"])

    with pytest.raises(TypeError, match="expected texts"):
        held.rows(wanted)


@ways
def test_several_lists_are_looked_up_one_after_the_other(compiled: bool) -> None:
    """As a session and its candidates are."""
    with by(compiled):
        held = ItemIds.of(["a", "b"])

    assert held.rows(["b", "x"], (), ("a",), ["b"]).tolist() == [1, -1, 0, 1]
    assert held.rows().tolist() == []


@ways
def test_a_text_may_be_of_a_kind_of_its_own(compiled: bool) -> None:
    """As numpy's are."""
    with by(compiled):
        held = ItemIds.of(["a", "b"])

    assert held.rows([np.str_("b")]).tolist() == [1]


class Lying(list[str]):
    """A list that is longer than it says."""

    def __len__(self) -> int:
        return 1


@pytest.mark.skipif(not kernels.COMPILED, reason="a dictionary is asked one by one")
def test_what_may_lie_about_its_length_is_refused() -> None:
    """Nothing is written beyond the rows that it says there are."""
    with pytest.raises(TypeError, match="expected a list or tuple, got Lying"):
        ItemIds.of(["a"]).rows(Lying(["a"] * 1000))


@ways
@given(st.lists(texts, unique=True, min_size=1, max_size=20), st.data())
def test_an_id_that_appears_twice_is_refused(
    compiled: bool, ids: list[str], data: st.DataObject
) -> None:
    """Wherever the second one stands: which row would it mean?"""
    again = data.draw(st.sampled_from(ids))
    ids.insert(data.draw(st.integers(0, len(ids))), again)

    with by(compiled), pytest.raises(ValueError, match="appears twice"):
        ItemIds.of(ids)
