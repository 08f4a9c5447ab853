"""Rankers without parameters: what they weigh, what they count, and the known figures."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress.progress import Silent
from compress.sessions.config import SessionExport
from compress.sessions.data import SessionData
from compress.sessions.evaluate import evaluate
from compress.sessions.export import export
from compress.sessions.rankers.base import NOTHING, SessionRanker, Ways
from compress.sessions.rankers.floors import FLOORS, rules
from compress.sessions.sources.files import SessionFiles, SessionFilesConfig
from compress.sessions.sources.synthetic import SyntheticSessions, SyntheticSessionsConfig
from model_store.manifest import Resources, SessionCard, SessionQuality
from tests.compress.sessions.test_data import sessions
from tests.compress.sessions.tracing import traced_once

EMPTY = torch.zeros(2, 7, 1)


@pytest.fixture(scope="module", autouse=True)
def _traced_once() -> Iterator[None]:
    with traced_once():
        yield


def floor(name: str, **options: Any) -> SessionRanker:
    """A ranker with these options."""
    torch.manual_seed(0)  # a floor, too, has a drawn start, which nothing reads
    return FLOORS[name](FLOORS[name].Config(**options)).eval()


def judged(name: str, data: SessionData, folder: Path) -> SessionQuality:
    """Fitted, exported and judged."""
    ranker, nothing = floor(name), Resources(flops=0)
    ranker.fit(data.train)
    bundle = export(
        ranker,
        None,
        folder / name,
        name=name,
        ids=data.train.ids,
        examples=data.validation,
        card=SessionCard(ranker=name, table="none", seed=0, dense=nothing, coded=nothing),
        options=SessionExport(golden_requests=2),
    )
    return evaluate(bundle, data.test, Silent()).quality


def masses(ways: Ways, rows: list[int], place: int, items: int, ranker: SessionRanker) -> Any:
    """(N,) what the ways lead to after the item at a place, by the definition of the score."""
    mass = np.zeros(items)
    for t, row in enumerate(rows):
        if ways.repeat is not None:
            mass[row] += np.exp(float(ways.repeat[0, place, t]))
        if ways.follow is not None:
            after, share = ranker.neighbours.of(row)
            mass[after] += np.exp(float(ways.follow[0, place, t])) * share
    return mass


def ranked(name: str, rows: list[int], items: int, **options: Any) -> list[int]:
    """The items that a session leads to by its own items alone, best first."""
    ranker = floor(name, **options)
    mass = masses(ranker(torch.zeros(1, len(rows), 1)), rows, len(rows) - 1, items, ranker)
    return [int(row) for row in np.argsort(-mass) if mass[row] > 0]


def test_own_items_come_latest_first() -> None:
    """However often an older one stands."""
    for rows in itertools.product(range(3), repeat=6):
        assert ranked("own-items", list(rows), 3) == list(dict.fromkeys(reversed(rows)))


def test_long_sessions_keep_their_order() -> None:
    """Weights of fifty clicks are apart, and over what is never reached."""
    rows = [*range(49), 0]
    weights = floor("own-items").encode(torch.zeros(1, 50, 1)).repeat[0, -1]

    assert ranked("own-items", rows, 50) == list(dict.fromkeys(reversed(rows)))
    assert weights.min() > -100


@pytest.mark.parametrize("name", sorted(FLOORS))
def test_nothing_to_come_weighs_anything(name: str) -> None:
    """As for any session ranker: a position sees those up to it."""
    ways = floor(name)(EMPTY)

    for weights in (ways.repeat, ways.follow):
        if weights is not None:
            assert weights.shape == (2, 7, 7)
            to_come = torch.ones(7, 7).triu(1).bool()
            assert (weights[:, to_come] == NOTHING).all()
            assert (weights[:, torch.eye(7).bool()] == 0).all()


def test_each_floor_has_its_ways_and_none_has_vectors() -> None:
    """What a bundle of it needs follows from them."""
    have = {
        name: {way for way, each in floor(name)(EMPTY)._asdict().items() if each is not None}
        for name in FLOORS
    }

    assert have == {
        "own-items": {"repeat"},
        "sequential-rules": {"follow"},
        "rules-and-own": {"repeat", "follow"},
    }
    assert not any(each.USES_VECTORS for each in FLOORS.values())


def test_only_the_last_clicks_are_followed() -> None:
    """Five of them, each 0.6 of the next."""
    weights = floor("sequential-rules")(EMPTY).follow[0, -1]

    assert weights.exp().tolist() == pytest.approx([0, 0, 0.6**4, 0.6**3, 0.6**2, 0.6, 1])


def test_rules_worked_by_hand() -> None:
    """abac: after a, b at gap 1, itself at 2, c at 3 and at 1; its row is divided by 7/3."""
    found = rules(sessions("abac", ids="abc"), reach=10, most=9)

    rows = {"abc"[row]: list(zip(*found.of(row), strict=True)) for row in range(3)}
    assert rows["a"] == [(2, pytest.approx(4 / 7)), (1, pytest.approx(3 / 7))]
    assert rows["b"] == [(0, pytest.approx(2 / 3)), (2, pytest.approx(1 / 3))]
    assert rows["c"] == []


def test_rules_end_at_their_reach_and_at_the_session() -> None:
    """What is further away, or of another session, follows nothing."""
    found = rules(sessions("abcd", "ea", ids="abcde"), reach=2, most=9)

    after = {"abcde"[row]: {"abcde"[v] for v in found.of(row)[0]} for row in range(5)}
    assert after == {"a": {"b", "c"}, "b": {"c", "d"}, "c": {"d"}, "d": set(), "e": {"a"}}


def test_rules_keep_the_heaviest_followers() -> None:
    """Each row its own; their weights stay shares of all."""
    some = sessions("ab", "ab", "ac", "ad", "ad", "ad", "cb", ids="abcd")

    few = rules(some, reach=10, most=2)

    assert few.of(0)[0].tolist() == [3, 1]
    assert few.of(0)[1].tolist() == pytest.approx([3 / 6, 2 / 6])
    assert few.of(2)[0].tolist() == [1]


def test_rules_agree_with_a_plain_loop() -> None:
    """On drawn sessions of all lengths."""
    rng = np.random.default_rng(0)
    some = sessions(*("".join(rng.choice(list("abcdef"), n)) for n in rng.integers(0, 16, 60)))
    dense = np.zeros((6, 6))
    for rows in some:
        for (i, u), (j, v) in itertools.combinations(enumerate(rows), 2):
            if u != v and j - i <= 10:
                dense[u, v] += 1 / (j - i)
    dense /= dense.sum(1, keepdims=True)

    found = rules(some, reach=10, most=6)

    for row in range(6):
        after, share = found.of(row)
        assert sorted(after) == sorted(np.flatnonzero(dense[row]))
        assert share == pytest.approx(dense[row][after])
        assert (np.diff(share) <= 0).all()


def test_a_rule_and_an_own_item_weigh_alike() -> None:
    """After one click: the item itself 1, its followers together 1."""
    ranker = floor("rules-and-own")
    ranker.fit(sessions("abac", "ad", ids="abcd"))
    mass = masses(ranker(torch.zeros(1, 1, 1)), [0], 0, 4, ranker)

    assert mass[0] == pytest.approx(1.0)
    assert mass[1:].sum() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("name", "option"),
    [("sequential-rules", {"decay": 1.5}), ("rules-and-own", {"own_decay": 0.0}),
     ("own-items", {"decay": 0.5})],
)  # fmt: skip
def test_options_are_checked(name: str, option: dict[str, float]) -> None:
    """A decay is a share; own items have none to choose."""
    with pytest.raises(ValueError, match=next(iter(option))):
        FLOORS[name].Config(**option)


@pytest.fixture(scope="module")
def made() -> SessionData:
    """Sessions that repeat and follow."""
    return SyntheticSessions(SyntheticSessionsConfig(sessions=1200)).parts()


@pytest.mark.slow
def test_each_floor_finds_what_it_looks_for(made: SessionData, tmp_path: Path) -> None:
    """Own items all repeats and nothing new, rules what is new, both together most."""
    own, seq, both = (judged(name, made, tmp_path) for name in FLOORS)

    assert own.repeated["P@20"] > 0.95
    assert own.new["P@20"] < 0.1  # only what ties for the last places of a small catalogue
    assert seq.new["P@20"] > 0.5
    assert both.metrics["NDCG@20"] > max(own.metrics["NDCG@20"], seq.metrics["NDCG@20"])


def split(folder: Path, min_prefix: int) -> SessionData:
    """A published split; one session is held out, so that the rules count nearly all."""
    config = SessionFilesConfig(
        train=str(folder / "train_sessions.parquet"),
        test=str(folder / "test.parquet"),
        min_prefix=min_prefix,
        validation=1,
    )
    return SessionFiles(config).parts()


KNOWN = {
    ("tmall", "own-items"): {"P@10": 41.52, "MRR@10": 18.18, "P@20": 45.22, "MRR@20": 18.46},
    ("tmall", "sequential-rules"): {"P@10": 9.31, "P@20": 13.84, "MRR@20": 4.04},
    ("tmall", "rules-and-own"): {"P@10": 41.35, "P@20": 47.25, "MRR@20": 20.64},
    ("retailrocket", "own-items"): {"P@10": 37.77, "MRR@10": 25.84, "P@20": 38.14},
    ("retailrocket", "rules-and-own"): {"P@10": 50.00, "P@20": 56.44, "MRR@20": 29.57},
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "ranker"), sorted(KNOWN))
def test_the_floors_are_those_measured_before(
    shared_data: Path, tmp_path: Path, name: str, ranker: str
) -> None:
    """Within 0.7 points of compression-anchors.md §3.2, by the exported files."""
    data = split(shared_data / name, min_prefix=2 if name == "retailrocket" else 1)

    found = judged(ranker, data, tmp_path).metrics

    for metric, percent in KNOWN[name, ranker].items():
        assert 100 * found[metric] == pytest.approx(percent, abs=0.7), metric
