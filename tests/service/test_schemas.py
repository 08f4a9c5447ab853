"""Bodies parsed at once, in steps and in part: the same requests, the same refusals."""

import msgspec
import pytest

from service import schemas
from service.errors import ServiceError
from service.schemas import (
    CandidateColumns,
    CandidateRow,
    RankRequest,
    RawRankRequest,
    parse_rank,
    parse_rank_in_steps,
    parse_rank_raw,
)

DEEP = 200_000
BODIES = [
    b'{"candidates": [1, 2.0, "a"]}',
    b'{"candidates": [{"id": 1, "features": {"a": [1, {"b": null}]}}, {"id": "2"}], "top_k": 3}',
    b'{"candidates": [1, {"id": 3}]}',
    b'{"candidates": []}',
    b'{"candidates":  {"ids": [1, "2"], "features": {"a": null, "b": [1, [2]]}}, "id": 7}',
    b'{"candidates": {"ids": [1], "features": null}, "user": {"a": 1}, "shape": "columns"}',
    b'{"candidates": {"ids": [1]}, "session_items": ["a"], "model": "m", "explain": "features"}',
    b'{"candidates": [1], "candidates": [2, 3]}',
    b'{"candidates": [{"id": 1, "features": 5, "features": {"a": 1}}]}',
    b'{"candidates": [{"id": 1, "features": {"a": 1e400}, "features": {"a": 1}}]}',
    b'{"candidates": {"ids": [1], "features": {"a": 5}, "features": {"a": [1]}}}',
    b'{"candidates": [{"id": 1, "features": {"a": 1e400}}], "candidates": [1]}',
    b'{"candidates": {"ids": [1], "features": 5}, "candidates": [{"id": 1, "features": {}}]}',
    b'{"top_k": 1, "candidates": ["\xc3\xa9"]}',
    b"",
    b"{}",
    b"[]",
    b"null",
    b'{"candidates": null}',
    b'{"candidates": "a"}',
    b'{"candidates": 7}',
    b'{"candidates": [1,]}',
    b'{"candidates": [1]} x',
    b'{"candidates": [{"id": "\xff"}]}',
    b'{"candidates": [1, {"idd": 1}]}',
    b'{"candidates": [{"id": 1, "features": []}]}',
    b'{"candidates": [{"id": 1}, {"id": 2, "features": {"a": NaN}}]}',
    b'{"candidates": [1e999]}',
    b'{"candidates": {"ids": 1}}',
    b'{"candidates": {"ids": [1], "features": {"a": 1}}}',
    b'{"candidates": {"ids": [1], "features": {"a": [nul]}}}',
    b'{"candidates": {"ids": [1], "other": 1}}',
    b'{"candidates": [1], "top_k": 0}',
    b'{"candidates": [1], "other": 0}',
    b'{"candidates": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    b'{"candidates": [{"id": 1, "features": {"a": ' + b"[" * DEEP + b"]" * DEEP + b"}}]}",
]


def _outcome(parse: object, body: bytes) -> object:
    try:
        return parse(body)  # type: ignore[operator]
    except ServiceError as error:
        return type(error), str(error), getattr(error, "faults", None)


@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:76]))
def test_parsing_in_steps_is_parsing(body: bytes) -> None:
    """Whatever the body, valid or not: the same request, or the same words about the same place."""
    assert _outcome(parse_rank_in_steps, body) == _outcome(parse_rank, body)


@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:76]))
def test_what_is_parsed_in_part_is_what_the_whole_has(
    body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but features of candidates; what is wrong with these is found by who reads them."""
    monkeypatch.setattr(schemas, "RAW_FROM", 0)
    whole, part = _outcome(parse_rank, body), _outcome(parse_rank_raw, body)

    if not isinstance(part, RawRankRequest):
        assert part is None or part == whole
        return
    if isinstance(whole, RankRequest):
        assert _put_together(part) == whole


def _put_together(part: RawRankRequest) -> RankRequest:
    """The request with what was cut out of it."""
    objects = [bytes(part.brought.body[start:end]) for start, end in part.brought.spans]
    given = part.asked.candidates
    bringing = [given] if isinstance(given, CandidateColumns) else given
    for each in bringing:
        if isinstance(each, CandidateRow | CandidateColumns) and each.features is not None:
            assert each.features == {}
            each.features = msgspec.json.decode(objects.pop(0))
    assert not objects
    return part.asked


@pytest.mark.parametrize(
    ("body", "parsed"),
    [
        (b'{"candidates": [{"id": "%s", "features": {"a": "b"}}]}', RawRankRequest),
        (b'{"candidates": [{"id": "%s"}, {"id": 2, "features": null}]}', RankRequest),
        (b'{"candidates": {"ids": ["%s"], "features": {"a": ["b"]}}}', RawRankRequest),
        (b'{"candidates": {"ids": ["%s"]}}', None),
        (b'{"candidates": {"features" :\n {"a": ["features"]}, "ids": ["%s"]}}', RawRankRequest),
        (b'{"candidates": {"features": {}, "ids": ["%s"]}, "candidates": {"ids": []}}', None),
        (
            b'{"candidates": {"ids": ["%s"]}, "candidates": {"ids": [], "features": {}}}',
            RawRankRequest,  # of both all is seen
        ),
        (
            b'{"candidates": {"ids": ["%s"], "features": 5, "features": {"a": ["long, longer"]}}}',
            None,
        ),
        (b'{"candidates": {"ids": ["%s"], "features": {}, "features": 5, "features": {}}}', None),
        (b'{"candidates": ["%s"]}', None),
        (b'{"candidates": ["features", "%s"]}', RankRequest),
        (b'{"candidates": [{"id": "%s\xc3\xa9", "features": {"a": "b"}}]}', None),
        (b'{"candidates": [{"id": "%s\\n", "features": {"a": "b"}}]}', None),
        (b'{"candidates": [{"id": "%s", "features": 5, "features": {}}]}', None),
        (b'{"candidates": {"ids": ["%s"], "features": {"a": 1}, "features": {}}}', None),
        (b'{"candidates": [{"id": "%s", "features": 5}], "candidates": ["a"]}', None),
        (b'{"candidates": [5], "candidates": [{"id": "%s", "features": {}}]}', RawRankRequest),
        (b'{"candidates": [{"id": "%s", "features": {}}], "candidates": {"ids": []}}', None),
        (b'{"candidates": [{"id": "%s", "features": {}, "features": {}}]}', None),
        (b'{"candidates": [{"id": "%s", "features": null}, {"id": "null"}]}', RankRequest),
        (b'{"candidates": [{"id": "%s", "features": {"a": "features"}}]}', RawRankRequest),
        (b'{"candidates": [{"id": "features", "features": {"a": "%s"}}]}', RawRankRequest),
        (b'{"candidates": ["%s"], "user": {"features": {"a": 1}}}', None),
        (b'{"candidates": [{"id": "%s", "features": {"a": {"b": 1}}}]}', None),
    ],
)
def test_what_is_left_as_it_came_hides_nothing(body: bytes, parsed: type | None) -> None:
    """Of a name that comes twice only the last value was seen; nor are short bodies worth it."""
    kind = type(None) if parsed is None else parsed

    assert isinstance(parse_rank_raw(body % (b"x" * schemas.RAW_FROM)), kind)
    assert parse_rank_raw(body % b"x") is None


@pytest.mark.parametrize(
    "body",
    [
        b'{"candidates": [{"id": 1, "features": {"features": 1}}, {"id": 2, "features": null}]}',
        b'{"candidates": {"ids": [1], "features": {"candidates": ["features"]}}}',
        b'{"candidates": [1, 2]}',
    ],
)
def test_names_within_features_do_not_stop_the_steps(
    body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The body is not parsed at once, which would keep the event loop waiting."""
    whole = parse_rank(body)
    monkeypatch.delattr(schemas, "parse_rank")

    assert parse_rank_in_steps(body) == whole


def test_every_field_survives_the_steps() -> None:
    """A field that the outline forgot would be refused, or dropped."""
    request = RankRequest(
        candidates=["a"], id="i", model="m", user={"u": 1}, context={"c": 2}, session_items=["s"],
        top_k=1, unknown_items="drop", explain="features", shape="columns",
    )  # fmt: skip
    assert None not in msgspec.structs.astuple(request)

    assert parse_rank_in_steps(msgspec.json.encode(request)) == request
