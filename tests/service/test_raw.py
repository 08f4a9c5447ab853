"""Features read from JSON as it came: what is laid is what parser and encoders would have laid."""

import itertools
import json
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from model_store.bundle import open_bundle
from model_store.encoding import make_encoder
from model_store.manifest import (
    FeatureSpec,
    Manifest,
    NumericEncoding,
    TensorSpec,
    VocabularyEncoding,
)
from model_store.packed_ids import PackedIds
from model_store.store import Store
from service import kernels, schemas
from service.candidates import NO_LIMITS, ItemFeatures, read_candidates, read_raw
from service.errors import ServiceError
from service.features import LARGEST, FeaturePlan, RawReader, Tensors, _known
from service.item_ids import Index
from service.kernels import Brought
from service.schemas import RankRequest, RawRankRequest, parse_rank, parse_rank_raw
from tests.service.conftest import Serve

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not kernels.COMPILED, reason="loops are not compiled here"),
]

SHORT = ["a", "b", "7", "-3", "-1", "true", "12345678", "", "é"]
TOKENS = [*SHORT, "longer than eight"]
ALIKE = ["1234567", "123456789", "12345679", "aa"]  # and yet others
VOCABULARIES = {"brand": SHORT}  # of a feature; others have all tokens
IDS = ["i1", "i2", "i3"]


def token(name: str, start: int | None) -> FeatureSpec:
    """A feature of tokens; pruned without a start."""
    return FeatureSpec(
        name=name, kind="categorical", side="item", column=name,
        encoding=VocabularyEncoding(file=f"{name}.json", rows=len(TOKENS) + 2),
        tensor=None if start is None else "candidate_ids", start=start or 0,
    )  # fmt: skip


def number(name: str, start: int, encoding: NumericEncoding) -> FeatureSpec:
    """A feature of numbers."""
    return FeatureSpec(
        name=name, kind="numeric", side="item", column=name,
        encoding=encoding, tensor="candidate_numeric", start=start,
    )  # fmt: skip


FEATURES = (
    token("shop", 1),
    token("brand", 0),
    token("pruned", None),
    number("price", 0, NumericEncoding(transform="log1p", default=1.0)),
    number("stock", 1, NumericEncoding()),
    number("age", 3, NumericEncoding(transform="standardize", mean=3.0, scale=0.7)),
    number("margin", 2, NumericEncoding(transform="log1p")),
)
ITEM_FEATURES = ItemFeatures({spec.name for spec in FEATURES}, {"shop", "brand", "price", "stock",
                                                               "age", "margin"})  # fmt: skip


def plan_of(manifest: Manifest) -> FeaturePlan:
    """A plan for the features above."""
    inputs = (
        TensorSpec(name="candidate_numeric", dtype="float32", shape=("N", 4)),
        TensorSpec(name="candidate_ids", dtype="int32", shape=("N", 2)),
    )
    changed = manifest.model_copy(update={"features": FEATURES, "inputs": inputs, "item_id": None})
    encoders = {
        spec.name: make_encoder(spec, VOCABULARIES.get(spec.name, TOKENS))
        for spec in FEATURES
        if spec.tensor is not None
    }
    return FeaturePlan(changed, encoders)


@pytest.fixture(scope="module")
def plan(bundles: Path) -> FeaturePlan:
    """Of tokens and numbers with every transform, and one pruned feature."""
    return plan_of(open_bundle(bundles / "one").manifest)


def tensors_of(plan: FeaturePlan, count: int) -> Tensors:
    """Of candidates before anything is brought; 5 stands for what a catalogue would hold."""
    return {name: np.full((count, len(row)), 5, row.dtype) for name, row in plan.defaults.items()}


def laid_whole(plan: FeaturePlan, body: bytes) -> Tensors | None:
    """By the parser and the encoders; None if they refuse it, or would warn."""
    try:
        request = parse_rank(body)
        candidates = read_candidates(request, NO_LIMITS, ITEM_FEATURES)
        tensors = tensors_of(plan, len(candidates.ids))
        for name, column in candidates.columns.items():
            for place, value in enumerate(column):
                if value is not None:
                    plan.overlay(tensors, name, [value], [place])
    except (ServiceError, ValueError):
        return None
    return None if candidates.undeclared else tensors


def laid_raw(plan: FeaturePlan, body: bytes) -> Tensors | None:
    """As it came; None if it is left to the others."""
    request = parse_rank_raw(body)
    if request is None:
        return None
    assert isinstance(request, RawRankRequest)
    given = read_raw(request, NO_LIMITS)
    assert given is not None
    assert plan.raw is not None
    tensors, count = tensors_of(plan, len(given.ids)), len(given.ids)
    told = plan.raw.lay(tensors, given.brought, count, as_columns=given.as_columns)
    return tensors if told else None


def brought_by(*objects: bytes) -> Brought:
    """Objects, one after the other."""
    ends = np.cumsum([0, *map(len, objects)])
    return Brought(b"".join(objects), np.stack([ends[:-1], ends[1:]], axis=1))


def same(one: Tensors, other: Tensors) -> bool:
    """To the bit."""
    return one.keys() == other.keys() and all(
        one[name].tobytes() == other[name].tobytes() for name in one
    )


literals = st.from_regex(
    r"-?(0|[1-9][0-9]{0,18})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?", fullmatch=True
)
plain = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False,
    allow_infinity=False), st.sampled_from(TOKENS), st.text(max_size=9),
    st.lists(st.integers(0, 3) | st.text(max_size=2), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(0, 3), max_size=1),
)  # fmt: skip
as_json = st.one_of(plain.map(json.dumps), literals)
told = st.one_of(
    st.none(),
    st.sampled_from([each for each in (*TOKENS, *ALIKE) if each.isascii()]),
    st.integers(-(10**9), 10**9),
)
amounts = st.one_of(
    st.none(), st.integers(-(2**60), 2**60), st.floats(-3e38, 3e38), st.floats(-100, 100)
)
names = [spec.name for spec in FEATURES]
right = st.fixed_dictionaries(
    {},
    optional={name: (told if spec.kind == "categorical" else amounts).map(json.dumps)
              for name, spec in zip(names, FEATURES, strict=True)},
)  # fmt: skip
anything = st.lists(
    st.tuples(st.sampled_from([*names, "unknown", "sh\\u006fp"]), as_json), max_size=8
)
space = st.sampled_from(["", "", " ", "\n\t", "\r  "])


def object_of(pairs: Any, between: str) -> str:
    """JSON with white space of all kinds."""
    written = (f'{between}"{name}"{between}:{between}{value}{between}' for name, value in pairs)
    return "{" + ",".join(written) + "}"


def rows_of(brought: list[Any], between: str) -> bytes:
    """A body of rows."""
    rows = [
        json.dumps({"id": f"c{n}"})[:-1] + ', "features":' + between + each + between + "}"
        for n, each in enumerate(brought)
    ]
    return ('{"candidates": [' + ", ".join(rows) + "]}").encode()


def columns_of(count: int, pairs: Any, between: str) -> bytes:
    """A body of columns."""
    ids = json.dumps([f"c{n}" for n in range(count)])
    features = object_of(pairs, between)
    return f'{{"candidates": {{"ids": {ids}, "features": {features}}}}}'.encode()


@pytest.fixture(autouse=True, scope="module")
def _raw_from_the_first_byte() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schemas, "RAW_FROM", 0)
        yield


@given(st.lists(right, min_size=1, max_size=40), space)
def test_rows_are_read_as_they_are_parsed(
    plan: FeaturePlan, rows: list[dict[str, str]], between: str
) -> None:
    """Whatever comes in whatever order, and the rest left as it is; nothing is left to others."""
    body = rows_of([object_of(row.items(), between) for row in rows], between)
    expected = laid_whole(plan, body)
    assert expected is not None

    found = laid_raw(plan, body)

    assert found is not None
    assert same(found, expected)


@given(st.data(), st.integers(0, 40), space)
def test_columns_are_read_as_they_are_parsed(
    plan: FeaturePlan, data: st.DataObject, count: int, between: str
) -> None:
    """Any features, and null for a whole column."""
    some = data.draw(st.lists(st.sampled_from(FEATURES), unique_by=lambda spec: spec.name))
    pairs = []
    for spec in some:
        value = told if spec.kind == "categorical" else amounts
        values = data.draw(st.none() | st.lists(value, min_size=count, max_size=count))
        pairs.append((spec.name, json.dumps(values, separators=(f"{between},", ":"))))
    body = columns_of(count, pairs, between)
    expected = laid_whole(plan, body)
    assert expected is not None

    found = laid_raw(plan, body)

    assert found is not None
    assert same(found, expected)


def laid_tokens(known: list[str], texts: list[str]) -> Iterator[list[int]]:
    """Rows from 2 on of a vocabulary's tokens, from a column, and from as many objects."""
    ids, names = PackedIds.of(known), PackedIds.of(["shop"])
    vocabulary = (ids.text, ids.ends, *Index.of(ids), 2, 0)
    layout = kernels.Layout(
        (names.text, names.ends, *Index.of(names)), [vocabulary], 1, 0, several=True
    )
    numbers = np.empty((len(texts), 0))
    columns = brought_by(json.dumps({"shop": texts}).encode())
    several = brought_by(*(b'{"shop":"%s"}' % text.encode() for text in texts))
    for read, brought in ((kernels.read_columns, columns), (kernels.read_candidates, several)):
        rows = np.ones((len(texts), 1), np.int32)
        assert read(brought, layout, rows, numbers)
        yield rows[:, 0].tolist()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 16383, 16384, 16385])
def test_a_vocabulary_of_any_size_is_read(count: int) -> None:
    """Every token has its row, and no other text has one: few short ones are laid out anew."""
    known = [*map(str, range(count))]
    others = [*map(str, range(count, count + 3)), "1234567", "12345678", "123456789"]

    for rows in laid_tokens(known, known + others):
        assert rows == [*range(2, 2 + count), *[0] * len(others)]


def test_a_token_is_as_long_as_it_is() -> None:
    """Zeros behind a short one are none of it."""
    for rows in laid_tokens(["a\0", "\0", "b"], ["a", "", "b"]):
        assert rows == [0, 0, 4]


def read_right_or_left(plan: FeaturePlan, body: bytes) -> None:
    """What is read as it came is what parser and encoders would have laid."""
    if not isinstance(_parsed(body), RawRankRequest):
        return

    found = laid_raw(plan, body)

    if found is not None:
        expected = laid_whole(plan, body)
        assert expected is not None
        assert same(found, expected)


@settings(suppress_health_check=[HealthCheck.filter_too_much], max_examples=400)
@given(st.lists(anything, min_size=1, max_size=5), space)
@example([[("price", "-0")], [("price", "-0.0")], [("stock", "-0")], [("stock", "-0.0")]], "")
@example([[("price", "1e400")]], "")
@example([[("pruned", "1e400")]], "")
@example([[("shop", '"a"'), ("shop", "null")]], "")
@example([[("shop", "-0")], [("shop", "7.0")], [("shop", "-3")]], "")
@example([[("stock", "9007199254740993")], [("stock", "0.30000000000000004")]], "")
def test_whatever_comes_is_read_right_or_left_to_the_parser(
    plan: FeaturePlan, rows: list[Any], between: str
) -> None:
    """Nothing is laid that parser and encoders refuse, warn of, or lay otherwise."""
    read_right_or_left(plan, rows_of([object_of(row, between) for row in rows], between))


@settings(max_examples=300)
@given(st.integers(0, 3), st.lists(st.tuples(st.sampled_from([*names, "unknown"]), st.one_of(
    as_json, st.lists(as_json, max_size=4).map(lambda some: f"[{','.join(some)}]"))), max_size=4),
    space)  # fmt: skip
def test_whatever_columns_come_are_read_right_or_left_to_the_parser(
    plan: FeaturePlan, count: int, pairs: list[tuple[str, str]], between: str
) -> None:
    """Columns of another length, and what are no columns, too."""
    read_right_or_left(plan, columns_of(count, pairs, between))


def _parsed(body: bytes) -> RankRequest | RawRankRequest | None:
    try:
        return parse_rank_raw(body)
    except ServiceError:
        return None


@settings(max_examples=400)
@given(literals)
@example("0.0000000000000000000001234")
@example("0.00000000000000000000000001234")
@example("9007199254740993")
@example("1234567890.1234567")
@example("-1234567890123456789.12345678901234567890e-10")
def test_numbers_are_those_of_python(plan: FeaturePlan, literal: str) -> None:
    """To the bit, by the fast way and the slow one; out of range they are left."""
    value = float(literal) if re.search(r"[.eE]", literal) else float(int(literal))
    assert plan.raw is not None
    rows, numbers = np.zeros((1, 2), np.int32), np.full((1, 4), np.nan)

    told = kernels.read_candidates(
        brought_by(b'{"stock":%s}' % literal.encode()), plan.raw._layout, rows, numbers
    )

    assert told == (abs(value) <= float(np.finfo(np.float32).max) and len(literal) < 40)
    if told:
        assert numbers[0, 1].tobytes() == np.float64(value).tobytes()


@pytest.mark.parametrize(
    "brought",
    [
        '{"shop": "\\u0061"}', '{"shop": 7.0}', '{"shop": -0}', '{"sh\\u006fp": "a"}',
        '{"shop": "a", "shop": "a"}', '{"unknown": 1}', '{"unknown": null}', '{"price": "1"}',
        '{"price": true}', '{"price": 1e39}', '{"price": []}', '{"pruned": 1e400}',
        '{"pruned": {}}', '{"pruned": [[[[[[[[[[1]]]]]]]]]]}', '{"shop": ["a"]}', "[]", '"a"', "1",
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_left_to_the_parser(plan: FeaturePlan, brought: str) -> None:
    """An escape, another type, a name twice, a name that the bundle lacks."""
    assert laid_raw(plan, rows_of(["{}", brought], "")) is None


def test_what_is_pruned_is_passed_over(plan: FeaturePlan) -> None:
    """Lists, numbers and texts of a feature that the ranker does not take."""
    some = ['[1, ["a", null], []]', "1.5e3", '"x"', "null", "false", "[]"]
    rows = [object_of([("pruned", each), ("shop", '"b"')], " ") for each in some]

    found = laid_raw(plan, rows_of(rows, " "))

    assert found is not None
    assert found["candidate_ids"][:, 1].tolist() == [3] * len(some)


def test_a_plan_with_names_that_json_writes_otherwise_reads_nothing_raw(
    bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quote, a backslash or another character than ASCII in a name."""
    manifest = open_bundle(bundles / "one").manifest
    for name in ('a"b', "a\\b", "é", "a\nb"):
        monkeypatch.setitem(globals(), "FEATURES", (*FEATURES, token(name, None)))
        assert plan_of(manifest).raw is None


def test_without_compiled_loops_nothing_is_read_raw(plan: FeaturePlan) -> None:
    """Rows and columns are left to the parser."""
    assert plan.raw is not None
    layout, rows, numbers = plan.raw._layout, np.zeros((1, 2), np.int32), np.zeros((1, 4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "COMPILED", False)
        assert kernels.cut_features(b"{}") is None
        assert not kernels.read_candidates(brought_by(b"{}"), layout, rows, numbers)
        assert not kernels.read_columns(brought_by(b"{}"), layout, rows, numbers)
    assert kernels.read_candidates(brought_by(b"{}"), layout, rows, numbers)


bits = st.sampled_from(
    ["{", "}", "[", "]", '"', ",", ":", " ", "\n", "0", "1", "-", "+", ".", "e", "null", "true",
     '"shop"', '"stock"', '"pruned"', '"a"', '"stock":', '"shop":"b"', '"stock":1', "12.5", "\x01"]
)  # fmt: skip


@settings(max_examples=1000)
@given(st.lists(bits, max_size=12).map("".join), st.booleans())
@example('{"stock":01}', False)
@example('{"stock":1.}', False)
@example('{"stock":.5}', False)
@example('{"stock":1e}', False)
@example('{"stock":+1}', False)
@example('{"stock":1}}', False)
@example('{"stock":1', False)
@example('{"stock":1,}', False)
@example('{"shop":"a\n"}', False)
@example('{"shop":null1}', False)
@example('{"shop":"\x1f1234567"}', False)
@example('{"shop":"1234567890123\x1f4567890"}', False)
@example("{}}", False)
@example("{}1", True)
@example('{"shop":[null}', True)
@example("null", False)
def test_what_is_read_is_json(plan: FeaturePlan, text: str, as_columns: bool) -> None:
    """The parser does not see it; no bytes make the reader read elsewhere."""
    assert plan.raw is not None
    rows, numbers = np.zeros((1, 2), np.int32), np.zeros((1, 4))
    read = kernels.read_columns if as_columns else kernels.read_candidates

    if read(brought_by(text.encode()), plan.raw._layout, rows, numbers) and text:
        assert isinstance(json.loads(text), dict)


@given(st.binary(max_size=60) | st.text('{}[]",:\\ 0123456789.eE+-anulltrues', max_size=60).map(
    str.encode))  # fmt: skip
def test_no_bytes_make_the_reader_read_elsewhere(plan: FeaturePlan, raw: bytes) -> None:
    """Nothing happens, whatever it is."""
    assert plan.raw is not None
    rows, numbers = np.zeros((1, 2), np.int32), np.zeros((1, 4))

    kernels.read_candidates(brought_by(raw), plan.raw._layout, rows, numbers)
    kernels.read_columns(brought_by(raw), plan.raw._layout, rows, numbers)
    kernels.cut_features(raw)


def test_the_reader_checks_what_it_is_given(plan: FeaturePlan) -> None:
    """No memory is read or written that is not there."""
    assert plan.raw is not None
    layout = plan.raw._layout.compiled
    read = kernels._kernels.read_features
    rows, numbers = np.zeros((2, 2), np.int32), np.zeros((2, 4))
    two, one = brought_by(b"{}", b"{}"), brought_by(b"{}")
    assert read(layout, *two, False, 2, rows, numbers)
    for wrong in ((3, rows, numbers), (2, rows[:1], numbers), (2, rows, numbers[:1]),
                  (-1, rows, numbers), (2**61, rows, numbers), (2, rows[:0], numbers)):  # fmt: skip
        with pytest.raises(ValueError, match="room for each candidate"):
            read(layout, *two, False, *wrong)
    for spans in (
        [],
        [[0, 2]],
        [[0, 2]] * 3,
        [[0, 2], [-1, 2]],
        [[0, 2], [2, 5]],
        [[0, 2], [3, 2]],
    ):
        with pytest.raises(ValueError, match="one object a candidate"):
            read(layout, b"{}{}", np.array(spans, np.int64), False, 2, rows, numbers)
    for spans in (two.spans, two.spans.tobytes()[:-1], b""):
        with pytest.raises(ValueError, match="one of columns"):
            read(layout, b"{}{}", spans, True, 2, rows, numbers)
    for other in (None, read, object()):
        with pytest.raises(ValueError, match="PyCapsule"):
            read(other, *one, True, 2, rows, numbers)


def test_a_layout_checks_its_places(plan: FeaturePlan) -> None:
    """None lies outside of the tensors, and there is a name for each."""
    packed = PackedIds.of(["stock"])
    names = kernels.Known(packed.text, packed.ends, *Index.of(packed))
    make = kernels._kernels.layout
    for place in ((4,), (-1,), (*names, 2, 2), (*names, 2, -1)):
        with pytest.raises(ValueError, match="expected a place from 0"):
            make(names, (place,), 2, 4, True)
    for places in ((), ((), ())):
        with pytest.raises(ValueError, match="a name for each feature"):
            make(names, places, 2, 4, True)
    with pytest.raises(TypeError, match="a tuple for each feature"):
        make(names, (None,), 2, 4, True)
    with pytest.raises(ValueError, match="over 1 slots"):
        make((*names[:3], np.zeros(1, np.uint32)), ((),), 2, 4, True)
    with pytest.raises(TypeError):
        kernels.Layout(names._replace(ends=packed.ends.astype(np.int64)), [()], 2, 4, several=True)


def of(spec: FeatureSpec, side: str) -> FeatureSpec:
    """The same feature of the request."""
    tensor = spec.tensor and spec.tensor.replace("candidate", "request")
    return spec.model_copy(update={"side": side, "tensor": tensor})


STANDARD = NumericEncoding(transform="standardize", mean=3.0, scale=0.7, default=2.0)
SIDES = (
    of(token("city", 0), "user"),
    of(token("plan", 1), "user"),
    of(token("forgotten", None), "user"),
    of(token("page", 2), "context"),
    of(number("age", 0, STANDARD), "user"),
    of(number("hour", 1, NumericEncoding()), "context"),
    of(number("visits", 2, NumericEncoding(transform="log1p")), "user"),
)


@pytest.fixture(scope="module")
def asked(bundles: Path) -> FeaturePlan:
    """Of a request side of tokens and numbers, and a pruned feature."""
    inputs = (
        TensorSpec(name="request_numeric", dtype="float32", shape=("R", 3)),
        TensorSpec(name="request_ids", dtype="int32", shape=("R", 3)),
    )
    manifest = open_bundle(bundles / "one").manifest
    changed = manifest.model_copy(update={"features": SIDES, "inputs": inputs, "item_id": None})
    return FeaturePlan(changed, {s.name: make_encoder(s, TOKENS) for s in SIDES if s.tensor})


def side_of(*names: str) -> st.SearchStrategy[dict[str, Any]]:
    """Values that are right, as a rule."""
    values = st.one_of(plain, st.sampled_from(TOKENS), st.integers(-9, 9), st.floats(-9, 9))
    return st.dictionaries(st.sampled_from([*names, "unknown", "\ud800"]), values, max_size=5)


@settings(max_examples=500)
@given(side_of("city", "plan", "age", "visits", "forgotten"), side_of("page", "hour", "city"))
@example({"city": -3, "plan": 7}, {"page": 12345678})
@example({"city": 2**63}, {})
@example({"age": 10**400}, {})
@example({"age": int(LARGEST) + 1}, {})
@example({"age": -int(LARGEST) - 1}, {})
@example({"city": True, "plan": 7.0}, {"hour": True})
@example({"age": 3.5e38}, {})
@example({"age": 2**127, "visits": -1}, {"hour": 10**30})
@example({"city": "\ud800"}, {"\ud800": 1})
def test_a_request_side_is_laid_as_its_encoders_do(
    asked: FeaturePlan, user: dict[str, Any], context: dict[str, Any]
) -> None:
    """To the bit; what they refuse is refused in their words."""
    found, expected = [], []
    for told in (found, expected):
        with pytest.MonkeyPatch.context() as patch:
            if told is expected:
                patch.setattr(asked, "_reader", None)
            try:
                tensors = asked.request(user, context)
                told += [(name, t.dtype, t.shape, t.tobytes()) for name, t in tensors.items()]
            except ServiceError as error:
                told += [str(error), error.faults]

    assert sorted(map(repr, found)) == sorted(map(repr, expected))


def test_a_request_side_of_plain_values_needs_no_encoder(asked: FeaturePlan) -> None:
    """Texts, whole numbers, numbers, nulls and what the bundle does not know."""
    reader = asked._reader
    assert reader is not None

    for user in ({"city": "a", "plan": 7, "age": 3, "visits": 2.5, "x": []}, {"city": None}, {}):
        assert reader.tensors((user, {"page": "é", "hour": 5})) is not None
    assert reader.tensors(({"city": 7.0}, {})) is None
    assert reader.tensors(({"city": ["a"]}, {})) is None
    assert reader.tensors(({"age": "3"}, {})) is None


def test_a_side_is_laid_where_there_is_room(asked: FeaturePlan) -> None:
    """No memory is written that is not there."""
    reader = asked._reader
    assert reader is not None
    lay, layout = kernels._kernels.lay_side, reader._layouts[0].compiled
    rows, numbers = np.zeros((1, 3), np.int32), np.zeros((1, 3))
    for wrong in (
        (rows[:, :2].copy(), numbers),
        (rows, numbers[:0]),
        (np.zeros((2, 3), np.int32), numbers),
    ):
        with pytest.raises(ValueError, match="room for one row"):
            lay(layout, {}, *wrong)
    with pytest.raises(TypeError, match="expected texts"):
        lay(layout, {1: "a"}, rows, numbers)
    with pytest.raises(TypeError):
        lay(layout, [], rows, numbers)


def test_more_tokens_are_laid_than_wait_at_once() -> None:
    """And none where loops are not compiled."""
    many, names = 99, [f"city{n}" for n in range(99)]
    places = [kernels.TokenColumn(*_known(["-7"]), start=2, column=n) for n in range(many)]
    layout = kernels.Layout(_known(names), places, many, 0, several=True)
    rows, numbers = np.zeros((1, many), np.int32), np.zeros((1, 0))

    assert kernels.lay_side(layout, dict.fromkeys(names, -7), rows, numbers)

    assert rows.tolist() == [[2] * many]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "COMPILED", False)
        assert not kernels.lay_side(layout, {}, rows, numbers)


CUT = [
    ('{"features":{"a":1}}', '{"features":{}}', ['{"a":1}']),
    ('{"features" :\n {"a":1} }', '{"features" :\n {} }', ['{"a":1}']),
    ('[{"features":{}},{"features":{"b":2}},3]', '[{"features":{}},{"features":{}},3]',
     ["{}", '{"b":2}']),
    ('{"features":null,"x":"features"}', '{"features":null,"x":"features"}', []),
    ('{"features":[{"features":{"a":1}}]}', '{"features":[{"features":{}}]}', ['{"a":1}']),
    ('{"feature":{"a":1},"Features":{"a":1},"featuresx":{}}', None, []),
    ('{"features":{"a":{"b":1},"c":2}}', '{"features":{},"c":2}}', ['{"a":{"b":1}']),
    ("", None, []), ("5", None, []), ('{"é":{"features":{"é":1}}}', '{"é":{"features":{}}}',
                                      ['{"é":1}']),
]  # fmt: skip


@pytest.mark.parametrize(("body", "rest", "objects"), CUT)
def test_features_are_cut_out(body: str, rest: str | None, objects: list[str]) -> None:
    """Up to the first bracket that closes, and nothing else."""
    cut = kernels.cut_features(body.encode())

    assert cut is not None
    assert cut[0].decode() == (body if rest is None else rest)
    spans = cut[1].spans.tolist()
    assert [cut[1].body[start:end].decode() for start, end in spans] == objects


@pytest.mark.parametrize(
    "body", ['{"features":{"a":1', '{"features', '"', '{"features":{"', '{"features":{"a":"}"}}']
)
def test_what_is_not_closed_is_not_cut(body: str) -> None:
    """The parser says what is wrong with it."""
    assert kernels.cut_features(body.encode()) is None


MOST_READ = 9
PRICED = [{"id": "i1", "features": {"price": 9}}]
BODIES: list[dict[str, Any]] = [
    {"candidates": PRICED, "user": {"age": 24, "occupation": "doctor"}, "context": {"hour": 3.5}},
    {
        "candidates": PRICED,
        "user": {"occupation": 7},
        "context": {"decade": "doctor", "hour": 1995},
    },
    {"candidates": PRICED, "user": {"age": 10**39}, "context": {"decade": 1995}},
    {"candidates": [{"id": "i1", "features": {"price": 9, "genre": "drama"}}, {"id": "i2"}]},
    {"candidates": [{"id": i, "features": {"price": 2.5, "year": 7}} for i in IDS], "top_k": 2},
    {"candidates": [{"id": "i1", "features": None}, {"id": "new", "features": {"mood": "horror"}}]},
    {"candidates": {"ids": IDS, "features": {"price": [1, None, 3.5], "genre": None}}},
    {"candidates": {"ids": IDS, "features": {"price": [1, 2, 3]}}, "shape": "columns"},
    {"candidates": {"ids": IDS, "features": {"price": [1, 2]}}},
    {"candidates": {"ids": IDS, "features": {"price": 7}}},
    {"candidates": {"ids": IDS, "features": {"color": ["red", None, "blue"]}}},
    {"candidates": [{"id": "i1", "features": {"price": "dear"}}]},
    {"candidates": [{"id": "i1", "features": {"price": 1}}, {"id": "i1", "features": {}}]},
    {"candidates": [{"id": "i1", "features": {"price": 1}}, "i2"]},
    {"candidates": [{"id": "i1", "features": {"color": "red"}}], "user": {"height": 3}},
    {"candidates": [{"id": "i1", "features": {"price": 1}}], "explain": "features"},
    {"candidates": [{"id": "new", "features": {"price": 1}}], "unknown_items": "drop"},
    {"candidates": [{"id": "new", "features": {"price": 1}}], "unknown_items": "reject"},
    {"candidates": [{"id": "new", "features": {"price": 1}}], "unknown_items": "score"},
    {"candidates": [{"id": "x" * 600, "features": {"price": 1}}]},
    {"candidates": [{"id": "i1", "features": {"price": "dear"}}], "user": {"age": "old"}},
    {"candidates": [{"id": "i1", "features": {"price": 1}}], "user": {"age": "old"}},
    {"candidates": [{"id": "i1", "features": {"price": 1}}], "session_items": ["i2"]},
    {"candidates": [{"id": "i1", "features": {"price": 1e39}}], "model": "nobody"},
    {"candidates": [{"id": "i1", "features": {"price": 1}}], "model": "nobody"},
    {"candidates": {"ids": ["i1"], "features": {"price": 1}}, "model": "nobody"},
    {"candidates": [{"id": n, "features": {"price": n}} for n in range(7)], "id": 7},
    {"candidates": [{"id": n, "features": {"price": n}} for n in range(11)]},
]


WRONG = [  # most of them: JSON that is none, what is hidden or stands elsewhere
    b'{"candidates":[{"id":"i1","features":{"price":01}}]}',
    b'{"candidates":[{"id":"i1","features":{"price":1}1}]}',
    b'{"candidates":[{"id":"i1","features":{"price":1}.5}]}',
    b'{"candidates":[{"id":"i1","features":{"price":1}},]}',
    b'{"candidates":[{"id":"i1","features":{"genre":"}"}}]}',
    b'{"candidates":[{"id":"i1","features":{"genre":"a\nb"}}]}',
    b'{"candidates":[{"id":"i1","features":{"genre":{"a":1}}}]}',
    b'{"candidates":{"ids":["features"],"features":{"price":[1]}}}',
    b'{"candidates":{"ids":["i1"]},"user":{"features":{"price":[1]}}}',
    b'{"candidates":[{"id":"i1"}],"user":{"features":{"price":1}}}',
    b'{"candidates":[{"id":"i1","features":{"price":1}}],"user":{"features":{"price":1}}}',
    b'{"candidates":[{"id":"i1"},{"id":"i2","features":{"price":1}},{"id":"i3","features":null}]}',
    b'{"candidates":{"ids":["i1"],"features":{"price":[1],"genre":null',
    b'{"candidates":["features","x",{"features":{"price":1}}]}',
    b'{"candidates":[{"id":"i1","features":5,"features":{"price":1}}]}',
    b'{"candidates":[{"id":"i1","features":{"price":1e400},"features":{"price":1}}]}',
    b'{"candidates":{"ids":["i1"],"features":{"price":5},"features":{"price":[1]}}}',
    b'{"candidates":[{"id":"i1","features":{"price":1e400}}],"candidates":["i1"]}',
    b'{"candidates":["i1"],"candidates":[{"id":"i2","features":{"price":1}}]}',
    b'{"candidates":[{"id":"i1","features":{"price":1,"price":"x"}}]}',
]


@pytest.fixture(params=["flat", "plain"])
def readable(store: Store, bundles: Path, request: pytest.FixtureRequest) -> tuple[str, ...]:
    """What serves a bundle whose item features, or all features, loops can read."""
    store.publish(bundles / request.param, request.param)
    return (f"{request.param}@1",)


@pytest.mark.parametrize("inline_us", [0, 1e9], ids=["on a thread", "inline"])
async def test_answers_are_the_same_bytes(
    serve: Serve, readable: tuple[str, ...], inline_us: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of rankings and refusals, whether features were read as they came or parsed."""
    laid = list[bool]()
    lay = RawReader.lay

    def counting(*args: Any, **given: Any) -> bool:
        laid.append(lay(*args, **given))
        return laid[-1]

    monkeypatch.setattr(RawReader, "lay", counting)
    async with serve(models=readable, max_candidates=10, inline_us=inline_us) as client:
        for body in (*(json.dumps(each).encode() for each in BODIES), *WRONG):
            answers = []
            for start in (0, 2**62):
                monkeypatch.setattr(schemas, "RAW_FROM", start)
                reply = await client.post("/rank", content=body, headers={"x-request-id": "same"})
                timed = re.sub(rb'"timing_ms":\{[^}]*\}', b"", reply.content)
                answers.append((reply.status_code, reply.headers["content-type"], timed))

            assert answers[0] == answers[1], body
    assert laid.count(True) >= MOST_READ
    assert laid.count(False) > 1


def test_long_json_is_read_while_others_run(plan: FeaturePlan) -> None:
    """Without the GIL."""
    assert plan.raw is not None
    brought = brought_by(*[b'{"stock":1,"shop":"b"}'] * 200_000)
    rows, numbers = np.zeros((200_000, 2), np.int32), np.zeros((200_000, 4))
    steps, over, begun = itertools.count(), threading.Event(), threading.Event()

    def others() -> None:
        while not over.is_set():
            next(steps)
            begun.set()

    other, interval = threading.Thread(target=others), sys.getswitchinterval()
    sys.setswitchinterval(0.1)  # only who lets the GIL go loses it sooner
    try:
        other.start()
        begun.wait()
        before = next(steps)
        assert kernels.read_candidates(brought, plan.raw._layout, rows, numbers)
        assert next(steps) > before + 1
    finally:
        over.set()
        sys.setswitchinterval(interval)
        other.join()


def test_numbers_that_python_has_to_read_are_read_without_the_gil(plan: FeaturePlan) -> None:
    """It is taken for each of them."""
    assert plan.raw is not None
    count = 4000
    rows, numbers = np.zeros((count, 2), np.int32), np.zeros((count, 4))
    raws = [b'{"stock":0.30000000000000004,"shop":"b","age":%d}' % n for n in range(count)]

    assert kernels.read_candidates(brought_by(*raws), plan.raw._layout, rows, numbers)

    assert set(numbers[:, 1].tolist()) == {0.30000000000000004}
    assert rows[:, 1].tolist() == [3] * count
