"""Sessions in memory: selecting, recoding, and making prefixes of them."""

import numpy as np
import pytest

from compress.sessions.data import Prefixes, Sessions, augmented, stranger


def sessions(*lists: str, ids: str = "abcdef") -> Sessions:
    """One session a word, one item a letter."""
    rows = np.array([ids.index(item) for word in lists for item in word], np.int32)
    return Sessions.of(rows, np.array([len(word) for word in lists]), tuple(ids))


def words(some: Sessions) -> list[str]:
    """Back again; "?" for an item outside the catalogue."""
    return ["".join("?" if row < 0 else some.ids[row] for row in rows) for rows in some]


def judged(prefixes: Prefixes) -> list[tuple[str, str]]:
    """Each prefix with its target."""
    ids = prefixes.sessions.ids
    targets = ["?" if row < 0 else ids[row] for row in prefixes.targets]
    return list(zip(words(prefixes.sessions), targets, strict=True))


def test_a_session_is_its_slice_of_the_rows() -> None:
    """Lengths, owners of clicks and counts follow from the offsets."""
    some = sessions("abc", "", "ca")

    assert words(some) == ["abc", "", "ca"]
    assert some.lengths.tolist() == [3, 0, 2]
    assert some.session_of.tolist() == [0, 0, 0, 2, 2]
    assert some.counts().tolist() == [2, 1, 2, 0, 0, 0]


def test_sessions_can_be_selected_in_any_order() -> None:
    """Twice as well, and none."""
    some = sessions("abc", "", "ca")

    assert words(some.select(np.array([2, 0, 0]))) == ["ca", "abc", "abc"]
    assert words(some.select(np.array([], np.int64))) == []


def test_dropping_clicks_leaves_the_sessions_in_place() -> None:
    """Even those that lose all of theirs."""
    some = sessions("abc", "c", "ca")

    assert words(some.keep(some.rows != 2)) == ["ab", "", "a"]


def test_in_another_catalogue_strangers_are_unknown() -> None:
    """And what is unknown stays so."""
    other = sessions("abc", "ca").recoded(("c", "a"))

    assert words(other) == ["a?c", "ca"]
    assert words(other.recoded(tuple("xyzac"))) == ["a?c", "ca"]


def test_every_prefix_predicts_the_item_after_it() -> None:
    """As many as a session has clicks, less one; each keeps its session's owner."""
    made = augmented(sessions("abc", "d", "ef"), np.array([7, 8, 9]), min_prefix=1)

    assert judged(made) == [("a", "b"), ("ab", "c"), ("e", "f")]
    assert made.owner.tolist() == [7, 7, 9]


def test_prefixes_that_are_too_short_are_not_judged() -> None:
    """From two clicks on, RetailRocket's test has them."""
    made = augmented(sessions("abcd", "ef"), np.array([0, 1]), min_prefix=2)

    assert judged(made) == [("ab", "c"), ("abc", "d")]


def test_a_repeated_target_stands_in_its_prefix() -> None:
    """Anywhere in it; a target that is unknown repeats nothing, whatever else is unknown."""
    made = augmented(sessions("abac", "ff"), np.array([0, 1]), min_prefix=1)

    assert made.repeated.tolist() == [False, True, False, True]
    assert made.recoded(tuple("abc")).repeated.tolist() == [False, True, False, False]


@pytest.mark.parametrize("min_prefix", [1, 2, 3])
def test_prefixes_agree_with_a_plain_loop(min_prefix: int) -> None:
    """On sessions of all lengths."""
    rng = np.random.default_rng(0)
    some = sessions(*("".join(rng.choice(list("abcdef"), n)) for n in rng.integers(0, 7, 40)))

    made = augmented(some, np.arange(40), min_prefix)

    naive = [
        (word[:end], word[end]) for word in words(some) for end in range(min_prefix, len(word))
    ]
    assert judged(made) == naive
    assert made.repeated.tolist() == [target in prefix for prefix, target in naive]


def test_a_stranger_has_the_id_of_no_item() -> None:
    """Whatever the items are called."""
    assert stranger(["a"]) != "a"
    assert stranger(["unknown", "unknown_"]) not in {"unknown", "unknown_"}
