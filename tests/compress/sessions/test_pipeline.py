"""A run of the session line ends in two published bundles, whatever stops it on the way."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from compress.__main__ import app
from compress.config import ConfigError, check, read
from compress.curves import HISTORY_FILE, read_curves
from compress.data.base import BadCell, Tally
from compress.data.folders import FolderError, alone
from compress.progress import Silent
from compress.sessions import pipeline
from compress.sessions.config import SessionGate, SessionRunConfig
from compress.sessions.data import Prefixes
from compress.sessions.evaluate import evaluate_file
from compress.sessions.pipeline import Outcome, passes, run, write_prefixes
from compress.sessions.plan import Plan, resolve, student_key, teacher_key
from model_store.bundle import Bundle, open_bundle
from model_store.codebooks import CodedTable
from model_store.item_vectors import DenseTable
from model_store.manifest import Resources, SessionCard, SessionQuality
from model_store.store import open_store
from tests.compress.conftest import Command
from tests.compress.sessions.bundles import session_bundle
from tests.compress.sessions.students import some_sessions
from tests.compress.sessions.tracing import traced_once

CONFIG = """
task = "session"
name = "tiny"
seeds = [1, 2]
floors = ["own-items"]
[data]
type = "synthetic-sessions"
sessions = 300
items = 60
topics = 6
[ranker]
type = "sasrec"
dim = 16
dropout = 0.1
[train]
lr = 0.03
table_lr = 0.1
epochs = 2
batch_clicks = 128
negatives = 20
[table]
type = "rq"
codes = "2x16"
rounds = 1
[finetune]
lr = 0.01
table_lr = 0.03
epochs = 2
batch_clicks = 128
negatives = 20
[distill]
contrast = 0.2
[export]
golden_requests = 3
golden_candidates = 9
timing_candidates = 20
"""
KINDS = ("dense", "coded")


class Stop(Exception):
    """What the tests below pull the plug with."""


def config_file(folder: Path) -> Path:
    """The config, its run folder and its store inside ``folder``."""
    path = folder / "tiny.toml"
    places = f'runs = "{folder / "runs"}"\npublish.store = "{folder / "store"}"\n'
    path.write_text(places + CONFIG)
    return path


def planned(folder: Path, *overrides: str) -> Plan:
    """The plan of the config."""
    table = read(config_file(folder), overrides)
    return resolve(check(SessionRunConfig, table, where="tiny.toml"))


def bundle_of(outcome: Outcome, seed: int, kind: str) -> Bundle:
    """One of a run's bundles; the dense one as the student's run keeps it, of the first seed."""
    return open_bundle(outcome.folder / f"seed-{seed}" / kind)


def teacher_folder(outcome: Outcome) -> Path:
    """Where the run's teachers lie."""
    (found,) = outcome.folder.parent.glob("teacher-*")
    return found


def sums(folder: Path) -> dict[str, str]:
    """Digests of what must not depend on when a run was stopped: graph, items, golden requests."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.name in {"model.onnx", "golden.json"} or path.parent.name == "items"
    }


@pytest.fixture(scope="module", autouse=True)
def _traced_once() -> Iterator[None]:
    with traced_once():
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the module's one run goes."""
    return tmp_path_factory.mktemp("run")


def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the start of a process for every evaluation."""
    monkeypatch.setattr(pipeline, "apart", lambda _, function, *args: function(*args))


class Stages(Silent):
    """Notes the stages of a run."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def step(self, stage: str, done: int, total: int | None, **numbers: float) -> None:
        """Noted."""
        self.seen.add(stage)


@pytest.fixture(scope="module")
def first_seed(place: Path) -> Outcome:
    """A whole run over one seed; its store is none that the others publish into."""
    with pytest.MonkeyPatch.context() as patch:
        in_this_process(patch)
        return run(planned(place, "seeds=[1]", f"publish.store={place / 'first'}"), Silent())


@pytest.fixture(scope="module")
def second_seed(first_seed: Outcome, place: Path) -> tuple[Outcome, Stages]:
    """The run of the config, which goes on from there, and the stages that were left."""
    stages = Stages()
    with pytest.MonkeyPatch.context() as patch:
        in_this_process(patch)
        return run(planned(place), stages), stages


@pytest.fixture(scope="module")
def outcome(second_seed: tuple[Outcome, Stages]) -> Outcome:
    """A whole run over two seeds."""
    return second_seed[0]


@pytest.fixture
def here(outcome: Outcome, place: Path, tmp_path: Path) -> Path:
    """A copy of where that run went: what a test does there, no other test sees."""
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    return tmp_path


# --- before any work -------------------------------------------------------------------------


def test_every_section_is_checked_before_any_work(tmp_path: Path) -> None:
    """All sections' faults come at once, with the nearest right names; nothing is written."""
    with pytest.raises(ConfigError) as caught:
        planned(
            tmp_path,
            "data.session=5",
            "ranker.type=sasrek",
            "table.code=2x16",
            "floors=['own-items', 'sequential-rule']",
            "publish.alias=coded",
        )

    said = str(caught.value)
    assert "data: session: unknown key; did you mean 'sessions'?" in said
    assert "ranker.type: unknown 'sasrek'; did you mean 'sasrec'?" in said
    assert "table: code: unknown key; did you mean 'codes'?" in said
    assert "floors.1.type: unknown 'sequential-rule'; did you mean 'sequential-rules'?" in said
    assert "publish.alias: 'coded' names a bundle of every run" in said
    assert [child.name for child in tmp_path.iterdir()] == ["tiny.toml"]


def test_a_good_config_leaves_no_trace(tmp_path: Path) -> None:
    """Not even where the store is to be."""
    planned(tmp_path)

    assert [child.name for child in tmp_path.iterdir()] == ["tiny.toml"]


def test_what_has_no_vectors_is_no_ranker_to_compress(tmp_path: Path) -> None:
    """A parameter-free one is a floor."""
    overrides = ["ranker={type='own-items'}"]

    with pytest.raises(ConfigError, match="'own-items' has no item vectors to compress"):
        planned(tmp_path, *overrides)


def test_what_is_trained_is_no_floor(tmp_path: Path) -> None:
    """The choices that are told are the parameter-free ones."""
    with pytest.raises(ConfigError, match=r"floors\.0\.type: unknown 'stamp'.*own-items") as caught:
        planned(tmp_path, "floors=['stamp']")

    assert "sasrec" not in str(caught.value)


def test_a_teacher_is_not_left_as_it_was_drawn(tmp_path: Path) -> None:
    """A rate of nothing is for students, whose encoder is a teacher's."""
    with pytest.raises(ConfigError, match=r"train\.lr: expected over 0"):
        planned(tmp_path, "train.lr=0")


def test_codes_that_do_not_fit_the_items_are_refused_before_training(tmp_path: Path) -> None:
    """The data tells how many there are; nothing else is begun."""
    plan = planned(tmp_path, "table.codes=1x16")

    with pytest.raises(ConfigError, match="16 codes cannot tell 60 items apart"):
        run(plan, Silent())

    assert [child.name for child in tmp_path.iterdir()] == ["tiny.toml"]


def test_a_seed_counts_once(tmp_path: Path) -> None:
    """Twice, it would weigh twice in the means."""
    with pytest.raises(ConfigError, match="a seed stands twice"):
        planned(tmp_path, "seeds=[1, 1]")


@pytest.mark.parametrize(
    ("override", "teacher", "student"),
    [
        ("gate.min_ratio=0.5", True, True),
        ("publish.alias=best", True, True),
        ("seeds=[1, 2, 3]", True, True),
        ("seeds=[2, 1]", False, False),  # its first is the one that epochs are chosen under
        ("table.codes=2x32", True, False),
        ('table={type="pq", codes="2x16"}', True, False),
        ("finetune.lr=0.02", True, False),
        ("distill.soft=0.1", True, False),
        ("train.lr=0.01", False, False),
        ("ranker.dropout=0.2", False, False),
        ("data.seed=3", False, False),
        ("export.weights=float32", False, False),
        ("threads=1", False, False),
    ],
)
def test_results_are_shared_by_what_makes_them(
    tmp_path: Path, override: str, teacher: bool, student: bool
) -> None:
    """A teacher by runs with other tables, a student by runs with another gate or more seeds."""
    plain = planned(tmp_path)
    other = planned(tmp_path, override)

    assert (teacher_key(plain) == teacher_key(other)) == teacher
    assert (student_key(plain) == student_key(other)) == student


def test_another_release_of_a_tool_starts_afresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card tells one set of versions, so results of two may not meet under it."""
    plan = planned(tmp_path)
    keys = teacher_key(plan), student_key(plan)

    monkeypatch.setattr("compress.sessions.plan.tools", lambda: {"torch": "99"})

    assert teacher_key(plan) != keys[0]
    assert student_key(plan) != keys[1]


# --- the parts -------------------------------------------------------------------------------


def test_test_prefixes_are_read_back_as_they_were(tmp_path: Path) -> None:
    """Owners, order and all; an item outside the catalogue takes a name that none has."""
    sessions = some_sessions([0, 1], [2], [3, 0, 1], items=4).recoded(("item0", "unknown", "item3"))
    prefixes = Prefixes(sessions, np.array([2, -1, 0], np.int32), np.array([5, 5, 9]))

    write_prefixes(prefixes, tmp_path / "test.parquet")

    rows = pl.read_parquet(tmp_path / "test.parquet")
    assert rows["session_id"].to_list() == [5, 5, 9]
    assert rows["items"].to_list() == [
        ["item0", "unknown_"],
        ["unknown_"],
        ["item3", "item0", "unknown_"],
    ]
    assert rows["target"].to_list() == ["item3", "unknown_", "item0"]


@pytest.mark.parametrize(
    ("least", "ratio", "holds"),
    [(0.9, 0.9, True), (0.9, 0.89, False), (0.0, None, True), (0.5, None, False)],
)
def test_the_gate_is_a_share_of_the_dense_quality(
    least: float, ratio: float | None, holds: bool
) -> None:
    """Of NDCG@10; where the dense ranker has none to share, no gate but an open one holds."""
    nothing = Resources(flops=0)
    card = SessionCard(
        ranker="sasrec",
        table="rq",
        seed=1,
        dense=nothing,
        coded=nothing,
        achieved={} if ratio is None else {"NDCG@10 ratio": ratio},
    )

    assert passes(SessionGate(min_ratio=least), card) == holds


# --- a whole run -----------------------------------------------------------------------------


@pytest.mark.slow
def test_dense_and_coded_are_published_under_one_card(outcome: Outcome, place: Path) -> None:
    """Two versions of one name, aliases by kind, and the public alias on the coded one."""
    store = open_store(str(place / "store"))
    bundles = {kind: store.open(f"tiny@{kind}").bundle for kind in KINDS}

    assert outcome.holds
    assert outcome.versions == {"dense": "1", "coded": "2"}
    assert store.aliases("tiny") == {"dense": "1", "coded": "2", "prod": "2"}
    assert bundles["dense"].manifest.card == bundles["coded"].manifest.card == outcome.card
    tables = {kind: bundle.session_table().vectors for kind, bundle in bundles.items()}
    assert isinstance(tables["dense"], DenseTable)
    assert isinstance(tables["coded"], CodedTable)
    assert tables["coded"].codes.shape == (bundles["coded"].manifest.session.items, 2)


@pytest.mark.slow
def test_the_cards_quality_is_what_evaluate_says(outcome: Outcome) -> None:
    """Every published figure can be had again from a bundle and the test prefixes beside it."""
    teachers = teacher_folder(outcome)
    test = teachers / "test.parquet"

    for seed, result in zip((1, 2), outcome.card.results, strict=True):
        folders = {
            "dense": teachers / f"seed-{seed}" / "dense",
            "coded": outcome.folder / f"seed-{seed}" / "coded",
        }
        for kind, folder in folders.items():
            found = evaluate_file(open_bundle(folder), test, Silent()).quality
            assert found == getattr(result, kind)
    copy = evaluate_file(bundle_of(outcome, 1, "dense"), test, Silent()).quality
    assert copy == outcome.card.results[0].dense
    floor = evaluate_file(open_bundle(teachers / "floors" / "own-items"), test, Silent()).quality
    assert outcome.card.floors == {"own-items": floor}


@pytest.mark.slow
def test_the_card_tells_what_was_achieved(outcome: Outcome) -> None:
    """Ratios of means over seeds, with intervals; of bytes; of times."""
    card, achieved = outcome.card, outcome.card.achieved

    for metric in ("NDCG@10", "MRR@20", "P@20"):
        dense, coded = (
            np.mean([getattr(result, kind).metrics[metric] for result in card.results])
            for kind in KINDS
        )
        assert achieved[f"{metric} ratio"] == pytest.approx(coded / dense)
        low, high = achieved[f"{metric} ratio, low"], achieved[f"{metric} ratio, high"]
        assert low <= achieved[f"{metric} ratio"] <= high
    assert achieved["table compression"] > 1
    assert achieved["speedup"] == card.dense.us_per_request / card.coded.us_per_request
    assert [result.seed for result in card.results] == [1, 2]
    assert (card.seed, card.ranker, card.table) == (1, "sasrec", "rq")
    assert set(card.tools) >= {"torch", "onnxruntime", "python"}
    assert len(card.data_hash) == 64
    assert card.config["table"]["beam"] > 1  # a default, written out


@pytest.mark.slow
def test_the_card_tells_the_bytes_on_disk(outcome: Outcome) -> None:
    """Its own manifest's bytes are among them."""
    for kind in KINDS:
        folder = bundle_of(outcome, 1, kind).root
        files = [path for path in folder.rglob("*") if path.is_file()]
        told = getattr(outcome.card, kind).bytes
        assert sum(told.values()) == sum(path.stat().st_size for path in files)
    dense, coded = (sum(getattr(outcome.card, kind).bytes.values()) for kind in KINDS)
    assert outcome.card.achieved["bundle compression"] == round(dense / coded, 3)


@pytest.mark.slow
def test_the_runs_figures_lie_in_one_file(outcome: Outcome) -> None:
    """The card's, whether the gate holds, and what was published."""
    figures = json.loads((outcome.folder / "metrics.json").read_text())

    assert SessionCard.model_validate_json(
        json.dumps({k: v for k, v in figures.items() if k in SessionCard.model_fields})
    ) == (outcome.card)
    assert figures["gate_holds"] is True
    assert figures["versions"] == {"dense": "1", "coded": "2"}


@pytest.mark.slow
def test_the_curves_of_the_choice_lie_in_the_bundle(outcome: Outcome) -> None:
    """Epoch by epoch on validation, the first look before any step."""
    told = read_curves(bundle_of(outcome, 1, "coded").root / HISTORY_FILE)

    for part in ("train", "finetune"):
        assert [row["epoch"] for row in told[part]] == [0, 1, 2]
        assert told[part][0]["loss"] is None
        assert all(0 <= (row["ndcg"] or 0) <= 1 for row in told[part])


@pytest.mark.slow
def test_the_same_command_again_does_nothing_again(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finished stages are found, times are not taken anew, no version is published twice."""
    in_this_process(monkeypatch)
    first = run(planned(here), Silent())
    # The copied run lies elsewhere, and its card says so: what it published stays as it was.
    versions = len(open_store(str(here / "store")).list())

    again = run(planned(here), Silent())

    assert again == first
    assert len(open_store(str(here / "store")).list()) == versions


@pytest.mark.slow
def test_two_runs_do_not_work_in_one_folder(outcome: Outcome, place: Path) -> None:
    """The second is refused, and touches nothing."""
    with alone(outcome.folder), pytest.raises(FolderError, match="another run works in"):
        run(planned(place), Silent())


@pytest.mark.slow
def test_another_table_shares_the_teacher(
    outcome: Outcome, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the teacher is trained, exported or judged again; the student is another."""
    in_this_process(monkeypatch)
    stages = Stages()
    (teachers,) = (here / "runs" / "tiny").glob("teacher-*")
    before = {path: path.stat().st_mtime_ns for path in teachers.rglob("*") if path.is_file()}

    other = run(planned(here, "table.codes=2x32", "seeds=[1]"), stages)

    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not [name for name in stages.seen if "teacher" in name or "dense" in name]
    assert other.folder != outcome.folder
    assert other.card.results[0].dense == outcome.card.results[0].dense
    assert other.card.results[0].coded != outcome.card.results[0].coded
    assert bundle_of(other, 1, "coded").session_table().vectors.codebooks.shape[1] == 32


@pytest.mark.slow
def test_one_more_seed_is_run_alone(
    first_seed: Outcome, second_seed: tuple[Outcome, Stages]
) -> None:
    """Those that there are stay, and are counted in."""
    more, stages = second_seed

    assert [result.seed for result in more.card.results] == [1, 2]
    assert more.card.results[:1] == first_seed.card.results
    trained = {name.split(":")[0] for name in stages.seen if "all sessions" in name}
    assert trained == {"seed 2"}


# --- what stops it ---------------------------------------------------------------------------


class StopIn(Silent):
    """Pulls the plug at the n-th report of a stage."""

    def __init__(self, stage: str, times: int) -> None:
        self._stage, self._left = stage, times

    def step(self, stage: str, done: int, total: int | None, **numbers: float) -> None:
        """Raise once the stage has been told of often enough."""
        if stage == self._stage:
            self._left -= 1
            if not self._left:
                raise Stop


def assert_as_uninterrupted(found: Outcome, outcome: Outcome) -> None:
    """The same files and figures of the first seed."""
    for kind in KINDS:
        ours, theirs = (sums(bundle_of(each, 1, kind).root) for each in (found, outcome))
        assert len(theirs) > 3
        assert ours == theirs
    assert found.card.results[0] == outcome.card.results[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "times"),
    [
        ("codes", 1),  # the teacher of the choice trained, its table half compressed
        ("seed 1: student, choose epochs", 2),  # one epoch kept
        ("seed 1: teacher, all sessions", 1),
        ("dense, seed 1: evaluate", 1),  # exported, not judged
        ("seed 1: student, all sessions", 1),
        ("coded, seed 1: evaluate", 2),  # judged, times not taken
    ],
)
def test_a_run_stopped_in_any_stage_goes_on_to_the_same_bundles(
    outcome: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, times: int
) -> None:
    """To the last bit of graph and items."""
    in_this_process(monkeypatch)
    plan = planned(tmp_path, "seeds=[1]", "floors=[]")
    with pytest.raises(Stop):
        run(plan, StopIn(stage, times))

    found = run(plan, Silent())

    assert_as_uninterrupted(found, outcome)
    assert found.versions == {"dense": "1", "coded": "2"}


def failing(function: Callable[..., Any], call: int) -> Callable[..., Any]:
    """A function that pulls the plug at its n-th call."""
    left = call

    def called(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if not left:
            raise Stop
        return function(*args, **kwargs)

    return called


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "call"),
    [
        ("compress.sessions.card.request_us", 1),
        ("compress.stages.seal", 1),
        ("compress.stages.seal", 2),
        ("compress.sessions.pipeline.publish", 1),
    ],
)
def test_a_run_stopped_at_its_end_goes_on_to_the_same_bundles(
    outcome: Outcome, here: Path, monkeypatch: pytest.MonkeyPatch, function: str, call: int
) -> None:
    """While times are taken, between the two seals, before anything is published."""
    in_this_process(monkeypatch)
    plan = planned(here, "table.codes=2x8", "seeds=[1]", f"publish.store={here / 'new'}")
    with monkeypatch.context() as broken:
        broken.setattr(function, failing(resolve_name(function), call))
        with pytest.raises(Stop):
            run(plan, Silent())
    assert not (here / "new").exists()

    found = run(plan, Silent())

    assert found.versions == {"dense": "1", "coded": "2"}
    for kind in KINDS:
        assert bundle_of(found, 1, kind).manifest.card == found.card
    assert sums(bundle_of(found, 1, "dense").root) == sums(bundle_of(outcome, 1, "dense").root)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lost", ["model.onnx", "SHA256SUMS"])
def test_a_bundle_that_was_cut_off_is_made_again(
    outcome: Outcome, here: Path, monkeypatch: pytest.MonkeyPatch, kind: str, lost: str
) -> None:
    """Copied or exported in part, whichever of its files came first."""
    in_this_process(monkeypatch)
    (here / "runs" / "tiny" / outcome.folder.name / "seed-1" / kind / lost).unlink()

    assert_as_uninterrupted(run(planned(here), Silent()), outcome)


# --- commands --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_gate_that_does_not_hold_publishes_nothing(here: Path) -> None:
    """Gate and store are no part of a run's key: what was trained is judged anew."""
    store = here / "other"
    line = [sys.executable, "-m", "compress", "run", config_file(here)]
    asked = ["-o", "gate.min_ratio=9", "-o", f"publish.store={store}"]

    ended = subprocess.run([*line, *asked], capture_output=True, text=True, check=False)

    assert ended.returncode == 3, ended.stderr
    assert "not published: the coded table lost more than [gate] allows" in ended.stderr
    assert not store.exists()


def test_a_mistyped_key_is_one_message_and_exit_code_2(command: Command, tmp_path: Path) -> None:
    """No traceback, and nothing is begun."""
    ended = command("run", config_file(tmp_path), "-o", "table.kodes=2x16")

    assert ended.code == 2
    assert ended.err == "error: table: kodes: unknown key; did you mean 'codes'?\n"
    assert [child.name for child in tmp_path.iterdir()] == ["tiny.toml"]


def test_a_task_that_is_none_is_told(command: Command, tmp_path: Path) -> None:
    """The line is chosen by it."""
    ended = command("run", config_file(tmp_path), "-o", "task=sessions")

    assert ended.code == 2
    assert "task: Input should be 'session'" in ended.err


@pytest.fixture
def judged(tmp_path: Path) -> tuple[Bundle, Path]:
    """A bundle of ten items that needs no training, and prefixes of which one has no item."""
    vectors = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
    ids = tuple(map(str, range(10)))
    bundle = session_bundle(tmp_path / "bundle", ids, vectors=DenseTable(vectors))
    path = tmp_path / "prefixes.parquet"
    columns = {
        "session_id": ["s", "s", "t"],
        "items": [["1"], ["1", "2"], []],
        "target": ["2", "3", "x"],
    }
    pl.DataFrame(columns).write_parquet(path)
    return bundle, path


def test_evaluate_prints_the_quality_of_a_session_ranker(judged: tuple[Bundle, Path]) -> None:
    """As JSON, with what was left out for a bad cell."""
    bundle, path = judged
    tally = Tally()
    expected = evaluate_file(bundle, path, Silent(), tally=tally).quality

    ended = CliRunner().invoke(
        app, ["evaluate", str(bundle.root), "--data", str(path), "--skip-bad"]
    )

    found = json.loads(ended.stdout)
    assert found.pop("skipped") == tally.rows == 1
    assert SessionQuality.model_validate_json(json.dumps(found)) == expected


def test_evaluate_refuses_a_bad_cell_by_name(judged: tuple[Bundle, Path]) -> None:
    """Unless it is told to leave such rows out."""
    bundle, path = judged

    ended = CliRunner().invoke(app, ["evaluate", str(bundle.root), "--data", str(path)])

    assert isinstance(ended.exception, BadCell)
    assert "row 3: column 'items'" in str(ended.exception)


def test_evaluate_finds_a_session_ranker_in_a_store(
    judged: tuple[Bundle, Path], tmp_path: Path
) -> None:
    """By name and alias."""
    bundle, path = judged
    open_store(str(tmp_path / "store")).publish(bundle.root, "tiny")
    words = ["evaluate", "tiny@1", "--store", str(tmp_path / "store"), "--data", str(path)]

    ended = CliRunner().invoke(app, [*words, "--skip-bad"])

    assert json.loads(ended.stdout)["rows"] == 2


@pytest.mark.slow
def test_evaluate_loads_no_torch_for_a_session_ranker(judged: tuple[Bundle, Path]) -> None:
    """What the card says can be checked where nothing can train."""
    bundle, path = judged
    code = (
        "import sys; from compress.__main__ import app; "
        "app(standalone_mode=False); assert 'torch' not in sys.modules"
    )
    words = ["evaluate", str(bundle.root), "--data", str(path), "--skip-bad"]

    ended = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
    )

    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["sessions"] == 1


@pytest.mark.slow
def test_the_command_says_what_the_card_says(outcome: Outcome) -> None:
    """From the published bundle and the prefixes that lie in the run's folder."""
    test = teacher_folder(outcome) / "test.parquet"

    ended = CliRunner().invoke(
        app, ["evaluate", str(bundle_of(outcome, 1, "coded").root), "--data", str(test)]
    )

    assert json.loads(ended.stdout)["metrics"] == outcome.card.results[0].coded.metrics


@pytest.mark.slow
def test_a_student_that_imitates_keeps_its_teachers_encoder(tmp_path: Path) -> None:
    """With lr = 0 the codebooks learn alone; without calibration not even repeats weigh more."""
    plan = planned(
        tmp_path,
        "seeds=[1]",
        "floors=[]",
        "calibrate=false",
        "finetune={lr = 0, table_lr = 0.03, newest = 100, negatives = 0, epochs = 1}",
        "distill={after = 'sessions', soft = 1.0}",
    )
    outcome = run(plan, Silent())

    dense, coded = (sums(bundle_of(outcome, 1, kind).root) for kind in KINDS)
    assert dense["model.onnx"] == coded["model.onnx"]
    assert outcome.card.achieved["boost of repeats, dense"] == 0
    assert outcome.card.achieved["boost of repeats, coded"] == 0


@pytest.mark.slow
def test_repeats_weigh_as_validation_has_it(outcome: Outcome) -> None:
    """Teacher and student each as its own trial said; `export` proves that the graph does so."""
    teachers = teacher_folder(outcome)
    found = {
        "dense": json.loads((teachers / "choice" / "boost.json").read_text()),
        "coded": json.loads((outcome.folder / "choice" / "boost.json").read_text()),
    }
    for kind, boost in found.items():
        assert outcome.card.achieved[f"boost of repeats, {kind}"] == boost
