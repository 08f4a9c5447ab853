"""An exported session ranker is the trained one, and its bundle all that scoring takes."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from compress.graph import SessionGraph
from compress.progress import Silent
from compress.sessions import export as exporting
from compress.sessions.config import SessionExport, Weights
from compress.sessions.costs import graph_numbers
from compress.sessions.data import SessionData
from compress.sessions.evaluate import evaluate
from compress.sessions.export import (
    TOLERANCE,
    SessionExportError,
    export,
    narrowed,
    prove,
    torch_scores,
    write_graph,
)
from compress.sessions.rankers.base import SessionRanker
from compress.sessions.tables import TABLES, Teacher
from compress.sessions.tables.learned import LearnedTable
from model_store.bundle import Bundle, open_bundle
from model_store.item_vectors import ItemVectors
from model_store.manifest import UNREACHED, Resources, SessionCard
from tests.compress.sessions.students import (
    DIM,
    FLOORS,
    TRAINED,
    drawn_ranker,
    new_ranker,
    synthetic,
)

NOTHING_YET = Resources(flops=0)
CARD = SessionCard(ranker="any", table="any", seed=0, dense=NOTHING_YET, coded=NOTHING_YET)
Case = tuple[str, dict[str, Any]]


def label(case: Case) -> str:
    """What a case is called."""
    return "-".join(map(str, (case[0], *case[1].values())))


every = pytest.mark.parametrize("case", [*TRAINED, *FLOORS], ids=label)


@pytest.fixture(scope="module")
def data() -> SessionData:
    """A small data set."""
    return synthetic()


def made(case: Case, data: SessionData, **more: Any) -> SessionRanker:
    """A ranker, drawn or fitted."""
    name, options = case
    ranker = drawn_ranker(name, **{**options, **more})
    ranker.fit(data.train)
    return ranker


def table_of(kind: str, data: SessionData) -> ItemVectors:
    """Drawn item vectors as they ship, or as codes of them do."""
    learned = LearnedTable(torch.randn(data.train.items, DIM, generator=torch.manual_seed(5)))
    if kind == "dense":
        return learned.export()
    config = TABLES[kind].Config(codes="3x16", beam=1, rounds=1)
    vectors = learned(torch.arange(learned.items)).detach()
    given = Teacher(vectors, torch.from_numpy(data.train.counts()), data.train)
    built = TABLES[kind]().build(given, config, torch.Generator().manual_seed(0), Silent())
    return built.export()


def exported(
    ranker: SessionRanker,
    table: ItemVectors | None,
    data: SessionData,
    folder: Path,
    **options: Any,
) -> Bundle:
    """A sealed bundle."""
    chosen = {"golden_requests": 5, "golden_candidates": 12, **options}
    return export(
        ranker,
        table,
        folder,
        name="session",
        ids=data.train.ids,
        examples=data.validation,
        card=CARD,
        options=SessionExport(**chosen),
    )


@pytest.fixture(scope="module")
def bundles(data: SessionData, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Bundles by case and kind of table, each made once; the dense table's in half precision.

    Read only.
    """
    kept: dict[str, tuple[SessionRanker, Bundle]] = {}

    def of(case: Case, kind: str) -> tuple[SessionRanker, Bundle]:
        key = f"{case} {kind}"
        if key not in kept:
            ranker, folder = made(case, data), tmp_path_factory.mktemp("bundle")
            table = table_of(kind, data) if ranker.USES_VECTORS else None
            weights = "float16" if kind == "dense" else "float32"
            kept[key] = ranker, exported(ranker, table, data, folder, weights=weights)
        return kept[key]

    return of


@pytest.fixture(scope="module")
def graph(bundles: Any) -> tuple[SessionRanker, Path]:
    """A ranker and its graph. Read only."""
    ranker, bundle = bundles(TRAINED[0], "rq")
    return ranker, bundle.path(bundle.manifest.graph)


def drawn(rows: int, length: int, dim: int) -> torch.Tensor:
    """(R, L, dim)."""
    return torch.randn(rows, length, dim, generator=torch.Generator().manual_seed(length))


# --- the graph -------------------------------------------------------------------------------


@pytest.mark.slow
@every
def test_the_graph_is_the_ranker(case: Case, bundles: Any) -> None:
    """For sessions of any length, none and the longest too, alone and together."""
    ranker, bundle = bundles(case, "rq" if case in TRAINED else "none")
    runtime = SessionGraph(bundle.path(bundle.manifest.graph))
    names = ("query", "repeat", "follow")

    for length in (0, 1, 2, 9, ranker.config.length):
        for rows in (1, 4):
            sessions = drawn(rows, length, ranker.config.dim)
            found = runtime.run(sessions.numpy())
            with torch.inference_mode():
                ways = ranker.encode(sessions)
            expected = {
                name: way[:, -1].numpy()
                for name, way in zip(names, ways, strict=True)
                if way is not None
            }
            assert found.keys() == expected.keys()
            for name, way in expected.items():
                assert found[name].shape == way.shape
                np.testing.assert_allclose(found[name], way, atol=TOLERANCE, rtol=0)


def test_the_graph_tells_nothing_of_the_machine_that_made_it(graph: tuple[Any, Path]) -> None:
    """No metadata, no stack traces, no paths; axes are named R and L."""
    raw, model = graph[1].read_bytes(), onnx.load(graph[1])

    assert b"stack_trace" not in raw
    assert b".py" not in raw
    assert not model.graph.value_info
    axes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert axes == {"session": ["R", "L", DIM], "query": ["R", DIM], "repeat": ["R", "L"]}


@pytest.fixture(scope="module")
def amid_training(
    data: SessionData, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SessionRanker, Bundle]:
    """A ranker that is being trained, and its bundle in half precision. Read only."""
    ranker, folder = made(TRAINED[0], data).train(), tmp_path_factory.mktemp("bundle")
    return ranker, exported(ranker, table_of("dense", data), data, folder, weights="float16")


@pytest.mark.slow
def test_making_a_graph_leaves_the_ranker_as_it_was(
    amid_training: tuple[SessionRanker, Bundle], data: SessionData
) -> None:
    """Training may go on: nothing is rounded in it, nor is it switched."""
    ranker, _ = amid_training
    before = made(TRAINED[0], data).state_dict()

    assert ranker.training
    for name, value in ranker.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.slow
def test_the_same_ranker_gives_the_same_graph(
    amid_training: tuple[SessionRanker, Bundle], bundles: Any
) -> None:
    """To the last bit: a run that goes on after a kill seals what it would have sealed."""
    graphs = [
        bundle.path(bundle.manifest.graph).read_bytes()
        for bundle in (amid_training[1], bundles(TRAINED[0], "dense")[1])
    ]

    assert graphs[0] == graphs[1]


# --- weights in sixteen bits -----------------------------------------------------------------


def weight_bytes(path: Path) -> int:
    """What the weights take, not counting single numbers."""
    return sum(
        numpy_helper.to_array(weight).nbytes
        for weight in onnx.load(path).graph.initializer
        if weight.dims
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "weights"),
    [
        *((case, "int8") for case in TRAINED),
        *((case, "float16") for case in (TRAINED[0], TRAINED[-1])),  # where layouts do not matter
    ],
    ids=lambda given: given if isinstance(given, str) else label(given),
)
def test_fewer_bytes_hold_the_same_ranker(
    case: Case, data: SessionData, tmp_path: Path, weights: Weights
) -> None:
    """But for what is small: the graph is the rounded ranker, and both are near the trained one."""
    share, off = (0.6, 0.05) if weights == "float16" else (0.4, 0.5)
    ranker, rounded = made(case, data, dim=32), narrowed(made(case, data, dim=32), weights)
    small = tmp_path / "small.onnx"
    write_graph(rounded, small, weights)

    sessions = [drawn(1, length, 32).numpy()[0] for length in (0, 1, 7)]
    assert prove(rounded, small, sessions) <= TOLERANCE
    assert weight_bytes(small) < share * sum(each.nbytes for each in ranker.parameters())
    with torch.inference_mode():
        near, exact = rounded.encode(drawn(3, 7, 32)).query, ranker.encode(drawn(3, 7, 32)).query
    assert 0 < (near - exact).abs().max() < off


@pytest.mark.slow
def test_a_wide_encoder_in_eight_bits_is_a_sound_graph(data: SessionData, tmp_path: Path) -> None:
    """Its scales are hundreds, and are not narrowed in their turn; rows of zeros have one too."""
    ranker = new_ranker("sasrec", dim=128, length=300).eval()
    assert not ranker.repeat.age_key.any()
    write_graph(narrowed(ranker, "int8"), tmp_path / "whole.onnx", "float32")
    models = {weights: onnx.load(tmp_path / "whole.onnx") for weights in ("float16", "int8")}
    for weights, model in models.items():
        exporting._narrow(model.graph, weights)
        onnx.checker.check_model(model, full_check=True)

    # A weight counts once, whatever it is kept in.
    assert graph_numbers(models["int8"].graph) == graph_numbers(models["float16"].graph)


@pytest.mark.slow
def test_weights_by_age_of_long_sessions_keep_their_bits(tmp_path: Path) -> None:
    """Of 256 ages and more they are rounded too, and what tracing makes of them rounds no more."""
    ranker, path = drawn_ranker("sasrec", length=300), tmp_path / "model.onnx"
    small = narrowed(ranker, "float16")
    write_graph(small, path, "float16")

    sessions = [drawn(1, length, DIM)[0].numpy() for length in (1, 7, 300)]
    assert prove(small, path, sessions) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sasrec", "stamp"])
def test_short_sessions_export_too(name: str, data: SessionData, tmp_path: Path) -> None:
    """No example is longer than what the ranker takes, be it the least that there is."""
    length = 2
    ranker = made((name, {}), data, length=length)

    bundle = exported(ranker, table_of("dense", data), data, tmp_path / "bundle")

    assert bundle.manifest.session.length == length
    assert evaluate(bundle, data.validation, Silent()).quality.rows == len(data.validation)


# --- the proof -------------------------------------------------------------------------------


def test_a_faithful_graph_is_proved(graph: tuple[Any, Path]) -> None:
    """And the proof says how faithful."""
    ranker, path = graph

    off = prove(ranker, path, [drawn(1, length, DIM).numpy()[0] for length in (0, 1, 6)])

    assert 0 < off <= TOLERANCE


@pytest.mark.parametrize("by", [0.1, math.nan])
def test_a_wrong_graph_is_refused(graph: tuple[Any, Path], tmp_path: Path, by: float) -> None:
    """One number of one weight is enough, or one that is none."""
    ranker, right = graph
    path = tmp_path / "model.onnx"
    model = onnx.load(right)
    # Not the largest: that is of ages which no short session has.
    weight = next(w for w in model.graph.initializer if w.name.endswith("query.weight"))
    values = numpy_helper.to_array(weight).copy()
    values.reshape(-1)[0] += by
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)

    with pytest.raises(SessionExportError, match=r"differs from torch by .* no bundle was sealed"):
        prove(ranker, path, [drawn(1, 4, DIM).numpy()[0]])


def test_no_bundle_is_sealed_of_a_wrong_graph(
    data: SessionData, graph: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands in the folder is none, and a run again starts it afresh."""
    other, _ = made(TRAINED[0], data, seed=9), graph
    raw = graph[1].read_bytes()
    monkeypatch.setattr(exporting, "write_graph", lambda _, path, __: path.write_bytes(raw))

    with pytest.raises(SessionExportError):
        exported(other, table_of("dense", data), data, tmp_path / "bundle", weights="float32")

    assert not (tmp_path / "bundle" / "manifest.json").exists()


# --- the bundle ------------------------------------------------------------------------------


def naive_scores(bundle: Bundle, request: dict[str, Any]) -> list[float]:
    """From the opened files, by the definition of the score, candidate by candidate."""
    held = bundle.session_table()
    row = {name: place for place, name in enumerate(held.ids)}
    session = [row[name] for name in request["session_items"]]
    vectors = np.zeros((1, len(session), bundle.manifest.session.dim), np.float32)
    if held.vectors is not None and session:
        vectors[0] = held.vectors.vectors(np.array(session, np.intp))
    ways = SessionGraph(bundle.path(bundle.manifest.graph)).run(vectors)
    scores = []
    for name in request["candidates"]["ids"]:
        mass, here = 0.0, row[name]
        if "query" in ways:
            vector = held.vectors.vectors(np.array([here], np.intp))[0]
            mass += math.exp(float(ways["query"][0].astype(np.float64) @ vector))
        for place, own in enumerate(session):
            if "repeat" in ways and own == here:
                mass += math.exp(float(ways["repeat"][0, place]))
            if "follow" in ways:
                after, share = held.neighbours.of(own)
                found = dict(zip(after.tolist(), share.tolist(), strict=True))
                mass += math.exp(float(ways["follow"][0, place])) * found.get(here, 0.0)
        scores.append(max(math.log(mass), UNREACHED) if mass else UNREACHED)
    return scores


KINDS = [
    *((case, "rq") for case in TRAINED),
    (TRAINED[0], "dense"),
    *((case, "none") for case in FLOORS),
]
kinds = pytest.mark.parametrize(
    ("case", "kind"),
    [
        pytest.param(
            case,
            kind,
            id=f"{label(case)}-{kind}",
            marks=[pytest.mark.slow] if place else [],
        )
        for place, (case, kind) in enumerate(KINDS)
    ],
)


@kinds
def test_golden_requests_reproduce_from_the_files(bundles: Any, case: Case, kind: str) -> None:
    """All that serving needs is in the bundle, and gives what torch gave."""
    bundle = open_bundle(bundles(case, kind)[1].root)

    golden = bundle.golden()

    assert len(golden) == 5
    for one in golden:
        assert one.scores == pytest.approx(naive_scores(bundle, one.request), abs=1e-4)


@kinds
def test_golden_requests_are_of_every_sort(
    bundles: Any, data: SessionData, case: Case, kind: str
) -> None:
    """An empty session, then real ones; their latest items and others are candidates."""
    ranker, bundle = bundles(case, kind)
    known = set(data.train.ids)

    sessions = [one.request["session_items"] for one in bundle.golden()]
    candidates = [one.request["candidates"]["ids"] for one in bundle.golden()]

    assert sessions[0] == []
    assert all(sessions[1:])
    for session, listed in zip(sessions, candidates, strict=True):
        assert len(session) <= ranker.config.length
        assert len(listed) == len(set(listed)) == 12
        assert set(session[-5:]) <= set(listed) <= known
        assert not set(listed) <= set(session)


@kinds
def test_the_manifest_tells_what_there_is(bundles: Any, data: SessionData, case: Case, kind: str):
    """Ways, widths and lengths; all files are listed, and open verified."""
    ranker, bundle = bundles(case, kind)
    spec = open_bundle(bundle.root).manifest

    outputs = [output.name for output in spec.outputs]
    graph = SessionGraph(bundle.path(spec.graph))
    assert outputs == graph.names
    assert ("query" in outputs) == (spec.session.vectors is not None) == ranker.USES_VECTORS
    assert ("follow" in outputs) == (spec.session.neighbours is not None)
    session = spec.session
    assert (session.items, session.length, session.dim) == (
        data.train.items,
        ranker.config.length,
        ranker.config.dim,
    )
    assert json.loads((bundle.root / session.ids).read_text()) == list(data.train.ids)
    on_disk = {
        path.relative_to(bundle.root).as_posix()
        for path in bundle.root.rglob("*")
        if path.is_file()
    }
    assert on_disk - {entry.path for entry in spec.files} == {"manifest.json", "SHA256SUMS"}


@pytest.mark.parametrize("kind", ["rq", pytest.param("dense", marks=pytest.mark.slow)])
def test_item_vectors_come_back_from_the_files(bundles: Any, data: SessionData, kind: str) -> None:
    """As they were exported, to the last bit."""
    table = table_of(kind, data)

    found = open_bundle(bundles(TRAINED[0], kind)[1].root).session_table().vectors

    rows = np.arange(len(table))
    assert np.array_equal(found.vectors(rows), table.vectors(rows))


def test_a_golden_file_has_room_for_the_sessions_items(bundles: Any, data: SessionData) -> None:
    """Even where the candidates are fewer than they: the latest come first."""
    ranker, _ = bundles(TRAINED[0], "rq")
    options = SessionExport(golden_requests=9, golden_candidates=3)

    cases = exporting.golden_cases(
        ranker, table_of("rq", data), data.train.ids, data.validation, options
    )

    assert len(cases) == 9
    for case in cases[1:]:
        own = dict.fromkeys(case["request"]["session_items"][::-1][:5])
        listed = case["request"]["candidates"]["ids"]
        assert len(listed) == 3
        assert set([*own][:3]) <= set(listed)


def test_only_the_newest_items_are_scored_by(data: SessionData) -> None:
    """What is older than the length is as if it had not been."""
    ranker, table = made(TRAINED[0], data, length=4), table_of("dense", data)
    every = np.arange(data.train.items)
    session = np.array([7, 8, 1, 2, 3, 4], np.int32)

    long, short = (torch_scores(ranker, table, s, every) for s in (session, session[-4:]))

    assert np.array_equal(long, short)
    assert not np.array_equal(long, torch_scores(ranker, table, session[-3:], every))
