"""A run ends in two published bundles, whatever stops it on the way."""

import hashlib
import shutil
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress import int8, pipeline
from compress import plan as plan_module
from compress.card import judge
from compress.config import ConfigError, GateConfig, RunConfig, load
from compress.curves import MOST_BYTES, read_curves
from compress.data.encode import Dataset
from compress.data.folders import FolderError, alone
from compress.evaluate import evaluate
from compress.pipeline import Outcome, pricing_of, run, site_of, untrained
from compress.plan import Site, dense_folder, latency_file, resolve, run_folder
from compress.progress import Silent
from model_store.bundle import open_bundle
from model_store.manifest import Quality, SeedResult
from model_store.store import open_store
from tests.compress.tiny import config_file

Configured = Callable[..., RunConfig]


def configured(folder: Path, *overrides: str) -> RunConfig:
    """The config as loaded."""
    return load(config_file(folder), overrides)


def folders_of(outcome: Outcome) -> dict[str, Path]:
    """The published bundles' folders."""
    return {kind: outcome.folder / "seed-1" / kind for kind in ("dense", "slim")}


@pytest.fixture(scope="module")
def place(tiny_place: Path) -> Path:
    """Where that run went."""
    return tiny_place


@pytest.fixture(scope="module")
def outcome(tiny_run: Outcome) -> Outcome:
    """A whole run over two seeds."""
    return tiny_run


def shared_by(place: Path) -> Path:
    """Where the one dense ranker of the runs under ``place`` lies."""
    (found,) = (place / "runs" / "tiny").glob("dense-*")
    return found


def sums(folder: Path) -> dict[str, str]:
    """Digests of a bundle's files, without those that tell the time."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in {"manifest.json", "SHA256SUMS"}
    }


@pytest.fixture
def here(outcome: Outcome, place: Path, tmp_path: Path) -> Path:
    """A copy of where the module's run went: what a test does there, no other test sees."""
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    return tmp_path


class Stop(Exception):
    """What the tests below pull the plug with."""


class Stages(Silent):
    """Notes the stages of a run, and pulls the plug in one of them."""

    def __init__(self, stop_in: str = "") -> None:
        self.seen: list[str] = []
        self._stop_in = stop_in

    def step(self, stage: str, done: int, total: int | None, **numbers: float) -> None:
        """Noted; the plug is pulled when the stage begins."""
        self.seen.append(stage)
        if stage == self._stop_in:
            raise Stop


def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the start of a process for every evaluation."""
    monkeypatch.setattr(pipeline, "apart", lambda _, function, *args: function(*args))


def quality(auc: float, logloss: float) -> Quality:
    """Metrics of a thousand rows."""
    return Quality(auc=auc, logloss=logloss, accuracy=0.5, rows=1000)


def test_every_section_is_checked_before_any_work(tmp_path: Path):
    """All sections' faults come at once, and nothing has been written."""
    config = configured(tmp_path, "data.row=5", "ranker.type=dlmr", "method.budgets.flops=0.1")

    with pytest.raises(ConfigError) as caught:
        resolve(config)

    said = str(caught.value)
    assert "data: row: unknown key; did you mean 'rows'?" in said
    assert "ranker.type: unknown 'dlmr'; did you mean 'dlrm'?" in said
    assert "method: budgets: unknown key; did you mean 'budget'?" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("publish.alias=a/b", "publish.alias: 'a/b' is not an alias"),
        ("publish.alias='5'", "publish.alias: '5' is not an alias"),
        ("publish.alias=dense", "publish.alias: 'dense' names a bundle of every run"),
        ("publish.alias=slim", "publish.alias: 'slim' names a bundle of every run"),
        ("publish.store=''", "publish.store: '' is no store"),
        ("publish.store=s4://x", "publish.store: s4://x: Protocol not known: s4"),
    ],
)
def test_what_the_store_would_refuse_is_refused_first(tmp_path: Path, override: str, said: str):
    """Not after hours of training, with half of it published. Nothing is made."""
    with pytest.raises(ConfigError) as caught:
        resolve(configured(tmp_path, override))

    assert said in str(caught.value)
    assert [child.name for child in tmp_path.iterdir()] == ["tiny.toml"]


def test_a_store_is_looked_at_without_being_made(tmp_path: Path):
    """Checking a config leaves no trace."""
    resolve(configured(tmp_path))

    assert [child.name for child in tmp_path.iterdir()] == ["tiny.toml"]


def test_another_release_of_a_tool_starts_afresh(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
):
    """A card tells one set of versions, so results of two may not meet under it."""
    plan = resolve(configured(tmp_path))
    folder = run_folder(plan, dataset)
    monkeypatch.setattr(plan_module, "tools", lambda: {"torch": "99"})

    assert run_folder(plan, dataset) != folder


@pytest.mark.parametrize(
    ("override", "shared"),
    [
        ("method.budget.flops=0.4", True),
        ("method={type = 'none'}", True),
        ("finetune.epochs=2", True),
        ("seeds=[3]", True),
        ("gate.max_auc_loss=0.5", True),
        ("train.epochs=3", False),
        ("ranker.dim=8", False),
        ("export.golden_requests=3", False),
    ],
)
def test_what_makes_no_dense_ranker_does_not_part_them(
    tmp_path: Path, dataset: Dataset, override: str, shared: bool
):
    """Runs that only compress in another way have their dense rankers in common."""
    ours, theirs = (resolve(configured(tmp_path, *each)) for each in ((), (override,)))

    assert (dense_folder(ours, dataset) == dense_folder(theirs, dataset)) is shared


@pytest.mark.parametrize(
    ("table", "file"),
    [
        ("{type = 'float32'}", "times.json"),
        ("{type = 'int4'}", "times-int4.json"),
        ("{type = 'pq'}", "times-int8.json"),
        ("{type = 'pq', rest = 'float32'}", "times.json"),
    ],
)
def test_times_are_kept_apart_by_how_tables_look_rows_up(
    tmp_path: Path, dataset: Dataset, table: str, file: str
):
    """What was timed of one form tells no budget of another."""
    plan = resolve(configured(tmp_path, f"table={table}"))

    assert latency_file(Site(plan, dataset, tmp_path, tmp_path, Silent())) == tmp_path / file


def test_the_gate_judges_the_mean_over_seeds():
    """One bad seed is no reason to refuse, a bad mean is."""
    results = [
        SeedResult(seed=1, dense=quality(0.70, 0.5), slim=quality(0.69, 0.5)),
        SeedResult(seed=2, dense=quality(0.70, 0.5), slim=quality(0.70, 0.52)),
    ]

    verdict = judge(GateConfig(max_auc_loss=0.005, max_logloss_rise=0.02), results)

    assert verdict.auc_loss == pytest.approx(0.005)
    assert verdict.logloss_rise == pytest.approx(0.01)
    assert not judge(GateConfig(max_auc_loss=0.004), results).holds
    assert not judge(GateConfig(max_logloss_rise=0.009), results).holds


@pytest.mark.slow
def test_dense_and_slim_are_published_under_one_card(outcome: Outcome, place: Path):
    """Two versions of one name, aliases by kind, and the public alias on slim."""
    store = open_store(str(place / "store"))
    bundles = {kind: store.open(f"tiny@{kind}").bundle for kind in ("dense", "slim")}

    assert outcome.versions == {"dense": "1", "slim": "2"}
    assert store.aliases("tiny") == {"dense": "1", "slim": "2", "prod": "2"}
    assert bundles["dense"].manifest.card == bundles["slim"].manifest.card == outcome.card


@pytest.mark.slow
def test_the_cards_quality_is_what_evaluate_says(outcome: Outcome, place: Path):
    """Every published metric can be had again from a bundle and the test rows that are kept."""
    shared = shared_by(place)
    for result in outcome.card.results:
        for kind, folder in (("dense", shared), ("slim", outcome.folder)):
            bundle = open_bundle(folder / f"seed-{result.seed}" / kind)
            found = evaluate(bundle, shared / "test.parquet", skip_bad=False, progress=Silent())
            assert found.quality == getattr(result, kind)


@pytest.mark.slow
def test_the_card_tells_the_bytes_on_disk(outcome: Outcome):
    """Its own manifest's bytes are among them."""
    for kind, folder in folders_of(outcome).items():
        files = [path for path in folder.rglob("*") if path.is_file()]
        told = getattr(outcome.card, kind).bytes
        assert sum(told.values()) == sum(path.stat().st_size for path in files)


@pytest.mark.slow
def test_bytes_are_told_with_the_card_that_comes(outcome: Outcome, place: Path):
    """Before a run has one: what its dense bundle takes in the end, the room for curves apart."""
    site = site_of(resolve(configured(place)), Silent())
    curves = (outcome.folder / "seed-1" / "dense" / "history.json.gz").stat().st_size

    told = pricing_of(site, untrained(site, 0)).dense_bytes() - (MOST_BYTES - curves)

    taken = sum(outcome.card.dense.bytes.values())
    assert taken <= told <= taken + 200


def told_smallest(place: Path, *overrides: str) -> dict[str, Any]:
    """What a run says could be asked for, by section."""
    with pytest.raises(ConfigError, match="the smallest that can be:") as refused:
        run(resolve(configured(place, *overrides)), Silent())
    lines = [
        line.rpartition("the smallest that can be: ")[2] for line in str(refused.value).split("\n")
    ]
    return tomllib.loads("\n".join(lines))


EVERYTHING = 'method={type="magnitude", parts=["fields", "widths", "neurons"], budget={%s}}'


@pytest.mark.slow
def test_what_nothing_can_meet_is_refused_before_anything_is_trained(tmp_path: Path):
    """Of the ranker and of its tiers at once, by the keys that have to be changed."""
    found = told_smallest(
        tmp_path,
        EVERYTHING % 'bytes="10B", flops=1e-6',
        'tiers=[{name="less", budget={bytes="9B"}}, {name="more", budget={flops=0.4}}]',
    )

    assert found["method"]["budget"].keys() == {"bytes", "flops"}
    assert found["tiers"].keys() == {"less"}
    assert not list((tmp_path / "runs" / "tiny").glob("dense-*/seed-*"))
    assert not list((tmp_path / "runs" / "tiny").glob("*/seed-*"))


@pytest.mark.slow
def test_the_smallest_bytes_that_are_told_are_met_and_hardly_less_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """On disk, with the card and the curves: of a bundle that is hardly more than these."""
    in_this_process(monkeypatch)
    told = told_smallest(tmp_path, "seeds=[1]", EVERYTHING % 'bytes="1B"')
    (size,) = told["method"]["budget"].values()

    made = run(resolve(configured(tmp_path, "seeds=[1]", EVERYTHING % f'bytes="{size}"')), Silent())

    taken, asked = sum(made.card.slim.bytes.values()), int(size.removesuffix("B"))
    assert 0.9 * asked <= taken <= asked
    less = EVERYTHING % f'bytes="{round(0.98 * asked)}B"'
    assert told_smallest(tmp_path, "seeds=[1]", less) == told


@pytest.mark.slow
def test_the_card_tells_what_was_achieved(outcome: Outcome):
    """Counted on the slim ranker: no more than the budget, fewer fields or neurons than before."""
    card = outcome.card

    assert card.requested["all"] == 0.5
    assert card.achieved["all"] <= 0.5
    assert card.slim.flops < card.dense.flops
    for kind, folder in folders_of(outcome).items():
        assert open_bundle(folder).manifest.flops == getattr(card, kind).flops
    assert card.dense.us_per_request is not None
    assert set(card.tools) >= {"torch", "onnxruntime", "python"}
    assert len(card.data_hash) == 64


@pytest.mark.slow
def test_the_same_command_again_does_nothing_again(outcome: Outcome, place: Path):
    """Finished stages are found, no version is published twice, no byte changes."""
    again = run(resolve(configured(place)), Silent())

    assert again == outcome
    assert len(open_store(str(place / "store")).list()) == 2


@pytest.mark.slow
def test_another_method_shares_the_dense_rankers(
    outcome: Outcome, here: Path, monkeypatch: pytest.MonkeyPatch
):
    """They are neither trained nor exported nor judged again, and no byte of theirs changes."""
    in_this_process(monkeypatch)
    shared, stages = shared_by(here), Stages()
    before = {path: path.stat().st_mtime_ns for path in shared.rglob("[!.]*") if path.is_file()}

    other = run(resolve(configured(here, "method={type = 'none'}", "seeds=[1]")), stages)

    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "seed 1: train" not in stages.seen
    assert other.folder != outcome.folder
    assert other.card.results[0].dense == outcome.card.results[0].dense
    assert other.card.results[0].slim != outcome.card.results[0].slim
    assert open_bundle(other.folder / "seed-1" / "dense").manifest.card == other.card


def test_what_was_kept_can_be_trained_from_nothing(
    outcome: Outcome, here: Path, monkeypatch: pytest.MonkeyPatch
):
    """The same fields and widths with other weights; a run without has the folder it had."""
    in_this_process(monkeypatch)
    stages = Stages()
    words = ("retrain.distill.weight=0.5", "seeds=[1]")

    other = run(resolve(configured(here, *words)), stages)

    assert "seed 1: retrain" in stages.seen
    assert other.folder != outcome.folder
    assert (other.card.widths, other.card.kept_features) == (
        outcome.card.widths, outcome.card.kept_features,
    )  # fmt: skip
    assert other.card.results[0].dense == outcome.card.results[0].dense
    assert other.card.results[0].slim != outcome.card.results[0].slim
    assert read_curves(other.folder / "seed-1" / "slim" / "history.json.gz")["retrain"]


@pytest.mark.slow
def test_a_finished_run_is_quantized_without_training(
    outcome: Outcome, here: Path, monkeypatch: pytest.MonkeyPatch
):
    """In a folder of its own: what it was made of stays, and again is found done."""
    in_this_process(monkeypatch)
    monkeypatch.setattr(int8, "LEAST_INPUTS", 4)  # the tiny ranker's layers are narrow
    bounds = ("quantize.max_logloss_rise=1", "quantize.max_auc_loss=1")
    plan, stages = resolve(configured(here, "quantize.numerics=int8-static", *bounds)), Stages()
    fp32 = here / outcome.folder.relative_to(outcome.folder.parents[2])
    before = sums(fp32 / "seed-1")

    found = run(plan, stages)

    dense, slim = (open_bundle(folder).manifest for folder in folders_of(found).values())
    assert {stage.partition(": ")[2] for stage in stages.seen if "seed" in stage} == {"quantize"}
    assert (dense.numerics, slim.numerics) == ("fp32", "int8-static")
    assert dense.card == slim.card == found.card
    assert found.card.quantization is not None
    assert found.card.quantization.chosen == "int8-static"
    assert found.card.results[0].dense == outcome.card.results[0].dense
    assert found.card.results[0].slim != outcome.card.results[0].slim
    assert "int8-static of seed 1" in found.card.notes[-1]
    assert sums(fp32 / "seed-1") == before
    assert run(plan, Silent()) == found


@pytest.mark.slow
def test_what_stays_fp32_keeps_its_quality_and_says_why(
    outcome: Outcome, here: Path, monkeypatch: pytest.MonkeyPatch
):
    """Nothing is evaluated again."""
    monkeypatch.setattr(pipeline, "evaluate_apart", None)
    monkeypatch.setattr(int8, "LEAST_INPUTS", 10_000)

    found = run(resolve(configured(here, "quantize.numerics=auto")), Silent())

    assert found.card.results == outcome.card.results
    assert found.card.quantization is not None
    assert found.card.quantization.reason.startswith("kept fp32: no layer of the candidates")


@pytest.mark.slow
def test_the_runs_own_dense_bundle_is_the_shared_one(outcome: Outcome, place: Path):
    """But for its card, and the curves, which are those of the slim one beside it."""
    own, shared, slim = (
        sums(folder / "seed-1" / kind)
        for folder, kind in (
            (outcome.folder, "dense"),
            (shared_by(place), "dense"),
            (outcome.folder, "slim"),
        )
    )

    assert own.pop("history.json.gz") == slim["history.json.gz"]
    assert shared.pop("history.json")
    assert own == shared
    assert own["model.onnx"] != slim["model.onnx"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "kept_as"),
    [
        ({"type": "int4"}, "int4"),
        (
            {"type": "pq", "cut": 2, "words": 8, "min_rows": 8, "rest": "int8", "frequency": 1.0},
            "codes",
        ),
    ],
    ids=str,
)
def test_tables_ship_as_the_config_says(
    outcome: Outcome,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    table: dict[str, Any],
    kept_as: str,
):
    """The slim graph's alone; the dense ranker is the one that other runs trained."""
    in_this_process(monkeypatch)
    stages = Stages()

    options = [f"table.{key}={value}" for key, value in table.items()]
    other = run(resolve(configured(here, *options, "seeds=[1]")), stages)

    assert "seed 1: train" not in stages.seen
    before, after = outcome.card.slim.bytes, other.card.slim.bytes
    tables = outcome.card.dense.bytes["embedding tables"]
    assert other.card.dense.bytes["embedding tables"] == tables
    assert after["embedding tables"] < 0.5 * before["embedding tables"]
    assert after["mlp"] < before["mlp"] + 200
    assert other.card.config["table"] == table
    for kind, numerics in (("dense", "fp32"), ("slim", f"fp32 (tables kept in {kept_as})")):
        bundle = open_bundle(other.folder / "seed-1" / kind)
        assert bundle.manifest.numerics == numerics


@pytest.mark.slow
def test_a_finished_seed_keeps_no_checkpoint_of_its_own(outcome: Outcome, place: Path):
    """They are several times as large as what came of them; the dense ones serve other runs."""
    assert not list(outcome.folder.rglob("*.ckpt"))
    assert len(list(shared_by(place).rglob("dense.ckpt"))) == 2


@pytest.mark.slow
def test_two_runs_do_not_work_in_one_folder(outcome: Outcome, place: Path):
    """The second is refused, and touches nothing."""
    with alone(outcome.folder), pytest.raises(FolderError, match="another run works in"):
        run(resolve(configured(place)), Silent())


@pytest.mark.slow
def test_the_card_tells_the_config_of_its_own_run(outcome: Outcome, place: Path, tmp_path: Path):
    """Another gate over the same rankers stands on their card; what was measured stays."""
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)

    again = run(resolve(configured(tmp_path, "gate.max_auc_loss=0.7")), Silent())

    assert again.card.config["gate"]["max_auc_loss"] == 0.7
    assert again.card.results == outcome.card.results
    # But for the bytes of the card itself.
    assert again.card.achieved == pytest.approx(outcome.card.achieved, rel=1e-2)
    assert again.card.achieved["speedup"] == outcome.card.achieved["speedup"]


@pytest.mark.slow
def test_a_gate_that_does_not_hold_publishes_nothing(outcome: Outcome, place: Path, tmp_path: Path):
    """Gate and store are no part of a run's key: the trained rankers are judged anew."""
    store = tmp_path / "other"
    overrides = ["gate.max_auc_loss=-0.5", f"publish.store={store}"]
    command = [sys.executable, "-m", "compress", "run", str(config_file(place))]
    asked = [part for override in overrides for part in ("-o", override)]

    ended = subprocess.run([*command, *asked], capture_output=True, text=True, check=False)

    assert ended.returncode == 3
    assert "not published: AUC lost" in ended.stderr
    assert not store.exists()


def stopped(folder: Path, awaited: str, sent: signal.Signals) -> tuple[int, str]:
    """Start a run in its own process, and stop it once a file is there."""
    command = [sys.executable, "-m", "compress", "run", str(config_file(folder)), "-o", "seeds=[1]"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    waits = threading.Event()
    while not list((folder / "runs").rglob(awaited)) and process.poll() is None:
        waits.wait(0.005)
    process.send_signal(sent)
    said = process.communicate()[0]
    return process.returncode, said


def figures(outcome: Outcome) -> dict[str, Any]:
    """What must not depend on when a run was stopped."""
    return outcome.card.model_dump(include={"results", "kept_features", "widths"})


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_figures(outcome: Outcome, tmp_path: Path):
    """Kill -9 during training costs nothing but time."""
    code, _ = stopped(tmp_path, "dense.ckpt", signal.SIGKILL)
    resumed = run(resolve(configured(tmp_path, "seeds=[1]")), Silent())

    assert code == -signal.SIGKILL
    assert resumed.versions == {"dense": "1", "slim": "2"}
    assert figures(resumed)["results"] == figures(outcome)["results"][:1]
    assert figures(resumed)["widths"] == figures(outcome)["widths"]


@pytest.mark.slow
def test_a_run_stopped_in_every_stage_goes_on_to_the_same_bundles(
    outcome: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """To the last bit of graph and curves."""
    in_this_process(monkeypatch)
    plan = resolve(configured(tmp_path, "seeds=[1]"))
    for stage in ("train", "export and evaluate dense", "fine-tune", "export and evaluate slim"):
        with pytest.raises(Stop):
            run(plan, Stages(stop_in=f"seed 1: {stage}"))

    found = run(plan, Silent())

    for kind, folder in folders_of(outcome).items():
        assert sums(folders_of(found)[kind]) == sums(folder)
    assert found.card.results[0] == outcome.card.results[0]


@pytest.mark.slow
def test_a_dense_bundle_whose_copy_was_cut_off_is_copied_again(outcome: Outcome, here: Path):
    """From the shared one."""
    (here / "runs" / "tiny" / outcome.folder.name / "seed-1" / "dense" / "model.onnx").unlink()

    found = run(resolve(configured(here)), Silent())

    for kind, folder in folders_of(outcome).items():
        assert sums(folders_of(found)[kind]) == sums(folder)


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(tmp_path: Path):
    """One line, no traceback, and the shell's exit code for an interrupt."""
    code, said = stopped(tmp_path, "dense.ckpt", signal.SIGINT)

    assert code == 130
    assert "goes on from the last checkpoint" in said
    assert "Traceback" not in said


def test_a_teacher_of_the_dense_ranker_is_refused(tmp_path: Path) -> None:
    """It has none: the weight would do nothing."""
    with pytest.raises(ConfigError, match=r"train\.distill\.weight: .* \[finetune\] or \[method\]"):
        resolve(configured(tmp_path, "train.distill.weight=0.5"))
