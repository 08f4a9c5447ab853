"""What is sent to the servers, and how their answers are compared."""

import json

import pytest

from benchmarks.peers import bodies
from benchmarks.peers.probes import PROBES

POOL = bodies.Pool(
    people=[{"user": {"u": "a"}, "context": {"c": 1}}],
    ids=["i0", "i1", "i2", "i3"],
    features={"price": [0.5, 1, 2, 3], "genre": ["x", "y", "x", None]},
    catalogue=True,
)


def _drawn(model: str, form: bodies.Form) -> dict[str, object]:
    drawn = bodies.draw(POOL, model=model, form=form, candidates=3, count=2)
    return json.loads(drawn[1])


def test_all_forms_and_models_hold_the_same_candidates() -> None:
    """Rows, columns and ids of a seed differ in shape alone, and in the model's name."""
    rows, columns, ids = (_drawn("m", form) for form in ("rows", "columns", "ids"))

    assert ids["candidates"] == columns["candidates"]["ids"]
    assert ids["candidates"] == [row["id"] for row in rows["candidates"]]
    prices = [row["features"]["price"] for row in rows["candidates"]]
    assert prices == columns["candidates"]["features"]["price"]
    assert _drawn("other", "rows") == rows | {"model": "other"}


def test_more_candidates_than_the_pool_holds_are_refused() -> None:
    """The error tells both numbers."""
    with pytest.raises(bodies.TooFew, match="5 candidates wanted, the bundle knows 4"):
        bodies.draw(POOL, model="m", form="ids", candidates=5, count=1)


def _answer(**scores: float) -> bytes:
    return json.dumps({"ids": list(scores), "scores": list(scores.values())}).encode()


def test_difference_of_equal_answers_is_none() -> None:
    """Other keys of an answer do not matter."""
    ours = json.dumps({"ids": ["a"], "scores": [0.5], "digest": "x"}).encode()

    assert bodies.difference(ours, _answer(a=0.5)) == 0.0


def test_difference_is_the_farthest_score() -> None:
    """Of two scores that moved the one that moved farther counts."""
    assert bodies.difference(_answer(a=0.5, b=0.3), _answer(a=0.6, b=0.1)) == pytest.approx(0.2)


def test_wrong_order_counts_by_what_is_between_the_scores() -> None:
    """Ties may come in either order, a worse candidate not before a better one."""
    expected = _answer(a=0.5, b=0.5, c=0.1)
    swapped = json.dumps({"ids": ["c", "b", "a"], "scores": [0.1, 0.5, 0.5]}).encode()

    assert bodies.difference(_answer(b=0.5, a=0.5, c=0.1), expected) == 0.0
    assert bodies.difference(swapped, expected) == pytest.approx(0.4)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"{",
        b"[]",
        b'{"ids": ["a"], "scores": []}',
        _answer(b=0.5),
        b'{"ids": ["a"], "scores": [null]}',
    ],
)
def test_what_is_no_ranking_of_the_same_items_is_infinitely_far(answer: bytes) -> None:
    """No JSON, no ranking, other ids."""
    assert bodies.difference(answer, _answer(a=0.5)) == float("inf")


def test_probes_spoil_a_body_each_in_its_own_way() -> None:
    """None is the body that it was made from, and no two are alike."""
    (body,) = bodies.draw(POOL, model="m", form="rows", candidates=2, count=1)

    spoilt = [make(body) for make in PROBES.values()]

    assert body not in spoilt
    assert len(set(spoilt)) == len(spoilt)
