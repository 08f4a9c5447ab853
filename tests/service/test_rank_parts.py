"""Where a call's time goes: what is asked, and what is told when it cannot be."""

import json
from pathlib import Path

import pytest

from benchmarks import rank_parts
from model_store.store import Store
from service import kernels
from tests.service.sessions import FORMS, World


def test_every_shape_is_measured_and_too_many_candidates_are_told(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The catalogue has five items: of three there is a table a shape, of nine a line."""
    out = tmp_path / "parts.json"
    flags = ["--candidates", "3", "9", "--rounds", "1", "--out", str(out)]

    assert rank_parts.main([store.url, "ctr@prod", *flags]) == 0

    figures = json.loads(out.read_text())
    assert [(each["shape"], each["candidates"]) for each in figures] == [
        ("ids", 3),
        ("rows", 3),
        ("columns", 3),
    ]
    assert all(us > 0 for each in figures for us in each["us"].values())
    assert (
        "ctr@prod is left out: 9 candidates wanted, the bundle knows 5" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("world", "parts"),
    [
        (World(), {"score", "top-k"}),
        pytest.param(
            World(FORMS["8 bits"](), ("query", "repeat")),
            {"score"},
            marks=pytest.mark.skipif(not kernels.COMPILED, reason="numpy takes steps"),
        ),
    ],
    ids=["in steps", "by one loop"],
)
def test_sessions_are_new_to_every_part(
    store: Store, tmp_path: Path, world: World, parts: set[str]
) -> None:
    """Their encoder runs in each: what is remembered would take next to nothing."""
    world.write(tmp_path / "session")
    version = store.publish(tmp_path / "session", "session").version
    out = tmp_path / "parts.json"

    flags = ["--candidates", "2", "--rounds", "1", "--out", str(out)]
    assert rank_parts.main([store.url, f"session@{version}", *flags]) == 0

    (figures,) = json.loads(out.read_text())
    assert (figures["shape"], figures["candidates"]) == ("ids", 2)
    assert figures["us"]["score"] > 0
    assert figures["us"].keys() & {"score", "top-k"} == parts


def test_answers_come_as_most_callers_get_them(store: Store) -> None:
    """By item, as the contract has it where a request says nothing; by column to columns."""
    bundle = store.open("ctr@prod").bundle
    drawn = dict(rank_parts.bodies(bundle, "ctr", 3))

    shapes = {form: {json.loads(body).get("shape") for body in raw} for form, raw in drawn.items()}

    assert shapes == {"ids": {None}, "rows": {None}, "columns": {"columns"}}


@pytest.mark.parametrize("model", ["nobody@prod", "ctr@nobody", "ctr@9", "c t r"])
def test_model_that_the_store_lacks_is_told(
    store: Store, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the store's own words: the service's would be in a log that nobody keeps."""
    assert rank_parts.main([store.url, model]) == rank_parts.UNUSABLE

    said = capsys.readouterr().err
    assert said.startswith("rank_parts: ")
    assert model.partition("@")[0] in said


@pytest.mark.parametrize(
    "flags", [["--rounds", "0"], ["--candidates", "none"], ["--out", "nowhere/parts.json"]]
)
def test_what_makes_no_measurement_is_refused(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is measured, not after it."""
    with pytest.raises(SystemExit, match="2"):
        rank_parts.parse(["store", "ctr@prod", *flags])

    assert "expected" in capsys.readouterr().err
