"""Requests drawn from a bundle's own files."""

import gzip
import json
from pathlib import Path

import pytest

from loadtest import traffic


@pytest.fixture
def bundle(store: Path) -> Path:
    """A small bundle's folder."""
    return traffic.bundle_folder(store, "ctr", "1")


def test_requests_are_real_and_repeatable(bundle: Path) -> None:
    """Candidates are the catalogue's, all different; users are whole golden ones; seeds repeat."""
    pool = traffic.read_pool(bundle)
    queries = traffic.draw(pool, candidates=20, count=30, seed=7)

    bodies = [json.loads(query.body) for query in queries]
    for body, query in zip(bodies, queries, strict=True):
        assert query.ids == set(body["candidates"]) <= set(pool.ids)
        assert len(body["candidates"]) == 20
        assert {"user": body["user"], "context": body["context"]} in pool.people
    assert queries == traffic.draw(pool, candidates=20, count=30, seed=7)
    assert queries != traffic.draw(pool, candidates=20, count=30, seed=8)


def test_bundle_without_a_catalogue_gives_rows_of_its_golden_requests(bundle: Path) -> None:
    """Where nothing is joined by id, candidates carry golden rows' features, kept together."""
    golden = [
        {"ids": ["0", "1"], "features": {"I14": ["a", "b"], "I15": [1, 2]}},
        {"ids": ["0", "1"], "features": {"I14": ["c", None]}},
    ]
    cases = [{"request": {"user": {"I1": 3}, "candidates": columns}} for columns in golden]
    (bundle / "golden.json").write_text(json.dumps(cases))
    (bundle / "manifest.json").write_text('{"golden": "golden.json", "items": null}')

    (query,) = traffic.draw(traffic.read_pool(bundle), candidates=4, count=1, seed=1)

    candidates = json.loads(query.body)["candidates"]
    features = candidates["features"]
    rows = set(zip(features["I14"], features["I15"], strict=True))
    assert rows == {("a", 1), ("b", 2), ("c", None), (None, None)}
    assert len(query.ids) == 4


def test_packed_golden_requests_are_read(bundle: Path) -> None:
    """A slim bundle keeps them in gzip; the manifest says under which name."""
    held = (bundle / "golden.json").read_bytes()
    plain = traffic.read_pool(bundle)
    (bundle / "golden.json").unlink()
    (bundle / "golden.json.gz").write_bytes(gzip.compress(held))
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "golden": "golden.json.gz"}))

    assert traffic.read_pool(bundle) == plain


def test_too_few_candidates_are_told_with_the_option_to_lower(bundle: Path) -> None:
    """More candidates than there are items is refused, with both numbers."""
    with pytest.raises(traffic.BundleUnusable, match=r"61 candidates asked for, 60 .*--candidates"):
        traffic.draw(traffic.read_pool(bundle), candidates=61, count=1, seed=1)


def test_missing_file_is_named(bundle: Path) -> None:
    """A bundle without its golden requests is refused, and the message names the file."""
    (bundle / "golden.json").unlink()

    with pytest.raises(traffic.BundleUnusable, match=r"golden\.json"):
        traffic.read_pool(bundle)


def test_only_bundle_of_a_store_needs_no_name(store: Path) -> None:
    """One bundle is chosen by itself; of two, one has to be named; of none, the way is shown.

    Session rankers do not count: they take other requests.
    """
    assert traffic.choose_model(store, None) == "ctr"

    (store / "films" / "versions" / "1").mkdir(parents=True)
    (store / "films" / "versions" / "1" / "manifest.json").write_text("{}")
    with pytest.raises(traffic.BundleUnusable, match="ctr, films"):
        traffic.choose_model(store, None)
    with pytest.raises(traffic.BundleUnusable, match="make demo"):
        traffic.choose_model(store / "elsewhere", None)


QUERY = traffic.Query(b"", frozenset({"a", "b"}))


@pytest.mark.parametrize(
    ("status", "content", "fault"),
    [
        (200, b'{"ids": ["b", "a"], "scores": [0.9, 0.2]}', None),
        (200, b'{"ids": ["b", "a"], "scores": [0.2, 0.2]}', None),
        (200, b'{"ids": ["b", "a"], "scores": [0.2, 0.9]}', "200 with scores out of order"),
        (200, b'{"ids": ["b"], "scores": [0.9]}', "200 with other ids than were sent"),
        (200, b'{"ids": ["b", "b"], "scores": [0.9, 0.2]}', "200 with other ids than were sent"),
        (200, b'{"ids": ["b", "c"], "scores": [0.9, 0.2]}', "200 with other ids than were sent"),
        (200, b'{"ids": ["b", "a"]}', "200 with other ids than were sent"),
        (200, b"<html>", "200: the answer is not JSON"),
        (200, b"[]", "200: the answer is no JSON object"),
        (503, b"null", "503: the answer is no JSON object"),
        (200, b'{"ids": 3, "scores": [1]}', "200 with something else than a ranking"),
        (200, b'{"ids": [["b"], "a"]}', "200 with something else than a ranking"),
        (
            200,
            b'{"ids": ["b", "a"], "scores": [1, null]}',
            "200 with something else than a ranking",
        ),
        (503, b'{"code": "overloaded"}', "503 overloaded"),
        (502, b"", "502"),
    ],
)
def test_only_a_complete_ranking_is_an_answer(
    status: int, content: bytes, fault: str | None
) -> None:
    """Anything but 200 with each id sent once, best first, is a failure that says what it was."""
    assert traffic.fault_of(QUERY, status, content) == fault
